"""The driver of threads: one for the pump, one for each batch action, and workers that call."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from time import monotonic
from typing import TypeVar

from batchwise.engine.actions import withdraw
from batchwise.engine.adoption import adopt
from batchwise.engine.core import Engine
from batchwise.engine.effects import Procedure, SyncPorts, drive
from batchwise.engine.passes import END_GRACE
from batchwise.engine.queue import Slot
from batchwise.errors import BatchwiseError
from batchwise.planning.capacity import MOST_CALLS

from .pump import Driver
from .reentry import in_background, interrupted, started

__all__ = ["ThreadDriver"]

T = TypeVar("T")
_log = logging.getLogger("batchwise")
_STARTING = "starting a thread"
_NO_THREAD = (
    "the system gives this process no more threads (see ulimit -u); until it does, work is done when batchwise is "
    "called: dispatch, flush, wait, advance or close"
)
_SPARE = 8
"""Workers at most that stand idle while calls wait for the pacing: each looks at the queue when it is told to."""
_LOOK = 2.0
"""Seconds between two looks whether this is a forked child, in which nobody notifies."""


class _Notifier:
    """See `waiters.Notifier`."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._version, self._pid = 0, os.getpid()

    def notify(self) -> None:
        with self._condition:
            self._version += 1
            self._condition.notify_all()

    def version(self) -> int:
        return self._version

    def changed_since(self, seen: int) -> bool:
        return self._version != seen

    def wait(self, seen: int, timeout: float | None) -> None:
        end = None if timeout is None else monotonic() + timeout
        with self._condition:
            # Nobody notifies in a child that the handler of a signal has forked from here.
            while self._version == seen and self._pid == os.getpid():
                left = _LOOK if end is None else min(_LOOK, end - monotonic())
                if left <= 0:
                    return
                self._condition.wait(left)


