"""A ledger in a SQLite file (or in memory)."""

from __future__ import annotations

import os
from pathlib import Path

from batchwise.errors import LedgerNotFoundError

from .files import path_of
from .ledger import Ledger
from .sqlite_database import SqliteDatabase

__all__ = ["SqliteLedger", "open_ledger"]

_DEFAULT = Path(".batchwise") / "ledger.db"


class SqliteLedger(Ledger):
    """A `Ledger` in one SQLite file, safe for several threads and several processes on one machine.

    Args:
        where: The file (made if missing, readable by its owner only), `:memory:`, or the open database.

    Raises:
        LedgerError: The file cannot be used; the message says why and what to do.
    """

    def __init__(self, where: str | os.PathLike[str] | SqliteDatabase) -> None:
        super().__init__(where if isinstance(where, SqliteDatabase) else SqliteDatabase(where))


def open_ledger(spec: str | os.PathLike[str] | Ledger | None = None, *, must_exist: bool = False) -> Ledger:
    """The ledger that is meant: a `Ledger` as it is, a path or `:memory:`; None: `$BATCHWISE_LEDGER`, else the default.

    The default is `.batchwise/ledger.db` under the current folder, with a `.gitignore` beside it: it holds prompts.

    Args:
        spec: What is meant.
        must_exist: Make no new file.

    Raises:
        InvalidValueError: It is no path.
        LedgerError: The file cannot be used.
        LedgerNotFoundError: It does not exist and has to.
    """
    if isinstance(spec, Ledger):
        return spec
    spec = spec if spec is not None else os.environ.get("BATCHWISE_LEDGER") or _DEFAULT
    if must_exist:
        _check_exists(path_of(spec))
    ledger = SqliteLedger(path_of(spec))
    ignore = _DEFAULT.with_name(".gitignore")
    if spec is _DEFAULT and not ignore.exists():
        ignore.write_text("*\n")
    return ledger


def _check_exists(path: str) -> None:
    if path != ":memory:" and not Path(path).exists():
        raise LedgerNotFoundError(
            f"there is no ledger {path}; nothing was made. Name another with --ledger or $BATCHWISE_LEDGER"
        )
