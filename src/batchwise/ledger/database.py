"""What the ledger asks of its database: everything in which one database differs from another.

The rules of the ledger and its SQL are written once above this. `opening` chooses the database. Each database also
makes the tables of `schema` in its own words, and brings the SQL function `plus(text, text)`, which adds whole numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from batchwise.errors import ClosedDispatcherError, LedgerError, LedgerNotFoundError

__all__ = ["BUSY_SECONDS", "Column", "Connection", "Cursor", "Database", "Lock", "busy", "closed", "not_there"]

BUSY_SECONDS = 60
"""How long a writer waits for another process. Transactions are short, so this is far beyond any queue of them."""


class Cursor(Protocol):
    """The result of a statement."""

    @property
    def rowcount(self) -> int:
        """How many rows it changed."""

    def __iter__(self) -> Iterator[Any]: ...
    def fetchone(self) -> Any:
        """The next row; None: there is none."""

    def fetchall(self) -> list[Any]:
        """All rows that are left."""


class Connection(Protocol):
    """Runs statements inside a transaction. A question mark in a statement stands for a value."""

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> Cursor:
        """Run one statement."""

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> Cursor:
        """Run one statement once for each row of values."""


class Column(Protocol):
    """The values of one column, given in slices."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> Sequence[Any]: ...


class Lock(Protocol):
    """A lock that dies with its process."""

    @property
    def held(self) -> bool:
        """Whether this object holds it."""

    def acquire(self) -> bool:
        """Try to take the lock, without waiting; returns whether it is held."""

    def release(self) -> None:
        """Release the lock, if it is held."""

    def remove(self) -> None:
        """Release it for good: nobody asks for a lock of this name again."""


class Database(Protocol):
    """One database, for several threads, and where it can be for several processes."""

    name: str
    """Where it is; for messages."""
    lock: threading.RLock
    """Held by the thread that uses the connection."""
    done: list[Callable[[], None]]
    """Called under the lock after a write transaction became durable."""
    undone: list[Callable[[], None]]
    """Called after a rollback: the numbers that the transaction gave to rows are given again."""

    # How a statement says what databases say differently.
    among: str
    """SQL behind a column: its value is one of those that `list_of` binds. The text is the same for any number."""
    update_many: str
    """SQL that begins an UPDATE of many rows which no constraint can refuse."""

    def list_of(self, values: Iterable[int | str]) -> Any:
        """Return the value to bind to `among`."""

    def json_array(self, column: str) -> str:
        """Return SQL that makes a JSON array of a column's values, in the order of the rows."""

    def write(self, name: str, *, quiet: bool = False, durable: bool = True) -> AbstractContextManager[Connection]:
        """A write transaction, one at a time. It is durable when the block has been left.

        Args:
            name: What it does. Tests that count, delay or break commits tell them apart by it.
            quiet: Nobody has to look at what it changes: `version` stays the same, where the database can do that.
            durable: Whether it has to outlast a power failure before the next durable one is committed.

        Raises:
            LedgerError: The database failed or is busy; nothing was changed.
            ClosedDispatcherError: It is closed.
        """

    def read(self) -> AbstractContextManager[Connection]:
        """A read transaction: all its selects see one state.

        Raises:
            LedgerError: The database failed.
            ClosedDispatcherError: It is closed.
        """

    def ask(self, db: Connection, sql: str, values: Sequence[Any]) -> Callable[[], list[Any]]:
        """Ask for rows; returns a function that reads them. Several questions go to a server in one trip."""

    def begin(self, db: Connection) -> None:
        """Wait until no other process writes. `write` may put this off, so that it shares a trip to the server."""

    def insert(self, db: Connection, sql: str, values: Sequence[Any]) -> int:
        """Insert one row into a table that numbers its rows; returns the number."""

    def insert_rows(self, db: Connection, into: str, columns: Sequence[int | Column]) -> bool:
        """Insert rows; False: one of them is there already. Then the transaction has to be rolled back.

        Args:
            db: The connection of a write transaction.
            into: The table and the names of the columns.
            columns: Their values. An integer is the same in all rows.
        """

    def clear_marks(self, db: Connection) -> None:
        """Delete what the database stored for its own use in processes that are dead now."""

    def version(self) -> int:
        """Return a number that changes with every change by any process."""

    def listen(self, listener: Callable[[], None]) -> bool:
        """Have this method called, in any thread, after changes by others; False: the database cannot do that."""

    grace: float
    """Seconds for which a lock may be free although its process lives: it was lost, and is about to be taken again."""

    def process_lock(self, name: str, *, retake: bool = False) -> Lock:
        """Return the lock of this name; `close` releases it.

        `retake`: where a lock can be lost while its process lives, the database takes it again as soon as it can.
        """

    def free(self, names: Sequence[str]) -> list[str]:
        """Return those of these locks of other processes that may be taken, because their processes seem to have ended.

        With a grace, a lock has to be free at each call for that long.

        Raises:
            LedgerError: The database cannot be reached.
        """

    @property
    def unsure(self) -> bool:
        """Whether `free` found a lock that is free, but not for the grace yet: call it again soon."""

    def wipe(self, *, retry: bool = False) -> None:
        """Remove what was deleted from every file; `retry`: only if that failed the last time."""

    def close(self) -> None:
        """Close it and release its locks; a second call does nothing."""


def busy(name: str) -> LedgerError:
    """Return the error for a writer that has waited for another process as long as it may."""
    return LedgerError(
        f"another process has been writing to the ledger {name} for {BUSY_SECONDS} s; "
        "nothing was changed. If that process hangs, end it: its work goes on from the ledger",
        passing=True,
    )


def nested(name: str) -> LedgerError:
    """Return the error for a transaction inside another one of the same thread."""
    return LedgerError(
        f"a transaction of the ledger {name} is open in this thread; nothing of this step was changed. "
        "In a signal's handler call no method of a dispatcher but close()",
        passing=True,
    )


def closed(name: str) -> ClosedDispatcherError:
    """Return the error for a ledger that is used after it was closed."""
    return ClosedDispatcherError(f"the ledger {name} is closed; open it again")


def not_there(name: str) -> LedgerNotFoundError:
    """Return the error for a ledger that has to exist, and does not."""
    return LedgerNotFoundError(
        f"there is no ledger {name}; nothing was made. Name another with --ledger or $BATCHWISE_LEDGER"
    )
