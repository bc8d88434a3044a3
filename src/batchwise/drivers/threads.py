"""The driver of threads: a pump that asks the planner, workers that call, and bells that wake whoever waits."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from time import monotonic
from typing import TypeVar

from batchwise.engine.actions import carry_out, withdraw
from batchwise.engine.calls import call
from batchwise.engine.core import Engine
from batchwise.engine.effects import SyncPorts, drive
from batchwise.engine.passes import MAX_ACTIONS, NEVER, PASS_SHARE, QUICK, SPARED, WATCH, once, repeats
from batchwise.engine.queue import Ticked
from batchwise.errors import BatchwiseError, ClosedDispatcherError, ForkedDispatcherError
from batchwise.models import Lane
from batchwise.planning import planner

__all__ = ["ThreadDriver"]

_log = logging.getLogger("batchwise")
T = TypeVar("T")


class _Bell:
    """Wakes whoever waits for a change; a ring is never missed."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._rings = 0

    def ring(self) -> None:
        with self._condition:
            self._rings += 1
            self._condition.notify_all()

    def heard(self) -> int:
        return self._rings

    def wait(self, heard: int, timeout: float | None) -> None:
        """Return when it has rung since `heard`, or after `timeout` seconds."""
        with self._condition:
            self._condition.wait_for(lambda: self._rings != heard, timeout)


