"""The constraints that a steady load must keep, and the nearest load that keeps them.

Arrivals are steady, and so are their deadlines: of the requests that expire together, only the first is due at the end
of the reserve, and each other one is due as much later as it arrived later. Call l the arrivals an hour, m what the
sync lane redoes an hour, and p = 1 / m the time that it takes for one request. Let all batches expire whole, and let
the lane serve the earliest deadline first. Then every deadline is kept if and only if

    l <= m    and    p <= reserve = SLA - overhead - rounds * (window + interval)

A burst of n requests that come at one moment has B = reserve + interval from its last batch's expiry to its
deadline, and before it are the arrivals of the interval before it; bursts come at most once in a window:

    n + l * interval <= m * B    and    n + l * window <= m * window
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from datetime import timedelta
from fractions import Fraction
from functools import partial
from math import ceil
from typing import Union

import attrs

from batchwise.basics.times import ZERO
from batchwise.basics.wording import exact
from batchwise.models import Policy

from .cadence import number_in, time_for
from .packing import MAX_CALL_BYTES
from .reserve import overhead_of, reserve_for

__all__ = ["SEARCHED", "Load", "Violation", "longest_interval", "nearest_load", "violations_of"]

_HOUR = timedelta(hours=1)
_MINUTE = timedelta(minutes=1)
_TICK = timedelta.resolution
_OFTEN = timedelta(minutes=15)  # no plan submits more often, unless its SLA leaves no choice
SEARCHED = timedelta(days=29)
"""How much longer an SLA the search for the nearest load tries."""

Figure = Union[int, float, timedelta]


@attrs.frozen(kw_only=True)
class Violation:
    """One constraint that a plan breaks.

    Attributes:
        name: Stable: "sla" (no time beside windows, overhead and the reserve that a policy keeps), "reserve" (the
            interval leaves less than the reserve that is needed), "sync_rate" (more arrive than the sync lane can
            redo), "queue" (more requests waiting than the account may have), "burst" (the rescue of a burst would
            be late), "burst_rate" (the sync lane is not done with a burst before the next), or "request_bytes" (one
            request is too large for a rescue).
        actual: The plan's figure.
        limit: The highest allowed figure.
        message: Both in words, and what to change.
    """

    name: str
    actual: Figure
    limit: Figure
    message: str


@attrs.frozen(kw_only=True)
class Load:
    """The workload in question, with checked figures."""

    arrivals: Fraction
    burst: int
    sla: timedelta
    window: timedelta
    rounds: int
    overhead: timedelta
    each: Fraction
    """Microseconds of the sync lane that one request takes, at the share of the limits that a rescue counts on; zero:
    no limit."""
    request_bytes: int
    queue_limit: int | None = None
    policy: Policy | None = None
    interval: timedelta | None = None
    worthwhile: timedelta | None = None
    """The longest interval that pays (negative: none does); None: waiting costs nothing."""

    @property
    def buffer(self) -> timedelta:
        """The part of the SLA that the windows leave."""
        return self.sla - self.rounds * self.window

    @property
    def rate(self) -> Fraction | None:
        """Requests an hour that the sync lane can redo; None: no limit."""
        return _HOUR // _TICK / self.each if self.each else None

    @property
    def kept(self) -> timedelta:
        """The reserve that a dispatcher with this policy keeps, whatever the load; zero without a policy."""
        return ZERO if self.policy is None else reserve_for(self.policy, self.buffer)

    @property
    def lost(self) -> timedelta:
        """The part of the reserve that a rescue takes besides its calls; zero without a policy: `overhead` has it."""
        return ZERO if self.policy is None else overhead_of(self.policy)

    @property
    def fits(self) -> bool:
        """Whether the SLA leaves any time; a dispatcher needs none for waiting, it can submit at once."""
        free = self.buffer - self.overhead - self.kept
        return free > ZERO if self.policy is None else self.buffer > ZERO and free >= ZERO

    @property
    def least(self) -> timedelta:
        """The shortest reserve with which steady arrivals keep their deadlines."""
        return max(self.kept, self.lost + self.rescue(1 if self.arrivals else 0))

    @property
    def longest(self) -> timedelta:
        """The longest interval that leaves the least reserve, as far as it is asked for or usual; zero if none does."""
        room = (self.buffer - self.overhead - self.least) // self.rounds
        if self.interval is not None:
            usual = self.interval
        elif self.policy is not None:
            usual = self.policy.interval or room
        else:
            usual = (self.buffer - self.buffer / 3) // self.rounds
        if self.worthwhile is not None and self.interval is None:
            usual = min(usual, self.worthwhile)
        return max(ZERO, min(room, usual))

    def arriving(self, span: timedelta) -> int:
        """The most requests that arrive within any `span`, its end not included."""
        return ceil(self.arrivals * _hours(span))

    def gathered(self, interval: timedelta) -> int:
        """The most requests that arrive for one submission."""
        return max(self.arriving(interval), 1 if self.arrivals else 0)

    def rescue(self, requests: int) -> timedelta:
        """Return the time that so many requests take of the sync lane."""
        return time_for(requests, self.each)

    def reserve(self, interval: timedelta) -> timedelta:
        """Return the time that the interval leaves for a rescue; negative where it does not fit the SLA."""
        return self.buffer - self.overhead - self.rounds * interval

    def burst_reserve(self, interval: timedelta) -> timedelta:
        """Return the shortest reserve with which a burst, and the requests right after it, keep their deadlines.

        A burst has the interval besides the reserve, so it goes after the requests of the interval before it (both ends
        included). The next request after it is due when as many periods of arrival have passed.
        """
        if not self.arrivals:
            return self.lost + self.rescue(self.burst) - interval
        before = self.arrivals * _hours(interval)
        after = timedelta(microseconds=int(ceil(before) / self.arrivals * (_HOUR // _TICK)))
        own = self.rescue(self.burst + int(before) + 1) - interval
        return self.lost + max(own, self.rescue(self.burst + ceil(before) + 1) - after)

    def needed(self, interval: timedelta) -> timedelta:
        """The shortest reserve with which this interval keeps every deadline, the burst's too."""
        return max(self.least, self.burst_reserve(interval)) if self.burst else self.least

    def peak(self, interval: timedelta) -> int:
        """The most batch requests that wait in the account's queue at once."""
        return self.rounds * (self.arriving(self.window + interval) + self.burst)


