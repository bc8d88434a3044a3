"""Reads the rows of requests, and terms, jobs and nonces by their numbers."""

# ruff: noqa: S608 (statements are made of constants and question marks)

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from batchwise.planning.state import Terms

from .database import Connection, Database
from .rows import decode_key, decode_terms, digest_of, encode_terms
from .values import Turn

__all__ = [
    "ATTEMPTS_NOW",
    "CHUNK",
    "GROUP_RESULTS",
    "IN_BATCH",
    "LANE_NOW",
    "REQUESTS",
    "SENT_IN",
    "STATUS_NOW",
    "UNSETTLED",
    "UNSETTLED_IN_BATCH",
    "UNSETTLED_OF_JOB",
    "LookedUp",
    "Records",
    "ResultGroupRow",
    "Row",
]

CHUNK = 2_000
"""The most rows that one transaction moves where a call may move any number, so that other writers get their turn."""

_CACHED = 10_000
REQUESTS = (
    "request q LEFT JOIN result r ON r.request = q.id "
    "LEFT JOIN result_group g ON g.last = (SELECT min(last) FROM result_group WHERE last >= r.seq)"
)
"""Requests q, with their results r and the groups g of these. Without a result, r and g are NULL."""
LANE_NOW, ATTEMPTS_NOW = "coalesce(g.lane, q.lane)", "coalesce(g.attempts, q.attempts)"
STATUS_NOW = "CASE WHEN r.seq IS NULL THEN q.status ELSE 2 END"
GROUP_RESULTS = "result_group g CROSS JOIN result r"
"""Groups g and their results r: two loops, both in the order of settling."""
_SELECT_ROWS = (
    f"SELECT q.id, q.job, q.size, q.terms, {LANE_NOW}, {STATUS_NOW}, "
    "CASE WHEN q.status = 1 AND q.lane = 1 THEN q.batch ELSE 0 END, "
    f"q.batch, q.run, {ATTEMPTS_NOW}, r.seq, q.abandoned, q.calls FROM {REQUESTS} WHERE q.id"
)
_LAST_REQUEST, _LAST_RESULT = (
    f"SELECT max(n) FROM (SELECT max({column}) AS n FROM {table} UNION ALL "
    f"SELECT last FROM deleted WHERE name = '{name}') AS given"
    for name, column, table in (("request", "id", "request"), ("result", "last", "result_group"))
)
_LOOK_UP = (
    f"SELECT ({_LAST_REQUEST}), (SELECT id FROM terms WHERE digest = ?), "
    "EXISTS (SELECT 1 FROM request WHERE job = ? AND key = ?)"
)
UNSETTLED = "q.status < 2 AND NOT EXISTS (SELECT 1 FROM result r WHERE r.request = q.id)"
"""Condition: a request q is not settled."""
UNSETTLED_IN_BATCH = "q.status = 1 AND q.lane = 1 AND NOT EXISTS (SELECT 1 FROM result r WHERE r.request = q.id)"
"""Condition: a request q is in a batch, and not settled."""
SENT_IN = "request.id BETWEEN ? AND ? AND batch = ? AND status = 1 AND lane = 1"
"""Condition: a request is in a batch of which none is settled. Bound: its first request, its last one, its number."""
IN_BATCH = f"{SENT_IN} AND NOT EXISTS (SELECT 1 FROM result r WHERE r.request = request.id)"
"""Condition: a request is in a batch, and not settled. Bound: as for `SENT_IN`."""

UNSETTLED_OF_JOB = "(SELECT t.job FROM terms t WHERE t.id = cohort.terms) = ?"
"""Condition: a cohort is of a job. Cohorts are few, while the ledger keeps all terms that it ever had."""


class Row(NamedTuple):
    """The slim columns of a request; from `terms` to `inside` they are its `books.Place`."""

    id: int
    job: int
    size: int
    terms: int
    lane: int
    status: int
    inside: int
    """The batch that it is in; 0: in none."""
    batch: int
    """The batch that it is in or was last in."""
    run: int
    attempts: int
    result: int | None
    abandoned: int
    calls: int
    """How many of its attempts were calls on the sync lane."""


class LookedUp(NamedTuple):
    """The answers that the ledger needs before it accepts a request."""

    last: int
    """The highest number that a request was ever given."""
    terms: int | None
    """The number of its terms."""
    taken: bool
    """Whether a request (staged ones included) has its key."""


