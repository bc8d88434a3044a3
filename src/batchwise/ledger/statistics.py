"""Statistics: counts of requests, sums of money and deadlines, batches and their durations."""

# ruff: noqa: S608 (statements are made of constants and question marks)

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from batchwise.models import Outcome, Report, Status
from batchwise.planning.forecast import Sample

from . import meta
from .database import Connection, Database
from .records import LANE_NOW, REQUESTS, STATUS_NOW, UNSETTLED_OF_JOB, Records
from .rows import LANES, OUTCOME_CODES, OUTCOMES, STATUSES, from_micros
from .unnamed import Unnamed
from .values import Counts

__all__ = ["Statistics", "counts_by_job"]

_COUNT = (
    f"SELECT {LANE_NOW}, {STATUS_NOW}, g.outcome, count(*) FROM part p CROSS JOIN {REQUESTS} "
    "WHERE p.job = ? AND q.id BETWEEN p.first AND p.last GROUP BY 1, 2, 3"
)
_REFUSED = OUTCOME_CODES[Outcome.REFUSED]
_PICO = Decimal(1).scaleb(-12)


def counts_by_job(db: Connection, job: int | None = None, *, together: bool = False) -> dict[int, Counts]:
    """Return the counts of a job's requests, or of all, by the numbers of jobs; `together`: in one sum, under 0."""
    of_cohort, of_tally = ("0", "0") if together else ("(SELECT t.job FROM terms t WHERE t.id = cohort.terms)", "job")
    unsettled, settled, values = ("", "", ()) if job is None else (f"WHERE {UNSETTLED_OF_JOB}", "WHERE job = ?", (job,))
    found = defaultdict[int, Counts](Counter)
    for number, lane, status, count in db.execute(
        f"SELECT {of_cohort}, lane, status, sum(requests) FROM cohort {unsettled} GROUP BY 1, 2, 3", values
    ):
        found[number][LANES[lane], STATUSES[status], None] = count
    for number, lane, outcome, count in db.execute(
        f"SELECT {of_tally}, lane, outcome, sum(requests - purged) FROM tally {settled} GROUP BY 1, 2, 3", values
    ):
        if count:
            found[number][LANES[lane], Status.SETTLED, OUTCOMES[outcome]] = count
    return found


class Statistics:
    """Counts requests, sums up what has settled, and lists batches."""

    def __init__(self, database: Database, records: Records, unnamed: Unnamed) -> None:
        self._database, self._records, self._unnamed = database, records, unnamed

    def counts(self, *, job: int | None) -> Counts:
        """Return how many requests are in each lane and status. Those of an unnamed bulk are counted one by one."""
        with self._database.read() as db:
            if not self._unnamed.has(db, job):
                return counts_by_job(db, job, together=True)[0]
            rows = db.execute(_COUNT, (job,)).fetchall()
        return Counter(
            {
                (LANES[lane], STATUSES[status], None if outcome is None else OUTCOMES[outcome]): count
                for lane, status, outcome, count in rows
            }
        )

    def report(self, *, job: int | None) -> Report:
        """Return money and deadlines of settled requests, purged ones included."""
        where, values = ("", ()) if job is None else (" WHERE job = ?", (job,))
        with self._database.read() as db:
            tallies = db.execute(
                "SELECT lane, requests, cost, saved, cache_saved, unpriced, met, missed, lateness, attempts, "
                "cache_tokens, cache_written, input_tokens, "
                f"CASE outcome WHEN {_REFUSED} THEN requests ELSE 0 END, truncated FROM tally{where}",
                values,
            ).fetchall()
            wastes = db.execute(f"SELECT wasted, possible_doubles FROM waste{where}", values).fetchall()
            prices = meta.with_prefix(meta.everything(db), meta.PRICES)
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

    def batches(self, *, job: int | None, limit: int = 200) -> list[dict[str, Any]]:
        """Return the last batches with an id of the API, of a job or of all, oldest first; fields of `BatchRecord`."""
        of_job = (
            "AND (id IN (SELECT batch FROM result_group WHERE job = ?) OR id IN "
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
            for table in ("result_group", "cohort"):
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
        """Return how long the last batches and cancels took, newest first."""
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
