"""The schedule of the shared sync lane: when work has to start on it if its batches expire, and whether all fits.

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
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from heapq import heappop, heappush
from typing import TYPE_CHECKING, NamedTuple, Protocol

import attrs

from batchwise.basics.times import ZERO, check_aware, check_duration
from batchwise.basics.wording import exact
from batchwise.errors import InvalidValueError

if TYPE_CHECKING:  # `import batchwise` brings this module, by way of cadences, and not the models
    from batchwise.models import Limits

__all__ = ["Calls", "Cohort", "Pace", "Shortfall", "at_risk", "fits", "latest_starts", "loads", "servable", "work"]

_MICROSECOND = timedelta(microseconds=1)
_MINUTE = 60_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_EARLIEST = datetime.min.replace(tzinfo=timezone.utc)


def _to_deadline(value: datetime) -> datetime:
    return value if value.tzinfo is timezone.utc else check_aware(value, "deadline")


def _to_release(value: datetime | None) -> datetime | None:
    return value if value is None or value.tzinfo is timezone.utc else check_aware(value, "release")


def _count(_cohort: object, attribute: attrs.Attribute[int], value: object) -> None:
    least = 1 if attribute.name == "requests" else 0
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidValueError(f"{attribute.name}={value!r} is not a whole number of at least {least}")


@attrs.frozen(kw_only=True)
class Cohort:
    """Requests with one deadline that may need the sync lane together.

    Its requests are taken as alike: each weighs the mean of the totals.

    Attributes:
        deadline: When their results are due (UTC).
        requests: How many they are.
        input_tokens: Their uncached input tokens, all together.
        output_tokens: Their output tokens, all together.
        release: From when they could be run (UTC): in the worst case, when their batch is known to have expired.
            None: at once.
        model: The model asked for, or its class; empty where the lane serves only one.
    """

    deadline: datetime = attrs.field(converter=_to_deadline)
    requests: int = attrs.field(validator=_count)
    input_tokens: int = attrs.field(default=0, validator=_count)
    output_tokens: int = attrs.field(default=0, validator=_count)
    release: datetime | None = attrs.field(default=None, converter=_to_release)
    model: str = ""


class Calls(Protocol):
    """The demand of calls on the lane, in all."""

    @property
    def requests(self) -> int:
        """How many they are."""

    @property
    def input_tokens(self) -> int | Fraction:
        """Their uncached input tokens."""

    @property
    def output_tokens(self) -> int | Fraction:
        """Their output tokens."""


@attrs.frozen(kw_only=True)
class Pace:
    """Limits, and the share of them that the lane reaches.

    A share is one of time, too: work that takes an hour at the limits takes two hours at half of them. So none of the
    limits is rounded, however small it is.

    Attributes:
        limits: The lane's limits.
        share: Above 0, at most 1.
    """

    limits: Limits
    share: Fraction = Fraction(1)


@attrs.frozen(kw_only=True)
class Shortfall:
    """The span in which the sync lane lacks most time; `str` of it is a sentence with the figures.

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
        """How late the last of them would be."""
        return self.needed - self.available

    def __str__(self) -> str:
        start, end = (moment.isoformat(sep=" ", timespec="seconds") for moment in (self.start, self.end))
        if self.available < ZERO:
            return (
                f"{self.requests:,} requests can start at {start}, {exact(-self.available)} after they had to ({end})"
            )
        bound = f" (bound by {self.resource})" if self.resource else ""
        return (
            f"{self.requests:,} requests need {exact(self.needed)} of the sync lane{bound} between {start} and {end}, "
            f"which is {exact(self.available)}: {exact(self.missing)} too short"
        )


class _Job(NamedTuple):
    """A cohort in microseconds: available from `release`, to be sent by `due`, `work` of lane time."""

    release: int
    due: int
    work: int


class _Run(NamedTuple):
    """The lane serves the job of this index from `start` to `end`."""

    start: int
    end: int
    which: int


