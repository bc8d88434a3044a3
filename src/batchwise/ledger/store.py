"""What all parts of the ledger stand on: its database, the cohorts and the books."""

# Statements are made of constants and question marks; the parts of a ledger share its insides.
# ruff: noqa: S608, SLF001

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import orjson

from batchwise.errors import SpendLimitError
from batchwise.planning.state import Group, Terms

from .database import Connection, Database, Lock
from .rows import SETTLED, decode_key, decode_terms, digest_of, encode_terms, from_micros, micros
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
_MINUTE = timedelta(minutes=1) // timedelta(microseconds=1)


def some(numbers: Iterable[int]) -> str:
    """What is bound to `SOME`."""
    return orjson.dumps(list(numbers)).decode()


def select_some(db: Connection, select: str, ids: Sequence[int], rest: str = "") -> Iterator[tuple[Any, ...]]:
    """The rows of a `SELECT ... WHERE column` whose column is one of any number of ids; `rest` follows in it."""
    if len(ids) == 1:  # what somebody waits for comes alone, and is found in a third of the time
        yield from db.execute(f"{select} = ?{rest}", ids)
        return
    for start in range(0, len(ids), CHUNK):
        yield from db.execute(f"{select} IN {SOME}{rest}", (some(ids[start : start + CHUNK]),))


def settled_in(job: int) -> str:
    """The condition that a settling s is this job's, to which its number is bound."""
    return "s.job = ? AND s.job > 0" if job else "s.job = ?"  # named jobs have an index


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


