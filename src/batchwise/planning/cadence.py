"""The arithmetic of deadlines: how often to submit, by when at the latest, and how long a rescue takes.

    waiting (at most `interval`) + window + overhead + reserve <= SLA

All of it is pure and exact: whole microseconds and fractions, no floats, no clock. The default split of the buffer
(two thirds waiting, one third reserve) is a rule of thumb; `batchwise.planning.workload` sizes the reserve from the
workload and the account's limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from fractions import Fraction
from math import ceil, inf
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import attrs

from batchwise.basics.figures import Number, check_whole, to_number
from batchwise.basics.rendering import to_html
from batchwise.basics.times import WINDOW, ZERO, check_aware, check_duration, check_positive
from batchwise.basics.wording import exact, human
from batchwise.errors import InfeasibleSLAError, InvalidValueError, NoCronExpressionError

from .reserve import least_reserve, reserve_for
from .sync_schedule import Pace, loads

if TYPE_CHECKING:
    from batchwise.models import Limits, Policy

__all__ = [
    "Cadence",
    "check_limits",
    "lane_time",
    "largest_rescuable",
    "latest_submission",
    "rescue_duration",
    "sla_cadence",
    "worst_case_latency",
]

_T = TypeVar("_T")
_TICK = timedelta.resolution
_DAY = timedelta(days=1)

_CRON: dict[timedelta, str] = {
    timedelta(minutes=1): "* * * * *",
    **{timedelta(minutes=m): f"*/{m} * * * *" for m in (2, 3, 4, 5, 6, 10, 12, 15, 20, 30)},
    timedelta(hours=1): "0 * * * *",
    **{timedelta(hours=h): f"0 */{h} * * *" for h in (2, 3, 4, 6, 8, 12)},
    _DAY: "0 0 * * *",
    timedelta(weeks=1): "0 0 * * 0",
}
"""Every period that one cron expression keeps without a shorter gap at the turn of an hour, a day or a month."""


def bounded(compute: Callable[[], _T], what: str) -> _T:
    """Return the value of `compute`; raise InvalidValueError where a `datetime` or `timedelta` cannot hold it."""
    try:
        return compute()
    except OverflowError:
        raise InvalidValueError(f"{what} is more than Python's datetime can hold; give smaller figures") from None


@attrs.frozen(kw_only=True)
class Cadence:
    """When to submit so that an SLA is kept; made by `sla_cadence`. `str` of it is a sentence.

    `worst_case + reserve <= sla` always holds.

    Attributes:
        sla: Time from dispatch to deadline.
        window: The batch API's processing window.
        buffer: `sla - rounds * window`.
        reserve: The part of the buffer kept to redo unfinished requests on the sync lane: a batch that still runs so
            long before the deadline is cancelled. A batch that was sent within the interval has ended by `worst_case`,
            and leaves `sla - worst_case`, which is more where `Policy.interval` is shorter than the buffer allows.
        interval: The longest a request waits for its batch to be sent, in each round; zero: it is sent at once.
        worst_case: `rounds * (interval + window) + overhead`: dispatch to the end of the last round, as
            `worst_case_latency` has it.
        rounds: How many batches a request may go through, one after the other, before the sync lane.
        overhead: Time lost on the way, over all rounds: create calls, poll gaps, cancel settle, collection.

    Raises:
        InvalidValueError: The fields contradict each other.
    """

    sla: timedelta
    window: timedelta
    buffer: timedelta
    reserve: timedelta
    interval: timedelta
    worst_case: timedelta
    rounds: int = 1
    overhead: timedelta = ZERO

    def __attrs_post_init__(self) -> None:
        check_positive(self.sla, "sla")
        check_duration(self.reserve, "reserve")
        worst_case = worst_case_latency(self.interval, window=self.window, rounds=self.rounds, overhead=self.overhead)
        if self.buffer != self.sla - self.rounds * self.window or self.worst_case != worst_case:
            raise InvalidValueError(
                f"buffer={exact(self.buffer)}, worst_case={exact(self.worst_case)}: not sla - rounds * window and "
                "rounds * (interval + window) + overhead; let sla_cadence compute them"
            )
        if worst_case + self.reserve > self.sla:
            raise InvalidValueError(
                f"sla={exact(self.sla)} is shorter than worst_case + reserve = {exact(worst_case + self.reserve)}; "
                "let sla_cadence compute them"
            )

    def __str__(self) -> str:
        sent = f"submit every {human(self.interval)}" if self.interval else "submit each request at once"
        batch = f"a batch takes at most {human(self.window)}"
        if self.rounds > 1:
            batch = f"{self.rounds} batches after one another take at most {human(self.window)} each"
        lost = f", {human(self.overhead)} are lost on the way" if self.overhead else ""
        kept = f"{human(self.reserve)} are kept" if self.reserve else "nothing is kept"
        return (
            f"SLA of {human(self.sla)}: {sent}; {batch}{lost}, so the worst case is {human(self.worst_case)}, and "
            f"{kept} to redo on the sync lane what expired."
        )

    def _repr_html_(self) -> str:
        """A table, for notebooks."""
        rows = [
            ("SLA", human(self.sla)),
            ("submit every", human(self.interval) if self.interval else "at once"),
            ("window", human(self.window) if self.rounds == 1 else f"{self.rounds} times {human(self.window)}"),
            ("lost on the way", human(self.overhead)),
            ("reserve", human(self.reserve)),
            ("worst case", human(self.worst_case)),
        ]
        return to_html(rows, "Cadence")

    def to_svg(self) -> str:
        """Return a picture of the cadence on a time line: waiting, the window, the reserve, the deadline.

        It needs matplotlib, which the extra `batchwise-claude[report]` brings.

        Raises:
            BatchwiseError: matplotlib is not installed.
        """
        from batchwise.basics.pictures import cadence_svg

        rounds = [("waiting", self.interval), ("window", self.window)] * self.rounds
        return cadence_svg([*rounds, ("lost", self.overhead), ("reserve", self.reserve)], self.sla)

    @property
    def per_day(self) -> float:
        """Submissions in 24 hours; infinite where the interval is zero and each request is sent at once."""
        return _DAY / self.interval if self.interval else inf

    @property
    def check_every(self) -> timedelta:
        """The longest gap between two looks at running batches while the rescue's length is unknown.

        Half the reserve goes to noticing that a batch expired, and the other half is left to the rescue. It is never
        longer than the interval, so that the same wake-ups also submit. If you know the length of the rescue, ask
        `check_every_for`. With a reserve of zero it is the interval (the window where that is zero, too).
        """
        return self._look(-(-self.reserve // 2))

    def check_every_for(self, rescue: timedelta) -> timedelta:
        """Return the longest gap between two looks that leaves `rescue` before the deadline: at most the rest.

        Args:
            rescue: How long a rescue takes, e.g. `rescue_duration(...)`.

        Raises:
            InvalidValueError: The reserve is no longer than the rescue.
        """
        needed = check_duration(rescue, "rescue")
        if needed >= self.reserve:
            raise InvalidValueError(
                f"rescue={exact(needed)} leaves nothing of the reserve of {exact(self.reserve)} to notice an expiry; "
                "ask sla_cadence for a longer reserve"
            )
        return self._look(self.reserve - needed)

    def _look(self, gap: timedelta) -> timedelta:
        return min((span for span in (self.interval, gap) if span), default=self.window)

    def with_interval(self, interval: timedelta) -> Cadence:
        """Return the same SLA with another interval, e.g. one that cron can express; the reserve takes the difference.

        A dispatcher with `Policy(interval=)` keeps its own reserve: `sla_cadence(sla, policy=)` has that.

        Raises:
            InvalidValueError: `interval` is no positive timedelta, or too long for the SLA.
        """
        every = check_positive(interval, "interval")
        longest = (self.buffer - self.overhead) // self.rounds
        if every > longest:
            raise InvalidValueError(
                f"interval={exact(every)} does not fit the SLA of {exact(self.sla)}; give {exact(longest)} or less"
            )
        left = self.buffer - self.overhead - self.rounds * every
        return cadence_of(self.sla, self.window, self.rounds, self.overhead, reserve=left, interval=every)

    def submissions(self, start: datetime, end: datetime) -> Iterator[datetime]:
        """Yield when to submit: `start`, then one interval of elapsed time after the other, before `end`; all in UTC.

        A change to or from daylight saving time between `start` and `end` neither stretches nor shortens a step.

        Args:
            start: Aware, in any time zone; the first submission.
            end: Aware; the last submission is earlier.

        Raises:
            InvalidValueError: `start` or `end` is naive, `end` is before `start`, or the interval is zero.
        """
        first, last = check_aware(start, "start"), check_aware(end, "end")
        if last < first:
            raise InvalidValueError(f"end={end.isoformat()} is before start={start.isoformat()}; swap them")
        if not self.interval:
            raise InvalidValueError(
                f"sla={exact(self.sla)} leaves an interval of zero: submit each request when it arrives"
            )
        return (first + self.interval * count for count in range(-((first - last) // self.interval)))

    def cron(self, *, nearest: bool = False) -> str:
        """Return a cron expression (five fields, for a cron that runs in UTC) that fires once an interval.

        There is one for intervals that divide an hour or a day evenly, in whole minutes and hours, and for a week.

        Args:
            nearest: Where there is none, take the one of the nearest shorter interval: requests then wait less,
                and more is left to a rescue.

        Raises:
            NoCronExpressionError: There is none; its `nearest` is the nearest shorter interval that has one (take
                `cron(nearest=True)` or `with_interval(nearest)`), zero if the interval is under cron's shortest, a
                minute.
        """
        expression = _CRON.get(self.interval)
        if expression is not None:
            return expression
        shorter = max((period for period in _CRON if period < self.interval), default=ZERO)
        if nearest and shorter:
            return _CRON[shorter]
        fix = (
            f"the nearest shorter interval that it can express is {exact(shorter)} ({_CRON[shorter]!r}): "
            "take cron(nearest=True), or with_interval(nearest)"
            if shorter
            else "its shortest period is a minute: keep a dispatcher running instead"
        )
        raise NoCronExpressionError(f"interval={exact(self.interval)} has no cron expression; {fix}", nearest=shorter)


def sla_cadence(
    sla: timedelta,
    *,
    window: timedelta | None = None,
    reserve: timedelta | None = None,
    rounds: int = 1,
    overhead: timedelta = ZERO,
    policy: Policy | None = None,
) -> Cadence:
    """Return how often to submit so that every request meets its SLA, however late in the window its batch ends.

    `buffer = sla - rounds * window`; `interval = (buffer - reserve - overhead) / rounds`, rounded down to the
    microsecond. 30 h gives a buffer of 6 h, a reserve of 2 h, an interval of 4 h and a worst case of 28 h. A longer
    SLA never gives a shorter interval.

    With a policy it calculates as a dispatcher with that policy does: an SLA has a cadence if the dispatcher sends work
    with such a deadline to a batch that has its whole window (hedged work has none).

    Args:
        sla: Time from dispatch to deadline.
        window: The batch API's processing window; None: the policy's, else 24 h.
        reserve: The time to keep for a rescue on the sync lane, once, after the last round; None: the policy's, else a
            third of the buffer. With zero, requests of an expired batch are late.
        rounds: How many batches a request may go through, one after the other, before the sync lane.
        overhead: Time lost on the way, over all rounds together: create calls, poll gaps, cancel settle,
            collection. It comes out of the waiting time, not out of the reserve. The reserve of a policy already
            includes the time that a rescue loses on the way.
        policy: A dispatcher's, for its window, reserves, interval, and the overhead of its rescues.

    Raises:
        InfeasibleSLAError: Windows, reserve and overhead do not fit; `shortest` is the shortest SLA that a dispatcher
            (without a policy: a default one) sends to a batch: 24 h 15 min by default.
        InvalidValueError: An argument is no duration, zero or negative, or the policy no `Policy`; the message names
            it.
    """
    sla, rounds = check_positive(sla, "sla"), check_whole(rounds, "rounds", 1)
    overhead = check_duration(overhead, "overhead")
    window = None if window is None else check_positive(window, "window")
    reserve = None if reserve is None else check_duration(reserve, "reserve")
    if policy is None:
        one_window = window or WINDOW
    else:
        policy = _with(policy, window, reserve)
        one_window = policy.window
    windows = bounded(lambda: rounds * one_window, f"rounds={rounds} times window={exact(one_window)}")
    buffer = bounded(lambda: sla - windows, f"sla={exact(sla)} minus the windows")
    thumb = buffer / 3 if reserve is None else reserve
    kept = thumb if policy is None else reserve_for(policy, buffer)
    interval = bounded(
        lambda: (buffer - kept - overhead) // rounds, f"reserve={exact(kept)} plus overhead={exact(overhead)}"
    )
    if buffer <= ZERO or interval < ZERO:
        ruling = policy or _with(None, window, reserve)
        # Without either of them a third of the buffer is kept, however short it is.
        named = f" and a reserve of at least {exact(least_reserve(ruling))}" if policy or reserve is not None else ""
        raise _infeasible(sla, windows, rounds, overhead, ruling, named)
    if policy is not None and policy.interval is not None:
        interval = min(interval, policy.interval)
    return cadence_of(sla, one_window, rounds, overhead, reserve=kept, interval=interval)


def cadence_of(
    sla: timedelta, window: timedelta, rounds: int, overhead: timedelta, *, reserve: timedelta, interval: timedelta
) -> Cadence:
    """Return the cadence with these figures, and the buffer and worst case that follow from them."""
    return Cadence(
        sla=sla,
        window=window,
        buffer=sla - rounds * window,
        reserve=reserve,
        interval=interval,
        worst_case=worst_case_latency(interval, window=window, rounds=rounds, overhead=overhead),
        rounds=rounds,
        overhead=overhead,
    )


def _with(policy: Policy | None, window: timedelta | None, reserve: timedelta | None) -> Policy:
    """Return the policy (None: the default one) with the caller's other arguments."""
    from batchwise.models import Policy, check_policy  # it imports this module; a feasible cadence needs none

    policy = Policy() if policy is None else policy
    check_policy(policy)
    return attrs.evolve(
        policy,
        window=policy.window if window is None else window,
        reserve=policy.reserve if reserve is None else reserve,
    )


