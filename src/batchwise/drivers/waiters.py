"""Callers who wait in a dispatcher, and the notifiers that wake them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

__all__ = ["Notifier", "Notifiers", "Waiters"]


class Notifier(Protocol):
    """An event with a version, which wakes everybody who waits for a change. No change is missed."""

    def notify(self) -> None:
        """Count a change, and wake everybody who waits."""

    def version(self) -> Any:
        """Return the number of changes so far, for `changed_since` and `wait`."""

    def changed_since(self, seen: Any) -> bool:
        """Return whether there was a change since the version `seen`."""

    def wait(self, seen: Any, timeout: float | None) -> Any:
        """Return when there was a change since `seen`, or after `timeout` seconds; tasks get an awaitable."""


class Waiters:
    """Thread-safe.

    Args:
        make_notifier: Makes a `Notifier`.
    """

    def __init__(self, make_notifier: Callable[[], Notifier]) -> None:
        self._make_notifier, self._lock = make_notifier, threading.Lock()
        self._notifiers: dict[int, list[Notifier]] = {}
        """Notifiers of waiting callers, by the number of the request."""
        self._listening = 0
        self.news: Notifier = make_notifier()
        """Notifies when any request settles, and of each change that any waiter may have to know."""

    @property
    def waiting(self) -> bool:
        """Whether any caller waits."""
        return self._listening > 0

    @contextmanager
    def listening(self, request: int | None) -> Iterator[Notifier]:
        """Yield a notifier of the end of this request (None: of any request), and of each call of `notify_all`."""
        with self._lock:
            self._listening += 1
        try:
            if request is None:
                yield self.news
                return
            notifier = self._make_notifier()
            with self._lock:
                self._notifiers.setdefault(request, []).append(notifier)
            try:
                yield notifier
            finally:
                with self._lock:
                    self._notifiers[request].remove(notifier)
                    if not self._notifiers[request]:
                        del self._notifiers[request]
        finally:
            with self._lock:
                self._listening -= 1

    def settled(self, requests: Sequence[int]) -> None:
        """Wake callers who wait for one of these requests, or for any request."""
        with self._lock:
            found = [each for number in requests for each in self._notifiers.get(number, ())] if self._notifiers else []
        for notifier in (*found, self.news):
            notifier.notify()

    def notify_all(self) -> None:
        """Wake all callers: something changed that any of them may have to know."""
        with self._lock:
            notifiers = [notifier for waiting in self._notifiers.values() for notifier in waiting]
        for notifier in (*notifiers, self.news):
            notifier.notify()


class Notifiers(NamedTuple):
    """The notifiers that wake the parts of a driver, and waiting callers."""

    pump: Notifier
    """The pump has to look at once."""
    work: Notifier
    """There are calls to take up, or work has ended."""
    ending: Notifier
    """Closing begins: pauses before another try end."""
    waiters: Waiters
    """Callers who wait for requests."""

    @classmethod
    def made_by(cls, make: Callable[[], Notifier]) -> Notifiers:
        """Return the notifiers of a new driver."""
        return cls(make(), make(), make(), Waiters(make))

    def notify_all(self) -> None:
        """Wake everybody."""
        for notifier in (self.ending, self.pump, self.work):
            notifier.notify()
        self.waiters.notify_all()