class Store:
    """What several parts of the ledger read and write."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.database.undone.append(self._forget)
        self._lease = self.database.process_lock("lease")
        self._runs: dict[int, Lock] = {}
        self._terms_by_id: dict[int, Terms] = {}
        self._job_names: dict[int, str | None] = {0: None}
        self._nonces: dict[int, str] = {}

    @property
    def name(self) -> str:
        """Its absolute path, or `:memory:`; for messages."""
        return self.database.name

    def version(self) -> int:
        """A number that changes when anything in the ledger changed, by whomever."""
        return self.database.version()

    def close(self) -> None:
        """Close the database and give up the locks; again is harmless."""
        self.database.close()

    def _forget(self) -> None:
        self._terms_by_id.clear()
        self._job_names = {0: None}
        self._nonces.clear()

    # -- small things -----------------------------------------------------------------------------------------------

    def _last_request(self, db: Connection) -> int:
        """The highest number that a request was ever given."""
        return int(db.execute(_LAST_REQUEST).fetchone()[0])

    def _last_result(self, db: Connection) -> int:
        """The highest number that a result was ever given: settlings stay when a result is forgotten."""
        return int(db.execute(_LAST_RESULT).fetchone()[0])

    def _meta(self, db: Connection, name: str) -> str | None:
        row = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def _put(self, db: Connection, name: str, value: str | None) -> None:
        if self._meta(db, name) == value:
            return
        if value is None:
            db.execute("DELETE FROM meta WHERE name = ?", (name,))
        else:
            db.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", (name, value))

    def _forget_failures(self, db: Connection) -> None:
        db.execute("DELETE FROM meta WHERE name GLOB ?", (f"{FAILURES}*",))

    def _rows(self, db: Connection, ids: Sequence[int]) -> dict[int, Row]:
        """The rows of these numbers, by number."""
        return {row[0]: tuple.__new__(Row, row) for row in select_some(db, _SELECT_ROWS, ids)}

    def _settling(self, db: Connection, result: int) -> Settling:
        """The settling of a result."""
        found = db.execute("SELECT * FROM settling WHERE last >= ? ORDER BY last LIMIT 1", (result,))
        return Settling._make(found.fetchone())

    def _keys(self, db: Connection, ids: Sequence[int]) -> dict[int, str]:
        return {number: decode_key(key) for number, key in select_some(db, _SELECT_KEYS, ids)}

    def _terms(self, db: Connection, number: int) -> Terms:
        """Terms by number. They never change, so they are remembered."""
        known = self._terms_by_id.get(number)
        if known is None:
            job, data = db.execute("SELECT job, data FROM terms WHERE id = ?", (number,)).fetchone()
            if len(self._terms_by_id) >= _CACHED:
                self._terms_by_id.clear()
            known = self._terms_by_id[number] = decode_terms(number, job, data)
        return known

    def _store_terms(self, db: Connection, terms: Terms, job: int, *, staged: int = 0) -> int:
        """The number of such terms; equal ones share it, but for those of a bulk, which are its own."""
        data = encode_terms(terms)
        digest = None if staged else digest_of(job, data)
        if digest is not None:
            found = db.execute("SELECT id FROM terms WHERE digest = ?", (digest,)).fetchone()
            if found is not None:
                return int(found[0])
        return self.database.insert(
            db,
            "INSERT INTO terms (job, staged, blocking, digest, data) VALUES (?, ?, ?, ?, ?)",
            (job, staged, terms.blocking, digest, data),
        )

    def _job_name(self, db: Connection, number: int) -> str | None:
        if number not in self._job_names:
            (name,) = db.execute("SELECT name FROM job WHERE id = ?", (number,)).fetchone()
            self._job_names[number] = name.decode("utf-8", "surrogatepass")
        return self._job_names[number]

    def _nonce(self, db: Connection, batch: int) -> str | None:
        if not batch:
            return None
        known = self._nonces.get(batch)
        if known is None:
            if len(self._nonces) >= _CACHED:
                self._nonces.clear()
            (known,) = db.execute("SELECT nonce FROM batch WHERE id = ?", (batch,)).fetchone()
            self._nonces[batch] = known
        return known

    def _groups(self, db: Connection, where: str, values: Sequence[Any] = ()) -> list[tuple[Place, Group]]:
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

    def _spent(self, db: Connection, since: datetime | None) -> int:
        """pico-USD settled, wasted, or perhaps billed unseen, since the minute of `since` (None: ever)."""
        # Summed here: SQLite's integers end at 9.2 million USD.
        if since is None:
            return sum(
                row[0] for row in db.execute("SELECT cost FROM tally UNION ALL SELECT wasted + unseen FROM waste")
            )
        start = micros(since) // _MINUTE
        return sum(row[0] for row in db.execute("SELECT cost FROM spend WHERE minute >= ?", (start,)))

    def _reserved(self, db: Connection) -> int:
        """pico-USD kept for unsettled requests."""
        return int(self._meta(db, "reserved") or 0)

    def _book(self, db: Connection, cost: int, now: datetime) -> None:
        if cost:
            db.execute(
                "INSERT INTO spend VALUES (?, ?) ON CONFLICT DO UPDATE SET cost = cost + excluded.cost",
                (micros(now) // _MINUTE, cost),
            )

    def _set_books_right(self, now: datetime) -> None:
        """What a clock that was ahead booked as spent or settled later than now counts as of now."""
        moment, minute = micros(now), micros(now) // _MINUTE
        soon = moment + _MINUTE  # others settle meanwhile
        with self.database.read() as db:
            spent, settled = db.execute(
                "SELECT (SELECT max(minute) FROM spend), (SELECT settled_at FROM settling ORDER BY last DESC LIMIT 1)"
            ).fetchone()
        if (spent or 0) <= soon // _MINUTE and (settled or 0) <= soon:
            return
        with self.database.write("set_books_right") as db:
            ahead = db.execute("SELECT cost FROM spend WHERE minute > ?", (minute,)).fetchall()
            db.execute("DELETE FROM spend WHERE minute > ?", (minute,))
            self._book(db, sum(cost for (cost,) in ahead), now)
            db.execute("UPDATE settling SET settled_at = ? WHERE settled_at > ?", (moment, soon))

    def _book_waste(self, db: Connection, job: int, *, wasted: int = 0, doubles: int = 0) -> None:
        if wasted or doubles:
            db.execute(
                "INSERT INTO waste VALUES (?, ?, ?, 0) ON CONFLICT DO UPDATE "
                "SET wasted = wasted + excluded.wasted, doubles = doubles + excluded.doubles",
                (job, wasted, doubles),
            )

    def _book_unseen(self, db: Connection, terms: Terms, requests: int, size: int, now: datetime) -> None:
        """These requests may have been billed without an answer: what that costs at most counts against the cap."""
        most = reserve(terms, requests, size)
        if most:
            db.execute(
                "INSERT INTO waste VALUES (?, 0, 0, ?) ON CONFLICT DO UPDATE SET unseen = unseen + excluded.unseen",
                (terms.job, most),
            )
            self._book(db, most, now)

    def _book_doubt(self, db: Connection, terms: Terms, requests: int, size: int, now: datetime) -> None:
        """These requests may have been bought, and may be bought again."""
        self._book_waste(db, terms.job, doubles=requests)
        self._book_unseen(db, terms, requests, size, now)

    def _check_cap(self, db: Connection, cap: Cap | None, more: int) -> None:
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

    def __init__(self, store: Store, db: Connection, now: datetime) -> None:
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
