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
from batchwise.engine.effects import Procedure, drive
from batchwise.engine.ports import SyncPorts
from batchwise.engine.queue import Slot
from batchwise.errors import BatchwiseError

from .driver import Driver
from .reentry import in_background, interrupted, started
from .workers import Workers

__all__ = ["ThreadDriver"]

T = TypeVar("T")
_log = logging.getLogger("batchwise")
_STARTING = "starting a thread"
_NO_THREAD = (
    "the system gives this process no more threads (see ulimit -u); until it does, batchwise works only while it is "
    "called: dispatch, flush, wait, advance or close"
)
_LOOK = 2.0
"""Seconds between two looks whether this is a forked child, in which no thread notifies."""


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
            # In a child that a signal's handler has forked from here, no thread notifies.
            while self._version == seen and self._pid == os.getpid():
                left = _LOOK if end is None else min(_LOOK, end - monotonic())
                if left <= 0:
                    return
                self._condition.wait(left)


class ThreadDriver(Driver):
    """Carries out the planner's actions, in threads that are started on first need and ended by `close`.

    Args:
        engine: The core.
        ports: The API.
        stopping: Set when the driver ends; it ends the pauses of API calls.
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
        self._workers = Workers(engine, self.life, self.notifiers.work, self._run_call)
        self._pumping: threading.Thread | None = None
        self._starting = threading.Lock()
        """Held while the pump is started."""
        self._made_within = interrupted()
        """The frame of another dispatcher's work within which this one was made: it may be closed there."""
        self._first, self._ended = threading.Lock(), threading.Event()
        """The lock is taken for good by the first caller of `close`; the event is set when it is closed."""

    def wait_for(
        self,
        check: Callable[[], T | None],
        timeout: float | None,
        request: int | None = None,
        held: Callable[[], bool] | None = None,
    ) -> T | None:
        """Return the first value that `check` gives; None after `timeout` seconds."""
        return drive(self._waiting.until(check, timeout, request, held), self._ports)

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
        """Carry out actions in this thread until none is due."""
        drive(self._advancing.advance(gap), self._ports)

    def wake(self, due: datetime | None = None) -> None:
        """Have the pump look again: at once, or not later than `due`.

        If the pump cannot be started, due actions are carried out here; the log and `Progress.last_error` say so.
        """
        super().wake(due)
        if self._is_alone():
            self.engine.setbacks.failed(_STARTING, _STARTING, BatchwiseError(_NO_THREAD))
            while due is None and not self.life.failed and drive(self._pump.look(), self._ports) == 0.0:
                pass

    def _start(self) -> None:
        """Start the pump on first need; if no thread can be started, the next call tries again."""
        if self._pumping is None and not self.life.stopped:
            with self._starting:
                if self._pumping is None:
                    self._pumping = self._thread(self._pump.run, "batchwise-pump")
                    if self._pumping is not None:
                        self.engine.setbacks.resolved(_STARTING)

    def _is_alone(self) -> bool:
        self._start()
        return self._pumping is None and not self.life.stopped

    def _start_in_background(self, procedure: Callable[[], Procedure[None]]) -> bool:
        return self._thread(procedure, "batchwise-batch") is not None

    def _thread(self, procedure: Callable[[], Procedure[None]], name: str) -> threading.Thread | None:
        thread = threading.Thread(target=self._drive, args=(procedure,), name=name, daemon=True)
        return thread if started(thread) else None

    def _drive(self, procedure: Callable[[], Procedure[None]]) -> None:
        drive(procedure(), self._ports)

    def _run_call(self, slot: Slot) -> None:
        drive(self._calls.run(slot), self._ports)

    def _changed_by_others(self) -> None:
        self.notifiers.waiters.notify_all()

    def call(self) -> bool:
        """Have a worker take up the calls in the queue; False: there is no worker."""
        return self._workers.take_up()

    # -- the end ----------------------------------------------------------------------------------------------------

    def close(self, *, finish: bool, spare_calls: bool = False) -> None:
        """Close it; a second caller waits until it is closed.

        In a signal's handler that interrupts batchwise's own work it returns at once: that work has to go on first.
        Another thread then closes it.

        Args:
            finish: First send the work that is queued for a batch, and wait for the sync calls.
            spare_calls: First let running calls end: they are paid for.
        """
        if self.life.forked or self._ended.is_set():
            return
        first = self._first.acquire(blocking=False)
        if first:
            self._ending.begin()
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
            self._first.release()  # the next caller of `close` closes it
            raise

    def _end_logged(self, *, finish: bool, spare_calls: bool) -> None:
        try:
            self._end(finish=finish, spare_calls=spare_calls)
        except Exception:  # noqa: BLE001  # no caller waits for it
            _log.exception("batchwise: a dispatcher could not be closed properly; a later process recovers its work")

    def _abandon(self) -> None:
        if self._first.acquire(blocking=False):
            with suppress(RuntimeError):  # no thread can be started: it works on
                self._end_in_background(finish=False, spare_calls=True)

    def _end(self, *, finish: bool, spare_calls: bool) -> None:
        wait = finish
        self.engine.setbacks.resolved(_STARTING)  # closing works in this thread
        try:
            drive(self._ending.finish(finish=finish, spare_calls=spare_calls), self._ports)
        except BatchwiseError:
            wait = False  # it is no use to wait longer
            raise
        finally:
            try:
                self._stop(wait=wait)
            finally:
                self._made_within = None  # a frame holds the function's variables
                self._ended.set()

    def _stop(self, *, wait: bool) -> None:
        self._stopping.set()
        self.life.end()
        for thread in (*self._workers.threads, *([self._pumping] if self._pumping else [])):
            if thread is not threading.current_thread():
                thread.join(timeout=None if wait else 0.2)
        drive(self._ending.await_rest(wait=wait), self._ports)
        try:
            self._ending.close_ledger()
        finally:
            if self._close_client is not None:
                self._close_client()