class ResultGroupRow(NamedTuple):
    """The common fields of results that settled together: those from `first` to `last` that still exist.

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


class Records:
    """Reads rows by their numbers, and remembers what never changes: terms, the names of jobs, nonces."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.undone.append(self._forget)
        self._forget()

    def _forget(self) -> None:
        """Forget all after a rollback: the numbers of the transaction are used again."""
        self._terms_by_id: dict[int, Terms] = {}
        self._job_names: dict[int, str | None] = {0: None}
        self._nonces: dict[int, str] = {}

    def look_up(self, db: Connection, terms: Terms, job: int, key: bytes) -> Callable[[], LookedUp]:
        """Ask, in one query, for all that is needed before a new request is accepted. See `Database.ask`."""
        data = encode_terms(terms)
        found = self._database.ask(db, _LOOK_UP, (digest_of(job, data), job, key))

        def read() -> LookedUp:
            ((last, number, taken),) = found()
            if number is not None and number not in self._terms_by_id:
                self._remember(decode_terms(number, job, data))
            return LookedUp(last, number, bool(taken))

        return read

    def _remember(self, terms: Terms) -> Terms:
        if len(self._terms_by_id) >= _CACHED:
            self._terms_by_id.clear()
        self._terms_by_id[terms.id] = terms
        return terms

    def last_request(self, db: Connection) -> int:
        """Return the highest number that a request was ever given."""
        return int(db.execute(_LAST_REQUEST).fetchone()[0])

    def last_result(self, db: Connection) -> int:
        """Return the highest number that a result was ever given: its group stays when a result is purged."""
        return int(db.execute(_LAST_RESULT).fetchone()[0])

    def select(
        self, db: Connection, select: str, ids: Sequence[int], values: Sequence[Any] = ()
    ) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a `SELECT ... WHERE ... column` whose column is one of the ids; `values` come first."""
        if len(ids) == 1:  # a caller waits for a single one, which this finds in a third of the time
            yield from db.execute(f"{select} = ?", (*values, *ids))
            return
        for start in range(0, len(ids), CHUNK):
            part = self._database.list_of(ids[start : start + CHUNK])
            yield from db.execute(f"{select} {self._database.among}", (*values, part))

    def rows(self, db: Connection, ids: Sequence[int]) -> dict[int, Row]:
        """Return the rows of these numbers, by number."""
        return {row[0]: Row(*row) for row in self.select(db, _SELECT_ROWS, ids)}

    def result_group(self, db: Connection, result: int) -> ResultGroupRow:
        """Return the group of a result."""
        found = db.execute("SELECT * FROM result_group WHERE last >= ? ORDER BY last LIMIT 1", (result,))
        return ResultGroupRow._make(found.fetchone())

    def terms(self, db: Connection, number: int) -> Terms:
        """Return terms by number. They never change, so they are remembered."""
        known = self._terms_by_id.get(number)
        if known is None:
            job, data = db.execute("SELECT job, data FROM terms WHERE id = ?", (number,)).fetchone()
            known = self._remember(decode_terms(number, job, data))
        return known

    def store_terms(self, db: Connection, terms: Terms, job: int, *, staged: int = 0) -> int:
        """Store terms; returns their number. Equal terms share one, but a bulk has its own."""
        data = encode_terms(terms)
        digest = None if staged else digest_of(job, data)
        if digest is not None:
            found = db.execute("SELECT id FROM terms WHERE digest = ?", (digest,)).fetchone()
            if found is not None:
                return int(found[0])
        return self._database.insert(
            db,
            "INSERT INTO terms (job, staged, blocking, digest, data) VALUES (?, ?, ?, ?, ?)",
            (job, staged, terms.blocking, digest, data),
        )

    def job_name(self, db: Connection, number: int) -> str | None:
        """Return the name of a job; None: it is the shared scope."""
        if number not in self._job_names:
            (name,) = db.execute("SELECT name FROM job WHERE id = ?", (number,)).fetchone()
            self._job_names[number] = decode_key(name)
        return self._job_names[number]

    def nonce(self, db: Connection, batch: int) -> str | None:
        """Return the nonce of a batch; None for 0, no batch."""
        if not batch:
            return None
        known = self._nonces.get(batch)
        if known is None:
            if len(self._nonces) >= _CACHED:
                self._nonces.clear()
            (known,) = db.execute("SELECT nonce FROM batch WHERE id = ?", (batch,)).fetchone()
            self._nonces[batch] = known
        return known

    @staticmethod
    def delete(db: Connection, requests: Sequence[int]) -> None:
        """Delete requests with all their rows but results; none of their numbers is used again."""
        if not requests:
            return
        db.execute("UPDATE deleted SET last = ? WHERE name = 'request' AND last < ?", (max(requests),) * 2)
        gone = [(number,) for number in requests]
        db.executemany("DELETE FROM body WHERE id = ?", gone)
        db.executemany("DELETE FROM request WHERE id = ?", gone)

    def turns(self, db: Connection, request: int) -> tuple[bytes, ...]:
        """Return the result lines of the messages after which a request went on, in their order."""
        found = db.execute("SELECT line FROM turn WHERE request = ? ORDER BY n", (request,))
        return tuple(line for (line,) in found.fetchall())

    def keep_turn(self, db: Connection, row: Row, turn: Turn) -> tuple[int, int]:
        """Keep a message after which a request goes on; returns the number of its terms, and the size of its body."""
        before = "NULL" if turn.body is None else "(SELECT params FROM body WHERE id = q.id)"
        db.execute(
            "INSERT INTO turn (request, n, line, body) "
            f"SELECT q.id, (SELECT count(*) FROM turn WHERE request = q.id), ?, {before} FROM request q "
            "WHERE q.id = ?",
            (turn.line, row.id),
        )
        number, terms = row.terms, self.terms(db, row.terms)
        if turn.asked and tuple(turn.asked) != terms.asked:
            number = self.store_terms(db, terms.asking(turn.asked), row.job)
        size = row.size if turn.body is None else len(turn.body)
        if turn.body is not None:
            db.execute("UPDATE body SET params = ? WHERE id = ?", (turn.body, row.id))
        db.execute("UPDATE request SET terms = ?, size = ? WHERE id = ?", (number, size, row.id))
        return number, size
