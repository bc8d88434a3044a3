"""What all parts of the SQLite ledger stand on: one connection, its transactions, the cohorts and the books."""

# Statements are made of constants and question marks; the parts of a ledger share its insides.
# ruff: noqa: S608, SLF001

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import orjson

from batchwise.errors import BatchwiseError, ClosedDispatcherError, LedgerError, SpendLimitError
from batchwise.planning.state import Group, Terms

from . import forks
from .files import file_id, path_of, refused, still
from .locks import MemoryLock, ProcessLock
from .rows import SETTLED, decode_key, decode_terms, digest_of, encode_terms, from_micros, micros
from .schema import BUSY_SECONDS, connect
from .values import Cap

__all__ = [
    "ATTEMPTS_NOW",
    "CHUNK",
    "FAILURES",
    "LANE_NOW",
    "REQUESTS",
    "RESULTS_BEHIND",
    "SOME",
    "STATUS_NOW",
    "UPDATE_MANY",
    "Moves",
    "Place",
    "Row",
    "Settling",
    "Store",
    "insert_rows",
    "place_of",
    "reserve",
    "select_some",
    "settled_in",
    "some",
]

CHUNK = 2_000
"""Rows that one transaction moves where a call may move any number: other writers get their turn in between."""

FAILURES = "failures:"
"""Before the names of what `note_failure` counts, in `meta`."""

_CACHED = 10_000
_PICO = 10**12
_RECONNECTED = 1 << 40
"""More than a ledger's connection ever counts."""
_QUIET = {"note_advance", "note_call", "note_clock"}
"""Commits of one's own that nobody has to look at: a pass that notes its begin is not woken by that."""
SOME = "(SELECT value FROM json_each(?))"
"""The numbers that `some` encodes: one text for however many, so that it stays prepared."""
REQUESTS = (
    "request q LEFT JOIN result r ON r.request = q.id "
    "LEFT JOIN settling s ON s.last = (SELECT min(last) FROM settling WHERE last >= r.seq)"
)
"""Requests q, each with its result r and the settling s that this belongs to, if it is settled."""
LANE_NOW, ATTEMPTS_NOW = "coalesce(s.lane, q.lane)", "coalesce(s.attempts, q.attempts)"
STATUS_NOW = "CASE WHEN r.seq IS NULL THEN q.status ELSE 2 END"
RESULTS_BEHIND = "settling s CROSS JOIN result r ON r.seq BETWEEN max(s.first, ? + 1) AND s.last AND s.last > ?"
"""Settlings s and their results r from behind a cursor, given twice; two loops, both in the order of settling."""
_SELECT_ROWS = (
    f"SELECT q.id, q.job, q.size, q.terms, {LANE_NOW}, {STATUS_NOW}, "
    "CASE WHEN q.status = 1 AND q.lane = 1 THEN q.batch ELSE 0 END, q.not_before, "
    f"q.batch, q.run, {ATTEMPTS_NOW}, r.seq, q.abandoned FROM {REQUESTS} WHERE q.id"
)
_SELECT_KEYS = "SELECT id, key FROM request WHERE id"
_LAST_REQUEST, _LAST_RESULT = (
    f"SELECT max(coalesce(max({column}), 0), (SELECT last FROM deleted WHERE name = '{name}')) FROM {table}"
    for name, column, table in (("request", "id", "request"), ("result", "last", "settling"))
)
UPDATE_MANY = "UPDATE OR FAIL"
"""For columns that nothing can conflict in: any other kind holds a copy of each page that the statement changes."""
_TOGETHER = 32
"""Rows in one statement: what is bound to it is held twice."""
_VARIABLES = 960
"""In one statement; SQLite before 3.32 takes 999."""
_MINUTE = timedelta(minutes=1) // timedelta(microseconds=1)


def some(numbers: Iterable[int]) -> str:
    """What is bound to `SOME`."""
    return orjson.dumps(list(numbers)).decode()


def select_some(db: sqlite3.Connection, select: str, ids: Sequence[int], rest: str = "") -> Iterator[tuple[Any, ...]]:
    """The rows of a `SELECT ... WHERE column` whose column is one of any number of ids; `rest` follows in it."""
    if len(ids) == 1:  # what somebody waits for comes alone, and is found in a third of the time
        yield from db.execute(f"{select} = ?{rest}", ids)
        return
    for start in range(0, len(ids), CHUNK):
        yield from db.execute(f"{select} IN {SOME}{rest}", (some(ids[start : start + CHUNK]),))


