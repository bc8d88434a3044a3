"""How a ledger's file comes into being: opened, or made, and migrated."""

from __future__ import annotations

import sqlite3
import time

from batchwise.errors import LedgerError

from . import schema
from .database import BUSY_SECONDS
from .files import APPLICATION_ID, FileId, create, file_id, make_private, refused

__all__ = ["connect", "migrate", "sync_commits"]

_OPENING_PAUSE = 0.02
_WORDS = {
    "integer": "INTEGER",
    "bytes": "BLOB",
    "numbered": "INTEGER PRIMARY KEY AUTOINCREMENT",
    "clustered": " WITHOUT ROWID",
    "row": "",  # an index has it anyway
    "last": "",
}


def connect(path: str, *, known: FileId | None = None) -> tuple[sqlite3.Connection, FileId | None]:
    """Open (and where need be create) the file, migrated, with every durability setting in place.

    Nothing is changed, made or left behind before it is certain that the file is a ledger, or is to become one.

    Args:
        path: The file, or `:memory:`.
        known: The file that it has to be: another one, or none, is refused. None: whatever is there.

    Returns:
        The connection, and the file's identity (None in memory).

    Raises:
        LedgerError: It cannot be opened, is no ledger, is not the file that was known, or was written by a newer
            batchwise.
    """
    found: FileId | None = None
    try:
        if path != ":memory:":
            found = file_id(path)
            if known is not None and found != known:
                raise refused(path, found)
            if found is None:
                create(path)
                found = file_id(path)
        db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise LedgerError(
            f"the ledger {path} cannot be opened ({error}); check that its folder exists and can be written, "
            "or name another with Dispatcher(ledger=...) or $BATCHWISE_LEDGER"
        ) from error
    try:
        if found is not None:
            make_private(path)
        _configure(db, path)
        migrate(db, path)
    except sqlite3.DatabaseError as error:
        db.close()
        raise LedgerError(
            f"{path} cannot be used as a ledger ({error}); name another file, or restore this one from a copy",
            passing=isinstance(error, sqlite3.OperationalError),
        ) from error
    except BaseException:
        db.close()
        raise
    return db, found


def _plus(one: str, other: str) -> str:
    return str(int(one) + int(other))


def _configure(db: sqlite3.Connection, path: str) -> None:
    db.create_function("plus", 2, _plus, deterministic=True)
    # Bodies and result lines pack better (three of 10 KB to a page, where one of 16 KB takes a single one), and a bulk
    # needs fewer calls of the system for the same bytes; a single request's commits write more. Only new files heed it.
    db.execute("PRAGMA page_size = 32768")
    # What is purged is gone, from freed pages too.
    db.execute("PRAGMA secure_delete = ON")
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        # Two processes that open a new file at once: the change to WAL does not wait on the busy handler.
        try:
            # Before the change to WAL, so that the file itself says what it is, whatever its log holds.
            if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(_OPENING_PAUSE)
    sync_commits(db, each=True)
    db.execute("PRAGMA foreign_keys = ON")
    # 8 MB: soon the log is written over, which syncs faster than one that grows, and no commit waits long for it.
    db.execute("PRAGMA wal_autocheckpoint = 250")
    db.execute("PRAGMA journal_size_limit = 67108864")
    db.execute("PRAGMA cache_size = -1024")
    db.execute("PRAGMA temp_store = MEMORY")
    if path != ":memory:" and db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        raise LedgerError(f"{path} lies on a file system without shared memory; keep the ledger on a local disk")


def sync_commits(db: sqlite3.Connection, *, each: bool) -> None:
    """Have each commit synced to the disk, or only together with a later one that is, or at a checkpoint."""
    # With NORMAL no sync stands between a seal's commit and its POST, and a lost seal is a batch bought twice.
    db.execute(f"PRAGMA synchronous = {'FULL' if each else 'NORMAL'}")


def migrate(db: sqlite3.Connection, path: str) -> None:
    """Bring the schema to the newest version, in one transaction.

    Raises:
        LedgerError: It is newer than this batchwise, or somebody else's database.
    """
    known = len(schema.MIGRATIONS)
    if _version(db) == known:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        version = _version(db)
        schema.check_version(path, version)
        _check_ours(db, path, version)
        for statement in schema.statements(schema.MIGRATIONS[version:], _WORDS):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {known}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _check_ours(db: sqlite3.Connection, path: str, version: int) -> None:
    if version == 0 and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise LedgerError(f"{path} is a SQLite database, but no ledger; name another file")


def _version(db: sqlite3.Connection) -> int:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    return version
