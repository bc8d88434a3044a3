"""What becomes of open ledgers when the process forks.

SQLite must not carry a connection into a child: locks on files belong to a process, and the child's copy of a
connection believes to hold those of the parent. Whichever of the two closes first deletes the log that the other one
goes on writing to. So before a fork every connection is closed, and the parent opens it again when it needs it. The
child inherits nothing of it, and may open the same file for itself.

A ledger that is in use by the very code that forks (a signal handler), or that stays busy for long, cannot be closed.
The parent goes on with it, and the child refuses its file for good.

A ledger on a server has no such locks. The child lets go of its copy of the connections, and may open it anew at once.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, Protocol

from batchwise.errors import ForkedDispatcherError
from batchwise.models import Lane
from batchwise.planning.pricing import PriceBook

from . import locks

__all__ = ["check_own", "opening"]

_PATIENCE = 10.0
"""Seconds that a fork waits for transactions under way, all together."""


class _Ledger(Protocol):
    name: str
    pid: int
    closes_before_fork: bool
    """Whether it is a `_File`."""

    def abandon(self) -> None: ...


class _File(_Ledger, Protocol):
    lock: Any

    @property
    def connection(self) -> Any: ...

    def disconnect(self) -> bool: ...


_guard = threading.RLock()
"""Held while a ledger is opened, and during a fork."""
_opened: weakref.WeakSet[Any] = weakref.WeakSet()
_locked: list[_File] = []
_kept: list[_File] = []
"""Ledgers that could not be closed for the fork under way."""
_refused: dict[str, int] = {}
"""In a child: files that it must not open, and the process that it inherited them from."""


def check_own(what: str, pid: int) -> None:
    """Refuse what was done in a process before it forked.

    Args:
        what: What was done, as the beginning of a sentence: "the ledger was opened".
        pid: The process.

    Raises:
        ForkedDispatcherError: This is a child of that process.
    """
    if pid != os.getpid():
        raise ForkedDispatcherError(
            f"{what} in process {pid}, before a fork; this is its child {os.getpid()}. "
            "Make a dispatcher in this process"
        )


@cache
def _load() -> None:
    """Import now what Python's sockets and the prices else import when a thread first needs them.

    A child that is forked at such a moment inherits the lock of the half imported module, and waits for it for ever.
    """
    import encodings.idna  # noqa: F401

    PriceBook().rates("claude-haiku-4-5", Lane.SYNC)


@contextmanager
def opening(ledger: _Ledger) -> Iterator[None]:
    """While a ledger is opened; from then on forks know of it.

    Raises:
        ForkedDispatcherError: Its file must not be opened in this child.
    """
    with _guard:
        if ledger.name in _refused:
            raise ForkedDispatcherError(
                f"the ledger {ledger.name} was in use by process {_refused[ledger.name]} when that forked, so this "
                f"process ({os.getpid()}) cannot open it; fork before the ledger is used, or start it with spawn"
            )
        _load()
        yield
        _opened.add(ledger)


def _before() -> None:
    _guard.acquire()
    end = time.monotonic() + _PATIENCE
    for ledger in [each for each in _opened if each.closes_before_fork]:
        if ledger.lock.acquire(timeout=max(0.0, end - time.monotonic())):
            _locked.append(ledger)
            if ledger.disconnect():
                continue
        _kept.append(ledger)
        import ctypes  # noqa: F401  # not in the child: another thread may hold the loader's lock now
    locks.hold()


def _in_parent() -> None:
    locks.let_go()
    for ledger in _locked:
        ledger.lock.release()
    _locked.clear()
    _kept.clear()
    _guard.release()


def _in_child() -> None:
    global _guard  # noqa: PLW0603  # this thread holds it: the child has no other
    _guard = threading.RLock()
    locks.drop_all()
    for ledger in _kept:
        if ledger.name != ":memory:":
            _refused[ledger.name] = ledger.pid
        _leak(ledger.connection)
    for ledger in _locked:
        ledger.lock.release()  # for code that waited for it when a signal's handler forked, and now goes on
    for ledger in list(_opened):
        with suppress(Exception):  # the others are to be let go of all the same
            ledger.abandon()
    _opened.clear()
    _locked.clear()
    _kept.clear()


def _leak(connection: object) -> None:
    """Never close it, not at the end of the interpreter either: that would undo what the parent is writing."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
