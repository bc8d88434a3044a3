"""Worker threads that call the sync lane: started on first need, and ended when they are idle."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

from batchwise.engine.core import Engine
from batchwise.engine.queue import Slot
from batchwise.planning.capacity import MOST_CALLS

from .life import Life
from .reentry import started
from .waiters import Notifier

__all__ = ["Workers"]

_SPARE = 8
"""The most workers that stand idle while calls wait for the pacing."""
_IDLE = 10.0
"""Seconds after which an idle worker ends."""


class Workers:
    """Thread-safe.

    Args:
        engine: The core, with the call queue.
        life: Whether the dispatcher works.
        notifier: Tells them to look at the queue.
        run: Runs one call to its end.
    """

    def __init__(self, engine: Engine, life: Life, notifier: Notifier, run: Callable[[Slot], None]) -> None:
        self._engine, self._life, self._notifier, self._run = engine, life, notifier, run
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._idle = 0

    @property
    def threads(self) -> list[threading.Thread]:
        """The threads that have not ended."""
        return list(self._threads)

    def take_up(self) -> bool:
        """Have a worker take up the calls in the queue; False: there is no worker."""
        waiting = self._engine.queue.waiting
        if not waiting:
            return True
        with self._lock:
            need = min(waiting, _SPARE) - self._idle
            need = min(need, MOST_CALLS - len(self._threads))
            for _ in range(max(0, need)):
                worker = threading.Thread(target=self._work, name="batchwise-call", daemon=True)
                if not started(worker):
                    break
                self._threads.add(worker)  # it takes no call before the lock is free
                self._idle += 1
            anybody = bool(self._threads)
        self._notifier.notify()
        return anybody

    def _work(self) -> None:
        try:
            while not self._life.stopped:
                seen = self._notifier.version()
                got = self._next_call()
                if isinstance(got, Slot):
                    self._take_up_more()
                    try:
                        self._run(got)
                    finally:
                        with self._lock:
                            self._idle += 1
                    continue
                before = monotonic()
                self._notifier.wait(seen, _IDLE if got is None else got)
                if got is None and monotonic() - before >= _IDLE and self._leave():
                    return
        finally:
            self._leave(at_once=True)

    def _next_call(self) -> Slot | float | None:
        """Return the call to begin now, and count this worker as busy; else as `SyncLane.next_call`."""
        with self._lock:  # in one step: `take_up` counts idle workers for waiting calls
            got = self._engine.sync_lane.next_call()
            if isinstance(got, Slot):
                self._idle -= 1
        return got

    def _take_up_more(self) -> None:
        """Have a worker ready for the next call, after this one took a call."""
        if self._engine.queue.waiting and not self._idle and not self._life.stopped:
            self.take_up()

    def _leave(self, *, at_once: bool = False) -> bool:
        """Return whether this worker may end. Decided under the lock, for `take_up` counts idle workers."""
        me = threading.current_thread()
        with self._lock:
            if self._engine.queue.waiting and not at_once:
                return False
            if me in self._threads:
                self._idle -= 1
                self._threads.discard(me)
            return True
