"""A ledger in a SQLite file (or in memory)."""

from __future__ import annotations

import os

from .ledger import Ledger
from .sqlite_database import SqliteDatabase

__all__ = ["SqliteLedger"]


class SqliteLedger(Ledger):
    """A `Ledger` made from a path: one SQLite file, safe for several threads and several processes on one machine.

    Args:
        where: The file (made if missing, readable by its owner only), `:memory:`, or the open database.

    Raises:
        LedgerError: The file cannot be used; the message says why and what to do.
    """

    def __init__(self, where: str | os.PathLike[str] | SqliteDatabase) -> None:
        super().__init__(where if isinstance(where, SqliteDatabase) else SqliteDatabase(where))
