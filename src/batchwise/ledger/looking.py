"""The questions to the ledger; nothing here changes it."""

# ruff: noqa: S608 (statements are made of constants and question marks)

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from batchwise.models import Lane, Outcome, Report, Status
from batchwise.planning.cache_priming import Hits
from batchwise.planning.forecast import Sample
from batchwise.planning.state import Group, Snapshot

from . import meta
from .batches import Batches
from .books import Books
from .database import Connection, Database
from .lease import Lease
from .places import Places
from .ranges import Ranges
from .records import (
    ATTEMPTS_NOW,
    CHUNK,
    LANE_NOW,
    REQUESTS,
    STATUS_NOW,
    UNSETTLED,
    UNSETTLED_IN_BATCH,
    UNSETTLED_OF_JOB,
    Records,
    Settling,
)
from .rows import (
    BATCH,
    IN_FLIGHT,
    LANES,
    OUTCOME_CODES,
    OUTCOMES,
    QUEUED,
    STATUSES,
    SYNC,
    decode_key,
    decode_measured,
    decode_setback,
    encode_key,
    from_micros,
)
from .unnamed import Unnamed, is_in
from .values import Counts, JobRow, Page, RequestRow, ResultRow, Settled, Which

__all__ = ["Looking"]

_REQUEST = (
    f"SELECT q.id, q.key, q.job, q.terms, {LANE_NOW}, {STATUS_NOW}, {ATTEMPTS_NOW}, q.batch, r.seq FROM {REQUESTS}"
)
_VISIBLE = "(SELECT t.staged FROM terms t WHERE t.id = q.terms) = 0"
_RESULT = "SELECT r.seq, r.request, q.key, r.cost, r.saved, r.cache_saved, r.line, q.batch"
_RESULTS = f"{_RESULT} FROM result r CROSS JOIN request q WHERE q.id = r.request AND r.seq"
_RESULT_OF = f"{_RESULT}, s.* FROM {REQUESTS} WHERE r.seq > 0 AND"
_COUNT = (
    f"SELECT {LANE_NOW}, {STATUS_NOW}, s.outcome, count(*) FROM part p CROSS JOIN {REQUESTS} "
    "WHERE p.job = ? AND q.id BETWEEN p.first AND p.last GROUP BY 1, 2, 3"
)
_REFUSED = OUTCOME_CODES[Outcome.REFUSED]
_PICO = Decimal(1).scaleb(-12)
_SETTLINGS = 8
"""Settlings that are looked at together: a page of a bulk's results lies in one or two, others settle one by one."""


def _cursors(settlings: Sequence[Settling], after: int, limit: int) -> Ranges:
    """Those of the first results behind a cursor, at most so many."""
    found = Ranges()
    for each in settlings:
        cursors = range(max(each.first, after + 1), each.last + 1)[:limit]
        if cursors:
            found.add(cursors)
        limit -= len(cursors)
    return found


def _limit(limit: int | None) -> str:
    return "" if limit is None else f" LIMIT {limit}"