class ThreadDriver(Driver):
    """Carries out what the planner asks for, in threads started on first need and ended by `close`.

    Args:
        engine: The core.
        ports: The API.
        stopping: Set when the driver ends; naps of the lanes end with it.
        owns_ledger: Whether the ledger is closed at the end.
        close_client: Called at the end; None: the client is the caller's, and stays open.
    """

    def __init__(
        self,
        engine: Engine,
        ports: SyncPorts,
        stopping: threading.Event,
        *,
        owns_ledger: bool,
        close_client: Callable[[], object] | None,
    ) -> None:
        super().__init__(engine, _Notifier, owns_ledger=owns_ledger)
        self._ports, self._stopping, self._close_client = ports, stopping, close_client
        self._pumping: threading.Thread | None = None
        self._workers: set[threading.Thread] = set()
        self._idle = 0
        self._made_within = interrupted()
        """The frame of another dispatcher's work within which this one was made: it may end there."""
        self._first, self._ended = threading.Lock(), threading.Event()
        """Taken for good by the one who ends it; set when it has ended."""

    def wait_for(
        self,
        check: Callable[[], T | None],
        timeout: float | None,
        request: int | None = None,
        held: Callable[[], bool] | None = None,
    ) -> T | None:
        """The first value that `check` gives; None after `timeout` seconds."""
        return drive(self._waiting(check, timeout, request, held), self._ports)

    def cancel(self, *, request: int | None = None, job: int | None = None) -> int:
        """Cancel for the caller; returns how many settled now."""
        settled = drive(withdraw(self.engine, request=request, job=job), self._ports)
        self.wake()
        return settled

    def adopt(self, batch_id: str, keys: Mapping[str, str] | None, job: str | None) -> str:
        """Take in a batch made elsewhere; returns its job's name."""
        name = drive(adopt(self.engine, batch_id, keys, job), self._ports)
        self.wake()
        return name

    def advance(self, gap: timedelta) -> None:
        """Carry out what is due in this thread until nothing is."""
        drive(self._advancing(gap), self._ports)

    def wake(self, due: datetime | None = None) -> None:
        """Have the pump look again: at once, or not later than `due`.

        Where it cannot be started, what is due now is done here; the log and `Progress.last_error` tell of it.
        """
        super().wake(due)
        if self._alone():
            self.engine.setbacks.failed(_STARTING, _STARTING, BatchwiseError(_NO_THREAD))
            while due is None and self._fatal is None and drive(self._round(), self._ports) == 0.0:
                pass

    def _start(self) -> None:
        """Start the pump on first need; where no thread can be had, the next call tries again."""
        if self._pumping is None and not self._over:
            with self._lock:
                if self._pumping is None:
                    self._pumping = self._thread(self._pump, "batchwise-pump")
                    if self._pumping is not None:
                        self.engine.setbacks.mended(_STARTING)

    def _alone(self) -> bool:
        self._start()
        return self._pumping is None and not self._over

    def _start_in_background(self, procedure: Callable[[], Procedure[None]]) -> bool:
        return self._thread(procedure, "batchwise-batch") is not None

    def _thread(self, procedure: Callable[[], Procedure[None]], name: str) -> threading.Thread | None:
        thread = threading.Thread(target=self._drive, args=(procedure,), name=name, daemon=True)
        return thread if started(thread) else None

    def _drive(self, procedure: Callable[[], Procedure[None]]) -> None:
        drive(procedure(), self._ports)

    # -- the sync lane ----------------------------------------------------------------------------------------------

    def _changed_by_others(self) -> None:
        self._waiters.notify_all()

    def call(self) -> bool:
        """See to it that somebody takes up what the call queue holds; False: there is nobody."""
        waiting = self.engine.queue.waiting
        if not waiting:
            return True
        with self._lock:
            need = min(waiting, _SPARE) - self._idle
            need = min(need, MOST_CALLS - len(self._workers))
            for _ in range(max(0, need)):
                worker = threading.Thread(target=self._work, name="batchwise-call", daemon=True)
                if not started(worker):
                    break
                self._workers.add(worker)  # it takes nothing up before the lock is free
                self._idle += 1
            anybody = bool(self._workers)
        self._work_notifier.notify()
        return anybody

    def _work(self) -> None:
        try:
            while not self._over:
                seen = self._work_notifier.version()
                with self._lock:  # in one step: `call` counts on whoever is idle for what still waits
                    got = self.engine.sync_lane.next_call()
                    if isinstance(got, Slot):
                        self._idle -= 1
                if isinstance(got, Slot):
                    self._call_more()
                    try:
                        drive(self._call(got), self._ports)
                    finally:
                        with self._lock:
                            self._idle += 1
                    continue
                before = monotonic()
                self._work_notifier.wait(seen, 10.0 if got is None else got)
                if got is None and monotonic() - before >= 10.0 and self._leave():
                    return
        finally:
            self._leave(at_once=True)

    def _call_more(self) -> None:
        """One who takes up a call sees to it that the next one finds somebody, too."""
        if self.engine.queue.waiting and not self._idle and not self._over:
            self.call()

    def _leave(self, *, at_once: bool = False) -> bool:
        """Whether this worker may end. Decided under the lock: `call` counts on whoever is idle."""
        me = threading.current_thread()
        with self._lock:
            if self.engine.queue.waiting and not at_once:
                return False
            if me in self._workers:
                self._idle -= 1
                self._workers.discard(me)
            return True

    # -- the end ----------------------------------------------------------------------------------------------------

    def close(self, *, finish: bool, spare_calls: bool = False) -> None:
        """End; whoever is not the first waits for the end.

        Called in the middle of batchwise's own work (by the handler of a signal), it returns at once: that work has to
        go on before this can end. Another thread ends it.

        Args:
            finish: Only after what is queued for a batch was sent and the sync calls have ended.
            spare_calls: Let calls that run end: they are paid for.
        """
        if self.forked or self._ended.is_set():
            return
        first = self._first.acquire(blocking=False)
        if first:
            self._begin_end()
        within = interrupted()
        if within is None or within is self._made_within:
            if first:
                self._end(finish=finish, spare_calls=spare_calls)
            else:
                self._ended.wait()
        elif first:
            self._end_in_background(finish=finish, spare_calls=spare_calls)

    def _end_in_background(self, *, finish: bool, spare_calls: bool) -> None:
        try:
            in_background(partial(self._end_logged, finish=finish, spare_calls=spare_calls))
        except RuntimeError:
            self._first.release()  # whoever closes it next does it himself
            raise

    def _end_logged(self, *, finish: bool, spare_calls: bool) -> None:
        try:
            self._end(finish=finish, spare_calls=spare_calls)
        except Exception:  # noqa: BLE001  # nobody is there to be told
            _log.exception("batchwise: a dispatcher could not be closed in order; a later process clears up")

    def _abandon(self) -> None:
        if self._first.acquire(blocking=False):
            with suppress(RuntimeError):  # no thread can be had: it works on
                self._end_in_background(finish=False, spare_calls=True)

    def _end(self, *, finish: bool, spare_calls: bool) -> None:
        wait = finish
        self.engine.setbacks.mended(_STARTING)  # what could not be done beside is done here
        try:
            if finish and self._fatal is None:
                drive(self._repeating_to_the_end(self._drain()), self._ports)
            elif spare_calls:
                drive(self._repeating_to_the_end(self._let_calls_end()), self._ports)
        except BatchwiseError:
            wait = False  # for what could not be ended there is no use in waiting
            raise
        finally:
            try:
                self._stop(wait=wait)
            finally:
                self._made_within = None  # a frame holds all that its function knows
                self._ended.set()

    def _stop(self, *, wait: bool) -> None:
        self._closed = self._over = True
        self._stopping.set()
        self._ending.notify()
        self._pump_notifier.notify()
        self._work_notifier.notify()
        self._waiters.notify_all()
        threads = [*self._workers, *([self._pumping] if self._pumping else [])]
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(timeout=None if wait else 0.2)
        self._await_end(lambda: len(self._acting), 60.0 if wait else 0.2)
        self._await_end(lambda: self.engine.queue.storing, END_GRACE)  # answers that came are paid for
        try:
            self._close_ledger()
        finally:
            if self._close_client is not None:
                self._close_client()

    def _await_end(self, going_on: Callable[[], int], seconds: float) -> None:
        """Wait until nothing of it goes on, so many seconds at most."""
        end = monotonic() + seconds
        while going_on() and monotonic() < end:
            self._waiters.news.wait(self._waiters.news.version(), 0.01)
