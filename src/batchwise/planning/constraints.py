"""What a steady load must keep, and the nearest load that keeps it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from fractions import Fraction
from functools import partial
from math import ceil
from typing import Union

import attrs

from batchwise.models import Limits
from batchwise.times import ZERO

from .cadence import largest_rescuable, rescue_duration, steady_interval, sync_rate
from .packing import MAX_CALL_BYTES

__all__ = ["SEARCHED", "Load", "Violation", "longest_interval", "nearest_load", "violations_of"]

_HOUR = timedelta(hours=1)
_MINUTE = timedelta(minutes=1)
_TICK = timedelta.resolution
_OFTEN = timedelta(minutes=15)  # no plan submits more often, unless its SLA leaves no choice
SEARCHED = timedelta(days=29)
"""How much longer an SLA the search for the nearest load tries."""

Figure = Union[int, Fraction, timedelta]


@attrs.frozen(kw_only=True)
class Violation:
    """One constraint that a plan breaks.

    Attributes:
        name: Stable: "sla" (no time beside windows and overhead), "reserve" (the rescue takes longer than the
            reserve), "sync_rate" (the sync lane cannot redo one submission before the next may expire), "queue"
            (more requests waiting than the account may have), "burst" (the rescue of a burst would be late), or
            "request_bytes" (one request is too large for a rescue).
        actual: The plan's figure.
        limit: What it may be at most.
        message: Both in words, and what to change.
    """

    name: str
    actual: Figure
    limit: Figure
    message: str


@attrs.frozen(kw_only=True)
class Load:
    """What was asked for; durations and limits are checked."""

    arrivals: Fraction
    burst: int
    sla: timedelta
    window: timedelta
    rounds: int
    overhead: timedelta
    input_tokens: Fraction
    output_tokens: Fraction
    request_bytes: int
    limits: Limits
    prices: tuple[Fraction | None, Fraction | None]

    @property
    def buffer(self) -> timedelta:
        """What the windows leave of the SLA."""
        return self.sla - self.rounds * self.window

    @property
    def rate(self) -> Fraction | None:
        """Requests an hour that the sync lane can redo; None: nothing limits."""
        return sync_rate(self.limits, input_tokens=self.input_tokens, output_tokens=self.output_tokens)

    def arriving(self, span: timedelta) -> int:
        """The most requests that arrive within any `span`."""
        return ceil(self.arrivals * Fraction(span // _TICK, _HOUR // _TICK))

    def gathered(self, interval: timedelta) -> int:
        """The most requests that one submission holds."""
        return max(self.arriving(interval), 1 if self.arrivals else 0)

    def rescue(self, requests: int) -> timedelta:
        """What so many take of the sync lane."""
        return rescue_duration(requests, self.limits, input_tokens=self.input_tokens, output_tokens=self.output_tokens)

    def reserve(self, interval: timedelta) -> timedelta:
        """What the interval leaves for a rescue; negative where it does not fit the SLA."""
        return self.buffer - self.overhead - self.rounds * interval

    def peak(self, interval: timedelta) -> int:
        """The most batch requests that wait in the account's queue at once."""
        return self.rounds * self.arriving(self.window + interval) + self.burst


def _sla(load: Load, _interval: timedelta) -> Violation | None:
    taken = load.rounds * load.window + load.overhead
    if load.sla > taken:
        return None
    message = f"{load.rounds} x {load.window} window and {load.overhead} overhead take the whole SLA of {load.sla}"
    return Violation(name="sla", actual=taken, limit=load.sla, message=f"{message}; allow more time")


def _reserve(load: Load, interval: timedelta) -> Violation | None:
    needed, left = load.rescue(load.gathered(interval)), load.reserve(interval)
    if needed <= left or load.buffer <= load.overhead:
        return None
    message = (
        f"{load.gathered(interval):,} requests that expire together need {needed} on the sync lane, and submitting "
        f"every {interval} leaves {max(left, ZERO)} before their deadline; submit more often or allow more time"
    )
    return Violation(name="reserve", actual=needed, limit=max(left, ZERO), message=message)


def _sync_rate(load: Load, interval: timedelta) -> Violation | None:
    needed = load.rescue(load.gathered(interval))
    if needed <= interval or load.buffer <= load.overhead:
        return None
    message = (
        f"the rescue of {load.gathered(interval):,} requests takes {needed} of the sync lane, and the next submission "
        f"may expire {interval} later; {float(load.arrivals):,.6g} requests an hour arrive, the sync lane serves "
        f"{float(load.rate or 0):,.6g}; send fewer or raise the limits"
    )
    return Violation(name="sync_rate", actual=needed, limit=interval, message=message)


