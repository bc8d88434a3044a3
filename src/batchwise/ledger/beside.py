"""Waiting for the disk beside other work: the next rows are taken in while those before are committed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["Beside"]


class Beside:
    """Does one piece of work at a time in a thread of its own; the caller goes on once that waits for the disk alone.

    Not earlier: two threads that both need Python's lock hand it to and fro, and lose by it.
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, name)
        self._ending: Future[None] | None = None

    def start(self, work: Callable[[Callable[[], None]], None]) -> bool:
        """Begin some work; returns when it has called what it is given, or has ended, and whether it still goes on.

        What it raised by then comes out here, otherwise out of `end`, which has to follow.
        """
        waits, over = threading.Event(), threading.Event()

        def run() -> None:
            try:
                work(waits.set)
            finally:
                over.set()
                waits.set()

        try:
            self._ending = self._pool.submit(run)
        except RuntimeError:  # no more threads: the system's limit, an interpreter that ends, or it was closed
            self._pool.shutdown(wait=False, cancel_futures=True)  # what got no thread may be queued all the same
            run()
            return False
        waits.wait()
        if over.is_set():
            self.end()
        return self._ending is not None

    def end(self) -> None:
        """Wait for the end of what goes on; raises what it raised."""
        ending, self._ending = self._ending, None
        if ending is not None:
            ending.result()

    def close(self, *, wait: bool) -> None:
        """No more work comes; `wait` for what goes on, whatever it raises."""
        self._pool.shutdown(wait=wait)