class Looking:
    """Answers questions, and changes nothing."""

    def __init__(
        self, database: Database, records: Records, books: Books, unnamed: Unnamed, *, batches: Batches, lease: Lease
    ) -> None:
        self._database, self._records, self._books, self._unnamed = database, records, books, unnamed
        self._batches, self._lease, self._places = batches, lease, Places()

    def job_id(self, name: str) -> int | None:
        """The number of a job that has been accepted; None: there is none."""
        with self._database.read() as db:
            row = db.execute("SELECT id FROM job WHERE name = ? AND visible = 1", (encode_key(name),)).fetchone()
            return None if row is None else int(row[0])

    def jobs(self) -> list[JobRow]:
        """All jobs, in the order of their beginning; the shared scope, too, if there are requests without a job."""
        with self._database.read() as db:
            names = dict(db.execute("SELECT id, name FROM job WHERE visible = 1 ORDER BY id").fetchall())
            unsettled = db.execute(
                "SELECT (SELECT t.job FROM terms t WHERE t.id = c.terms), lane, status, sum(requests) FROM cohort c "
                "GROUP BY 1, 2, 3"
            ).fetchall()
            settled = db.execute(
                "SELECT job, lane, outcome, sum(requests - purged) FROM tally GROUP BY job, lane, outcome"
            ).fetchall()
        found: dict[int, dict[tuple[Lane, Status, Outcome | None], int]] = {job: {} for job in names}
        for job, lane, status, count in unsettled:
            if job in found and count:
                found[job][LANES[lane], STATUSES[status], None] = count
        for job, lane, outcome, count in settled:
            if job in found and count:
                found[job][LANES[lane], Status.SETTLED, OUTCOMES[outcome]] = count
        return [
            JobRow(job, None if names[job] is None else decode_key(names[job]), Counts(by))
            for job, by in found.items()
            if by or names[job] is not None
        ]

    def job_name(self, job: int) -> str | None:
        """The name of a job by its number; None for 0, the shared scope."""
        with self._database.read() as db:
            return self._records.job_name(db, job)

    def snapshot(self) -> Snapshot:
        """The unsettled work. Its cost does not grow with what has settled.

        The forecast is the prior: what `history` teaches depends on the policy's window, unknown here.
        """
        with self._database.read() as db:
            places: dict[tuple[int, int, int], list[Group]] = {}
            for place, group in self._books.groups(db, "TRUE"):
                places.setdefault((place.lane, place.status, place.batch), []).append(group)
            batches = self._batches.views(db, lambda batch: places.get((BATCH, IN_FLIGHT, batch), ()))
            offset, paused = meta.get(db, "clock_offset"), meta.get(db, "batch_paused_until")
            answered, failed = meta.get(db, "sync_answered_at"), meta.get(db, "sync_failed_at")
            setback = meta.get(db, meta.SETBACK)
            advanced, sizes = meta.get(db, "advanced_at"), meta.sizes(db)
            measured = {name: decode_measured(value) for name, value in meta.beginning(db, meta.MEASURED).items()}
            queued = places.get((BATCH, QUEUED, 0), ())
            shared = {group.terms.prefix for group in queued if group.terms.prefix}
            prefixes, hits = (self._books.primed(db, shared), self._books.hits(db)) if shared else ({}, Hits())
            resumes = meta.resumes(db)
            suspended = {lane: reason for lane in LANES if (reason := meta.get(db, f"suspended:{lane.value}"))}
        return Snapshot(
            batch_queue=tuple(queued),
            sync_queue=tuple(places.get((SYNC, QUEUED, 0), ())),
            sync_running=tuple(places.get((SYNC, IN_FLIGHT, 0), ())),
            batches=batches,
            suspended=suspended,
            resumes=resumes,
            clock_offset=timedelta(microseconds=int(offset or 0)),
            batch_paused_until=from_micros(int(paused)) if paused else None,
            sizes=sizes,
            leased=self._lease.held,
            sync_answered_at=from_micros(int(answered)) if answered else None,
            sync_failed_at=from_micros(int(failed)) if failed else None,
            advanced_at=from_micros(int(advanced)) if advanced else None,
            setback=None if setback is None else decode_setback(setback),
            measured=measured,
            prefixes=prefixes,
            hits=hits,
        )

    def rows(self, which: Which, *, limit: int | None = None) -> dict[int, RequestRow]:
        """The requests that are meant, by their numbers; one of a key alone can be in several jobs."""
        with self._database.read() as db:
            condition, values = self._that(db, which)
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
        """The numbers of the requests of a job, or of a batch, behind one of them, in the order of their acceptance."""
        with self._database.read() as db:
            condition, values = self._that(db, which)
            order, bounds = "q.id", tuple[int, ...]()
            if which.batch is not None:
                first, last = db.execute("SELECT first, last FROM batch WHERE id = ?", (which.batch,)).fetchone()
                source, bounds = "FROM request q WHERE q.id BETWEEN ? AND ?", (max(first, after + 1), last)
            elif which.job is not None and self._unnamed.behind(db, which.job) is not None:
                source, bounds = self._unnamed.requests_behind(db, which.job, after)
                order = "p.place, q.id"
            else:
                source, bounds = "FROM request q WHERE q.id > ?", (after,)
            found = db.execute(
                f"SELECT q.id {source} AND {condition} ORDER BY {order}{_limit(limit)}", (*bounds, *values)
            )
            return [number for (number,) in found]

    def _that(self, db: Connection, which: Which) -> tuple[str, tuple[Any, ...]]:
        """The condition that a request q is one of those that are meant, but for their numbers, and its values."""
        conditions, values = [_VISIBLE] if which.batch is None else [], list[Any]()
        if which.key is not None:
            conditions.append("q.key = ?")
            values.append(encode_key(which.key))
            if which.job is None:  # by the index on jobs and keys: there is none on keys alone
                conditions.append("q.job IN (SELECT id FROM job WHERE visible = 1)")
        if which.job is not None:
            unnamed = self._unnamed.behind(db, which.job) is not None
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

    def find_row(self, db: Connection, request: int) -> RequestRow | None:
        """The request of this number, inside a transaction."""
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

    def results(self, *, job: int | None, after: int, limit: int) -> Page:
        """Settled results in the order of settling, from behind the cursor `after`; job None: of all jobs."""
        rows: list[ResultRow] = []
        with self._database.read() as db:
            last = max(after, self._unnamed.behind(db, job) or 0)
            which, values = self._unnamed.settlings(db, job)
            select = f"SELECT s.* FROM settling s WHERE s.last > ? AND {which} ORDER BY s.last LIMIT ?"
            most = _SETTLINGS
            while len(rows) < limit:
                settlings = list(map(Settling._make, db.execute(select, (last, *values, most)).fetchall()))
                if not settlings:
                    last = max(last, self._records.last_result(db))
                    break
                found, last = self._page(db, job, settlings, last, limit - len(rows))
                rows += found
                most = min(4 * most, CHUNK)
            return Page(self._placed(db, rows, job), last)

    def results_of(self, requests: Sequence[int], *, job: int | None = None) -> list[ResultRow]:
        """The results of those of these requests (of this job) that are settled, in the order of the requests."""
        with self._database.read() as db:
            found = [self._result_row(db, row) for row in self._records.select(db, f"{_RESULT_OF} q.id", requests)]
            by_number = {row.request: row for row in self._placed(db, found, job)}
        return [by_number[number] for number in requests if number in by_number]

    def _placed(self, db: Connection, rows: list[ResultRow], job: int | None) -> list[ResultRow]:
        """Rows with their places in this job, if it is one without a name; those of others have theirs."""
        if job is None or self._unnamed.behind(db, job) is None:
            return rows
        places = self._unnamed.places(db, job, [row.request for row in rows])
        return [row._replace(place=place) for row, place in zip(rows, places, strict=True)]

    def _result_row(self, db: Connection, found: Sequence[Any]) -> ResultRow:
        cursor, number, key, cost, saved, gained, line, batch, *rest = found
        how = Settling._make(rest)
        (place,) = self._places.of(db, how.job, [number]) if how.job else (None,)
        return ResultRow(
            cursor, number, decode_key(key), line, cost, saved, gained, self._settled(db, how, batch), place
        )

    def _page(
        self, db: Connection, job: int | None, settlings: Sequence[Settling], after: int, limit: int
    ) -> tuple[list[ResultRow], int]:
        """The first results of a job behind a cursor in these settlings, and how far they were looked for."""
        mine, values = self._unnamed.results(db, job)
        cursors = _cursors(settlings, after, CHUNK if values else limit).all()
        if isinstance(cursors, range):
            which, listed = "BETWEEN ? AND ?", [cursors[0], cursors[-1]]
        else:
            which, listed = self._database.among, [self._database.list_of(cursors)]
        found = db.execute(f"{_RESULTS} {which} AND {mine} ORDER BY r.seq LIMIT ?", (*listed, *values, limit))
        rows = self._result_rows(db, settlings, found)
        return rows, rows[-1].cursor if len(rows) == limit else cursors[-1]

    def _result_rows(
        self, db: Connection, settlings: Sequence[Settling], found: Iterable[tuple[Any, ...]]
    ) -> list[ResultRow]:
        """Results, in order, which these settlings hold."""
        rows: list[ResultRow] = []
        jobs: dict[int, list[int]] = {}
        last, before, following = 0, None, iter(settlings)
        for cursor, request, key, cost, saved, gained, line, batch in found:
            if cursor > last or batch != before:  # mostly they are alike
                while cursor > last:
                    settling = next(following)
                    last = settling.last
                before, how = batch, self._settled(db, settling, batch)
                here = jobs.setdefault(settling.job, [])
            here.append(len(rows))
            name = key.decode("utf-8", "surrogatepass")
            rows.append(ResultRow(cursor, request, name, line, cost, saved, gained, how, None))
        for job, here in jobs.items():
            if job:
                places = self._places.of(db, job, [rows[index].request for index in here])
                for index, place in zip(here, places, strict=True):
                    rows[index] = ResultRow(*rows[index][:-1], place)
        return rows

    def _settled(self, db: Connection, how: Settling, batch: int) -> Settled:
        """What the results of a settling have in common; `batch`: the one that they are in, or were in last."""
        terms = self._records.terms(db, how.terms)
        return Settled(
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

    def counts(self, *, job: int | None) -> Counts:
        """How many requests are where, by cohorts and tallies. A bulk dispatch without a name is counted through."""
        by: dict[tuple[Lane, Status, Outcome | None], int] = {}
        unsettled = "" if job is None else f"WHERE {UNSETTLED_OF_JOB}"
        settled = "" if job is None else "WHERE job = ?"
        values = () if job is None else (job,)
        with self._database.read() as db:
            if self._unnamed.behind(db, job) is not None:
                for lane, status, outcome, count in db.execute(_COUNT, values):
                    by[LANES[lane], STATUSES[status], None if outcome is None else OUTCOMES[outcome]] = count
                return Counts(by)
            for lane, status, count in db.execute(
                f"SELECT lane, status, sum(requests) FROM cohort {unsettled} GROUP BY lane, status",
                values,
            ):
                by[LANES[lane], STATUSES[status], None] = count
            for lane, outcome, count in db.execute(
                f"SELECT lane, outcome, sum(requests - purged) FROM tally {settled} GROUP BY lane, outcome",
                values,
            ):
                if count:
                    by[LANES[lane], Status.SETTLED, OUTCOMES[outcome]] = count
        return Counts(by)

    def report(self, *, job: int | None) -> Report:
        """Money and deadlines of what has settled, what was purged since included."""
        where, values = ("", ()) if job is None else (" WHERE job = ?", (job,))
        with self._database.read() as db:
            tallies = db.execute(
                "SELECT lane, requests, cost, saved, cache_saved, unpriced, met, missed, lateness, attempts, "
                "cache_tokens, cache_written, input_tokens, "
                f"CASE outcome WHEN {_REFUSED} THEN requests ELSE 0 END, truncated FROM tally{where}",
                values,
            ).fetchall()
            wastes = db.execute(f"SELECT wasted, possible_doubles FROM waste{where}", values).fetchall()
            prices = meta.beginning(db, meta.PRICES)
            labeled = db.execute(f"SELECT name, value, cost FROM label{where}", values).fetchall()
        by_label = Counter[tuple[str, str]]()
        for name, value, paid in labeled:
            by_label[name, value] += int(paid)
        columns = zip(*tallies, (0,) * 15, strict=True)
        lanes, requests, *money, unpriced, met, missed, lateness, attempts, read, written, tokens, refused, cut = (
            columns
        )
        cost, saved, gained = (list(map(int, each)) for each in money)  # sums of money are text
        return Report(
            requests=sum(requests),
            cost=sum(cost) * _PICO,
            cost_by_lane={
                lane: sum(each for each, on in zip(cost, lanes, strict=True) if on == code) * _PICO
                for code, lane in enumerate(LANES)
            },
            saved=sum(saved) * _PICO,
            wasted=sum(int(each[0]) for each in wastes) * _PICO,
            unpriced=sum(unpriced),
            met=sum(met),
            missed=sum(missed),
            refused=sum(refused),
            truncated=sum(cut),
            worst_lateness=timedelta(microseconds=max(lateness)),
            attempts=sum(attempts),
            possible_doubles=sum(each[1] for each in wastes),
            cache_read_tokens=sum(read),
            cache_written_tokens=sum(written),
            cache_saved=sum(gained) * _PICO,
            input_tokens=sum(tokens),
            prices={source: date.fromisoformat(day) for source, day in sorted(prices.items())},
            by_label={label: paid * _PICO for label, paid in sorted(by_label.items())},
        )

    def records(self, *, job: int | None, limit: int = 200) -> list[dict[str, Any]]:
        """The last batches that the API has named, of a job or of all, the oldest first; fields of `BatchRecord`."""
        of_job = (
            "AND (id IN (SELECT batch FROM settling WHERE job = ?) OR id IN "
            "(SELECT c.batch FROM cohort c JOIN terms t ON t.id = c.terms WHERE t.job = ?)) "
        )
        where, values = ("", ()) if job is None else (of_job, (job, job))
        with self._database.read() as db:
            offset = int(meta.get(db, "clock_offset") or 0)
            found = db.execute(
                "SELECT id, remote_id, requests, model, created_at, ended_at, cancel_at FROM batch "
                f"WHERE remote_id IS NOT NULL AND created_at IS NOT NULL {where}ORDER BY id DESC LIMIT ?",
                (*values, limit),
            ).fetchall()
            numbers = [row[0] for row in found]
            terms: dict[int, set[int]] = {number: set() for number in numbers}
            for table in ("settling", "cohort"):
                select = f"SELECT DISTINCT batch, terms FROM {table} WHERE batch"
                for batch, number in self._records.select(db, select, numbers) if numbers else ():
                    terms[batch].add(number)
            due = {
                batch: min(filter(None, (self._records.terms(db, each).deadline for each in held)), default=None)
                for batch, held in terms.items()
            }
        return [
            {
                "remote_id": remote,
                "requests": requests,
                "model": model,
                "created_at": from_micros(created - offset),
                "ended_at": None if ended is None else from_micros(ended - offset),
                "canceled_at": None if canceled is None else from_micros(canceled),
                "deadline": due[number],
            }
            for number, remote, requests, model, created, ended, canceled in reversed(found)
        ]

    def history(self, *, limit: int = 1_000) -> Sequence[Sample]:
        """How long the last batches and cancels took, newest first."""
        with self._database.read() as db:
            offset = int(meta.get(db, "clock_offset") or 0)
            found = db.execute(
                "SELECT created_at, ended_at, cancel_at, model, requests FROM batch "
                "WHERE created_at IS NOT NULL AND ended_at IS NOT NULL ORDER BY id DESC LIMIT ?",
                (limit,),
            ).fetchall()
        samples = []
        for created, ended, cancel, model, requests in found:
            spans = [("batch", created, ended, True)]
            if cancel is not None and cancel + offset < ended:
                # `cancel_at` is our clock's; the offset makes it the server's.
                asked = max(created, cancel + offset)
                spans = [("batch", created, asked, False), ("cancel", asked, ended, True)]
            samples += [
                Sample(
                    kind=kind,  # type: ignore[arg-type] # one of the two words above
                    duration=timedelta(microseconds=max(0, stop - start)),
                    ended=whole,
                    model=model,
                    requests=requests,
                    hour=from_micros(start).hour,
                )
                for kind, start, stop, whole in spans
            ]
        return samples[:limit]
