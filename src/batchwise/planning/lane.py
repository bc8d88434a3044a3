"""The sync lane as planning sees it: cohorts of calls, how long each occupies the lane, and their EDF schedule.

`batchwise.planning.sync_schedule` says what is assumed of the lane and how figures are rounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from heapq import heappop, heappush
from typing import NamedTuple, Protocol

import attrs

from batchwise.basics.times import check_aware, check_duration
from batchwise.errors import InvalidValueError
from batchwise.models import Limits

__all__ = [
    "Calls",
    "Cohort",
    "Job",
    "Pace",
    "Run",
    "edf",
    "loads",
    "tightest",
    "to_duration",
    "to_int",
    "to_jobs",
    "to_moment",
    "to_span",
]

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
    """What calls ask of the lane, all together."""

    @property
    def requests(self) -> int:
        """How many they are."""

    @property
    def input_tokens(self) -> int:
        """Their uncached input tokens."""

    @property
    def output_tokens(self) -> int:
        """Their output tokens."""


@attrs.frozen(kw_only=True)
class Pace:
    """Limits, and the share of them that the lane reaches.

    A share is one of time, too: what takes an hour at the limits takes two at a half of them. So none of the limits is
    rounded, however small it is.

    Attributes:
        limits: The lane's limits.
        share: Above 0, at most 1.
    """

    limits: Limits
    share: Fraction = Fraction(1)


class Job(NamedTuple):
    """A cohort in microseconds: available from `release`, to be sent by `due`, `work` of lane time."""

    release: int
    due: int
    work: int


class Run(NamedTuple):
    """The lane serves the job of this index from `start` to `end`."""

    start: int
    end: int
    which: int


def to_int(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def to_moment(value: int) -> datetime:
    """The inverse of `to_int`; what lies before the year 1 becomes its start."""
    try:
        return _EPOCH + timedelta(microseconds=value)
    except OverflowError:
        return _EARLIEST


def to_duration(value: int) -> timedelta:
    """Microseconds as a `timedelta`, at most the longest there is."""
    return timedelta(microseconds=min(value, timedelta.max // _MICROSECOND))


def to_span(duration: timedelta, field: str) -> int:
    """Microseconds of a duration.

    Raises:
        InvalidValueError: It is no `timedelta` or a negative one.
    """
    return check_duration(duration, field) // _MICROSECOND


def loads(cohort: Calls, limits: Limits | Pace) -> Iterator[tuple[str, int, int]]:
    """(field of `Limits`, n, d) for each limited resource: n/d microseconds of lane time; the same for each cohort."""
    up = down = 1
    if isinstance(limits, Pace):
        up, down, limits = limits.share.denominator, limits.share.numerator, limits.limits
    minutes = up * _MINUTE
    if limits.requests_per_minute is not None:
        yield "requests_per_minute", cohort.requests * minutes, down * limits.requests_per_minute
    if limits.input_tokens_per_minute is not None:
        yield "input_tokens_per_minute", cohort.input_tokens * minutes, down * limits.input_tokens_per_minute
    if limits.output_tokens_per_minute is not None:
        yield "output_tokens_per_minute", cohort.output_tokens * minutes, down * limits.output_tokens_per_minute
    if limits.concurrency is not None:
        yield "concurrency", cohort.requests * (limits.latency // _MICROSECOND) * up, down * limits.concurrency


def tightest(cohort: Calls, limits: Limits | Pace) -> tuple[int, str]:
    """Microseconds of lane time, rounded up, and the resource that asks for them; (0, "") without a limit."""
    longest, bound = 0, ""
    for resource, numerator, denominator in loads(cohort, limits):
        load = -(-numerator // denominator)
        if load > longest:
            longest, bound = load, resource
    return longest, bound


def to_jobs(cohorts: Sequence[Cohort], limits: Limits | Pace, now: datetime, tail: timedelta) -> list[Job]:
    """The cohorts as jobs, none available before `now`, each due `tail` before its deadline."""
    first, end = to_int(check_aware(now, "now")), to_span(tail, "tail")
    return [
        Job(
            first if cohort.release is None else max(first, to_int(cohort.release)),
            to_int(cohort.deadline) - end,
            tightest(cohort, limits)[0],
        )
        for cohort in cohorts
    ]


def edf(jobs: Sequence[Job], *, drop: bool = False) -> tuple[list[Run], list[int]]:
    """The preemptive EDF schedule and what is left of each job: nothing, unless `drop` gives up late work."""
    order = sorted(range(len(jobs)), key=lambda index: jobs[index].release)
    left = [job.work for job in jobs]
    runs: list[Run] = []
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
        runs.append(Run(now, end, index))
        left[index] -= end - now
        now = end
        if not left[index]:
            heappop(ready)
    return runs, left