def settled_in(job: int) -> str:
    """The condition that a settling s is this job's, to which its number is bound."""
    return "s.job = ? AND s.job > 0" if job else "s.job = ?"  # named jobs have an index


class Column(Protocol):
    """The values of one column, given in slices."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> Sequence[Any]: ...


def insert_rows(db: sqlite3.Connection, insert: str, columns: Sequence[int | Column]) -> int:
    """Insert rows, given by their columns (an integer is the same in all rows), many by each statement.

    Returns how many were inserted. A statement for each row would cost as much again as the insertion. `insert` is an
    `INSERT OR IGNORE INTO ...`: any other kind keeps a journal of each statement of many rows.
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
            # sqlite3 looks for an adapter of anything but str, int, float and bytearray, which costs more than a copy.
            values[index::width] = map(bytearray, part) if isinstance(part[0], bytes) else part
        inserted += db.execute(f"{insert} VALUES {', '.join([row] * count)}", values).rowcount
    return inserted


class Row(NamedTuple):
    """The slim columns of a request; from `terms` to `not_before` they are its `Place`."""

    id: int
    job: int
    size: int
    terms: int
    lane: int
    status: int
    inside: int
    """The batch that it is in; 0: in none."""
    not_before: int
    batch: int
    """The batch that it is in or was last in."""
    run: int
    attempts: int
    result: int | None
    abandoned: int


class Settling(NamedTuple):
    """What results that settled together have in common: those from `first` to `last`, as far as they are still there.

    In codes and microseconds, as stored.
    """

    last: int
    first: int
    job: int
    terms: int
    outcome: int
    lane: int
    batch: int
    """The batch that settled them; 0: none did."""
    attempts: int
    settled_at: int
    met: int | None


class Place(NamedTuple):
    """Where an unsettled request is: a cohort's key."""

    terms: int
    lane: int
    status: int
    batch: int
    not_before: int


def place_of(row: Row) -> Place:
    """The cohort in which an unsettled row is counted."""
    return tuple.__new__(Place, row[3:8])


def reserve(terms: Terms, requests: int, size: int) -> int:
    """pico-USD that so many requests of these terms, of so many bytes together, may cost at most."""
    return requests * terms.reserve_each + size * terms.reserve_per_byte


class _Lock(Protocol):
    @property
    def held(self) -> bool: ...
    def acquire(self) -> bool: ...
    def release(self) -> None: ...
    def remove(self) -> None: ...


