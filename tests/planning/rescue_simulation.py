"""An account whose batches all expire at their worst moment, and what its sync lane then makes of the deadlines.

It shares no code with `plan_workload`: it counts requests, one after the other, in exact microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from fractions import Fraction
from heapq import heappop, heappush

from batchwise.models import Limits

_TICK = timedelta.resolution
_HOUR = timedelta(hours=1) // _TICK
_MINUTE = timedelta(minutes=1) // _TICK


def lane_time(limits: Limits, input_tokens: float, output_tokens: float) -> Fraction:
    """Microseconds of the sync lane that one request takes."""
    paces = [Fraction(0)]
    for limit, amount in (
        (limits.requests_per_minute, 1),
        (limits.input_tokens_per_minute, input_tokens),
        (limits.output_tokens_per_minute, output_tokens),
    ):
        if limit is not None:
            paces.append(Fraction(amount) * _MINUTE / limit)
    if limits.concurrency is not None:
        paces.append(Fraction(limits.latency // _TICK, limits.concurrency))
    return max(paces)


def lateness(
    *,
    arrivals_per_hour: Fraction,
    sla: timedelta,
    interval: timedelta,
    each: Fraction,
    window: timedelta = timedelta(hours=24),
    rounds: int = 1,
    overhead: timedelta = timedelta(0),
    bursts: Sequence[tuple[Fraction, int]] = (),
    phase: Fraction = Fraction(0),
    horizon: Fraction | None = None,
) -> tuple[Fraction, int]:
    """By how many microseconds the latest rescue misses its deadline (zero or less: none does), and the queue's peak.

    Steady requests arrive from `phase` periods on; one that comes just when a batch is sent goes with the next. A batch
    that expires in an earlier round is seen just after a submission, so its requests wait a whole interval more. The
    lane serves the earliest deadline first, and a more urgent request interrupts one that runs.

    Args:
        bursts: (microsecond of its arrival, requests), each submitted at once.
        horizon: Microseconds of arrivals; None: eight intervals.
    """
    every, span, due = interval // _TICK, window // _TICK, sla // _TICK
    end = Fraction(8 * every) if horizon is None else horizon
    submitted: list[tuple[Fraction, Fraction]] = []  # (arrival, first submission)
    if arrivals_per_hour:
        period = _HOUR / arrivals_per_hour
        for number in range(int(end / period) + 1):
            arrival = (phase + number) * period
            submitted.append((arrival, Fraction((arrival // every + 1) * every)))
    submitted += [(at, at) for at, size in bursts for _ in range(size)]
    released = sorted(
        (at + rounds * span + (rounds - 1) * every + overhead // _TICK, arrival + due) for arrival, at in submitted
    )
    now, late, ready, position = Fraction(0), Fraction(-(10**18)), list[tuple[Fraction, Fraction]](), 0
    while ready or position < len(released):
        if not ready:
            now = max(now, released[position][0])
        while position < len(released) and released[position][0] <= now:
            heappush(ready, (released[position][1], each))
            position += 1
        deadline, left = heappop(ready)
        following = released[position][0] if position < len(released) else None
        if following is not None and following < now + left:
            heappush(ready, (deadline, left - (following - now)))
            now = following
            continue
        now += left
        late = max(late, now - deadline)
    events = [
        event
        for _, at in submitted
        for round_ in range(rounds)
        for event in ((at + round_ * (span + every), 0, 1), (at + round_ * (span + every) + span, 1, -1))
    ]
    waiting = peak = 0
    for _, _, change in sorted(events):
        waiting += change
        peak = max(peak, waiting)
    return late, peak