def _to_int(moment: datetime) -> int:
    """Return the microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def _to_moment(value: int) -> datetime:
    """Return the moment of `_to_int`; a moment before the year 1 becomes its start."""
    try:
        return _EPOCH + timedelta(microseconds=value)
    except OverflowError:
        return _EARLIEST


def _to_duration(value: int) -> timedelta:
    """Return microseconds as a `timedelta`, at most the longest there is."""
    return timedelta(microseconds=min(value, timedelta.max // _MICROSECOND))


def loads(calls: Calls, pace: Pace) -> Iterator[tuple[str, int | Fraction, int]]:
    """Yield (field of `Limits`, n, d) for each limited resource: n/d microseconds of lane time; always in one order."""
    limits, up, down = pace.limits, pace.share.denominator, pace.share.numerator
    minutes = up * _MINUTE
    if limits.requests_per_minute is not None:
        yield "requests_per_minute", calls.requests * minutes, down * limits.requests_per_minute
    if limits.input_tokens_per_minute is not None:
        yield "input_tokens_per_minute", calls.input_tokens * minutes, down * limits.input_tokens_per_minute
    if limits.output_tokens_per_minute is not None:
        yield "output_tokens_per_minute", calls.output_tokens * minutes, down * limits.output_tokens_per_minute
    if limits.concurrency is not None:
        yield "concurrency", calls.requests * (limits.latency // _MICROSECOND) * up, down * limits.concurrency


def _tightest(calls: Calls, pace: Pace) -> tuple[int, str]:
    """Return the microseconds of lane time, rounded up, and the resource that needs them; (0, "") without a limit."""
    longest, bound = 0, ""
    for resource, numerator, denominator in loads(calls, pace):
        load = -(-numerator // denominator)
        if load > longest:
            longest, bound = load, resource
    return longest, bound


def _to_jobs(cohorts: Sequence[Cohort], pace: Pace, now: datetime, tail: timedelta) -> list[_Job]:
    """Return the cohorts as jobs, none available before `now`, each due `tail` before its deadline."""
    first, end = _to_int(check_aware(now, "now")), check_duration(tail, "tail") // _MICROSECOND
    return [
        _Job(
            first if cohort.release is None else max(first, _to_int(cohort.release)),
            _to_int(cohort.deadline) - end,
            _tightest(cohort, pace)[0],
        )
        for cohort in cohorts
    ]


def _edf(jobs: Sequence[_Job], *, drop: bool = False) -> tuple[list[_Run], list[int]]:
    """Return the preemptive EDF schedule, and the rest of each job: zero, unless `drop` gives up late work."""
    order = sorted(range(len(jobs)), key=lambda index: jobs[index].release)
    left = [job.work for job in jobs]
    runs: list[_Run] = []
    ready: list[tuple[int, int]] = []  # a heap of (due, index)
    now = min((job.release for job in jobs), default=0)
    position = 0
    while ready or position < len(order):
        if not ready:
            now = max(now, jobs[order[position]].release)
        while position < len(order) and jobs[order[position]].release <= now:
            heappush(ready, (jobs[order[position]].due, order[position]))
            position += 1
        due, index = ready[0]
        if drop and now >= due:
            heappop(ready)
            continue
        end = now + left[index]
        if position < len(order):
            end = min(end, jobs[order[position]].release)
        if drop:
            end = min(end, due)
        runs.append(_Run(now, end, index))
        left[index] -= end - now
        now = end
        if not left[index]:
            heappop(ready)
    return runs, left


def work(cohort: Calls, pace: Pace) -> timedelta:
    """Return the lane time that a cohort takes alone: that of its tightest resource, rounded up to a microsecond.

    Without a limit that is zero. The tail covers calls that still run at its end: at least one call
    (`limits.latency`).
    """
    return _to_duration(_tightest(cohort, pace)[0])


def latest_starts(cohorts: Sequence[Cohort], pace: Pace, *, tail: timedelta) -> tuple[datetime, ...]:
    """Return when each cohort has to start on the lane at the latest (UTC), in the given order.

    `f_k = min(D_k - tail, f_(k+1)) - W_k`, deadlines descending; of cohorts with the same deadline the first given
    runs first. Releases are not looked at: a cancel makes work available early. The slowest call takes the tail.
    """
    jobs = _to_jobs(cohorts, pace, _EPOCH, tail)
    starts = [0] * len(jobs)
    following = max((job.due for job in jobs), default=0)
    for index in sorted(range(len(jobs)), key=lambda index: (jobs[index].due, index), reverse=True):
        starts[index] = following = min(jobs[index].due, following) - jobs[index].work
    return tuple(map(_to_moment, starts))


def fits(cohorts: Sequence[Cohort], pace: Pace, *, now: datetime, tail: timedelta) -> Shortfall | None:
    """Return None if the preemptive EDF schedule of all cohorts, each from its release on, meets every deadline.

    It does exactly if for all t1 < t2 the work released from t1 on that is due by t2 is at most t2 - t1. Work that the
    lane already does goes in as a cohort, too. The tail is the time of the slowest call.

    Returns:
        None if it fits, else the span in which most is lacking.
    """
    jobs = _to_jobs(cohorts, pace, now, tail)
    runs, _ = _edf(jobs)
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
        needed, resource = _tightest(cohorts[index], pace)
        bound[resource] += needed
    return Shortfall(
        start=_to_moment(start),
        end=_to_moment(due),
        needed=_to_duration(runs[last[worst]].end - start),
        available=_to_duration(due - start),
        resource=max(bound, key=lambda resource: bound[resource]),
        requests=sum(cohorts[index].requests for index in members),
    )


def _alone(job: _Job, count: int, each: Fraction) -> int:
    """Return how many of a cohort's calls can be in time if the lane does nothing else."""
    if job.due < job.release:
        return 0
    return min(count, int((job.due - job.release) // each)) if each else count


def _keep(jobs: Sequence[_Job], counts: Sequence[int], needs: Sequence[Fraction]) -> list[int]:
    """Return how many of each job's `counts` equal calls can be in time if all were available first (Moore-Hodgson).

    A later release only limits its own cohort: no more calls of it count than fit between its release and its due.
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


def at_risk(cohorts: Sequence[Cohort], pace: Pace, *, now: datetime, tail: timedelta) -> int:
    """Return how many requests cannot be in time, in whatever order the lane serves them (Moore-Hodgson).

    Exact if all are released by `now` and one resource binds. Else a lower bound: the worst result for a single
    resource and for the cohorts released from some moment on. A cohort can be served in part.
    """
    if fits(cohorts, pace, now=now, tail=tail) is None:
        return 0
    jobs = _to_jobs(cohorts, pace, now, tail)
    counts = [cohort.requests for cohort in cohorts]
    needs = [[Fraction(0), *(Fraction(n, d) for _, n, d in loads(cohort, pace))] for cohort in cohorts]
    most = 0
    for column in zip(*needs, strict=True):
        alone = [_alone(job, count, need / count) for job, count, need in zip(jobs, counts, column, strict=True)]
        for moment in {job.release for job in jobs}:
            some = [index for index, job in enumerate(jobs) if job.release >= moment]
            kept = _keep([jobs[i] for i in some], [counts[i] for i in some], [column[i] for i in some])
            most = max(most, sum(counts) - sum(kept) - sum(alone) + sum(alone[i] for i in some))
    return most


def servable(cohorts: Sequence[Cohort], pace: Pace, *, now: datetime, tail: timedelta) -> tuple[int, ...]:
    """Return how many requests of each cohort the lane can surely finish in time, in the given order.

    The rest need not be cancelled: it cannot be rescued. Serving these counts always `fits`. They are the most
    possible if all are released by `now` and one resource binds (less at most one a cohort by rounding). With later
    releases the choice is a good one, not always the best.
    """
    jobs = _to_jobs(cohorts, pace, now, tail)
    counts = [cohort.requests for cohort in cohorts]
    kept = _keep(jobs, counts, [Fraction(job.work) for job in jobs])
    chosen = [
        job._replace(work=-(-job.work * keep // count)) for job, keep, count in zip(jobs, kept, counts, strict=True)
    ]
    _, left = _edf(chosen, drop=True)
    return tuple(
        min(keep, (some.work - rest) * count // job.work) if job.work else keep
        for job, some, rest, keep, count in zip(jobs, chosen, left, kept, counts, strict=True)
    )
