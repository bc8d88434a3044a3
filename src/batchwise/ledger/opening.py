"""Opens a ledger: in a file, in memory, or in a Postgres database."""

from __future__ import annotations

import os
from pathlib import Path

from batchwise.errors import InvalidValueError

from .database import not_there
from .files import path_of, scheme_of
from .ledger import Ledger

__all__ = ["migration_sql", "open_ledger"]

_DEFAULT = Path(".batchwise") / "ledger.db"
_POSTGRES = frozenset({"postgres", "postgresql"})


def open_ledger(spec: str | os.PathLike[str] | Ledger | None = None, *, must_exist: bool = False) -> Ledger:
    """Open and return a ledger; None: `$BATCHWISE_LEDGER`, else the default.

    The default is `.batchwise/ledger.db` under the current folder, with a `.gitignore` beside it: it holds prompts.

    Args:
        spec: A `Ledger` as it is, a path, `:memory:`, or a `postgresql://` URL.
        must_exist: Make no new ledger.

    Raises:
        InvalidValueError: `spec` is no path, or a URL of another kind.
        LedgerError: The ledger cannot be used.
        LedgerNotFoundError: It does not exist, and `must_exist` is set.
    """
    if isinstance(spec, Ledger):
        return spec
    spec = _meant(spec)
    if isinstance(spec, str) and scheme_of(spec) in _POSTGRES:
        from .postgres_connection import check_installed

        check_installed()
        from .postgres_database import PostgresDatabase

        return Ledger(PostgresDatabase(spec, must_exist=must_exist))
    from .sqlite import SqliteLedger

    if must_exist:
        _check_exists(path_of(spec))
    ledger = SqliteLedger(path_of(spec))
    ignore = _DEFAULT.with_name(".gitignore")
    if spec is _DEFAULT and not ignore.exists():
        ignore.write_text("*\n")
    return ledger


def migration_sql(url: str | None = None) -> str:
    """Return the SQL that makes the ledger of a `postgresql://` URL, for a user who may CREATE. It does not connect.

    Args:
        url: None: `$BATCHWISE_LEDGER`.

    Raises:
        InvalidValueError: It is no such URL, or malformed.
        LedgerError: psycopg is not installed.
    """
    spec = str(_meant(url))
    if scheme_of(spec) not in _POSTGRES:
        raise InvalidValueError("only a ledger at a postgresql:// URL is made by SQL; a file is made when it is opened")
    from .postgres_connection import check_installed

    check_installed()
    from .postgres_schema import migration_sql as sql

    return sql(spec)


def _meant(spec: str | os.PathLike[str] | None) -> str | os.PathLike[str]:
    return spec if spec is not None else os.environ.get("BATCHWISE_LEDGER") or _DEFAULT


def _check_exists(path: str) -> None:
    if path != ":memory:" and not Path(path).exists():
        raise not_there(path)
