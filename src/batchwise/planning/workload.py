"""`plan_workload`: what a steady workload needs of batches, of the account's limits and of money.

The plan holds even if every batch expires whole: whatever one submission gathered is redone on the sync lane before
its deadlines and before the next submission can expire. Arrivals are steady (one every `1 / arrivals_per_hour`
hours); what comes all at once is the `burst`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Context, Decimal
from fractions import Fraction
from functools import partial
from math import ceil
from typing import Protocol, Union

import attrs

from batchwise.errors import InvalidValueError
from batchwise.models import WINDOW, Lane, Limits, check_positive

from .cadence import (
    ZERO,
    Cadence,
    Number,
    bounded,
    check_duration,
    check_whole,
    largest_rescuable,
    rescue_duration,
    steady_interval,
    sync_rate,
    to_number,
)

__all__ = ["SupportsRates", "TokenRates", "Violation", "WorkloadPlan", "plan_workload"]

_HOUR = timedelta(hours=1)
_MINUTE = timedelta(minutes=1)
_TICK = timedelta.resolution
_MONTH_HOURS = 30 * 24
_OFTEN = timedelta(minutes=15)  # no plan submits more often, unless its SLA leaves no choice
_SEARCHED = timedelta(days=29)  # how much longer an SLA the search for the nearest plan tries
_MAX_REQUESTS = 100_000  # in one create call (API documentation)
_MAX_BYTES = 256_000_000  # of one create call (API documentation)
_MAX_CALL_BYTES = 32_000_000  # of one Messages call, which a rescue needs (API documentation)
_MONEY = Context(prec=40)

Figure = Union[int, Fraction, timedelta]


class TokenRates(Protocol):
    """Prices in pico-USD (1e-12 USD) a token."""

    @property
    def input(self) -> int:
        """An uncached input token."""

    @property
    def output(self) -> int:
        """An output token."""


class SupportsRates(Protocol):
    """What `plan_workload` asks of prices; `batchwise.planning.pricing.PriceBook` has it."""

    def rates(self, model: str, lane: Lane, *, at: datetime | None = None) -> TokenRates | None:
        """What `model` charges on `lane`; None where that is unknown."""


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
class _Load:
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
        return self.sla - self.rounds * self.window

    @property
    def rate(self) -> Fraction | None:
        return sync_rate(self.limits, input_tokens=self.input_tokens, output_tokens=self.output_tokens)

    def arriving(self, span: timedelta) -> int:
        """The most requests that arrive within any `span`."""
        return ceil(self.arrivals * Fraction(span // _TICK, _HOUR // _TICK))

    def gathered(self, interval: timedelta) -> int:
        return max(self.arriving(interval), 1 if self.arrivals else 0)

    def rescue(self, requests: int) -> timedelta:
        return rescue_duration(requests, self.limits, input_tokens=self.input_tokens, output_tokens=self.output_tokens)

    def reserve(self, interval: timedelta) -> timedelta:
        return self.buffer - self.overhead - self.rounds * interval

    def peak(self, interval: timedelta) -> int:
        return self.rounds * self.arriving(self.window + interval) + self.burst


def _sla(load: _Load, _interval: timedelta) -> Violation | None:
    taken = load.rounds * load.window + load.overhead
    if load.sla > taken:
        return None
    message = f"{load.rounds} x {load.window} window and {load.overhead} overhead take the whole SLA of {load.sla}"
    return Violation(name="sla", actual=taken, limit=load.sla, message=f"{message}; allow more time")


def _reserve(load: _Load, interval: timedelta) -> Violation | None:
    needed, left = load.rescue(load.gathered(interval)), load.reserve(interval)
    if needed <= left or load.buffer <= load.overhead:
        return None
    message = (
        f"{load.gathered(interval):,} requests that expire together need {needed} on the sync lane, and submitting "
        f"every {interval} leaves {max(left, ZERO)} before their deadline; submit more often or allow more time"
    )
    return Violation(name="reserve", actual=needed, limit=max(left, ZERO), message=message)


def _sync_rate(load: _Load, interval: timedelta) -> Violation | None:
    needed = load.rescue(load.gathered(interval))
    if needed <= interval or load.buffer <= load.overhead:
        return None
    message = (
        f"the rescue of {load.gathered(interval):,} requests takes {needed} of the sync lane, and the next submission "
        f"may expire {interval} later; {float(load.arrivals):,.6g} requests an hour arrive, the sync lane serves "
        f"{float(load.rate or 0):,.6g}; send fewer or raise the limits"
    )
    return Violation(name="sync_rate", actual=needed, limit=interval, message=message)


def _queue(load: _Load, interval: timedelta) -> Violation | None:
    peak, limit = load.peak(interval), load.limits.batch_requests_in_queue
    if limit is None or peak <= limit:
        return None
    message = f"up to {peak:,} batch requests wait in the account's queue at once and {limit:,} may; send fewer"
    return Violation(name="queue", actual=peak, limit=limit, message=message)


def _burst(load: _Load, interval: timedelta) -> Violation | None:
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


def _request_bytes(load: _Load, _interval: timedelta) -> Violation | None:
    if load.request_bytes <= _MAX_CALL_BYTES:
        return None
    message = (
        f"a request of {load.request_bytes:,} bytes cannot be rescued: a Messages call takes {_MAX_CALL_BYTES:,}; "
        "upload large content with the Files API"
    )
    return Violation(name="request_bytes", actual=load.request_bytes, limit=_MAX_CALL_BYTES, message=message)


_Check = Callable[[_Load, timedelta], Union[Violation, None]]
_EASED_BY_SHORTER: tuple[_Check, ...] = (_reserve, _queue, _burst)
_CHECKS: tuple[_Check, ...] = (_sla, _reserve, _sync_rate, _queue, _burst, _request_bytes)


@attrs.frozen(kw_only=True)
class WorkloadPlan:
    """How a workload runs through batches, and what that asks of the account.

    Attributes:
        arrivals_per_hour: Requests an hour.
        sla: Time from dispatch to deadline.
        interval: Time between two submissions; zero when the SLA leaves none.
        requests_per_submission: The most requests that one submission holds.
        batches_per_submission: Batches that they fill (100,000 requests and 256,000,000 bytes each).
        peak_in_queue: The most batch requests waiting in the account's queue at once: what arrives in a window
            plus an interval, in each round, and the burst.
        queue_limit: How many may wait; None: no limit known.
        reserve: What the interval leaves for a rescue: `sla - overhead - rounds * (window + interval)`, at least 0.
        reserve_needed: What the rescue of one submission really takes on the sync lane.
        sync_per_hour: Requests an hour that the sync lane can redo; None: nothing limits.
        usd_per_month_sync: Steady arrivals for 30 days on the sync lane; None: the model's price is unknown.
        usd_per_month_batch: The same on the batch lane (without rescues).
        cadence: The same as a `Cadence`, to ask for `.cron()` and `.check_every_for(reserve_needed)`; None when
            the interval does not fit the SLA.
        violations: Every constraint that is violated; empty: the plan keeps the SLA.
        nearest: For a plan with violations, the nearest one without, see `plan_workload`; None where there is none.
    """

    arrivals_per_hour: Fraction
    sla: timedelta
    interval: timedelta
    requests_per_submission: int
    batches_per_submission: int
    peak_in_queue: int
    queue_limit: int | None
    reserve: timedelta
    reserve_needed: timedelta
    sync_per_hour: Fraction | None
    usd_per_month_sync: Decimal | None
    usd_per_month_batch: Decimal | None
    cadence: Cadence | None
    violations: tuple[Violation, ...] = ()
    nearest: WorkloadPlan | None = None


def _longest_interval(load: _Load) -> timedelta:
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


def _holds(check: _Check, load: _Load, ticks: int) -> bool:
    return check(load, ticks * _TICK) is None


def _last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Where `holds` turns false between `low` (it holds) and `high` (it does not)."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _violations(load: _Load, interval: timedelta) -> tuple[Violation, ...]:
    return tuple(found for check in _CHECKS if (found := check(load, interval)))


def _keeps(load: _Load) -> bool:
    return not _violations(load, _longest_interval(load))


def _with_longer_sla(load: _Load) -> _Load | None:
    """The shortest longer SLA, in whole minutes, that keeps everything with an interval of at least `_OFTEN`."""

    def at(minutes: int) -> _Load:
        return attrs.evolve(load, sla=minutes * _MINUTE)

    def lacks(minutes: int) -> bool:
        return not _keeps(at(minutes)) or _longest_interval(at(minutes)) < _OFTEN

    low, high = load.sla // _MINUTE, (load.sla + load.rounds * load.window + load.overhead + _SEARCHED) // _MINUTE
    return None if lacks(high) else at(_last(lacks, low, high) + 1)


def _with_fewer(load: _Load) -> _Load | None:
    """The most arrivals, in whole requests an hour, that keep everything."""

    def at(arrivals: int) -> _Load:
        return attrs.evolve(load, arrivals=Fraction(arrivals))

    high = ceil(load.arrivals)
    return at(_last(lambda arrivals: _keeps(at(arrivals)), 1, high)) if high > 1 and _keeps(at(1)) else None


def _nearest(load: _Load) -> _Load | None:
    if _keeps(load):
        return load
    found = _with_longer_sla(load) or _with_fewer(load)
    if found is None:
        fewer = _with_fewer(attrs.evolve(load, sla=load.sla + _SEARCHED))
        found = fewer and _with_longer_sla(attrs.evolve(fewer, sla=load.sla))
    return found


def _per_request(rates: TokenRates | None, input_tokens: Fraction, output_tokens: Fraction) -> Fraction | None:
    """Pico-USD; a price that depends on the request's length (`threshold`, `above`) goes by the mean length."""
    while rates is not None and (threshold := getattr(rates, "threshold", None)) and input_tokens > threshold:
        rates = getattr(rates, "above", None)
    return None if rates is None else input_tokens * rates.input + output_tokens * rates.output