def _infeasible(
    sla: timedelta, windows: timedelta, rounds: int, overhead: timedelta, policy: Policy, named: str
) -> InfeasibleSLAError:
    least = least_reserve(policy)
    # Beside the overhead either the least reserve has to fit, or a third of the buffer: b - b / 3 = overhead.
    # b less its rounded third is 2q for b = 3q, and 2q + 1 for b = 3q + 1.
    pairs, odd = divmod(overhead // _TICK, 2)
    derived = ZERO if policy.reserve is not None else (3 * pairs + odd) * _TICK
    shortest = bounded(lambda: windows + max(least + overhead, derived), "the shortest SLA")
    beside = f" and an overhead of {exact(overhead)}" if overhead else ""
    return InfeasibleSLAError(
        f"sla={exact(sla)} leaves no time beside the batch window of {exact(windows)} (rounds={rounds}){beside}"
        f"{named}. The shortest SLA that a dispatcher sends to a batch is {exact(shortest)}, plus the interval at "
        "which you submit",
        shortest=shortest,
    )


def worst_case_latency(
    interval: timedelta, *, window: timedelta = WINDOW, rounds: int = 1, overhead: timedelta = ZERO
) -> timedelta:
    """Return the longest time from dispatch to the end of the last batch: `rounds * (interval + window) + overhead`.

    Args:
        interval: The longest a request waits for its batch to be sent, in each round; zero: it is sent at once.
        window: The batch API's processing window (24 h).
        rounds: How many batches a request may go through, one after the other.
        overhead: Time lost on the way, over all rounds together.

    Raises:
        InvalidValueError: An argument is no duration, or negative; window zero or rounds below 1.
    """
    every, one_window = check_duration(interval, "interval"), check_positive(window, "window")
    times, lost = check_whole(rounds, "rounds", 1), check_duration(overhead, "overhead")
    return bounded(lambda: times * (every + one_window) + lost, f"rounds={rounds} times interval + window")


def latest_submission(
    deadline: datetime, *, window: timedelta = WINDOW, reserve: timedelta = ZERO, overhead: timedelta = ZERO
) -> datetime:
    """Return the last moment (UTC) to create a batch for this deadline: `deadline - window - reserve - overhead`.

    Args:
        deadline: Aware, in any time zone.
        window: The batch API's processing window (24 h).
        reserve: The time to keep for a rescue; with the default of zero, requests of an expired batch are late.
        overhead: Time lost on the way: create call, poll gap, collection.

    Raises:
        InvalidValueError: `deadline` is naive, or a duration is none, or negative.
    """
    due = check_aware(deadline, "deadline")
    leads = check_duration(reserve, "reserve"), check_duration(overhead, "overhead"), check_positive(window, "window")
    return bounded(lambda: due - sum(leads, ZERO), f"deadline={due.isoformat()} minus window, reserve and overhead")


def check_limits(limits: object) -> None:
    """Refuse a value that is no `Limits`.

    Raises:
        InvalidValueError: It is none.
    """
    from batchwise.models import Limits  # a caller with limits has loaded them; a cadence needs none

    if not isinstance(limits, Limits):
        raise InvalidValueError(f"limits={limits!r} is not a Limits; give e.g. Limits.for_tier('start')")


class _Call(NamedTuple):
    requests: int
    input_tokens: Fraction
    output_tokens: Fraction


def lane_time(limits: Limits, mean_input_tokens: Number, mean_output_tokens: Number) -> Fraction:
    """Return the microseconds of the sync lane that one request takes, by the slowest resource; zero: no limit."""
    check_limits(limits)
    tokens = to_number(mean_input_tokens, "mean_input_tokens"), to_number(mean_output_tokens, "mean_output_tokens")
    each = loads(_Call(1, *tokens), Pace(limits=limits))
    return max((Fraction(numerator) / denominator for _, numerator, denominator in each), default=Fraction(0))


def time_for(requests: int, each: Fraction) -> timedelta:
    """Return how long the sync lane takes for so many requests, of `each` microseconds, rounded up.

    Raises:
        InvalidValueError: It exceeds `timedelta.max`.
    """
    return bounded(lambda: timedelta(microseconds=ceil(requests * each)), f"the rescue of requests={requests}")


def number_in(duration: timedelta, each: Fraction) -> int | None:
    """Return how many requests, of `each` microseconds, the sync lane takes within `duration`; None: any number."""
    return (duration // _TICK) // each if each else None


def rescue_duration(
    requests: int, limits: Limits, *, mean_input_tokens: Number = 0, mean_output_tokens: Number = 0
) -> timedelta:
    """Return how long the sync lane takes to redo so many requests: the slowest resource decides.

    The lane is fluid, as in `batchwise.planning.sync_schedule`: each resource serves steadily at its limit, concurrency
    at `concurrency / latency`. The calls still running at its end (one `limits.latency`, or the slowest call's
    tail) belong to the overhead. Rounded up to the microsecond.

    Args:
        requests: How many requests.
        limits: The account's limits; a limit of None does not limit.
        mean_input_tokens: Mean uncached input tokens of one request.
        mean_output_tokens: Mean output tokens of one request.

    Returns:
        The duration; zero when nothing limits.

    Raises:
        InvalidValueError: A count is negative or no number, or the duration exceeds `timedelta.max`.
    """
    return time_for(check_whole(requests, "requests", 0), lane_time(limits, mean_input_tokens, mean_output_tokens))


def largest_rescuable(
    duration: timedelta, limits: Limits, *, mean_input_tokens: Number = 0, mean_output_tokens: Number = 0
) -> int | None:
    """Return how many requests the sync lane can redo within `duration`: the exact inverse of `rescue_duration`.

    `rescue_duration(n) <= duration < rescue_duration(n + 1)` holds for the n returned.

    Args:
        duration: Zero or more.
        limits: The account's limits; a limit of None does not limit.
        mean_input_tokens: Mean uncached input tokens of one request.
        mean_output_tokens: Mean output tokens of one request.

    Returns:
        The number of requests; None when nothing limits: any number.

    Raises:
        InvalidValueError: `duration` is no duration or negative, or a token count is negative or no number.
    """
    return number_in(check_duration(duration, "duration"), lane_time(limits, mean_input_tokens, mean_output_tokens))
