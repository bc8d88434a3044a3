"""When the pump looks next: at the next moment that is due, or as soon as it is woken."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta

from .passes import NEVER
from .waiters import Notifier

__all__ = ["Schedule"]


class Schedule:
    """Knows when the pump looks next. Thread-safe. Callers pass in the time, by the wall clock.

    Args:
        notifier: Wakes the pump.
    """

    def __init__(self, notifier: Notifier) -> None:
        self._notifier, self._lock = notifier, threading.Lock()
        self._next: datetime | None = None
        """When the pump looks again; None while it does."""
        self._asked = NEVER
        """The latest moment for the next look, asked for by requests that were accepted during the present one."""

    def wake(self, due: datetime | None = None) -> None:
        """Have the pump look again: at once, or not later than `due`."""
        with self._lock:
            if due is not None:
                self._asked = min(self._asked, due)
                if self._next is None or due >= self._next:
                    return
        self._notifier.notify()

    def begin_look(self) -> None:
        """Note that the pump looks now: it may miss requests that come from now on."""
        with self._lock:
            self._next, self._asked = None, NEVER

    def end_look(self, now: datetime, wait: float | None, waited: datetime | None) -> float | None:
        """Note that the pump has looked; returns the seconds until it looks again; None: nothing falls due.

        Args:
            now: The time.
            wait: Seconds until something is due, as far as the pump saw.
            waited: The moment at which work that callers wait for is submitted.
        """
        with self._lock:
            planned = NEVER if wait is None else now + timedelta(seconds=wait)
            self._next = min(self._asked, planned, waited or NEVER)
            return None if self._next is NEVER else (self._next - now) / timedelta(seconds=1)

    def is_due(self, now: datetime) -> bool:
        """Return whether the pump has waited long enough."""
        return now >= (self._next or NEVER)

    @property
    def planned(self) -> bool:
        """Whether the pump waits for a moment."""
        return self._next not in {None, NEVER}
