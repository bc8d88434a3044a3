"""Locks that die with their process: a run's sign of life, and the lease of batch actions."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from pathlib import Path

from filelock import FileLock, Timeout

from batchwise.errors import LedgerError

__all__ = ["MemoryLock", "ProcessLock"]


class ProcessLock:
    """An exclusive OS lock on a file beside the ledger; freed by the kernel when its process ends, however it ends.

    Two of them on one path exclude each other within a process, too. It belongs to the process, not to a thread.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._guard = threading.Lock()
        self._lock = FileLock(str(path), mode=0o600, thread_local=False)
        _ALL.add(self)

    @property
    def held(self) -> bool:
        """Whether this object holds it."""
        return self._lock.is_locked

    def acquire(self) -> bool:
        """Try, without waiting; True if held (already or now).

        Raises:
            LedgerError: The lock file cannot be made.
        """
        with self._guard:
            if self._lock.is_locked:
                return True
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
        """Give it up; nothing if it is not held."""
        with self._guard:
            self._lock.release(force=True)

    def remove(self) -> None:
        """Delete the file, then give the lock up: whoever opens the path next makes a file of its own."""
        with self._guard:
            if self._lock.is_locked:
                with contextlib.suppress(OSError):
                    self._path.unlink()
                self._lock.release(force=True)

    def _drop(self) -> None:
        """In a forked child: close the inherited descriptor, without unlocking what the parent holds.

        The child would keep the lock alive after the parent's death. Newer filelocks do this themselves.
        """
        self._guard = threading.Lock()
        context = getattr(self._lock, "_context", None)
        descriptor = getattr(context, "lock_file_fd", None)
        if context is not None and descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            context.lock_file_fd = None


class MemoryLock:
    """The same for a ledger that nobody else can see."""

    def __init__(self) -> None:
        self._held = False

    @property
    def held(self) -> bool:
        """Whether it is held."""
        return self._held

    def acquire(self) -> bool:
        """Take it; always works."""
        self._held = True
        return True

    def release(self) -> None:
        """Give it up."""
        self._held = False

    remove = release


_ALL: weakref.WeakSet[ProcessLock] = weakref.WeakSet()


def _drop_all() -> None:
    for lock in list(_ALL):
        lock._drop()  # noqa: SLF001 (same module)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_all)
