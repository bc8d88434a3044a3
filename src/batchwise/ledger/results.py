"""Reading results, in the order of settling or by their requests."""

# ruff: noqa: S608 (statements are made of constants and question marks)

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .database import Connection, Database
from .ordinals import Ordinals
from .ranges import Ranges
from .records import CHUNK, REQUESTS, Records, ResultGroupRow
from .rows import LANES, OUTCOMES, decode_key, from_micros
from .unnamed import Unnamed
from .values import Page, ResultGroup, ResultRow

__all__ = ["Results"]

_RESULT = "SELECT r.seq, r.request, q.key, r.cost, r.saved, r.cache_saved, r.line, q.batch"
_RESULTS = f"{_RESULT} FROM result r CROSS JOIN request q WHERE q.id = r.request AND r.seq"
_RESULT_OF = f"{_RESULT}, g.* FROM {REQUESTS} WHERE r.seq > 0 AND"
_GROUPS = 8
"""Groups that are read together: a page of a bulk's results lies in one or two. Other requests settle one by one."""


def _cursors(groups: Sequence[ResultGroupRow], after: int, limit: int) -> Ranges:
    """Return the cursors of the first results after the cursor `after`, at most `limit`."""
    found = Ranges()
    for each in groups:
        cursors = range(max(each.first, after + 1), each.last + 1)[:limit]
        if cursors:
            found.add(cursors)
        limit -= len(cursors)
    return found


class Results:
    """Reads results."""

    def __init__(self, database: Database, records: Records, unnamed: Unnamed) -> None:
        self._database, self._records, self._unnamed, self._ordinals = database, records, unnamed, Ordinals()

    def results(self, *, job: int | None, after: int, limit: int) -> Page:
        """Return settled results in the order of settling, after the cursor `after`; job None: of all jobs."""
        rows: list[ResultRow] = []
        with self._database.read() as db:
            last = max(after, self._unnamed.start(db, job))
            which, values = self._unnamed.groups(db, job)
            select = f"SELECT g.* FROM result_group g WHERE g.last > ? AND {which} ORDER BY g.last LIMIT ?"
            most = _GROUPS
            while len(rows) < limit:
                groups = list(map(ResultGroupRow._make, db.execute(select, (last, *values, most)).fetchall()))
                if not groups:
                    last = max(last, self._records.last_result(db))
                    break
                found, last = self._page(db, job, groups, last, limit - len(rows))
                rows += found
                most = min(4 * most, CHUNK)
            return Page(self._numbered(db, rows, job), last)

    def results_of(self, requests: Sequence[int], *, job: int | None = None) -> list[ResultRow]:
        """Return the results of those requests (of this job) that are settled, in the order of the requests."""
        with self._database.read() as db:
            found = [self._result_row(db, row) for row in self._records.select(db, f"{_RESULT_OF} q.id", requests)]
            by_number = {row.request: row for row in self._numbered(db, found, job)}
        return [by_number[number] for number in requests if number in by_number]

    def _numbered(self, db: Connection, rows: list[ResultRow], job: int | None) -> list[ResultRow]:
        """Give rows their ordinals in this job, if it has no name; in a named job they have them already."""
        if job is None or not self._unnamed.has(db, job):
            return rows
        ordinals = self._unnamed.ordinals(db, job, [row.request for row in rows])
        return [row._replace(ordinal=ordinal) for row, ordinal in zip(rows, ordinals, strict=True)]

    def _result_row(self, db: Connection, found: Sequence[Any]) -> ResultRow:
        cursor, number, key, cost, saved, gained, line, batch, *rest = found
        how = ResultGroupRow._make(rest)
        (ordinal,) = self._ordinals.of(db, how.job, [number]) if how.job else (None,)
        return ResultRow(
            cursor, number, decode_key(key), line, cost, saved, gained, self._group(db, how, batch), ordinal
        )

    def _page(
        self, db: Connection, job: int | None, groups: Sequence[ResultGroupRow], after: int, limit: int
    ) -> tuple[list[ResultRow], int]:
        """Return the first results of a job in these groups, and the cursor up to which they were looked for."""
        mine, values = self._unnamed.results(db, job)
        cursors = _cursors(groups, after, CHUNK if values else limit).all()
        if isinstance(cursors, range):
            which, listed = "BETWEEN ? AND ?", [cursors[0], cursors[-1]]
        else:
            which, listed = self._database.among, [self._database.list_of(cursors)]
        found = db.execute(f"{_RESULTS} {which} AND {mine} ORDER BY r.seq LIMIT ?", (*listed, *values, limit))
        rows = self._result_rows(db, groups, found)
        return rows, rows[-1].cursor if len(rows) == limit else cursors[-1]

    def _result_rows(
        self, db: Connection, groups: Sequence[ResultGroupRow], found: Iterable[tuple[Any, ...]]
    ) -> list[ResultRow]:
        """Return results that these groups hold, in order."""
        rows, hows = list(found), list[ResultGroup]()
        requests: dict[int, list[int]] = {}
        last, before, following = 0, None, iter(groups)
        for row in rows:
            cursor, request, batch = row[0], row[1], row[-1]
            if cursor > last or batch != before:  # mostly they are alike
                while cursor > last:
                    group = next(following)
                    last = group.last
                before, how = batch, self._group(db, group, batch)
                here = requests.setdefault(group.job, [])
            here.append(request)
            hows.append(how)
        ordinals: dict[int, int] = {}
        for job, here in requests.items():
            if job:
                ordinals.update(zip(here, self._ordinals.of(db, job, here), strict=True))
        return [
            ResultRow(cursor, request, decode_key(key), line, cost, saved, gained, how, ordinals.get(request))
            for (cursor, request, key, cost, saved, gained, line, _), how in zip(rows, hows, strict=True)
        ]

    def _group(self, db: Connection, how: ResultGroupRow, batch: int) -> ResultGroup:
        """The common fields of a group's results; `batch`: the batch that these are in, or were in last."""
        terms = self._records.terms(db, how.terms)
        return ResultGroup(
            job=self._records.job_name(db, how.job),
            outcome=OUTCOMES[how.outcome],
            lane=LANES[how.lane],
            attempts=how.attempts,
            # It went under that of the batch that settled it, else of the one that it was in before.
            nonce=self._records.nonce(db, how.batch or batch),
            adopted=terms.adopted,
            deadline=terms.deadline,
            settled_at=from_micros(how.settled_at),
            met=None if how.met is None else bool(how.met),
            betas=terms.betas,
            labels=terms.labels,
        )