class ThreadDriver:
    """Carries out what the planner asks for, in threads started on first need and ended by `close`.

    Args:
        engine: The core.
        ports: The API.
        stopping: Set when the driver ends; naps of the lanes end with it.
    """

    def __init__(self, engine: Engine, ports: SyncPorts, stopping: threading.Event) -> None:
        self.engine = engine
        self._ledger, self._ports, self._stopping = engine.ledger, ports, stopping
        self._closed = False
        self._pid = os.getpid()
        engine.on_settled = self._on_settled
        self._lock = threading.Lock()
        self._pump_bell, self._work_bell, self._news = _Bell(), _Bell(), _Bell()
        self._pump: threading.Thread | None = None
        self._next: datetime | None = None
        self._gap = WATCH
        self._workers: set[threading.Thread] = set()
        self._idle = 0
        self._acting = 0
        self._waiters: dict[int, list[threading.Event]] = {}
        self._fatal: BaseException | None = None
        self._version, self._look_at = -1, 0.0
        self._told = engine.troubles

    def cancel(
        self, *, request: int | None = None, job: int | None = None, requests: Sequence[int] | None = None
    ) -> int:
        """Cancel for the caller; returns how many settled now."""
        settled: int = drive(withdraw(self.engine, request=request, job=job, requests=requests), self._ports)
        self.wake()
        return settled

    # -- waiting ----------------------------------------------------------------------------------------------------

    def wait_for(self, check: Callable[[], T | None], timeout: float | None, request: int | None = None) -> T | None:
        """The first value that `check` gives; None after `timeout` seconds."""
        self._start()
        end = None if timeout is None else monotonic() + timeout
        while True:
            event = threading.Event()
            heard = self._news.heard()
            if request is not None:
                with self._lock:
                    self._waiters.setdefault(request, []).append(event)
            self.raise_fatal()
            value = check()
            if value is not None:
                return value
            left = None if end is None else end - monotonic()
            if left is not None and left <= 0:
                return None
            if request is None:
                self._news.wait(heard, left)
            else:
                event.wait(left)
            self.check()

    def _on_settled(self, requests: Sequence[int]) -> None:
        with self._lock:
            events = [event for number in requests for event in self._waiters.pop(number, ())] if self._waiters else []
        for event in events:
            event.set()
        self._news.ring()

    def _tell_all(self) -> None:
        """Something changed that any waiter may have to know."""
        with self._lock:
            events = [event for waiting in self._waiters.values() for event in waiting]
            self._waiters.clear()
        for event in events:
            event.set()
        self._news.ring()

    def raise_fatal(self) -> None:
        """Raise what ended the pump, if something did."""
        if self._fatal is not None:
            raise self._fatal

    # -- the pump ---------------------------------------------------------------------------------------------------

    def wake(self, due: datetime | None = None) -> None:
        """Have the pump look again: at once, or not later than `due`."""
        self._start()
        if due is None or self._next is None or due < self._next:
            self._pump_bell.ring()

    def _start(self) -> None:
        """Start the pump on first need."""
        if self._pump is None and not self._stopping.is_set():
            with self._lock:
                if self._pump is None:
                    self._pump = threading.Thread(target=self._run_pump, name="batchwise-pump", daemon=True)
                    self._pump.start()

    def _run_pump(self) -> None:
        while not self._stopping.is_set():
            heard, self._next = self._pump_bell.heard(), None
            try:
                self._notice()
                begun = monotonic()
                wait = self._pass()
                self._gap = max(WATCH, PASS_SHARE * (monotonic() - begun))
                if self.engine.troubles != self._told:
                    self._told = self.engine.troubles
                    self._tell_all()
            except BatchwiseError as error:
                self._fail(error)
                return
            except Exception:  # noqa: BLE001  # logged, and tried again
                _log.exception("batchwise: a pass failed; the next one follows")
                wait = 1.0
            self._next = NEVER if wait is None else self.engine.now() + timedelta(seconds=wait)
            self._watch(heard, wait)

    def _watch(self, heard: int, wait: float | None) -> None:
        """Sleep until something is due, until the bell rings, or until another process changed the ledger."""
        end = None if wait is None else monotonic() + wait
        while self._pump_bell.heard() == heard and not self._stopping.is_set():
            until = self._look_at if end is None else min(self._look_at, end)
            self._pump_bell.wait(heard, max(0.0, until - monotonic()))
            if (self._notice()) or (end is not None and monotonic() >= end):
                return

    def _notice(self) -> bool:
        """Whether the ledger changed since the last look, by whomever: then whoever waits is told.

        Every change is told, those that fall between two passes too: a caller that looked just before one would
        wait for ever.
        """
        if monotonic() < self._look_at:
            return False
        self._look_at = monotonic() + WATCH
        before, self._version = self._version, self._ledger.version()
        if self._version == before:
            return False
        self._tell_all()
        return True

    def _pass(self) -> float | None:
        """One look at the state; begins what is due. Returns the seconds until something is due again."""
        wait: float | None = None
        before, moved = self._ledger.version(), False
        for action in self.engine.plan():
            if isinstance(action, planner.WaitUntil):
                wait = max(0.0, (action.moment - self.engine.now()) / timedelta(seconds=1))
            elif isinstance(action, QUICK):
                moved |= self._carry_out_now(action)
            elif self._acting < MAX_ACTIONS:
                self._begin(action)
        if moved and self._ledger.version() != before:
            return 0.0  # rows moved: what is due now was not seen by this plan
        return wait

    def _carry_out_now(self, action: planner.Action) -> bool:
        token = self.engine.begin(action)
        if token is None:
            return False
        try:
            drive(carry_out(self.engine, action), self._ports)
        finally:
            self.engine.end(token)
        if isinstance(action, planner.Run):
            self.call()
        return True

    def _begin(self, action: planner.Action) -> None:
        token = self.engine.begin(action)
        if token is None:
            return
        with self._lock:
            self._acting += 1
        threading.Thread(target=self._act, args=(action, token), name="batchwise-batch", daemon=True).start()

    def _act(self, action: planner.Action, token: object) -> None:
        try:
            drive(carry_out(self.engine, action), self._ports)
        except BatchwiseError as error:
            self._fail(error)
        except Exception:  # noqa: BLE001  # logged, and planned again
            _log.exception("batchwise: %s failed; it will be planned again", type(action).__name__)
            self._stopping.wait(1.0)
        finally:
            with self._lock:
                self._acting -= 1
            self.engine.end(token)
            self._pump_bell.ring()

    def _fail(self, error: BatchwiseError) -> None:
        """Something that no retry mends: whoever waits is told."""
        self._fatal = error
        self._tell_all()

    # -- the sync lane ----------------------------------------------------------------------------------------------

    def call(self) -> None:
        """See to it that somebody takes up what the call queue holds."""
        most = min(self.engine.policy.limits.concurrency or 64, 256)
        with self._lock:
            need = min(self.engine.queue.waiting - self._idle, most - len(self._workers))
            for _ in range(max(0, need)):
                worker = threading.Thread(target=self._work, name="batchwise-call", daemon=True)
                self._workers.add(worker)
                self._idle += 1
                worker.start()
        self._work_bell.ring()

    def _work(self) -> None:
        try:
            while not self._stopping.is_set():
                heard = self._work_bell.heard()
                got = self.engine.queue.next(monotonic())
                if isinstance(got, Ticked):
                    with self._lock:
                        self._idle -= 1
                    try:
                        self._run_call(got)
                    finally:
                        with self._lock:
                            self._idle += 1
                    continue
                before = monotonic()
                self._work_bell.wait(heard, 10.0 if got is None else got)
                if got is None and monotonic() - before >= 10.0 and self._leave():
                    return
        finally:
            self._leave(at_once=True)

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

    def _run_call(self, ticked: Ticked) -> None:
        try:
            drive(call(self.engine, ticked), self._ports)
        except BatchwiseError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001  # a fault of ours: whoever waits has to know
            _log.exception("batchwise: a call failed within batchwise; its request stays in the ledger")
            self._fail(BatchwiseError(f"a call failed within batchwise ({type(error).__name__}); the log says where"))
        self._work_bell.ring()
        if self.engine.queue.waiting == 0:
            self._pump_bell.ring()
        if self.engine.suspended:
            self._tell_all()

    # -- one pass at a time, for advance and close ------------------------------------------------------------------

    def advance(self, gap: timedelta, *, only_sending: bool = False) -> None:
        """Carry out what is due in this thread until nothing is, calls of the sync lane included."""
        done: Counter[object] = Counter()
        while True:
            acted = False
            for action in self.engine.plan(gap):
                if done[once(action)] >= repeats(action, only_sending=only_sending):
                    continue
                if self._carry_out_now(action):
                    done[once(action)] += 1
                    acted = True
            self._finish_calls()
            if not acted or self._fatal is not None:
                return

    def _finish_calls(self) -> None:
        """Run what the call queue holds, with the workers where there are threads to be had."""
        while self.engine.queue.busy and self._fatal is None and not self.engine.suspended.get(Lane.SYNC):
            try:
                self.call()
            except RuntimeError:  # no new threads while the interpreter shuts down
                got = self.engine.queue.next(monotonic())
                if isinstance(got, Ticked):
                    self._run_call(got)
                    continue
            heard = self._work_bell.heard()
            if self.engine.queue.busy:
                self._work_bell.wait(heard, 0.05)

    # -- life -------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise what a user of a dispatcher in the wrong state has to know."""
        if self._pid != os.getpid():
            raise ForkedDispatcherError(
                f"this dispatcher was made in process {self._pid}, before a fork; make one in this process "
                f"({os.getpid()})"
            )
        if self._closed:
            raise ClosedDispatcherError("this dispatcher is closed; open a new one: the ledger has all its work")

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._closed

    def close(self, *, finish: bool, spare_calls: bool = False) -> None:
        """End.

        Args:
            finish: Only after what is queued for a batch was sent and the sync calls have ended.
            spare_calls: Let calls that run end: they are paid for.
        """
        if self._closed or self._pid != os.getpid():
            return
        try:
            if finish and self._fatal is None:
                self._ledger.flush()
                self.wake()
                self._drain()
            elif spare_calls:
                self._let_calls_end()
        finally:
            self._stop(wait=finish)

    def _let_calls_end(self) -> None:
        """Calls that run are paid for: let them end, and start no more."""
        end = monotonic() + SPARED
        self.engine.put_back()
        while self.engine.queue.busy and monotonic() < end:
            self._work_bell.wait(self._work_bell.heard(), 0.05)
            self.engine.put_back()

    def _drain(self) -> None:
        """Let pump and workers send what is queued; then do in this thread what they could not."""
        while self._fatal is None:
            heard = self._news.heard()
            if self._acting == 0 and self.engine.queue.busy == 0:
                self.advance(timedelta(0), only_sending=True)
                if self._acting == 0 and self.engine.queue.busy == 0:
                    return
            if self.engine.queue.busy and self.engine.suspended.get(Lane.SYNC):
                return
            self._finish_calls()
            self._news.wait(heard, 0.02)

    def _stop(self, *, wait: bool) -> None:
        self._closed = True
        self._stopping.set()
        self._pump_bell.ring()
        self._work_bell.ring()
        self._tell_all()
        threads = [*self._workers, *([self._pump] if self._pump else [])]
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(timeout=None if wait else 0.2)
        end = monotonic() + (60.0 if wait else 0.2)
        while self._acting and monotonic() < end:
            self._news.wait(self._news.heard(), 0.01)
        self.engine.close()
