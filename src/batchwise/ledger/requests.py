"""Reading requests: which there are, where each is, and its body."""

# ruff: noqa: S608 (statements are made of constants and question marks)

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .database import Connection, Database
from .records import (
    ATTEMPTS_NOW,
    LANE_NOW,
    REQUESTS,
    STATUS_NOW,
    UNSETTLED,
    UNSETTLED_IN_BATCH,
    UNSETTLED_OF_JOB,
    Records,
)
from .rows import LANES, STATUSES, decode_key, encode_key
from .unnamed import REQUESTS_OF, Unnamed, is_in
from .values import RequestRow, Which

__all__ = ["Requests"]

_REQUEST = (
    f"SELECT q.id, q.key, q.job, q.terms, {LANE_NOW}, {STATUS_NOW}, {ATTEMPTS_NOW}, q.batch, r.seq FROM {REQUESTS}"
)
_VISIBLE = "(SELECT t.staged FROM terms t WHERE t.id = q.terms) = 0"


def _limit(limit: int | None) -> str:
    return "" if limit is None else f" LIMIT {limit}"


class Requests:
    """Reads requests."""

    def __init__(self, database: Database, records: Records, unnamed: Unnamed) -> None:
        self._database, self._records, self._unnamed = database, records, unnamed

    def rows(self, which: Which, *, limit: int | None = None) -> dict[int, RequestRow]:
        """Return the selected requests by number. A key without a job may select requests of several jobs."""
        with self._database.read() as db:
            condition, values = self._condition(db, which)
            if which.requests is not None:
                found: Iterable[Sequence[Any]] = self._records.select(
                    db, f"{_REQUEST} WHERE {condition} AND q.id", which.requests, values
                )
            else:
                found = db.execute(f"{_REQUEST} WHERE {condition} ORDER BY q.job, q.id{_limit(limit)}", values)
            rows = [self._request(db, row) for row in list(found)]
            (turns,) = db.execute("SELECT EXISTS (SELECT 1 FROM turn)").fetchone()
            if turns:  # hardly ever
                rows = [row._replace(turns=self._records.turns(db, row.id)) for row in rows]
            return {row.id: row for row in rows}

    def numbers(self, which: Which, *, after: int = 0, limit: int | None = None) -> list[int]:
        """Return the numbers of requests of a job or a batch, in the order of acceptance, after the number `after`."""
        with self._database.read() as db:
            condition, values = self._condition(db, which)
            order, bounds = "q.id", tuple[int, ...]()
            if which.batch is not None:
                first, last = db.execute("SELECT first, last FROM batch WHERE id = ?", (which.batch,)).fetchone()
                source, bounds = "FROM request q WHERE q.id BETWEEN ? AND ?", (max(first, after + 1), last)
            elif which.job is not None and self._unnamed.has(db, which.job):
                source, bounds = self._unnamed.requests_after(db, which.job, after)
                order = "p.ordinal, q.id"
            else:
                source, bounds = "FROM request q WHERE q.id > ?", (after,)
            found = db.execute(
                f"SELECT q.id {source} AND {condition} ORDER BY {order}{_limit(limit)}", (*bounds, *values)
            )
            return [number for (number,) in found]

    def _condition(self, db: Connection, which: Which) -> tuple[str, tuple[Any, ...]]:
        """Return the SQL condition that a request q is selected, and its values; `which.requests` is left out."""
        conditions, values = [_VISIBLE] if which.batch is None else [], list[Any]()
        if which.key is not None:
            conditions.append("q.key = ?")
            values.append(encode_key(which.key))
            if which.job is None:  # by the index on jobs and keys: there is none on keys alone
                conditions.append("q.job IN (SELECT id FROM job WHERE visible = 1)")
        if which.job is not None:
            unnamed = self._unnamed.has(db, which.job)
            # The + keeps SQLite from the index on jobs and keys, where requests are not in their order.
            conditions.append(is_in("q.id") if unnamed else "q.job = ?" if which.key is not None else "+q.job = ?")
            values.append(which.job)
        if which.batch is not None:
            conditions.append(f"{UNSETTLED_IN_BATCH} AND q.batch = ?")
            values.append(which.batch)
        if which.terms is not None:
            conditions.append(f"q.terms {self._database.among}")
            values.append(self._database.list_of(which.terms))
        if which.unsettled:
            conditions.append(UNSETTLED)
        return " AND ".join(conditions), tuple(values)

    def listed(self, db: Connection, which: Which) -> tuple[str, tuple[Any, ...]] | None:
        """Return what follows a SELECT of the requests q that `which` lists, and its values; None: it lists none.

        Numbers list requests, and so does an unnamed bulk. Others are found by their `cohorts`.
        """
        if which.requests is not None:
            return f"FROM request q WHERE q.id {self._database.among}", (self._database.list_of(which.requests),)
        if self._unnamed.has(db, which.job):
            return f"FROM {REQUESTS_OF}", (which.job,)
        return None

    def cohorts(self, db: Connection, which: Which) -> tuple[str, tuple[Any, ...]]:
        """Return the SQL condition that a cohort holds some of the requests that `which` selects, and its values.

        It selects by terms, numbers or a job; else all. Of requests that it lists, only queued ones count.
        """
        if which.terms is not None:
            return f"terms {self._database.among}", (self._database.list_of(which.terms),)
        listed = self.listed(db, which)
        if listed is not None:
            source, values = listed
            return f"terms IN (SELECT q.terms {source} AND q.status = 0)", values
        return ("TRUE", ()) if which.job is None else (UNSETTLED_OF_JOB, (which.job,))

    def find_row(self, db: Connection, request: int) -> RequestRow | None:
        """Return the request of this number, within a transaction; None: there is none."""
        row = db.execute(f"{_REQUEST} WHERE q.id = ? AND {_VISIBLE}", (request,)).fetchone()
        return None if row is None else self._request(db, row)

    def _request(self, db: Connection, row: Sequence[Any]) -> RequestRow:
        number, key, job, terms, lane, status, attempts, batch, result = row
        return RequestRow(
            number,
            decode_key(key),
            job,
            self._records.terms(db, terms),
            LANES[lane],
            STATUSES[status],
            attempts,
            self._records.nonce(db, batch),
            result,
        )

    def body(self, request: int) -> bytes:
        """Return the encoded params of a request."""
        with self._database.read() as db:
            (body,) = db.execute("SELECT params FROM body WHERE id = ?", (request,)).fetchone()
            return bytes(body)