class Store:
    """One connection for all threads, its transactions, and what several parts of the ledger read and write.

    Every change goes through `_transaction` and ends in `_commit`, so a subclass can count, delay or break commits.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        name = path_of(path)
        self._memory = name == ":memory:"
        # Real path: a symbolic link must not give the same file other lock files.
        self._name = name if self._memory else os.path.realpath(name)
        self._lock = threading.RLock()
        self._inside = 0
        """How deep the thread that holds the lock is in work with the connection."""
        self._open, self._connected = True, True
        self.pid = os.getpid()
        self._commits = 0
        self._terms_by_id: dict[int, Terms] = {}
        self._job_names: dict[int, str | None] = {0: None}
        self._nonces: dict[int, str] = {}
        self._untruncated = False
        """Whether the log may still hold what was purged."""
        self._runs: dict[int, _Lock] = {}
        with forks.opening(self):
            if not self._memory:
                _make_folder(Path(self._name).parent)
            self._db, self._file = connect(self._name)
            try:
                if not self._memory:
                    _make_folder(self._folder)
                self._lease: _Lock = MemoryLock() if self._memory else ProcessLock(self._folder / "lease.lock")
            except BaseException:
                self._db.close()
                raise

    @property
    def name(self) -> str:
        """Its absolute path, or `:memory:`; for messages."""
        return self._name

    @property
    def _folder(self) -> Path:
        return Path(self._name + ".locks")

    # -- transactions -----------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self, name: str) -> Iterator[sqlite3.Connection]:
        """A write transaction: durable when the block has been left. One that changed nothing is none."""
        with self._using():
            self._check_file()
            self._db.execute("BEGIN IMMEDIATE")
            before = self._db.total_changes
            try:
                yield self._db
                if self._db.total_changes == before:
                    self._db.execute("ROLLBACK")
                else:
                    self._commit(name)
                    self._commits += name not in _QUIET
            except BaseException:
                # Numbers that were given in it are given again; SQLite itself may have rolled it back (a full disk).
                self._terms_by_id.clear()
                self._job_names = {0: None}
                self._nonces.clear()
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _commit(self, name: str) -> None:  # noqa: ARG002 (for subclasses, which tell commits apart by it)
        """Every change to the ledger becomes durable here and nowhere else."""
        self._db.execute("COMMIT")

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent state for several selects."""
        with self._using():
            self._check_file()
            self._db.execute("BEGIN")
            try:
                yield self._db
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    @contextmanager
    def _using(self) -> Iterator[None]:
        with self._lock:
            if not self._open:
                raise self._ended()
            if not self._connected:
                self._connect_again()
            self._inside += 1
            try:
                yield
            except sqlite3.Error as error:
                raise self._trouble(error) from error
            finally:
                self._inside -= 1

    def _ended(self) -> BatchwiseError:
        if self.pid != os.getpid():
            return forks.forked(f"the ledger {self._name} was opened", self.pid)
        return ClosedDispatcherError(f"the ledger {self._name} is closed; open it again")

    def _check_file(self) -> None:
        """Nothing goes on with a file that was deleted, moved or replaced: nobody would find what is written to it.

        Raises:
            LedgerError: It was.
        """
        if self._file is not None and not still(self._name, self._file):
            raise refused(self._name, file_id(self._name))

    def _trouble(self, error: sqlite3.Error) -> LedgerError:
        if "locked" in str(error) or "busy" in str(error):
            return LedgerError(
                f"another process has been writing to the ledger {self._name} for {BUSY_SECONDS:.0f} s; "
                "nothing was changed. If that process hangs, end it: its work goes on from the ledger",
                passing=True,
            )
        return LedgerError(
            f"the ledger {self._name} failed ({error}); nothing of this step was changed. "
            "Check the disk's space and the file's permissions, then go on",
            passing=isinstance(error, sqlite3.OperationalError),
        )

    def version(self) -> int:
        """A number that changes when anything in the ledger changed, by whomever."""
        with self._using():
            others: int = self._db.execute("PRAGMA data_version").fetchone()[0]
            return others + self._commits

    # -- forks: see forks.py ----------------------------------------------------------------------------------------

    def disconnect(self) -> bool:
        """Before a fork, the lock held: close the connection, until it is needed again. False: it is in use."""
        if self._inside:
            return False
        if not self._memory:
            self._db.close()
            self._connected = False
        return True

    def _connect_again(self) -> None:
        self._db, _ = connect(self._name, known=self._file)
        self._connected = True
        self._commits += _RECONNECTED  # another connection counts others' changes anew

    def abandon(self) -> None:
        """In the child of a fork: never to be used again."""
        self._open, self._inside = False, 0
        self._lock = threading.RLock()

    def close(self) -> None:
        """Close the file and give up the locks; again is harmless."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            for lock in (*self._runs.values(), self._lease):
                lock.release()
            self._runs.clear()
            with suppress(sqlite3.Error):
                self._db.close()

    # -- small things -----------------------------------------------------------------------------------------------

    def _last_request(self, db: sqlite3.Connection) -> int:
        """The highest number that a request was ever given."""
        return int(db.execute(_LAST_REQUEST).fetchone()[0])

    def _last_result(self, db: sqlite3.Connection) -> int:
        """The highest number that a result was ever given: settlings stay when a result is forgotten."""
        return int(db.execute(_LAST_RESULT).fetchone()[0])

    def _meta(self, db: sqlite3.Connection, name: str) -> str | None:
        row = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def _put(self, db: sqlite3.Connection, name: str, value: str | None) -> None:
        if self._meta(db, name) == value:
            return
        if value is None:
            db.execute("DELETE FROM meta WHERE name = ?", (name,))
        else:
            db.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", (name, value))

    def _forget_failures(self, db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM meta WHERE name GLOB ?", (f"{FAILURES}*",))

    def _rows(self, db: sqlite3.Connection, ids: Sequence[int]) -> dict[int, Row]:
        """The rows of these numbers, by number."""
        return {row[0]: tuple.__new__(Row, row) for row in select_some(db, _SELECT_ROWS, ids)}

    def _settling(self, db: sqlite3.Connection, result: int) -> Settling:
        """The settling of a result."""
        found = db.execute("SELECT * FROM settling WHERE last >= ? ORDER BY last LIMIT 1", (result,))
        return Settling._make(found.fetchone())

    def _keys(self, db: sqlite3.Connection, ids: Sequence[int]) -> dict[int, str]:
        return {number: decode_key(key) for number, key in select_some(db, _SELECT_KEYS, ids)}

    def _terms(self, db: sqlite3.Connection, number: int) -> Terms:
        """Terms by number. They never change, so they are remembered."""
        known = self._terms_by_id.get(number)
        if known is None:
            job, data = db.execute("SELECT job, data FROM terms WHERE id = ?", (number,)).fetchone()
            if len(self._terms_by_id) >= _CACHED:
                self._terms_by_id.clear()
            known = self._terms_by_id[number] = decode_terms(number, job, data)
        return known

    def _store_terms(self, db: sqlite3.Connection, terms: Terms, job: int, *, staged: int = 0) -> int:
        """The number of such terms; equal ones share it, but for those of a bulk, which are its own."""
        data = encode_terms(terms)
        digest = None if staged else digest_of(job, data)
        if digest is not None:
            found = db.execute("SELECT id FROM terms WHERE digest = ?", (digest,)).fetchone()
            if found is not None:
                return int(found[0])
        stored = db.execute(
            "INSERT INTO terms (job, staged, blocking, digest, data) VALUES (?, ?, ?, ?, ?)",
            (job, staged, terms.blocking, digest, data),
        )
        return int(stored.lastrowid or 0)

    def _job_name(self, db: sqlite3.Connection, number: int) -> str | None:
        if number not in self._job_names:
            (name,) = db.execute("SELECT name FROM job WHERE id = ?", (number,)).fetchone()
            self._job_names[number] = name.decode("utf-8", "surrogatepass")
        return self._job_names[number]

    def _nonce(self, db: sqlite3.Connection, batch: int) -> str | None:
        if not batch:
            return None
        known = self._nonces.get(batch)
        if known is None:
            if len(self._nonces) >= _CACHED:
                self._nonces.clear()
            (known,) = db.execute("SELECT nonce FROM batch WHERE id = ?", (batch,)).fetchone()
            self._nonces[batch] = known
        return known

    def _groups(self, db: sqlite3.Connection, where: str, values: Sequence[Any] = ()) -> list[tuple[Place, Group]]:
        """Cohorts with their keys."""
        columns = "terms, lane, status, batch, not_before, requests, size, since, flush"
        return [
            (
                Place(*row[:5]),
                Group(
                    terms=self._terms(db, row[0]),
                    requests=row[5],
                    size=row[6],
                    since=from_micros(row[7]),
                    not_before=from_micros(row[4]) if row[4] else None,
                    flush=bool(row[8]),
                ),
            )
            for row in db.execute(f"SELECT {columns} FROM cohort WHERE {where} ORDER BY terms", values).fetchall()
        ]

    def _spent(self, db: sqlite3.Connection, since: datetime | None) -> int:
        """pico-USD settled, wasted, or perhaps billed unseen, since the minute of `since` (None: ever)."""
        # Summed here: SQLite's integers end at 9.2 million USD.
        if since is None:
            return sum(
                row[0] for row in db.execute("SELECT cost FROM tally UNION ALL SELECT wasted + unseen FROM waste")
            )
        start = micros(since) // _MINUTE
        return sum(row[0] for row in db.execute("SELECT cost FROM spend WHERE minute >= ?", (start,)))

    def _reserved(self, db: sqlite3.Connection) -> int:
        """pico-USD kept for unsettled requests."""
        return int(self._meta(db, "reserved") or 0)

    def _book(self, db: sqlite3.Connection, cost: int, now: datetime) -> None:
        if cost:
            db.execute(
                "INSERT INTO spend VALUES (?, ?) ON CONFLICT DO UPDATE SET cost = cost + excluded.cost",
                (micros(now) // _MINUTE, cost),
            )

    def _truncate_log(self) -> None:
        """Empty the log, which holds what was purged. While another connection reads it, it is tried again later."""
        with self._using():
            self._db.execute("PRAGMA busy_timeout = 0")
            try:
                self._untruncated = bool(self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])
            finally:
                self._db.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000:.0f}")

    def _set_books_right(self, now: datetime) -> None:
        """What a clock that was ahead booked as spent or settled later than now counts as of now."""
        moment, minute = micros(now), micros(now) // _MINUTE
        soon = moment + _MINUTE  # others settle meanwhile
        with self._using():
            spent, settled = self._db.execute(
                "SELECT (SELECT max(minute) FROM spend), (SELECT settled_at FROM settling ORDER BY last DESC LIMIT 1)"
            ).fetchone()
        if (spent or 0) <= soon // _MINUTE and (settled or 0) <= soon:
            return
        with self._transaction("set_books_right") as db:
            ahead = db.execute("SELECT cost FROM spend WHERE minute > ?", (minute,)).fetchall()
            db.execute("DELETE FROM spend WHERE minute > ?", (minute,))
            self._book(db, sum(cost for (cost,) in ahead), now)
            db.execute("UPDATE settling SET settled_at = ? WHERE settled_at > ?", (moment, soon))

    def _book_waste(self, db: sqlite3.Connection, job: int, *, wasted: int = 0, doubles: int = 0) -> None:
        if wasted or doubles:
            db.execute(
                "INSERT INTO waste VALUES (?, ?, ?, 0) ON CONFLICT DO UPDATE "
                "SET wasted = wasted + excluded.wasted, doubles = doubles + excluded.doubles",
                (job, wasted, doubles),
            )

    def _book_unseen(self, db: sqlite3.Connection, terms: Terms, requests: int, size: int, now: datetime) -> None:
        """These requests may have been billed without an answer: what that costs at most counts against the cap."""
        most = reserve(terms, requests, size)
        if most:
            db.execute(
                "INSERT INTO waste VALUES (?, 0, 0, ?) ON CONFLICT DO UPDATE SET unseen = unseen + excluded.unseen",
                (terms.job, most),
            )
            self._book(db, most, now)

    def _book_doubt(self, db: sqlite3.Connection, terms: Terms, requests: int, size: int, now: datetime) -> None:
        """These requests may have been bought, and may be bought again."""
        self._book_waste(db, terms.job, doubles=requests)
        self._book_unseen(db, terms, requests, size, now)

    def _check_cap(self, db: sqlite3.Connection, cap: Cap | None, more: int) -> None:
        if cap is None:
            return
        spent, reserved = self._spent(db, cap.since), self._reserved(db)
        if spent + reserved + more > cap.limit:
            raise SpendLimitError(
                f"accepting this could cost {more / _PICO:.6f} USD beside {spent / _PICO:.6f} spent and "
                f"{reserved / _PICO:.6f} reserved for unsettled work, over max_spend={cap.limit / _PICO:.6f}; "
                "raise the limit, or wait until reserved work has settled. Nothing was stored or sent"
            )


class Moves:
    """Collects how requests move between places, and books it in the cohorts and the reserve, with them."""

    def __init__(self, store: Store, db: sqlite3.Connection, now: datetime) -> None:
        self._store, self._db, self._since = store, db, micros(now)
        self._delta: dict[Place, list[int]] = {}
        self._flush: set[Place] = set()

    def add(self, place: Place, requests: int, size: int, *, flush: bool = False) -> None:
        """`requests` more there (or fewer, if negative)."""
        known = self._delta.get(place)
        if known is None:
            self._delta[place] = [requests, size]
        else:
            known[0] += requests
            known[1] += size
        if flush:
            self._flush.add(place)

    def row(self, row: Row, to: Place | None) -> None:
        """One row leaves its place (unless it is settled) for another (None: settles)."""
        if row.status != SETTLED:
            self.add(place_of(row), -1, -row.size)
        if to is not None:
            self.add(to, 1, row.size)

    def book(self) -> None:
        """Write it all."""
        store, db = self._store, self._db
        reserved = 0
        for place, (requests, size) in self._delta.items():
            terms = store._terms(db, place.terms)
            reserved += reserve(terms, requests, size)
            if not requests and not size:
                continue
            if requests >= 0:
                db.execute(
                    "INSERT INTO cohort VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                    "requests = requests + excluded.requests, size = size + excluded.size, "
                    "since = min(since, excluded.since), flush = max(flush, excluded.flush)",
                    (*place, requests, size, self._since, place in self._flush),
                )
            else:
                key = "terms = ? AND lane = ? AND status = ? AND batch = ? AND not_before = ?"
                # Nearly always all of a cohort, or one of many.
                gone = db.execute(f"DELETE FROM cohort WHERE {key} AND requests = ?", (*place, -requests))
                if not gone.rowcount:
                    db.execute(
                        f"UPDATE cohort SET requests = requests + ?, size = size + ? WHERE {key}",
                        (requests, size, *place),
                    )
        if reserved:
            store._put(db, "reserved", str(store._reserved(db) + reserved))
        self._delta.clear()


def _make_folder(folder: Path) -> None:
    """Make what is missing, for its owner alone."""
    try:
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        for each in reversed(missing):
            each.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise LedgerError(f"the ledger's folder {folder} cannot be made ({error}); name another path") from error
