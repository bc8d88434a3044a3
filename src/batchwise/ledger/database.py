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
    """What a statement gave."""

    @property
    def rowcount(self) -> int:
        """How many rows it changed."""

    def __iter__(self) -> Iterator[Any]: ...
    def fetchone(self) -> Any:
        """The next row; None: there is none."""

    def fetchall(self) -> list[Any]:
        """All rows that are left."""

    def close(self) -> object:
        """Read no more of it."""


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
        """Try, without waiting; True if held (already or now)."""

    def release(self) -> None:
        """Release the lock, if it is held."""

    def remove(self) -> None:
        """Give it up for good: nobody asks for a lock of this name again."""


class Database(Protocol):
    """One database, for several threads, and where it can be for several processes."""

    name: str
    """Where it is; for messages."""
    lock: threading.RLock
    """Held by the thread that uses the connection."""
    done: list[Callable[[], None]]
    """Called under the lock after a write transaction became durable."""
    undone: list[Callable[[], None]]
    """Called after a transaction was given up: numbers that were given in it are given again."""

    # How a statement says what databases say differently.
    among: str
    """Behind a column: its value is one of those that `list_of` binds. One text for however many of them."""
    update_many: str
    """Begins an UPDATE of many rows, of columns that nothing can conflict in."""

    def list_of(self, values: Iterable[int | str]) -> Any:
        """What is bound to `among`."""

    def json_array(self, column: str) -> str:
        """The values of a column of the rows, in their order, as a JSON array."""

    def write(self, name: str, *, quiet: bool = False) -> AbstractContextManager[Connection]:
        """A write transaction, one at a time. It is durable when the block has been left.

        Args:
            name: What it does; for those who count, delay, or break commits.
            quiet: Nobody has to look at what it changes: `version` stays, where it can.

        Raises:
            LedgerError: The database failed or is busy; nothing was changed.
            ClosedDispatcherError: It is closed.
        """

    def read(self) -> AbstractContextManager[Connection]:
        """One consistent state for several selects.

        Raises:
            LedgerError: The database failed.
            ClosedDispatcherError: It is closed.
        """

    def ask(self, db: Connection, sql: str, values: Sequence[Any]) -> Callable[[], list[Any]]:
        """Ask for rows, and read them later: questions to a server that are asked together are one trip."""

    def begin(self, db: Connection) -> None:
        """Wait until no other process writes, where `write` has not: its first trip to a server may do more."""

    def insert(self, db: Connection, sql: str, values: Sequence[Any]) -> int:
        """Insert one row into a table that numbers its rows; returns the number."""

    def insert_rows(self, db: Connection, into: str, columns: Sequence[int | Column]) -> bool:
        """Insert rows; False: one of them is there already. Then the transaction has to be given up.

        Args:
            db: The connection of a write transaction.
            into: The table and the names of the columns.
            columns: Their values. An integer is the same in all rows.
        """

    def clear_marks(self, db: Connection) -> None:
        """Delete what dead processes have left in the database that is its own, and nobody asks for any more."""

    def version(self) -> int:
        """A number that changes when anything was changed, by whomever."""

    def listen(self, listener: Callable[[], None]) -> bool:
        """Have this method called, in any thread, after changes by others; False: the database cannot do that."""

    grace: float
    """Seconds for which a lock may be free although its process lives: it was lost, and is about to be taken again."""

    def process_lock(self, name: str, *, retake: bool = False) -> Lock:
        """The lock of this name; `close` gives it up.

        `retake`: where a lock can be lost while its process lives, the database takes it again as soon as it can.
        """

    def free(self, names: Sequence[str]) -> list[str]:
        """Which of these locks of others may be taken: their processes have ended, for all that is known.

        Where the grace is over zero, those that were free in it each time that this was asked, a question at a time.

        Raises:
            LedgerError: The database cannot be reached.
        """

    @property
    def unsure(self) -> bool:
        """Whether a lock was free at the last question, but may not be taken yet: ask again soon."""

    def wipe(self, *, retry: bool = False) -> None:
        """See to it that what was deleted is in no file any more; `retry`: only if that failed the last time."""

    def close(self) -> None:
        """Close it and release its locks; a second call does nothing."""


def busy(name: str) -> LedgerError:
    """The error for a writer of this ledger that has waited for another process as long as it may."""
    return LedgerError(
        f"another process has been writing to the ledger {name} for {BUSY_SECONDS} s; "
        "nothing was changed. If that process hangs, end it: its work goes on from the ledger",
        passing=True,
    )


def closed(name: str) -> ClosedDispatcherError:
    """The error for a ledger that is used after it was closed."""
    return ClosedDispatcherError(f"the ledger {name} is closed; open it again")


def not_there(name: str) -> LedgerNotFoundError:
    """The error for a ledger that has to exist, and does not."""
    return LedgerNotFoundError(
        f"there is no ledger {name}; nothing was made. Name another with --ledger or $BATCHWISE_LEDGER"
    )
