"""The SQLite schema with its migrations, and how a ledger's file comes into being."""

from __future__ import annotations

import sqlite3
import time

from batchwise.errors import LedgerError

from .files import APPLICATION_ID, FileId, create, file_id, make_private, refused

__all__ = ["BUSY_SECONDS", "MIGRATIONS", "connect", "migrate"]

BUSY_SECONDS = 60.0
"""How long a writer waits for another process. Transactions are short, so this is far beyond any queue of them."""

_OPENING_PAUSE = 0.02

# Words of the schema: status 0 queued, 1 in flight, 2 settled; lane 0 sync, 1 batch; outcome 0 succeeded, 1 failed,
# 2 expired, 3 canceled, 4 refused; times in microseconds since 1970 (UTC); 0 in `batch`, `run`, `staged`:
# none.
#
# Why it has this shape:
# - Bodies and result lines are kept out of `request`, whose rows move often and are scanned.
# - A request that a batch has answered is not touched: that it has a result says that it is settled, whatever its
#   status (results come shuffled, so each would dirty a page of its own). Others change to status 2 as well, which
#   takes them out of the partial indices.
# - `cohort` counts the unsettled requests of each terms in each place, `tally` the settled ones: nothing that the
#   planner or a report asks for ever scans requests, so its cost does not grow with what has settled.
# - A bulk's rows are inserted with terms that are `staged`; accepting it touches terms and cohorts, not rows.
# - What results that settled together have in common stands once, in `settling`, whose results are those from `first`
#   to `last`: a bulk's results come by the thousand. A job's results are found by its settlings, in order. What has
#   no job settles one by one, and is looked for in the order of settling: an index would be one more page to write.
# - Numbers are those of the last row and one; `deleted` has the highest of rows that are gone, for none is given twice
#   (a counter would be one page more that each transaction writes).
# - `turn.body` is the body before the turn: the one that continues it takes its place, and beginning anew restores it.
# - Sums of money are text, added up by `plus`: SQLite's integers end at 9.2 million USD in pico-USD, and then become
#   floats without a word.
# - `label` sums what settled requests cost by their labels, which their terms hold.
# - `waste.unseen`: the most that possible doubles may have cost (pico-USD), which counts against a spend limit.
# - `adopted`: the keys of a batch made elsewhere by their custom_ids, and which request each row was taken for (0: its
#   row has not been seen). Gone when the batch is closed.
# - There are foreign keys where the lookup they need is cheap in both directions. `request.terms` has none: it would
#   need one more index over all requests. `body` has none: bulks insert both, and `Records.delete` deletes both.
_FIRST = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE deleted (name TEXT PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO deleted VALUES ('request', 0), ('result', 0);
CREATE TABLE run (id INTEGER PRIMARY KEY AUTOINCREMENT, pid INTEGER NOT NULL, started INTEGER NOT NULL);
CREATE TABLE job (
    id INTEGER PRIMARY KEY,
    name BLOB UNIQUE,
    visible INTEGER NOT NULL DEFAULT 0,
    positions INTEGER NOT NULL DEFAULT 0
);
INSERT INTO job (id, name, visible) VALUES (0, NULL, 1);
CREATE TABLE intake (id INTEGER PRIMARY KEY AUTOINCREMENT, job INTEGER NOT NULL REFERENCES job, run INTEGER NOT NULL);
CREATE TABLE terms (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    job INTEGER NOT NULL REFERENCES job,
    staged INTEGER NOT NULL,
    blocking INTEGER NOT NULL,
    digest BLOB,
    data BLOB NOT NULL
);
CREATE UNIQUE INDEX terms_digest ON terms (digest) WHERE digest IS NOT NULL;
CREATE INDEX terms_staged ON terms (staged) WHERE staged > 0;
CREATE TABLE request (
    id INTEGER PRIMARY KEY,
    job INTEGER NOT NULL,
    key BLOB NOT NULL,
    terms INTEGER NOT NULL,
    size INTEGER NOT NULL,
    lane INTEGER NOT NULL,
    status INTEGER NOT NULL DEFAULT 0,
    batch INTEGER NOT NULL DEFAULT 0,
    run INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    calls INTEGER NOT NULL DEFAULT 0,
    abandoned INTEGER NOT NULL DEFAULT 0,
    UNIQUE (job, key)
);
CREATE INDEX request_queued ON request (terms) WHERE status = 0;
CREATE INDEX request_running ON request (run) WHERE status = 1 AND lane = 0;
CREATE TABLE body (id INTEGER PRIMARY KEY, params BLOB NOT NULL);
CREATE TABLE turn (
    request INTEGER NOT NULL REFERENCES request ON DELETE CASCADE,
    n INTEGER NOT NULL,
    line BLOB NOT NULL,
    body BLOB,
    PRIMARY KEY (request, n)
);
CREATE TABLE again (
    id INTEGER PRIMARY KEY,
    intake INTEGER NOT NULL REFERENCES intake ON DELETE CASCADE,
    request INTEGER NOT NULL,
    terms INTEGER NOT NULL
);
CREATE INDEX again_intake ON again (intake);
CREATE TABLE batch (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    live INTEGER NOT NULL DEFAULT 1,
    nonce TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    remote_id TEXT,
    requests INTEGER NOT NULL,
    size INTEGER NOT NULL,
    betas TEXT NOT NULL,
    sealed_at INTEGER NOT NULL,
    posting_at INTEGER,
    posting_server INTEGER,
    last_byte_at INTEGER,
    watermark TEXT,
    candidates TEXT NOT NULL DEFAULT '[]',
    struck TEXT NOT NULL DEFAULT '[]',
    created_at INTEGER,
    expires_at INTEGER,
    ended_at INTEGER,
    counts TEXT,
    cancel_at INTEGER,
    polled_at INTEGER,
    failures INTEGER NOT NULL DEFAULT 0,
    canceled INTEGER NOT NULL DEFAULT 0,
    adopted INTEGER NOT NULL DEFAULT 0,
    job INTEGER NOT NULL,
    model TEXT NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL
);
CREATE INDEX batch_live ON batch (id) WHERE live = 1;
CREATE INDEX batch_remote ON batch (remote_id) WHERE remote_id IS NOT NULL;
CREATE TABLE adopted (
    batch INTEGER NOT NULL REFERENCES batch,
    custom_id TEXT NOT NULL,
    key BLOB NOT NULL,
    request INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (batch, custom_id)
) WITHOUT ROWID;
CREATE UNIQUE INDEX adopted_request ON adopted (request) WHERE request > 0;
CREATE TABLE cohort (
    terms INTEGER NOT NULL REFERENCES terms,
    lane INTEGER NOT NULL,
    status INTEGER NOT NULL,
    batch INTEGER NOT NULL,
    requests INTEGER NOT NULL,
    size INTEGER NOT NULL,
    since INTEGER NOT NULL,
    flush INTEGER NOT NULL,
    PRIMARY KEY (terms, lane, status, batch)
) WITHOUT ROWID;
CREATE INDEX cohort_batch ON cohort (batch) WHERE batch > 0;
CREATE TABLE settling (
    last INTEGER PRIMARY KEY,
    first INTEGER NOT NULL,
    job INTEGER NOT NULL,
    terms INTEGER NOT NULL,
    outcome INTEGER NOT NULL,
    lane INTEGER NOT NULL,
    batch INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    settled_at INTEGER NOT NULL,
    met INTEGER
);
CREATE INDEX settling_job ON settling (job) WHERE job > 0;
CREATE TABLE result (
    seq INTEGER PRIMARY KEY,
    request INTEGER NOT NULL,
    cost INTEGER,
    saved INTEGER,
    line BLOB NOT NULL
);
CREATE UNIQUE INDEX result_request ON result (request);
CREATE TABLE tally (
    job INTEGER NOT NULL,
    lane INTEGER NOT NULL,
    outcome INTEGER NOT NULL,
    requests INTEGER NOT NULL DEFAULT 0,
    purged INTEGER NOT NULL DEFAULT 0,
    cost TEXT NOT NULL DEFAULT '0',
    saved TEXT NOT NULL DEFAULT '0',
    unpriced INTEGER NOT NULL DEFAULT 0,
    met INTEGER NOT NULL DEFAULT 0,
    missed INTEGER NOT NULL DEFAULT 0,
    lateness INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    input_tokens INTEGER NOT NULL DEFAULT 0,
    cache_tokens INTEGER NOT NULL DEFAULT 0,
    truncated INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (job, lane, outcome)
) WITHOUT ROWID;
CREATE TABLE label (
    job INTEGER NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    cost TEXT NOT NULL,
    PRIMARY KEY (job, name, value)
) WITHOUT ROWID;
CREATE TABLE spend (minute INTEGER PRIMARY KEY, cost TEXT NOT NULL);
CREATE TABLE waste (
    job INTEGER PRIMARY KEY,
    wasted TEXT NOT NULL DEFAULT '0',
    doubles INTEGER NOT NULL DEFAULT 0,
    unseen TEXT NOT NULL DEFAULT '0'
);
CREATE TABLE late (request INTEGER NOT NULL, batch INTEGER NOT NULL, PRIMARY KEY (request, batch)) WITHOUT ROWID;
"""

MIGRATIONS: tuple[str, ...] = (_FIRST,)
"""Each brings the schema one version on; never change one that was released, append."""


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
        _settle_in(db, path)
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


def _settle_in(db: sqlite3.Connection, path: str) -> None:
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
    # FULL: with NORMAL no sync stands between a seal's commit and its POST, and a lost seal is a batch bought twice.
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    # 8 MB: soon the log is written over, which syncs faster than one that grows, and no commit waits long for it.
    db.execute("PRAGMA wal_autocheckpoint = 250")
    db.execute("PRAGMA journal_size_limit = 67108864")
    db.execute("PRAGMA cache_size = -1024")
    db.execute("PRAGMA temp_store = MEMORY")
    if path != ":memory:" and db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        raise LedgerError(f"{path} lies on a file system without shared memory; keep the ledger on a local disk")


def migrate(db: sqlite3.Connection, path: str) -> None:
    """Bring the schema to the newest version, in one transaction.

    Raises:
        LedgerError: It is newer than this batchwise, or somebody else's database.
    """
    known = len(MIGRATIONS)
    if _version(db) == known:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        version = _version(db)
        _check_version(db, path, version)
        for script in MIGRATIONS[version:]:
            for statement in script.split(";\n"):
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {known}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _check_version(db: sqlite3.Connection, path: str, version: int) -> None:
    known = len(MIGRATIONS)
    if version > known:
        raise LedgerError(
            f"the ledger {path} has schema version {version}, this batchwise knows up to {known}; "
            "upgrade the package batchwise-claude, or use another ledger"
        )
    if version == 0 and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise LedgerError(f"{path} is a SQLite database, but no ledger; name another file")


def _version(db: sqlite3.Connection) -> int:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    return version
