"""The ledger's database in Postgres: one for any number of hosts."""

from __future__ import annotations

import os
import re
import struct
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import islice
from time import monotonic, sleep
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg
from psycopg import errors

from batchwise.errors import LedgerError

from . import forks
from .database import Column, Connection, Cursor, closed, nested
from .postgres_connection import ledger_error, target
from .postgres_schema import check_pooler, migrate
from .postgres_session import Session, SessionLock, channel_of, discard, key_of
from .postgres_wire import Rows, Statement, Wire

__all__ = ["PostgresDatabase"]

_PATIENCE = 15.0
"""Seconds for which the server is asked whether a commit that was not answered was carried out."""
_PAUSE = 0.25
_BEGIN, _COMMIT = Statement(b"BEGIN", prepare=False), Statement(b"COMMIT", prepare=False)
_BEGIN_READING = Statement(b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", prepare=False)
_LOCK = Statement(b"SELECT pg_advisory_xact_lock($1), pg_current_xact_id()::text")
_MARK = Statement(
    b"INSERT INTO meta VALUES ($1, $2::text || ' ' || floor(extract(epoch FROM now()))::bigint) "
    b"ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)
_MARKED = "SELECT split_part(value, ' ', 1) FROM meta WHERE name = $1"
_OLD_MARKS = """
DELETE FROM meta WHERE name LIKE 'commit:%' AND split_part(value, ' ', 2)::bigint < extract(epoch FROM now()) - 600
"""
"""Ten minutes: far longer than a process asks for a commit."""
_NOTIFY = Statement(b"SELECT pg_notify($1, '')")
_MANY = 500
"""Statements that are sent together, at most."""
_PLACE = re.compile(r"'[^']*'|\?")
_UNSURE = re.compile(r"\b(?:SELECT|WHERE|DO NOTHING|RETURNING)\b")
_HEADER, _TRAILER = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
_INTEGER, _LENGTH, _WIDTH = struct.Struct("!iq"), struct.Struct("!i"), struct.Struct("!h")
_NULL = b"\xff\xff\xff\xff"


class _Translated(NamedTuple):
    """A statement of the ledger as Postgres reads it, and what it does."""

    statement: Statement
    writes: bool
    inserts: bool
    """It certainly inserts a row, so nobody has to wait for its result."""


@cache
def _translated(sql: str) -> _Translated:
    count = iter(range(1, 10_000))
    numbered = _PLACE.sub(lambda found: f"${next(count)}" if found[0] == "?" else found[0], sql)
    # A prepared plan fits a list of any length, and goes through the whole list for each row.
    statement = Statement(numbered.encode(), prepare=PostgresDatabase.among not in sql)
    verb = sql.split(maxsplit=1)[0]
    return _Translated(statement, writes=verb != "SELECT", inserts=verb == "INSERT" and not _UNSURE.search(sql))


class _Answer:
    """The result of a statement. Who reads it has the statement sent, if that is still waiting."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self.came: Rows | None = None

    @property
    def _rows(self) -> Rows:
        if self.came is None:
            self._transaction.send()
        if self.came is None:
            raise psycopg.InterfaceError("its transaction was rolled back")
        return self.came

    @property
    def rowcount(self) -> int:
        """How many rows it changed."""
        return self._rows.rowcount

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)

    def fetchone(self) -> Any:
        """The next row; None: there is none."""
        return self._rows.fetchone()

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        return self._rows.fetchall()


class Transaction:
    """Runs statements inside a transaction. See `database.Connection`.

    A statement waits until somebody reads a result, and is then sent together with all others that wait. Insertions
    mostly wait for the commit. Each trip to the server that this saves is time in which the ledger's lock is not held.

    Args:
        database: The database that sends the statements.
        begin: The statements that begin the transaction. They are sent with the first other one.
    """

    def __init__(self, database: PostgresDatabase, *begin: tuple[Statement, Sequence[Any]]) -> None:
        self._database = database
        self.begun = False
        """Whether the server knows of it."""
        self._waiting: list[tuple[Statement, Sequence[Any], _Answer]] = []
        self.beginning = [self.later(*each) for each in begin]
        """The results of the statements that begin it."""

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> Cursor:
        """Run one statement."""
        statement, writes, inserts = _translated(sql)
        answer = self.later(statement, values)
        if not writes:
            return answer
        if inserts:
            self._database.changed = True
            return Rows(1)
        if answer.rowcount:
            self._database.changed = True
        return answer

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> Cursor:
        """Run one statement once for each row of values, without waiting for each."""
        statement, found, source = _translated(sql).statement, Rows(0), iter(rows)
        while answers := [self.later(statement, values) for values in islice(source, _MANY)]:
            found.rowcount += sum(each.rowcount for each in answers)
        if found.rowcount:
            self._database.changed = True
        return found

    def later(self, statement: Statement, values: Sequence[Any] = ()) -> _Answer:
        """Have a statement sent with the next ones; returns its result. If it fails, `send` raises its error."""
        answer = _Answer(self)
        self._waiting.append((statement, values, answer))
        return answer

    def send(self) -> None:
        """Send the statements that wait, in one trip."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            begun, self.begun = self.begun, True
            sent = self._database.run([(statement, values) for statement, values, _ in waiting], reconnect=not begun)
            for (_, _, answer), came in zip(waiting, sent, strict=True):
                answer.came = came


class PostgresDatabase:
    """One connection for all threads, and a `Session` for locks and notices of changes. See `Database`.

    Every change goes through `write` and ends in `commit`, so a subclass can count, delay or break commits.

    Args:
        url: The database's, and in it the schema's (`postgres_connection.target`).
        must_exist: Make no new ledger.

    Raises:
        InvalidValueError: The URL cannot be read.
        LedgerError: The database cannot be used; the message says why and what to do.
    """

    def __init__(self, url: str, *, must_exist: bool = False) -> None:
        self._where = target(url)
        self.name = self._where.name
        self.lock = threading.RLock()
        self.pid = os.getpid()
        self.done: list[Callable[[], None]] = []
        self.undone: list[Callable[[], None]] = []
        self._open = True
        self._commits = self._changes_by_others = 0
        self._listeners: list[weakref.WeakMethod[Callable[[], None]]] = []
        self._key, self._channel = key_of(self._where.schema, "write"), channel_of(self._where.schema)
        self._inside = self._quiet = False
        self._transaction = Transaction(self)
        self._number = ""
        self._mark = f"commit:{uuid4().hex}"
        """Each commit stores the number of its transaction, and the time, under this name in `meta`."""
        self.changed = False
        """Whether the transaction has changed anything so far."""
        self._wire: Wire | None = None
        with forks.opening(self):
            try:
                check_pooler(self.connection, self._where)
                migrate(self.connection, self._where, must_exist=must_exist)
                self._session = Session(self._where, self._on_change)
            except psycopg.Error as error:
                self._drop()
                raise ledger_error(self.name, error) from None
            except BaseException:
                self._drop()
                raise

    @property
    def wire(self) -> Wire:
        """The connection; only for a thread that holds the lock."""
        self._check_open()
        if self._wire is None:
            self._wire = Wire(self._where.connect())
        return self._wire

    @property
    def connection(self) -> psycopg.Connection[Any]:
        """The same connection, as psycopg has it."""
        return self.wire.connection

    # -- transactions -----------------------------------------------------------------------------------------------

    @contextmanager
    def write(
        self,
        name: str,
        *,
        quiet: bool = False,
        durable: bool = True,  # noqa: ARG002 (the server may crash while this process goes on, and relies on it)
    ) -> Iterator[Transaction]:
        """A write transaction. If it changed nothing, nothing is committed."""
        with self._using():
            self._transaction = Transaction(self, (_BEGIN, ()), (_LOCK, (self._key,)))
            self._quiet, self.changed = quiet, False
            try:
                yield self._transaction
                self._check_open()  # a child that a signal's handler forked in here commits nothing
                if self.changed:
                    self.commit(name)
                    self._commits += not quiet
                    for tell in self.done:
                        tell()
            except BaseException:
                for forget in self.undone:
                    forget()
                raise

    def commit(self, name: str) -> None:  # noqa: ARG002 (for subclasses, which tell commits apart by it)
        """Every change to the ledger is committed here and nowhere else."""
        transaction = self._transaction
        _, self._number = transaction.beginning[-1].fetchone()
        transaction.later(_MARK, (self._mark, self._number))
        later = self._quiet or self._session.may_notify_later()
        if not later:
            transaction.later(_NOTIFY, (self._channel,))
        transaction.later(_COMMIT)
        try:
            transaction.send()
        except psycopg.Error:
            if not self._lost:
                raise
            # It may have been carried out all the same: then it is done, and must not be done again.
            if not self._was_committed():
                raise
        if later and not self._quiet:
            self._session.notify_soon()

    def _was_committed(self) -> bool:
        """Whether the transaction whose commit was not answered is durable.

        Its number alone does not tell: a server that crashed gives numbers again of which it had written nothing.

        Raises:
            LedgerError: That cannot be found out now.
        """
        end = monotonic() + _PATIENCE
        while True:
            with suppress(psycopg.Error):
                self._drop()
                found = self.connection.execute("SELECT pg_xact_status($1::xid8)", (self._number,)).fetchone()
                if found != ("in progress",):
                    marked = self.connection.execute(_MARKED, (self._mark,)).fetchone()
                    return marked == (self._number,)
            if monotonic() > end:
                raise LedgerError(
                    f"the connection to the ledger {self.name} was lost in a commit, and it is not known whether this "
                    "step was stored; it may be done again",
                    passing=True,
                )
            sleep(_PAUSE)

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A read transaction: all its selects see one state."""
        with self._using():
            transaction = Transaction(self, (_BEGIN_READING, ()))
            yield transaction
            if transaction.begun:
                transaction.later(_COMMIT)
                transaction.send()

    @contextmanager
    def _using(self) -> Iterator[None]:
        with self.lock:
            self._check_open()
            if self._inside:  # a signal's handler may ask for a transaction inside another, which it would end
                raise nested(self.name)
            try:
                self._inside = True
                yield
            except psycopg.Error as error:
                raise ledger_error(self.name, error) from None
            finally:
                self._inside = False
                self._roll_back()

    def run(self, statements: Sequence[tuple[Statement, Sequence[Any]]], *, reconnect: bool = False) -> list[Rows]:
        """Run statements; `reconnect`: on another connection, if this one was closed while it was idle."""
        try:
            return self.wire.run(statements)
        except psycopg.Error:
            if not reconnect or not self._lost:
                raise
            self._drop()
            return self.wire.run(statements)

    @property
    def _lost(self) -> bool:
        return self._wire is None or self._wire.connection.closed

    def _roll_back(self) -> None:
        """Leave no transaction open."""
        if not self._open or self._wire is None:
            return
        try:
            if self._wire.connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                self._wire.connection.execute("ROLLBACK")
        except psycopg.Error:
            self._drop()

    def _drop(self) -> None:
        """Close the connection, which is of no use any more; the next statement opens another."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.connection.close()

    def _check_open(self) -> None:
        if not self._open:
            forks.check_own(f"the ledger {self.name} was opened", self.pid)
            raise closed(self.name)

    # -- statements -------------------------------------------------------------------------------------------------

    among = "= ANY(?)"
    update_many = "UPDATE"

    @staticmethod
    def list_of(values: Iterable[int | str]) -> str:
        """An array as Postgres writes it, whose type is the column's."""
        return "{" + ",".join(str(each) if isinstance(each, int) else _quoted(each) for each in values) + "}"

    @staticmethod
    def json_array(column: str) -> str:
        """Return SQL that makes a JSON array of a column's values, in the order of the rows."""
        return f"json_agg({column})::text"

    @staticmethod
    def ask(db: Connection, sql: str, values: Sequence[Any]) -> Callable[[], list[Any]]:
        """Ask for rows, and read them later."""
        return db.execute(sql, values).fetchall

    def begin(self, db: Connection) -> None:  # noqa: ARG002
        """Wait for the ledger's lock, if nothing has yet."""
        self._transaction.send()

    @staticmethod
    def insert(db: Connection, sql: str, values: Sequence[Any]) -> int:
        """Insert one row; returns its number."""
        row = db.execute(f"{sql} RETURNING id", values).fetchone()
        return int(row[0])

    def insert_rows(self, db: Connection, into: str, columns: Sequence[int | Column]) -> bool:  # noqa: ARG002
        """Insert rows by COPY; False: one of them is there already."""
        count = next(len(each) for each in columns if not isinstance(each, int))
        pieces = [
            [_INTEGER.pack(8, each)] * count if isinstance(each, int) else list(map(_piece, each[0:count]))
            for each in columns
        ]
        begin = [_WIDTH.pack(len(columns))] * count
        rows = b"".join([piece for row in zip(begin, *pieces, strict=True) for piece in row])
        self._transaction.send()  # no COPY goes with others
        try:
            with self.connection.cursor().copy(f"COPY {into} FROM STDIN (FORMAT BINARY)") as copy:
                copy.write(_HEADER + rows + _TRAILER)
        except errors.UniqueViolation:
            return False
        self.changed = True
        return True

    @staticmethod
    def clear_marks(db: Connection) -> None:
        """Delete old marks of commits: whoever was killed has left one."""
        db.execute(_OLD_MARKS)

    # -- changes ----------------------------------------------------------------------------------------------------

    def version(self) -> int:
        """Return a number that changes with every change by any process. The server is not asked for it."""
        self._check_open()
        return self._commits + self._changes_by_others

    def _on_change(self, session: int | None) -> None:
        wire = self._wire
        if session is not None and wire is not None and session == wire.connection.info.backend_pid:
            return  # it counts its own commits
        self._changes_by_others += 1
        for listener in [each() for each in self._listeners]:
            if listener is not None:
                listener()

    def listen(self, listener: Callable[[], None]) -> bool:
        """Have this method called, by another thread, after changes by others. Only a weak reference to it is held."""
        self._listeners = [each for each in self._listeners if each() is not None]
        self._listeners.append(weakref.WeakMethod(listener))
        return True

    def wipe(self, *, retry: bool = False) -> None:
        """Nothing: what was deleted is the server's to clear away (VACUUM)."""

    # -- processes --------------------------------------------------------------------------------------------------

    grace = 5.0
    """A session that was lost is opened again in less than half of it, where the server can be reached."""

    def process_lock(self, name: str, *, retake: bool = False) -> SessionLock:
        """Return the lock of this name: an advisory lock of the session."""
        return SessionLock(self._session, name, retake=retake)

    def free(self, names: Sequence[str]) -> list[str]:
        """Return which of these locks of other processes have been free for the grace."""
        return self._session.free(names, self.grace)

    @property
    def unsure(self) -> bool:
        """Whether `free` found a lock that is free, but not for the grace yet."""
        return self._session.unsure(self.grace)

    closes_before_fork = False

    def abandon(self) -> None:
        """In the child of a fork: close the copies of the connections, and refuse every further use."""
        self._open = False
        self.lock = threading.RLock()
        wire, self._wire = self._wire, None
        if wire is not None:
            discard(wire.connection)
        self._session.abandon()

    def close(self) -> None:
        """Close it and release its locks; a second call does nothing."""
        with self.lock:
            if not self._open:
                return
            self._open = False
            self._session.close()
            if self._wire is not None:
                with suppress(psycopg.Error):
                    self._wire.connection.execute("DELETE FROM meta WHERE name = $1", (self._mark,))
            self._drop()


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _piece(value: int | bytes | bytearray | None) -> bytes:
    """Return a value as binary COPY takes it: its length, then its bytes."""
    if value is None:
        return _NULL
    if isinstance(value, int):
        return _INTEGER.pack(8, value)
    return _LENGTH.pack(len(value)) + value
