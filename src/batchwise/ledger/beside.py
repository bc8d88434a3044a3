"""Waiting for the disk beside other work: the next rows are taken in while those before are committed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from .forks import check_own

__all__ = ["Beside"]

_LOOK = 1.0
"""Seconds after which who waits looks whether it is in a child, which waits for nothing: it has no other thread."""


class _Work:
    """One piece of work in another thread, as the one who waits for it sees it.

    Bare locks, not events: a child that was forked while the other thread was within an event would wait for that.
    """

    def __init__(self, work: Callable[[Callable[[], None]], None]) -> None:
        self._work, self._pid = work, os.getpid()
        self._waits, self._over = threading.Lock(), threading.Lock()
        self._waits.acquire()
        self._over.acquire()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do it, in the other thread."""
        try:
            self._work(self._note_waits)
        except BaseException as error:  # noqa: BLE001  # it comes out of `end`
            self._error = error
        finally:
            self._over.release()
            self._note_waits()

    def _note_waits(self) -> None:
        if self._waits.locked():  # no other thread gives it up
            self._waits.release()

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return not self._over.locked()

    def wait(self) -> None:
        """Until it waits for the disk alone, or has ended. Once."""
        self._get(self._waits)

    def end(self) -> None:
        """Wait for its end; raises what it raised. Once."""
        self._get(self._over)
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _get(self, lock: threading.Lock) -> None:
        while not lock.acquire(timeout=_LOOK):
            check_own("what goes on beside was begun", self._pid)


class Beside:
    """Does one piece of work at a time in a thread of its own; the caller goes on once that waits for the disk alone.

    Not earlier: two threads that both need Python's lock hand it to and fro, and lose by it.

    A child of a fork has not got that thread: there `start` and `end` raise ForkedDispatcherError.
    """

    def __init__(self, name: str) -> None:
        self._pool, self._pid = ThreadPoolExecutor(1, name), os.getpid()
        self._ending: _Work | None = None

    def start(self, work: Callable[[Callable[[], None]], None]) -> bool:
        """Begin some work; returns when it has called what it is given, or has ended, and whether it still goes on.

        What it raised by then comes out here, otherwise out of `end`, which has to follow.
        """
        self._check()
        begun = _Work(work)
        try:
            self._pool.submit(begun.run)
        except RuntimeError:  # no more threads: the system's limit, an interpreter that ends, or it was closed
            self._pool.shutdown(wait=False, cancel_futures=True)  # what got no thread may be queued all the same
            work(lambda: None)
            return False
        self._ending = begun
        begun.wait()
        if begun.over:
            self.end()
        return self._ending is not None

    def end(self) -> None:
        """Wait for the end of what goes on; raises what it raised."""
        self._check()
        ending, self._ending = self._ending, None
        if ending is not None:
            ending.end()

    def close(self, *, wait: bool) -> None:
        """No more work comes; `wait` for what goes on, whatever it raises. Nothing, in a child."""
        if self._pid == os.getpid():
            self._pool.shutdown(wait=wait)

    def _check(self) -> None:
        check_own("what goes on beside was begun", self._pid)