def _hours(span: timedelta) -> Fraction:
    return Fraction(span // _TICK, _HOUR // _TICK)


def _sla(load: Load, _interval: timedelta) -> Violation | None:
    if load.fits:
        return None
    taken, sla = load.rounds * load.window + load.overhead + load.kept, exact(load.sla)
    message = f"{load.rounds} x {exact(load.window)} window and {exact(load.overhead)} overhead"
    message += f" and the policy's reserve of {exact(load.kept)} take" if load.kept else " take"
    message += f" the whole SLA of {sla}" if taken == load.sla else f" {exact(taken)}, and the SLA is {sla}"
    return Violation(name="sla", actual=taken, limit=load.sla, message=f"{message}; allow more time")


def _reserve(load: Load, interval: timedelta) -> Violation | None:
    left = load.reserve(interval)
    if load.least <= left or not load.fits:
        return None
    message = (
        f"a rescue needs a reserve of {exact(load.least)}, and submitting every {exact(interval)} leaves "
        f"{exact(max(left, ZERO))} before the first deadline; submit more often or allow more time"
    )
    return Violation(name="reserve", actual=load.least, limit=max(left, ZERO), message=message)


def _sync_rate(load: Load, _interval: timedelta) -> Violation | None:
    rate = load.rate
    if rate is None or load.arrivals <= rate:
        return None
    message = (
        f"{float(load.arrivals):,.6g} requests an hour arrive, and the sync lane redoes {float(rate):,.6g} an hour: "
        "if batch after batch expires, it falls behind; send fewer or raise the limits"
    )
    return Violation(name="sync_rate", actual=float(load.arrivals), limit=float(rate), message=message)


def _queue(load: Load, interval: timedelta) -> Violation | None:
    peak, limit = load.peak(interval), load.queue_limit
    if limit is None or peak <= limit:
        return None
    message = f"up to {peak:,} batch requests wait in the account's queue at once and {limit:,} may; send fewer"
    return Violation(name="queue", actual=peak, limit=limit, message=message)


def _burst(load: Load, interval: timedelta) -> Violation | None:
    if not load.burst or not load.fits:
        return None
    needed, left = load.burst_reserve(interval), load.reserve(interval)
    if needed <= left:
        return None
    message = (
        f"a burst of {load.burst:,} beside the steady requests needs a reserve of {exact(needed)}, and submitting "
        f"every {exact(interval)} leaves {exact(max(left, ZERO))}; spread the burst or allow more time"
    )
    return Violation(name="burst", actual=needed, limit=max(left, ZERO), message=message)


def _burst_rate(load: Load, _interval: timedelta) -> Violation | None:
    amount, most = load.burst + load.arriving(load.window), number_in(load.window, load.each)
    if not load.burst or most is None or amount <= most:
        return None
    message = (
        f"a burst and what arrives in a window are {amount:,} requests, and in a window the sync lane redoes {most:,}: "
        "with a burst in each window it falls behind; send fewer or raise the limits"
    )
    return Violation(name="burst_rate", actual=amount, limit=most, message=message)


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
_CHECKS: tuple[_Check, ...] = (_sla, _reserve, _sync_rate, _queue, _burst, _burst_rate, _request_bytes)


def longest_interval(load: Load) -> timedelta:
    """The load's longest interval, made shorter (not under `_OFTEN`) where that keeps what a shorter one eases."""
    high = load.longest // _TICK
    low = _OFTEN // _TICK
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
    return low + bisect_left(range(low, high), True, key=lambda at: not holds(at)) - 1


def violations_of(load: Load, interval: timedelta) -> tuple[Violation, ...]:
    """Every constraint that this interval violates."""
    return tuple(found for check in _CHECKS if (found := check(load, interval)))


def _keeps(load: Load) -> bool:
    return not violations_of(load, longest_interval(load))


def _with_longer_sla(load: Load) -> Load | None:
    """The shortest longer SLA, in whole minutes, that keeps everything with an interval that is not too short."""

    def at(minutes: int) -> Load:
        return attrs.evolve(load, sla=minutes * _MINUTE)

    often = ZERO if load.policy else min(_OFTEN, load.interval or _OFTEN)

    def lacks(minutes: int) -> bool:
        return not _keeps(at(minutes)) or longest_interval(at(minutes)) < often

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
