"""Locks that end with their process: they show that a run lives, and hold the lease of batch actions."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from pathlib import Path

from filelock import FileLock, Timeout

from batchwise.errors import LedgerError

__all__ = ["MemoryLock", "ProcessLock", "drop_all", "hold", "let_go"]

_taking = threading.RLock()
"""Held while a lock is taken or released, and during a fork, so that a child inherits no unknown descriptor."""


class ProcessLock:
    """An exclusive OS lock on a file beside the ledger; freed by the kernel when its process ends, however it ends.

    Two of them on one path exclude each other within a process, too. It belongs to the process, not to a thread.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(str(path), mode=0o600, thread_local=False)
        _ALL.add(self)

    @property
    def held(self) -> bool:
        """Whether this object holds it: the lock of a file that was deleted or replaced excludes nobody."""
        return self._lock.is_locked and self._in_place()

    def _in_place(self) -> bool:
        descriptor = self._descriptor
        if descriptor is None:
            return True
        try:
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        except OSError:
            return False

    @property
    def _descriptor(self) -> int | None:
        return getattr(getattr(self._lock, "_context", None), "lock_file_fd", None)

    def acquire(self) -> bool:
        """Try to take it, without waiting; returns whether it is held.

        Raises:
            LedgerError: The lock file cannot be made.
        """
        with _taking:
            if self.held:
                return True
            self._lock.release(force=True)
            try:
                self._lock.acquire(blocking=False)
            except Timeout:
                return False
            except OSError as error:
                raise LedgerError(
                    f"the lock file {self._path} cannot be opened ({error}); check its folder's owner"
                ) from error
            return True

    def release(self) -> None:
        """Release the lock, if it is held."""
        with _taking:
            self._lock.release(force=True)

    def remove(self) -> None:
        """Delete the file, then release the lock: the next process makes a new file."""
        with _taking:
            if self._lock.is_locked:
                with contextlib.suppress(OSError):
                    self._path.unlink()
                self._lock.release(force=True)

    def drop(self) -> None:
        """In a forked child: close the inherited descriptor, without unlocking what the parent holds.

        Else the child would keep the lock after the parent's death.
        """
        descriptor = self._descriptor
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            self._lock._context.lock_file_fd = None  # noqa: SLF001


class MemoryLock:
    """The lock of a ledger in memory, which no other process sees."""

    def __init__(self) -> None:
        self._held = False

    @property
    def held(self) -> bool:
        """Whether it is held."""
        return self._held

    def acquire(self) -> bool:
        """Take it, which always works."""
        self._held = True
        return True

    def release(self) -> None:
        """Release it."""
        self._held = False

    remove = release


_ALL: weakref.WeakSet[ProcessLock] = weakref.WeakSet()


def hold() -> None:
    """Before a fork: keep all threads from taking a lock."""
    _taking.acquire()


def let_go() -> None:
    """After the fork, in the parent: let threads take locks again."""
    _taking.release()


def drop_all() -> None:
    """After the fork, in the child: drop the parent's locks."""
    global _taking  # noqa: PLW0603  # this thread holds it: the child has no other
    _taking = threading.RLock()
    for lock in list(_ALL):
        lock.drop()
