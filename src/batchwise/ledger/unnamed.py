"""Bulk dispatches without a name: each is a hidden job, which only its handle knows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise

from .database import Connection, Database
from .records import Records

__all__ = ["REQUESTS_OF", "Unnamed", "is_in"]

REQUESTS_OF = "part p CROSS JOIN request q WHERE p.job = ? AND q.id BETWEEN p.first AND p.last"
"""The parts p of such a job, to which its number is bound, with their requests q."""
_AFTER = "r.seq BETWEEN CASE WHEN g.first > ? THEN g.first ELSE ? + 1 END AND g.last AND g.last > ?"


def is_in(column: str) -> str:
    """Return the SQL condition that the request of this number is in such a job; the job's number is bound to it."""
    part = f"SELECT p.last FROM part p WHERE p.job = ? AND p.first <= {column} ORDER BY p.first DESC LIMIT 1"  # noqa: S608
    return f"{column} <= ({part})"


class Unnamed:
    """Stores which requests belong to a bulk dispatch without a name, as ranges of numbers in the order of the bulk.

    The requests stay in the shared scope, where their keys are unique. One may belong to several such bulks: it keeps
    its number when it is dispatched again.
    """

    def __init__(self, database: Database, records: Records) -> None:
        self._database, self._records = database, records
        self._starts: dict[int, int | None] = {}
        database.undone.append(self._starts.clear)

    def add(self, db: Connection, given: Sequence[range]) -> int:
        """Store a bulk of these requests, in this order; returns the number of its job."""
        last = self._records.last_result(db)
        job = self._database.insert(db, "INSERT INTO job (results_after) VALUES (?)", (last,))
        parts = [(job, part.start, part.stop - 1, ordinal) for ordinal, part in _parts(given)]
        db.executemany("INSERT INTO part (job, first, last, ordinal) VALUES (?, ?, ?, ?)", parts)
        earlier = "SELECT min(seq) - 1 FROM part JOIN result ON request BETWEEN part.first AND part.last WHERE job = ?"
        db.execute(f"UPDATE job SET results_after = coalesce(({earlier}), results_after) WHERE id = ?", (job, job))  # noqa: S608
        return job

    def has(self, db: Connection, job: int | None) -> bool:
        """Whether a job is such a bulk."""
        return self._start(db, job) is not None

    def start(self, db: Connection, job: int | None) -> int:
        """Return the cursor after which all results of a job are; 0 if it is no such bulk."""
        return self._start(db, job) or 0

    def _start(self, db: Connection, job: int | None) -> int | None:
        if not job:
            return None
        if job not in self._starts:
            found = db.execute("SELECT results_after FROM job WHERE id = ?", (job,)).fetchone()
            if found is None:
                return None
            (self._starts[job],) = found
        return self._starts[job]

    def groups(self, db: Connection, job: int | None) -> tuple[str, tuple[int, ...]]:
        """The condition that groups g of results may hold some of a job (None: of any), and its values."""
        if job is None:
            return "TRUE", ()
        if self.has(db, job):
            return "g.job = 0", ()
        return f"g.job = ?{' AND g.job > 0' if job else ''}", (job,)  # has an index

    def results(self, db: Connection, job: int | None) -> tuple[str, tuple[int, ...]]:
        """The condition that results r of such groups are the job's, and its values."""
        if job is None or not self.has(db, job):
            return "TRUE", ()
        return is_in("r.request"), (job,)

    def results_after(self, db: Connection, job: int | None, after: int) -> tuple[str, tuple[int, ...]]:
        """The condition that results r of groups g are after a cursor and of a job (None: of any), and its values."""
        (which, values), (mine, more) = self.groups(db, job), self.results(db, job)
        start = max(after, self.start(db, job))
        return f"{_AFTER} AND {which} AND {mine}", (start, start, start, *values, *more)

    @staticmethod
    def requests_after(db: Connection, job: int, after: int) -> tuple[str, tuple[int, ...]]:
        """Return what follows a SELECT of such a job's requests q after one of them (0: of all), and its values."""
        part = "SELECT ordinal FROM part WHERE job = ? AND first <= ? AND last >= ?"
        (ordinal,) = db.execute(part, (job, after, after)).fetchone() or (0,)
        later = "q.id BETWEEN CASE WHEN p.ordinal > ? OR p.first > ? THEN p.first ELSE ? + 1 END AND p.last"
        return (
            f"FROM part p CROSS JOIN request q WHERE p.job = ? AND p.ordinal >= ? AND {later}",
            (job, ordinal, ordinal, after, after),
        )

    def ordinals(self, db: Connection, job: int, requests: Sequence[int]) -> list[int]:
        """Return the ordinals of these requests in such a job, from 0."""
        ordinals = []
        first, last, ordinal = 0, -1, 0
        for number in requests:
            if not first <= number <= last:
                first, last, ordinal = db.execute(
                    "SELECT first, last, ordinal FROM part WHERE job = ? AND first <= ? ORDER BY first DESC LIMIT 1",
                    (job, number),
                ).fetchone()
            ordinals.append(ordinal + number - first)
        return ordinals

    @staticmethod
    def purge(db: Connection) -> None:
        """Delete such jobs if all their requests are gone."""
        gone = db.execute(
            "SELECT id FROM job WHERE results_after IS NOT NULL AND NOT EXISTS "
            "(SELECT 1 FROM part p CROSS JOIN request q WHERE p.job = job.id AND q.id BETWEEN p.first AND p.last)"
        ).fetchall()
        db.executemany("DELETE FROM part WHERE job = ?", gone)
        db.executemany("DELETE FROM job WHERE id = ?", gone)


def _parts(given: Sequence[range]) -> list[tuple[int, range]]:
    """Return ranges with the ordinals of their first requests; a repeated request has its first ordinal."""
    parts: list[tuple[int, range]] = []
    if all(one.stop <= next_.start for one, next_ in pairwise(sorted(given, key=lambda part: part.start))):
        ordinal = 0
        for part in given:
            parts.append((ordinal, part))
            ordinal += len(part)
        return parts
    ordinals: dict[int, int] = {}
    for ordinal, number in enumerate(chain.from_iterable(given)):
        ordinals.setdefault(number, ordinal)
    for number, ordinal in ordinals.items():
        begin, part = parts[-1] if parts else (0, range(0))
        if parts and (number, ordinal) == (part.stop, begin + len(part)):
            parts[-1] = begin, range(part.start, number + 1)
        else:
            parts.append((ordinal, range(number, number + 1)))
    return parts
