"""Waiting for the disk beside other work: the next rows are taken in while those before are committed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["Beside"]


class Beside:
    """A thread that ends one piece of work at a time, from where that waits for the disk alone.

    Not from its begin on: two threads that both need Python's lock hand it to and fro, and lose by it.
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, name)
        self._ending: Future[None] | None = None

    def start(self, work: Callable[[Callable[[], None]], None]) -> None:
        """Begin some work; returns when it has called what it is given, or has ended. `end` has to follow."""
        waits = threading.Event()

        def run() -> None:
            try:
                work(waits.set)
            finally:
                waits.set()

        try:
            self._ending = self._pool.submit(run)
        except RuntimeError:  # the interpreter is ending, and starts no more threads
            run()
        waits.wait()

    def end(self) -> None:
        """Wait for the end of what was started; raises what it raised."""
        ending, self._ending = self._ending, None
        if ending is not None:
            ending.result()

    def close(self) -> None:
        """No more work comes. Waits for what was started, whatever that raises."""
        self._pool.shutdown(wait=True)
