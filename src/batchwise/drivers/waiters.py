"""Who waits for what in a dispatcher, and the bells that wake them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

__all__ = ["Bell", "Waiters"]


class Bell(Protocol):
    """Wakes whoever waits for a change; a ring is never missed."""

    def ring(self) -> None:
        """Wake whoever waits."""

    def heard(self) -> Any:
        """Which rings there were so far, for `rung` and `wait`."""

    def rung(self, heard: Any) -> bool:
        """Whether it has rung since."""

    def wait(self, heard: Any, timeout: float | None) -> Any:
        """Return when it has rung since, or after `timeout` seconds; the tasks' gives an awaitable."""


class Waiters:
    """Thread-safe.

    Args:
        make_bell: Makes a bell.
    """

    def __init__(self, make_bell: Callable[[], Bell]) -> None:
        self._make_bell, self._lock = make_bell, threading.Lock()
        self._bells: dict[int, list[Bell]] = {}
        """By the number of the request that is waited for."""
        self._listening = 0
        self.news: Bell = make_bell()
        """Rings when anything settles, and for all that any waiter may have to know."""

    @property
    def waiting(self) -> bool:
        """Whether anybody waits."""
        return self._listening > 0

    @contextmanager
    def listening(self, request: int | None) -> Iterator[Bell]:
        """A bell that rings when this request settles (None: when any does), and whenever `ring_all` is called."""
        with self._lock:
            self._listening += 1
        try:
            if request is None:
                yield self.news
                return
            bell = self._make_bell()
            with self._lock:
                self._bells.setdefault(request, []).append(bell)
            try:
                yield bell
            finally:
                with self._lock:
                    self._bells[request].remove(bell)
                    if not self._bells[request]:
                        del self._bells[request]
        finally:
            with self._lock:
                self._listening -= 1

    def settled(self, requests: Sequence[int]) -> None:
        """Wake whoever waits for one of these requests, or for any."""
        with self._lock:
            bells = [bell for number in requests for bell in self._bells.get(number, ())] if self._bells else []
        for bell in (*bells, self.news):
            bell.ring()

    def ring_all(self) -> None:
        """Wake everybody: something changed that any waiter may have to know."""
        with self._lock:
            bells = [bell for waiting in self._bells.values() for bell in waiting]
        for bell in (*bells, self.news):
            bell.ring()
