"""`plan_workload`: what a steady workload needs of batches, of the account's limits and of money.

The plan holds even if every batch expires whole: whatever one submission gathered is redone on the sync lane before
its deadlines and before the next submission can expire. Arrivals are steady (one every `1 / arrivals_per_hour`
hours); what comes all at once is the `burst`.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Context, Decimal
from fractions import Fraction
from typing import Protocol

import attrs

from batchwise.errors import InvalidValueError
from batchwise.models import Lane, Limits
from batchwise.times import WINDOW, ZERO, check_duration, check_positive

from .cadence import Cadence, Number, bounded, check_whole, to_number
from .constraints import SEARCHED, Load, Violation, longest_interval, nearest_load, violations_of

__all__ = ["SupportsRates", "TokenRates", "Violation", "WorkloadPlan", "plan_workload"]

_MONTH_HOURS = 30 * 24
_MAX_REQUESTS = 100_000  # in one create call (API documentation)
_MAX_BYTES = 256_000_000  # of one create call (API documentation)
_MONEY = Context(prec=40)


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


def _per_request(rates: TokenRates | None, input_tokens: Fraction, output_tokens: Fraction) -> Fraction | None:
    """Pico-USD; a price that depends on the request's length (`threshold`, `above`) goes by the mean length."""
    while rates is not None and (threshold := getattr(rates, "threshold", None)) and input_tokens > threshold:
        rates = getattr(rates, "above", None)
    return None if rates is None else input_tokens * rates.input + output_tokens * rates.output


def _per_month(load: Load, price: Fraction | None) -> Decimal | None:
    if price is None:
        return None
    usd = price * load.arrivals * _MONTH_HOURS / 10**12
    return _MONEY.divide(Decimal(usd.numerator), Decimal(usd.denominator))


def _plan(load: Load, interval: timedelta, nearest: WorkloadPlan | None = None) -> WorkloadPlan:
    requests, reserve = load.gathered(interval), load.reserve(interval)
    cadence = None
    if interval > ZERO and reserve >= ZERO:
        cadence = Cadence(
            sla=load.sla,
            window=load.window,
            buffer=load.buffer,
            reserve=reserve,
            interval=interval,
            worst_case=load.rounds * (interval + load.window) + load.overhead,
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
        violations=violations_of(load, interval),
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
    load = Load(
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
        lambda: rounds * (window + (interval or ZERO)) + sla + overhead + 2 * SEARCHED, f"sla={sla} or rounds={rounds}"
    )
    chosen = interval or longest_interval(load)
    nearest = nearest_load(load) if violations_of(load, chosen) else None
    return _plan(load, chosen, None if nearest is None else _plan(nearest, longest_interval(nearest)))
