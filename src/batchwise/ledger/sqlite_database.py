"""The ledger's database in a SQLite file, or in memory."""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from batchwise.errors import LedgerError

from . import forks
from .database import BUSY_SECONDS, Column, Connection, busy, closed, nested
from .files import file_id, path_of, refused, still
from .locks import MemoryLock, ProcessLock
from .sqlite_file import connect, sync_commits

__all__ = ["SqliteDatabase"]

_RECONNECTED = 1 << 40
"""More than a ledger's connection ever counts."""
_TOGETHER = 32
"""The most rows in one statement: SQLite holds a copy of what is bound to it."""
_VARIABLES = 960
"""The most values that are bound to one statement; SQLite before 3.32 takes 999."""


class SqliteDatabase:
    """One connection for all threads; processes on one machine share the file. See `Database`.

    Every change goes through `write` and ends in `commit`, so a subclass can count, delay or break commits.

    Args:
        path: The file (made if missing, readable by its owner only), or `:memory:`.

    Raises:
        InvalidValueError: It is no path.
        LedgerError: The file cannot be used; the message says why and what to do.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        name = path_of(path)
        self._memory = name == ":memory:"
        # Real path: a symbolic link must not give the same file other lock files.
        self.name = name if self._memory else os.path.realpath(name)
        self.lock = threading.RLock()
        self.pid = os.getpid()
        self.done: list[Callable[[], None]] = []
        self.undone: list[Callable[[], None]] = []
        self._inside = 0
        """How many uses of the connection, one inside the other, the thread has begun that holds the lock."""
        self._open, self._connected = True, True
        self._durable = True
        """Whether each commit is synced; else the next one that is, or a checkpoint, syncs it, too."""
        self._commits = 0
        self._wiped = True
        """Whether the log holds nothing of what was purged."""
        self._locks: weakref.WeakSet[MemoryLock | ProcessLock] = weakref.WeakSet()
        with forks.opening(self):
            if not self._memory:
                _make_folder(Path(self.name).parent)
            self.connection, self._file = connect(self.name)
            try:
                if not self._memory:
                    _make_folder(self._folder)
            except BaseException:
                self.connection.close()
                raise

    @property
    def _folder(self) -> Path:
        return Path(self.name + ".locks")

    # -- transactions -----------------------------------------------------------------------------------------------

    @contextmanager
    def write(self, name: str, *, quiet: bool = False, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """A write transaction. If it changed nothing, nothing is committed."""
        with self._using():
            self._check_file()
            self._check_alone()
            if durable != self._durable:
                self._durable = False  # first: after Ctrl-C in here, the next durable write sets it anew
                sync_commits(self.connection, each=durable)
                self._durable = durable
            before = self.connection.total_changes
            try:  # around BEGIN, too: Ctrl-C while it waits for another writer is raised when it has begun
                self.connection.execute("BEGIN IMMEDIATE")
                yield self.connection
                self._check_open()  # a child that a signal's handler forked in here commits nothing
                if self.connection.total_changes == before:
                    self.connection.execute("ROLLBACK")
                else:
                    self.commit(name)
                    self._commits += not quiet
                    for tell in self.done:
                        tell()
            except BaseException:
                for forget in self.undone:
                    forget()
                if self._open and self.connection.in_transaction:  # SQLite itself may have rolled it back (a full disk)
                    self.connection.execute("ROLLBACK")
                raise

    def commit(self, name: str) -> None:  # noqa: ARG002 (for subclasses, which tell commits apart by it)
        """Every change to the ledger is committed here and nowhere else."""
        self.connection.execute("COMMIT")

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A read transaction: all its selects see one state."""
        with self._using():
            self._check_file()
            self._check_alone()
            try:
                self.connection.execute("BEGIN")
                yield self.connection
            finally:
                if self._open and self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")

    @contextmanager
    def _using(self) -> Iterator[None]:
        with self.lock:
            self._check_open()
            if not self._connected:
                self._connect_again()
            self._inside += 1
            try:
                yield
            except sqlite3.Error as error:
                raise self._ledger_error(error) from error
            finally:
                self._inside -= 1

    def _check_open(self) -> None:
        if not self._open:
            forks.check_own(f"the ledger {self.name} was opened", self.pid)
            raise closed(self.name)

    def _check_file(self) -> None:
        """Refuse a file that was deleted, moved or replaced: nobody would find what is written to it.

        Raises:
            LedgerError: It was.
        """
        if self._file is not None and not still(self.name, self._file):
            raise refused(self.name, file_id(self.name))

    def _check_alone(self) -> None:
        """Refuse a transaction inside another, which it would end: a signal's handler may ask for one.

        Raises:
            LedgerError: This thread has begun a transaction.
        """
        if self.connection.in_transaction:
            raise nested(self.name)

    def _ledger_error(self, error: sqlite3.Error) -> LedgerError:
        if "locked" in str(error) or "busy" in str(error):
            return busy(self.name)
        return LedgerError(
            f"the ledger {self.name} failed ({error}); nothing of this step was changed. "
            "Check the disk's space and the file's permissions, then go on",
            passing=isinstance(error, sqlite3.OperationalError),
        )

    # -- statements -------------------------------------------------------------------------------------------------

    among = "IN (SELECT value FROM json_each(?))"
    update_many = "UPDATE OR FAIL"  # any other kind holds a copy of each page that the statement changes

    @staticmethod
    def list_of(values: Iterable[int | str]) -> str:
        """A JSON array."""
        return orjson.dumps(list(values)).decode()

    @staticmethod
    def json_array(column: str) -> str:
        """Return SQL that makes a JSON array of a column's values, in the order of the rows."""
        return f"json_group_array({column})"

    @staticmethod
    def ask(db: Connection, sql: str, values: Sequence[Any]) -> Callable[[], list[Any]]:
        """Read the rows at once: a cursor that is read later would keep its state of the database."""
        rows = db.execute(sql, values).fetchall()
        return lambda: rows

    def begin(self, db: Connection) -> None:
        """Nothing: `write` has waited."""

    def insert(self, db: Connection, sql: str, values: Sequence[Any]) -> int:
        """Insert one row; returns its number."""
        db.execute(sql, values)
        number: int = db.execute("SELECT last_insert_rowid()").fetchone()[0]
        return number

    @staticmethod
    def insert_rows(db: Connection, into: str, columns: Sequence[int | Column]) -> bool:
        """Insert rows, many by each statement; False: one of them is there already.

        With a statement for each row a bulk job takes 1.08 times the CPU. `INSERT OR IGNORE`, because any other kind
        keeps a journal of each statement of many rows.
        """
        row = f"({', '.join(str(each) if isinstance(each, int) else '?' for each in columns)})"
        bound = [each for each in columns if not isinstance(each, int)]
        width, inserted = len(bound), 0
        each = min(_TOGETHER, _VARIABLES // width)
        for start in range(0, len(bound[0]), each):
            parts = [column[start : start + each] for column in bound]
            count = len(parts[0])
            values: list[Any] = [None] * (count * width)
            for index, part in enumerate(parts):
                # sqlite3 looks for an adapter of anything but str, int, float and bytearray: more than a copy costs.
                values[index::width] = map(bytearray, part) if isinstance(part[0], bytes) else part
            sql = f"INSERT OR IGNORE INTO {into} VALUES {', '.join([row] * count)}"  # noqa: S608 (of constants)
            inserted += db.execute(sql, values).rowcount
        return inserted == len(bound[0])

    @staticmethod
    def clear_marks(db: Connection) -> None:
        """There are none."""

    # -- changes ----------------------------------------------------------------------------------------------------

    def version(self) -> int:
        """Return a number that changes with every change by any process."""
        with self._using():
            others: int = self.connection.execute("PRAGMA data_version").fetchone()[0]
            return others + self._commits

    def listen(self, listener: Callable[[], None]) -> bool:  # noqa: ARG002
        """Nobody tells what other processes do to a file."""
        return False

    def wipe(self, *, retry: bool = False) -> None:
        """Empty the log, which holds what was purged. While another connection reads it, that fails."""
        if retry and self._wiped:
            return
        with self._using():
            self.connection.execute("PRAGMA busy_timeout = 0")
            try:
                self._wiped = not self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            finally:
                self.connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")

    # -- processes --------------------------------------------------------------------------------------------------

    grace = 0.0
    unsure = False

    @staticmethod
    def free(names: Sequence[str]) -> list[str]:
        """Return all of them: whether a lock is free shows when it is taken."""
        return list(names)

    def process_lock(self, name: str, *, retake: bool = False) -> MemoryLock | ProcessLock:  # noqa: ARG002
        """Return the lock of this name: a file beside the ledger's."""
        lock = MemoryLock() if self._memory else ProcessLock(self._folder / f"{name}.lock")
        self._locks.add(lock)
        return lock

    closes_before_fork = True

    def disconnect(self) -> bool:
        """Before a fork, the lock held: close the connection, until it is needed again. False: it is in use.

        `forks` says why.
        """
        if self._inside:
            return False
        if not self._memory:
            self.connection.close()
            self._connected = False
        return True

    def _connect_again(self) -> None:
        self.connection, _ = connect(self.name, known=self._file)
        self._connected, self._durable = True, True
        self._commits += _RECONNECTED  # another connection counts others' changes anew

    def abandon(self) -> None:
        """In the child of a fork: refuse every further use."""
        self._open, self._inside = False, 0
        self.lock = threading.RLock()

    def close(self) -> None:
        """Close the file and release the locks; a second call does nothing."""
        with self.lock:
            if not self._open:
                return
            self._open = False
            for lock in list(self._locks):
                lock.release()
            with suppress(sqlite3.Error):
                self.connection.close()


def _make_folder(folder: Path) -> None:
    """Make what is missing, for its owner alone."""
    try:
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        for each in reversed(missing):
            each.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise LedgerError(f"the ledger's folder {folder} cannot be made ({error}); name another path") from error