def _queue(load: Load, interval: timedelta) -> Violation | None:
    peak, limit = load.peak(interval), load.limits.batch_requests_in_queue
    if limit is None or peak <= limit:
        return None
    message = f"up to {peak:,} batch requests wait in the account's queue at once and {limit:,} may; send fewer"
    return Violation(name="queue", actual=peak, limit=limit, message=message)


def _burst(load: Load, interval: timedelta) -> Violation | None:
    if not load.burst or load.buffer <= load.overhead:
        return None
    left = max(ZERO, load.buffer - load.overhead - (load.rounds - 1) * interval)
    beside = 2 * load.gathered(interval) if load.arrivals else 0
    most = largest_rescuable(left, load.limits, input_tokens=load.input_tokens, output_tokens=load.output_tokens)
    if most is None or load.burst + beside <= most:
        return None
    message = (
        f"a burst of {load.burst:,} beside {beside:,} steady requests would expire with {left} to its deadline, in "
        f"which the sync lane redoes {most:,} requests; spread the burst or allow more time"
    )
    return Violation(name="burst", actual=load.burst + beside, limit=most, message=message)


def _request_bytes(load: Load, _interval: timedelta) -> Violation | None:
    if load.request_bytes <= MAX_CALL_BYTES:
        return None
    message = (
        f"a request of {load.request_bytes:,} bytes cannot be rescued: a Messages call takes {MAX_CALL_BYTES:,}; "
        "upload large content with the Files API"
    )
    return Violation(name="request_bytes", actual=load.request_bytes, limit=MAX_CALL_BYTES, message=message)


_Check = Callable[[Load, timedelta], Union[Violation, None]]
_EASED_BY_SHORTER: tuple[_Check, ...] = (_reserve, _queue, _burst)
_CHECKS: tuple[_Check, ...] = (_sla, _reserve, _sync_rate, _queue, _burst, _request_bytes)


def longest_interval(load: Load) -> timedelta:
    """The law's interval, made shorter (not under `_OFTEN`) where that keeps what a shorter one eases."""
    longest = steady_interval(
        load.buffer, arrivals=load.arrivals, rate=load.rate, rounds=load.rounds, overhead=load.overhead
    )
    low, high = _OFTEN // _TICK, longest // _TICK
    low = low if low < high else 1
    for check in _EASED_BY_SHORTER:
        keeps = partial(_holds, check, load)
        if high > low and keeps(low) and not keeps(high):
            high = _last(keeps, low, high)
    return high * _TICK


def _holds(check: _Check, load: Load, ticks: int) -> bool:
    return check(load, ticks * _TICK) is None


def _last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Where `holds` turns false between `low` (it holds) and `high` (it does not)."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def violations_of(load: Load, interval: timedelta) -> tuple[Violation, ...]:
    """Every constraint that this interval violates."""
    return tuple(found for check in _CHECKS if (found := check(load, interval)))


def _keeps(load: Load) -> bool:
    return not violations_of(load, longest_interval(load))


def _with_longer_sla(load: Load) -> Load | None:
    """The shortest longer SLA, in whole minutes, that keeps everything with an interval of at least `_OFTEN`."""

    def at(minutes: int) -> Load:
        return attrs.evolve(load, sla=minutes * _MINUTE)

    def lacks(minutes: int) -> bool:
        return not _keeps(at(minutes)) or longest_interval(at(minutes)) < _OFTEN

    low, high = load.sla // _MINUTE, (load.sla + load.rounds * load.window + load.overhead + SEARCHED) // _MINUTE
    return None if lacks(high) else at(_last(lacks, low, high) + 1)


def _with_fewer(load: Load) -> Load | None:
    """The most arrivals, in whole requests an hour, that keep everything."""

    def at(arrivals: int) -> Load:
        return attrs.evolve(load, arrivals=Fraction(arrivals))

    high = ceil(load.arrivals)
    return at(_last(lambda arrivals: _keeps(at(arrivals)), 1, high)) if high > 1 and _keeps(at(1)) else None


def nearest_load(load: Load) -> Load | None:
    """The first of those that `plan_workload` names as near and that violates nothing; None: there is none."""
    if _keeps(load):
        return load
    found = _with_longer_sla(load) or _with_fewer(load)
    if found is None:
        fewer = _with_fewer(attrs.evolve(load, sla=load.sla + SEARCHED))
        found = fewer and _with_longer_sla(attrs.evolve(fewer, sla=load.sla))
    return found
