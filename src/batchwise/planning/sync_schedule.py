"""The shared rescue: when work that batches may leave behind has to start on the one sync lane, and whether it fits.

The lane is fluid: a resource (requests, input or output tokens a minute, concurrent calls) serves at its limit, the
work of one cohort may be interrupted between two calls, and a cohort alone takes the time of its tightest resource.
Cohorts run one after the other, the earliest deadline first (EDF), as the lane sends them. That is the whole truth
where one resource binds all of them. Where different resources bind different cohorts it is on the safe side: the
same test made for each resource by itself would be necessary and not sufficient, because a call needs all its
resources at once (0.9 h of tokens due at 0.9 h, then 0.9 h of requests due at 1.0 h, pass each test and miss).

Everything is counted in whole microseconds. Work rounds up and start times down, by less than one microsecond for
each cohort; what is said to be impossible (`at_risk`) is counted exactly. No clock, no I/O; each call takes
O(n log n) for n cohorts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from fractions import Fraction
from heapq import heappop, heappush

import attrs

from batchwise.models import Limits

from .lane import Calls, Cohort, Job, Pace, edf, loads, tightest, to_duration, to_int, to_jobs, to_moment, to_span

__all__ = ["Cohort", "Shortfall", "at_risk", "fits", "latest_starts", "servable", "work"]


@attrs.frozen(kw_only=True)
class Shortfall:
    """The span of time in which the sync lane lacks most; `str` of it is a sentence with the figures.

    Attributes:
        start: From here on (UTC) the work becomes available.
        end: By then (UTC) its last call has to be sent: the deadline less the tail.
        needed: Lane time that the work takes.
        available: Lane time between `start` and `end`; negative if `end` is past before the work can start.
        resource: The field of `Limits` that binds most of it; empty if none does.
        requests: The requests in question.
    """

    start: datetime
    end: datetime
    needed: timedelta
    available: timedelta
    resource: str
    requests: int

    @property
    def missing(self) -> timedelta:
        """By how much the last of them would be late."""
        return self.needed - self.available

    def __str__(self) -> str:
        start, end = (moment.isoformat(sep=" ", timespec="seconds") for moment in (self.start, self.end))
        if self.available < timedelta(0):
            return f"{self.requests:,} requests can start at {start}, {-self.available} after they had to ({end})"
        bound = f" (bound by {self.resource})" if self.resource else ""
        return (
            f"{self.requests:,} requests need {self.needed} of the sync lane{bound} between {start} and {end}, "
            f"which is {self.available}: {self.missing} too short"
        )


def work(cohort: Calls, limits: Limits | Pace) -> timedelta:
    """Lane time that a cohort takes alone: that of its tightest resource, rounded up to a microsecond.

    With no limit that is zero. Calls that are still running at its end are the tail's business: it has to cover at
    least one call (`limits.latency`).
    """
    return to_duration(tightest(cohort, limits)[0])


def latest_starts(cohorts: Sequence[Cohort], limits: Limits | Pace, *, tail: timedelta) -> tuple[datetime, ...]:
    """When each cohort has to start on the lane at the latest (UTC), in the order given, so that all are in time.

    `f_k = min(D_k - tail, f_(k+1)) - W_k`, deadlines descending; of cohorts with the
    same deadline the first given runs first. Releases are not looked at: a cancel makes work available early.

    Args:
        cohorts: Everything that may have to be rescued.
        limits: The sync lane's.
        tail: How long the slowest call takes; at least `limits.latency`.
    """
    end = to_span(tail, "tail")
    starts = [0] * len(cohorts)
    following: int | None = None
    for index in sorted(range(len(cohorts)), key=lambda index: (cohorts[index].deadline, index), reverse=True):
        due = to_int(cohorts[index].deadline) - end
        following = (due if following is None else min(due, following)) - tightest(cohorts[index], limits)[0]
        starts[index] = following
    return tuple(map(to_moment, starts))


def fits(cohorts: Sequence[Cohort], limits: Limits | Pace, *, now: datetime, tail: timedelta) -> Shortfall | None:
    """Whether the preemptive EDF schedule of all cohorts, each available from its release, meets every deadline.

    It does exactly if for all t1 < t2 the work released from t1 on that is due by t2 is at most t2 - t1. What the lane
    is busy with already goes in as a cohort too.

    Args:
        cohorts: Everything that may have to be rescued.
        limits: The sync lane's.
        now: Nothing runs before it.
        tail: How long the slowest call takes; at least `limits.latency`.

    Returns:
        None if it fits, else the span in which most is lacking.
    """
    jobs = to_jobs(cohorts, limits, now, tail)
    runs, _ = edf(jobs)
    last = {run.which: position for position, run in enumerate(runs)}
    worst = max(last, key=lambda index: runs[last[index]].end - jobs[index].due, default=None)
    if worst is None or runs[last[worst]].end <= jobs[worst].due:
        return None
    due, first = jobs[worst].due, last[worst]
    while first and runs[first - 1].end == runs[first].start and jobs[runs[first - 1].which].due <= due:
        first -= 1
    start = runs[first].start
    members = {run.which for run in runs[first : last[worst] + 1]}
    bound: Counter[str] = Counter()
    for index in members:
        needed, resource = tightest(cohorts[index], limits)
        bound[resource] += needed
    return Shortfall(
        start=to_moment(start),
        end=to_moment(due),
        needed=to_duration(runs[last[worst]].end - start),
        available=to_duration(due - start),
        resource=max(bound, key=lambda resource: bound[resource]),
        requests=sum(cohorts[index].requests for index in members),
    )


def _alone(job: Job, count: int, each: Fraction) -> int:
    """How many of a cohort's calls can be in time if the lane does nothing else."""
    if job.due < job.release:
        return 0
    return min(count, int((job.due - job.release) // each)) if each else count


def _keep(jobs: Sequence[Job], counts: Sequence[int], needs: Sequence[Fraction]) -> list[int]:
    """Moore-Hodgson: how many of each job's `counts` equal calls can be in time, were all available at the earliest.

    The one thing taken from a later release is that a cohort alone cannot do more than fits between it and its due.
    """
    kept = [0] * len(jobs)
    longest: list[tuple[Fraction, int]] = []
    total, first = Fraction(0), min((job.release for job in jobs), default=0)
    for index in sorted(range(len(jobs)), key=lambda index: jobs[index].due):
        job, each = jobs[index], needs[index] / counts[index]
        kept[index] = _alone(job, counts[index], each)
        if not kept[index]:
            continue
        heappush(longest, (-each, index))
        total += kept[index] * each
        while total > job.due - first:
            each, victim = -longest[0][0], longest[0][1]
            over = (total - (job.due - first)) / each
            removed = min(kept[victim], -(-over.numerator // over.denominator))
            kept[victim] -= removed
            total -= removed * each
            if not kept[victim]:
                heappop(longest)
    return kept


def at_risk(cohorts: Sequence[Cohort], limits: Limits | Pace, *, now: datetime, tail: timedelta) -> int:
    """How many requests cannot be in time in whatever order the lane serves them (Moore-Hodgson).

    Exact if all are released by `now` and one resource binds; else a lower bound: each resource is taken by itself, and
    so are those that are released from a moment on, and the worst counts. A cohort can be served in part.
    """
    if fits(cohorts, limits, now=now, tail=tail) is None:
        return 0
    jobs = to_jobs(cohorts, limits, now, tail)
    counts = [cohort.requests for cohort in cohorts]
    needs = [[Fraction(0), *(Fraction(n, d) for _, n, d in loads(cohort, limits))] for cohort in cohorts]
    most = 0
    for column in zip(*needs, strict=True):
        alone = [_alone(job, count, need / count) for job, count, need in zip(jobs, counts, column, strict=True)]
        for moment in {job.release for job in jobs}:
            some = [index for index, job in enumerate(jobs) if job.release >= moment]
            kept = _keep([jobs[i] for i in some], [counts[i] for i in some], [column[i] for i in some])
            most = max(most, sum(counts) - sum(kept) - sum(alone) + sum(alone[i] for i in some))
    return most


def servable(cohorts: Sequence[Cohort], limits: Limits | Pace, *, now: datetime, tail: timedelta) -> tuple[int, ...]:
    """How many requests of each cohort the lane can surely have in time, in the order given.

    The rest need not be cancelled: it cannot be rescued anyway. Serving these counts always `fits`. They are as many
    as can be if all are released by `now` and one resource binds (less at most one a cohort by rounding); with later
    releases the choice is a good one, not always the best.
    """
    jobs = to_jobs(cohorts, limits, now, tail)
    counts = [cohort.requests for cohort in cohorts]
    kept = _keep(jobs, counts, [Fraction(job.work) for job in jobs])
    chosen = [
        job._replace(work=-(-job.work * keep // count)) for job, keep, count in zip(jobs, kept, counts, strict=True)
    ]
    _, left = edf(chosen, drop=True)
    return tuple(
        min(keep, (some.work - rest) * count // job.work) if job.work else keep
        for job, some, rest, keep, count in zip(jobs, chosen, left, kept, counts, strict=True)
    )