def _per_month(load: _Load, price: Fraction | None) -> Decimal | None:
    if price is None:
        return None
    usd = price * load.arrivals * _MONTH_HOURS / 10**12
    return _MONEY.divide(Decimal(usd.numerator), Decimal(usd.denominator))


def _plan(load: _Load, interval: timedelta, nearest: WorkloadPlan | None = None) -> WorkloadPlan:
    requests, reserve = load.gathered(interval), load.reserve(interval)
    cadence = None
    if interval > ZERO and reserve >= ZERO:
        cadence = Cadence(
            sla=load.sla,
            window=load.window,
            buffer=load.buffer,
            reserve=reserve,
            interval=interval,
            worst_case=load.rounds * (interval + load.window),
            rounds=load.rounds,
            overhead=load.overhead,
        )
    return WorkloadPlan(
        arrivals_per_hour=load.arrivals,
        sla=load.sla,
        interval=interval,
        requests_per_submission=requests,
        batches_per_submission=-(-requests // max(1, min(_MAX_REQUESTS, _MAX_BYTES // load.request_bytes))),
        peak_in_queue=load.peak(interval),
        queue_limit=load.limits.batch_requests_in_queue,
        reserve=max(reserve, ZERO),
        reserve_needed=load.rescue(requests),
        sync_per_hour=load.rate,
        usd_per_month_sync=_per_month(load, load.prices[0]),
        usd_per_month_batch=_per_month(load, load.prices[1]),
        cadence=cadence,
        violations=_violations(load, interval),
        nearest=nearest,
    )


def plan_workload(
    *,
    arrivals_per_hour: Number,
    sla: timedelta,
    input_tokens: Number,
    output_tokens: Number,
    request_bytes: int,
    model: str,
    limits: Limits | None = None,
    window: timedelta = WINDOW,
    rounds: int = 1,
    overhead: timedelta = ZERO,
    interval: timedelta | None = None,
    burst: int = 0,
    prices: SupportsRates | None = None,
    at: datetime | None = None,
) -> WorkloadPlan:
    """What a steady workload needs, and whether the account can carry it with every deadline kept.

    The nearest plan of one with violations is the first of these that has none: the same workload with the interval
    that suits it (where `interval` was given); the shortest longer SLA, in whole minutes; the most arrivals, in
    whole requests an hour, at this SLA; the most arrivals at any SLA, with the shortest SLA for them. No plan
    found submits more often than every 15 minutes, unless the SLA leaves no choice.

    Args:
        arrivals_per_hour: Steady requests an hour; zero for bursts alone.
        sla: Time from dispatch to deadline.
        input_tokens: Mean uncached input tokens per request.
        output_tokens: Mean output tokens per request.
        request_bytes: Mean encoded size of one request in a create call.
        model: An exact model id, for the prices.
        limits: What the account has free for this workload; None: the published limits of the Start tier.
        window: The batch API's processing window (24 h).
        rounds: How many batches a request may go through, one after the other, before the sync lane.
        overhead: Time lost on the way, over all rounds together: create calls, poll gaps, cancel settle,
            collection, and the last sync call's tail (at least `limits.latency`).
        interval: Time between submissions; None: the longest that keeps the SLA, at most two thirds of the buffer.
        burst: The most requests that come all at once beside the steady ones, at most once in a buffer; they are
            submitted at once. They count in no figure but the queue's peak.
        prices: Where prices come from; None: a `PriceBook` (genai-prices' bundled data, no network).
        at: The time (aware) whose prices hold; None: the newest known.

    Raises:
        InvalidValueError: An argument is out of range; the message names it.
    """
    if burst == 0 and arrivals_per_hour == 0:
        raise InvalidValueError("arrivals_per_hour=0 and burst=0: nothing to plan; give one of them")
    if interval is not None:
        check_positive(interval, "interval")
    if not model:
        raise InvalidValueError(f"model={model!r} is not a model's id; give one, e.g. 'claude-sonnet-4-5'")
    if prices is None:
        from .pricing import PriceBook

        prices = PriceBook()
    tokens = to_number(input_tokens, "input_tokens"), to_number(output_tokens, "output_tokens")
    load = _Load(
        arrivals=to_number(arrivals_per_hour, "arrivals_per_hour"),
        burst=check_whole(burst, "burst", 0),
        sla=check_positive(sla, "sla"),
        window=check_positive(window, "window"),
        rounds=check_whole(rounds, "rounds", 1),
        overhead=check_duration(overhead, "overhead"),
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        request_bytes=check_whole(request_bytes, "request_bytes", 1),
        limits=Limits.for_tier("start") if limits is None else limits,
        prices=(
            _per_request(prices.rates(model, Lane.SYNC, at=at), *tokens),
            _per_request(prices.rates(model, Lane.BATCH, at=at), *tokens),
        ),
    )
    bounded(
        lambda: rounds * (window + (interval or ZERO)) + sla + overhead + 2 * _SEARCHED, f"sla={sla} or rounds={rounds}"
    )
    chosen = interval or _longest_interval(load)
    nearest = _nearest(load) if _violations(load, chosen) else None
    return _plan(load, chosen, None if nearest is None else _plan(nearest, _longest_interval(nearest)))
