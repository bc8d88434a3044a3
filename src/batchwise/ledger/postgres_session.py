"""A session of its own in the ledger's database: it holds the locks that die with the process, and hears of changes."""

from __future__ import annotations

import hashlib
import logging
import os
import selectors
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

import psycopg

from batchwise.errors import LedgerError

from .database import closed
from .postgres_connection import Target, ledger_error

__all__ = ["Session", "SessionLock", "channel_of", "discard", "key_of"]

_log = logging.getLogger("batchwise")
_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)
"""It needs no descriptor of its own: a process that has none left keeps its session."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 2.0
"""Seconds between two tries to connect again. They are shorter than the grace in which nobody takes its locks."""
_TOGETHER = 0.02
"""The shortest pause between two calls of a listener, in seconds."""
_APART = 0.05
"""The shortest pause between two notices of one process, in seconds: each wakes every session of the ledger."""
_HELD = """
SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks
WHERE locktype = 'advisory' AND granted AND objsubid = 1
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (classid::bigint << 32) | objid::bigint = ANY($1::bigint[])
"""


def key_of(schema: str, name: str) -> int:
    """Return the number (64 bits) of the advisory lock of a name. All ledgers of a database share these numbers."""
    digest = hashlib.blake2b(f"batchwise\0{schema}\0{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def channel_of(schema: str) -> str:
    """Return the channel on which processes notify each other of changes."""
    return f"batchwise_{key_of(schema, 'changes') & (1 << 64) - 1:016x}"


def discard(connection: psycopg.Connection[Any]) -> None:
    """In the child of a fork: close an inherited connection, and send nothing to the server, which serves the parent.

    Kept open, it would keep the parent's session alive after the parent's death.
    """
    with suppress(OSError, psycopg.Error):
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, connection.fileno())
        os.close(nothing)
    connection.close()


def _said(error: Exception) -> str:
    """Return the type of an error: its text may quote requests."""
    return type(error).__name__


class SessionLock:
    """A lock that the server releases when the session ends, however it ends. See `database.Lock`."""

    def __init__(self, session: Session, name: str, *, retake: bool) -> None:
        self.key, self.retake = key_of(session.schema, name), retake
        self._session = session

    @property
    def held(self) -> bool:
        """Whether this object holds it."""
        return self._session.holds(self)

    def acquire(self) -> bool:
        """Try to take it, without waiting; returns whether it is held.

        Raises:
            LedgerError: The database cannot be reached.
        """
        return self._session.take(self)

    def release(self) -> None:
        """Release the lock, if it is held."""
        self._session.give(self)

    remove = release


class Session:
    """A connection that holds locks, and a thread that listens to it for notices of changes.

    Args:
        where: The database.
        listener: A method that is called after a change, with the number of the session that made it; None: there may
            have been changes. Only a weak reference to it is held: when its object is collected, the session ends.

    Raises:
        psycopg.Error: The connection cannot be opened now.
        LedgerError: The system gives this process no more threads or descriptors.
    """

    def __init__(self, where: Target, listener: Callable[[int | None], None]) -> None:
        self._where, self._listener = where, weakref.WeakMethod(listener, self._forget)
        self.schema = where.schema
        self._lock = threading.RLock()
        self._held: dict[int, SessionLock] = {}
        self._lost: dict[int, SessionLock] = {}
        """Locks of a session that was lost, which have to be taken again."""
        self._closed = self._forgotten = False
        self._ended = threading.Event()
        self._notified, self._notice_due = -1.0, -1.0
        """When others were last notified, and when they have to be next (monotonic; under 0: they need not be)."""
        self._free: dict[int, float] = {}
        """Since when (monotonic) each lock of others was free, every time that `free` asked."""
        self._connection: psycopg.Connection[Any] | None = None
        self._wake_read = self._wake_write = -1
        self._thread = threading.Thread(target=self._listen, name="batchwise-listen", daemon=True)
        self._begin()

    def _begin(self) -> None:
        try:
            self._wake_read, self._wake_write = os.pipe()
        except OSError as error:
            raise self._lacking(error) from error
        try:
            self._connection = self._connect()
            self._thread.start()
        except BaseException as error:
            self._closed = True
            self._close_connection()
            if isinstance(error, RuntimeError):
                raise self._lacking(error) from error
            raise

    def _lacking(self, error: Exception) -> LedgerError:
        return LedgerError(
            f"the ledger {self._where.name} needs a thread and descriptors of its own, and the system gives this "
            f"process no more ({error}; see ulimit -u and ulimit -n); try again when it has fewer, or raise the limit",
            passing=True,
        )

    def _connect(self) -> psycopg.Connection[Any]:
        connection = self._where.connect()
        try:
            # What comes while a statement runs is seen by psycopg first.
            mine, call = connection.info.backend_pid, self._call_listener
            connection.add_notify_handler(lambda notice: None if notice.pid == mine else call(notice.pid))
            connection.execute(f"LISTEN {channel_of(self.schema)}")
        except BaseException:
            connection.close()
            raise
        return connection

    # -- locks ------------------------------------------------------------------------------------------------------

    def holds(self, lock: SessionLock) -> bool:
        """Whether a lock is held by this object."""
        return self._held.get(lock.key) is lock

    def take(self, lock: SessionLock) -> bool:
        """Try to take a lock."""
        with self._lock:
            if lock.key in self._held:
                return self._held[lock.key] is lock
            taken: bool = self._ask("SELECT pg_try_advisory_lock($1)", lock.key)[0][0]
            if taken:
                self._held[lock.key] = lock
                self._lost.pop(lock.key, None)
            return taken

    def free(self, names: Sequence[str], grace: float) -> list[str]:
        """Return those locks of others that were free every time that this was called, for `grace` seconds or longer.

        Locks are looked at, not taken: a process that has lost its lock can take it again.
        """
        keys = {key_of(self.schema, name): name for name in names}
        with self._lock:
            held = {key for (key,) in self._ask(_HELD, list(keys))} if keys else set()
            now = monotonic()
            asked_before = {key: since for key, since in self._free.items() if key in keys or now - since < 2 * grace}
            self._free = {
                key: since for key, since in {**dict.fromkeys(keys, now), **asked_before}.items() if key not in held
            }
            return [name for key, name in keys.items() if now - self._free.get(key, now) >= grace]

    def unsure(self, grace: float) -> bool:
        """Whether `free` has to be called again soon: a lock was found free a short time ago."""
        found = self._free  # without our lock: the caller may hold a lock for which a listener waits
        return any(monotonic() - since < 2 * grace for since in found.values())

    def give(self, lock: SessionLock) -> None:
        """Release a lock."""
        with self._lock:
            if self._lost.get(lock.key) is lock:
                del self._lost[lock.key]
            if self.holds(lock):
                del self._held[lock.key]
                with suppress(LedgerError):  # then the session is gone, and the lock with it
                    self._ask("SELECT pg_advisory_unlock($1)", lock.key)

    def _ask(self, sql: str, value: int | list[int]) -> list[Any]:
        if self._closed:
            raise closed(self._where.name)
        if self._connection is None:
            raise LedgerError(
                f"the connection to the ledger {self._where.name} was lost; it is opened again", passing=True
            )
        try:
            return self._connection.execute(sql, (value,)).fetchall()
        except psycopg.Error as error:
            self._lose(self._connection)
            raise ledger_error(self._where.name, error) from None

    def _lose(self, connection: psycopg.Connection[Any]) -> None:
        """Close a connection that is broken: its locks are gone."""
        with self._lock:
            if self._connection is connection:
                self._connection = None
                self._lost.update((lock.key, lock) for lock in self._held.values() if lock.retake)
                self._held.clear()
                self._free = {}  # other processes may have lost their locks, too
        connection.close()
        self._wake_thread()

    # -- notices of changes -----------------------------------------------------------------------------------------

    def may_notify_later(self) -> bool:
        """Whether the notice of a change may come after its commit, by `notify_soon`: the last notice was a moment ago.

        Only a process with a run may do this: if it dies before the notice, the one that recovers its run sends one.
        """
        now = monotonic()
        if now < self._notified + _APART and any(lock.retake for lock in list(self._held.values())):
            return True
        self._notified = now
        return False

    def notify_soon(self) -> None:
        """Notify other processes, soon, of a change that is durable."""
        if self._notice_due < 0:
            self._notice_due = self._notified + _APART
            self._wake_thread()

    def _notify_others(self, connection: psycopg.Connection[Any]) -> None:
        if self._notice_due < 0:
            return
        self._notified, self._notice_due = monotonic(), -1.0  # first: a change from now on has another notice
        try:
            connection.execute(f"NOTIFY {channel_of(self.schema)}")
        except psycopg.Error:
            self._notice_due = self._notified  # the next session sends it
            raise

    # -- listening --------------------------------------------------------------------------------------------------

    def _wake_thread(self) -> None:
        with suppress(OSError):
            os.write(self._wake_write, b".")

    def _listen(self) -> None:
        pause = _FIRST_PAUSE
        while not self._closed:
            try:
                connection = self._connection
                if connection is None:
                    self._connect_again()
                else:
                    self._read_notices(connection)
            except Exception as error:  # noqa: BLE001  # whatever it is: nobody else would connect again
                if pause == _FIRST_PAUSE:
                    said = ledger_error(self._where.name, error) if isinstance(error, psycopg.Error) else _said(error)
                    _log.info(
                        "batchwise: a connection of the ledger %s failed, and is opened again: %s",
                        self._where.name,
                        said,
                    )
                self._ended.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                pause = _FIRST_PAUSE
        if self._forgotten:
            self._close_connection()

    def _connect_again(self) -> None:
        """Open a new session, and take at once the locks that show that this process lives."""
        connection = self._connect()
        with self._lock:
            if self._closed:
                connection.close()
                return
            self._connection = connection
            with suppress(LedgerError):  # then this session is lost, too
                for lock in list(self._lost.values()):
                    self.take(lock)
        self._call_listener(None)  # notices that came meanwhile were missed

    def _call_listener(self, pid: int | None) -> None:
        """Call the listener. Its error must not reach the thread that asks for a lock, or listens."""
        listener = self._listener()
        if listener is not None:
            try:
                listener(pid)
            except Exception as error:  # noqa: BLE001  # see above
                _log.warning("batchwise: a listener of the ledger %s failed (%s)", self._where.name, _said(error))

    def _read_notices(self, connection: psycopg.Connection[Any]) -> None:
        """Wait for notices, and pass them on."""
        try:
            self._wait(connection.fileno(), None if self._notice_due < 0 else max(0.0, self._notice_due - monotonic()))
            with self._lock:
                if self._closed or self._connection is not connection:
                    return
                if monotonic() >= self._notice_due:
                    self._notify_others(connection)
                connection.pgconn.consume_input()
                pids = set[int]()
                while (notice := connection.pgconn.notifies()) is not None:
                    pids.add(notice.be_pid)
            pids.discard(connection.info.backend_pid)
        except (psycopg.Error, OSError, ValueError):
            self._lose(connection)
            return
        for pid in pids:
            self._call_listener(pid)
        if pids:
            self._wait(None, _TOGETHER)

    def _wait(self, descriptor: int | None, timeout: float | None) -> None:
        with _Selector() as selector:
            selector.register(self._wake_read, selectors.EVENT_READ)
            if descriptor is not None:
                selector.register(descriptor, selectors.EVENT_READ)
            ready = selector.select(timeout)
        if any(key.fd == self._wake_read for key, _ in ready):
            os.read(self._wake_read, 64)

    # -- ends -------------------------------------------------------------------------------------------------------

    def abandon(self) -> None:
        """In the child of a fork: close the copy of the connection, and refuse every further use."""
        self._lock, self._closed = threading.RLock(), True
        self._held.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            discard(connection)
        self._close_pipe()

    def close(self) -> None:
        """Release all locks, and stop listening."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._held.clear()
        self._ended.set()
        self._wake_thread()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._close_connection()

    def _forget(self, _: object) -> None:
        """The ledger was collected, perhaps inside a call of ours: take no lock here. The thread ends the session."""
        if not self._closed:
            self._closed = self._forgotten = True
            self._wake_thread()

    def _close_connection(self) -> None:
        if self._connection is not None:
            with suppress(psycopg.Error):  # at once: the server may notice late that a session has ended
                self._notify_others(self._connection)
                self._connection.execute("SELECT pg_advisory_unlock_all()")
            self._connection.close()
        self._close_pipe()

    def _close_pipe(self) -> None:
        """Close them once: the system gives their numbers to what is opened next."""
        pipe, self._wake_read, self._wake_write = (self._wake_read, self._wake_write), -1, -1
        for descriptor in pipe:
            with suppress(OSError):
                os.close(descriptor)
