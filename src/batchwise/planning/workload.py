"""`plan_workload`: the batches, the account's limits and the money that a steady workload needs.

The plan holds even if every batch expires whole: the sync lane then redoes everything, the earliest deadline first, and
each before its deadline; `batchwise.planning.constraints` has the law. Arrivals are steady (one every
`1 / arrivals_per_hour` hours); requests that come all at once are the `burst`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, TypedDict

import attrs

from batchwise.basics.figures import Number, check_whole, to_number
from batchwise.basics.rendering import to_html, to_text
from batchwise.basics.times import WINDOW, ZERO, check_duration, check_positive
from batchwise.basics.wording import dollars, exact, human
from batchwise.errors import InvalidValueError
from batchwise.models import Lane, Limits, Policy, Rates, Reason, check_policy
from batchwise.request import Request, Traits

from .cadence import Cadence, bounded, cadence_of, check_limits, lane_time
from .capacity import FILLED, Capacity, queue_limit
from .constraints import SEARCHED, Load, Violation, longest_interval, nearest_load, violations_of
from .forecast import Forecast
from .packing import MAX_BYTES, MAX_REQUESTS
from .pricing import PriceBook, book_of, to_usd
from .request_mix import mix_of
from .routing import Case, decide

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "PlanTable",
    "Violation",
    "Workload",
    "WorkloadPlan",
    "compare_slas",
    "plan_workload",
]

_DAY = timedelta(days=1)
_MONTH_HOURS = 30 * 24
_START = datetime(1, 1, 1, tzinfo=timezone.utc)  # any moment: a workload is routed by its SLA


@attrs.frozen(kw_only=True)
class WorkloadPlan:
    """How a workload runs through batches, and which limits of the account that needs.

    Attributes:
        arrivals_per_hour: Requests an hour.
        sla: Time from dispatch to deadline.
        interval: Time between two submissions; zero when the SLA leaves none, or no wait pays.
        requests_per_submission: The most requests that one submission holds: what arrives in an interval, and as much
            again for each further round, if all of the round before expired.
        batches_per_submission: Batches that they fill (100,000 requests, or the policy's `max_batch_requests`, and
            256,000,000 bytes each).
        peak_in_queue: The most batch requests waiting in the account's queue at once: what arrives in a window
            plus an interval, and the burst, in each round.
        queue_limit: How many requests may wait; None: no limit is known.
        reserve: What the interval leaves for a rescue: `sla - overhead - rounds * (window + interval)`, at least 0.
            With an interval that is shorter than need be it is more than a dispatcher keeps, which breaks a batch off
            only when `sla_cadence(sla, policy=).reserve` is left.
        reserve_needed: The shortest reserve with which this interval keeps every deadline, if every batch expires. It
            is short where nothing but steady requests expire, since their deadlines come one after the other. With a
            policy it is never shorter than what a dispatcher keeps.
        rescue: How long the sync lane is busy with the requests that arrive for one submission, if they expire.
        sync_per_hour: Requests an hour that the sync lane can redo; None: nothing limits.
        lane: Where a dispatcher with this policy (without one: a default policy) sends the work.
        reason: The routing rule that decided.
        explanation: The decision in a sentence.
        usd_per_month_sync: Steady arrivals for 30 days on the sync lane; None: the model's price is unknown.
        usd_per_month_batch: The same on the batch lane (without rescues).
        cadence: The same as a `Cadence`, to ask for `.cron()` and `.check_every_for(reserve_needed)`; None when
            the interval does not fit the SLA.
        violations: Every constraint that is violated; empty: the plan keeps the SLA.
        changed: Of a `nearest` plan, the arguments that differ from the question: "interval", "sla",
            "arrivals_per_hour".
        nearest: For a plan with violations, the nearest one without, see `plan_workload`; None where there is none.
    """

    arrivals_per_hour: float
    sla: timedelta
    interval: timedelta
    requests_per_submission: int
    batches_per_submission: int
    peak_in_queue: int
    queue_limit: int | None
    reserve: timedelta
    reserve_needed: timedelta
    rescue: timedelta
    sync_per_hour: float | None
    lane: Lane
    reason: Reason
    explanation: str
    usd_per_month_sync: Decimal | None
    usd_per_month_batch: Decimal | None
    cadence: Cadence | None
    violations: tuple[Violation, ...] = ()
    changed: tuple[str, ...] = ()
    nearest: WorkloadPlan | None = None

    def __str__(self) -> str:
        cost = "an unknown price" if self.usd_per_month is None else f"{dollars(self.usd_per_month)} a month"
        sent = f"submit every {human(self.interval)}" if self.interval else "submit each request at once"
        how = f"{sent}, {human(self.reserve)} left for a rescue" if self.lane is Lane.BATCH else "call at once"
        broken = "; ".join(f"{each.name} ({each.message})" for each in self.violations)
        bad = f". It violates {broken}" if broken else ""
        return (
            f"{self.arrivals_per_hour:g} requests an hour within {human(self.sla)} on the {self.lane.value} lane: {how}"
            f"; {cost}{bad}."
        )

    def _repr_html_(self) -> str:
        """A table, for notebooks."""
        return to_html([_line(self)], str(self), head=_HEAD)

    @property
    def batches_per_day(self) -> float:
        """Create calls in 24 hours: submissions times the batches of one, at most one for each request."""
        if not self.interval:
            return self.arrivals_per_hour * 24
        return min(_DAY / self.interval * self.batches_per_submission, max(1.0, self.arrivals_per_hour * 24))

    @property
    def usd_per_month(self) -> Decimal | None:
        """The cost of the steady arrivals of 30 days on `lane`; None: the model's price is unknown."""
        return self.usd_per_month_sync if self.lane is Lane.SYNC else self.usd_per_month_batch


@attrs.frozen(kw_only=True)
class _Money:
    """Mean prices of one request, in pico-USD; None where they are unknown."""

    model: str
    sync: Fraction | None
    batch: Fraction | None

    def saving(self) -> Decimal | None:
        """USD a request."""
        return None if self.sync is None or self.batch is None else to_usd(self.sync - self.batch)


def _case(load: Load, money: _Money) -> Case:
    """Return a steady workload as a question to the router: plain requests, with the mean saving."""
    return Case(
        now=_START,
        policy=load.policy or Policy(window=load.window),
        forecast=Forecast.prior(),
        saving=money.saving,
        traits=Traits(money.model, 1, (), (), "", ""),
        latency=load.sla,
        deadline=_START + load.sla,
    )


def _per_month(load: Load, price: Fraction | None) -> Decimal | None:
    return None if price is None else to_usd(price * load.arrivals * _MONTH_HOURS)


def _batches(load: Load, requests: int) -> int:
    asked = load.policy.max_batch_requests if load.policy else None
    most = asked if isinstance(asked, int) else MAX_REQUESTS  # "auto" goes by a ledger's record, which no plan has
    return -(-requests // max(1, min(most, MAX_REQUESTS, MAX_BYTES // load.request_bytes)))


def _plan(load: Load, interval: timedelta, money: _Money) -> WorkloadPlan:
    requests, reserve = load.rounds * load.gathered(interval), load.reserve(interval)
    cadence = None
    if load.fits and reserve >= ZERO:
        cadence = cadence_of(load.sla, load.window, load.rounds, load.overhead, reserve=reserve, interval=interval)
    decision = decide(_case(load, money))
    return WorkloadPlan(
        arrivals_per_hour=float(load.arrivals),
        sla=load.sla,
        interval=interval,
        requests_per_submission=requests,
        batches_per_submission=_batches(load, requests),
        peak_in_queue=load.peak(interval),
        queue_limit=load.queue_limit,
        reserve=max(reserve, ZERO),
        reserve_needed=load.needed(interval),
        rescue=load.rescue(load.gathered(interval)),
        sync_per_hour=None if load.rate is None else float(load.rate),
        lane=decision.lane,
        reason=decision.reason,
        explanation=decision.explanation,
        usd_per_month_sync=_per_month(load, money.sync),
        usd_per_month_batch=_per_month(load, money.batch),
        cadence=cadence,
        violations=violations_of(load, interval),
    )


def _nearest(load: Load, money: _Money) -> WorkloadPlan | None:
    near = nearest_load(load)
    if near is None:
        return None
    interval = longest_interval(near)
    differs = {
        "interval": load.interval is not None and interval != load.interval,
        "sla": near.sla != load.sla,
        "arrivals_per_hour": near.arrivals != load.arrivals,
    }
    return attrs.evolve(_plan(near, interval, money), changed=tuple(name for name, other in differs.items() if other))


def plan_workload(
    *,
    arrivals_per_hour: Number,
    sla: timedelta,
    sample: Iterable[Request] | None = None,
    mean_input_tokens: Number | None = None,
    input_lengths: Mapping[int, Number] | None = None,
    mean_output_tokens: Number | None = None,
    mean_cached_tokens: Number = 0,
    request_bytes: int | None = None,
    model: str | None = None,
    limits: Limits | None = None,
    policy: Policy | None = None,
    window: timedelta | None = None,
    rounds: int = 1,
    overhead: timedelta = ZERO,
    interval: timedelta | None = None,
    burst: int = 0,
    prices: Mapping[str, Rates] | PriceBook | None = None,
    at: datetime | None = None,
) -> WorkloadPlan:
    """Return the plan of a steady workload: what it needs, and whether the account can keep every deadline.

    With a policy it calculates as a dispatcher with that policy does: its window, reserve, floors, interval and limits
    (of which a rescue counts on 95 %). Without one the interval is at most two thirds of the buffer.

    A `sample` describes the requests, or `model`, `mean_input_tokens` (or `input_lengths`), `mean_output_tokens` and
    `request_bytes` do. A mean hides price tiers: half of the requests with 20,000 input tokens
    and half with 170,000 cost 3,186 USD a month where their mean of 95,000 would cost 702 (claude-haiku-5-5, 100 an
    hour, 500 output tokens, sync lane), since its tokens cost five times as much above 100,000. Then give
    `input_lengths`, or a sample.

    The nearest plan of one with violations is the first of these that has none: the same workload with a shorter
    interval (where `interval` was given); the shortest longer SLA, in whole minutes; the most arrivals, in whole
    requests an hour, at this SLA; the most arrivals at any SLA, with the shortest SLA for them. Its `changed` says
    what is different. Without a policy no plan found submits more often than every 15 minutes, unless the SLA leaves
    no choice.

    Args:
        arrivals_per_hour: Steady requests an hour; zero for bursts alone.
        sla: Time from dispatch to deadline.
        sample: Typical requests; their tokens, sizes and models are counted, each request with the same share. Their
            output is their `expected_output_tokens`, else all of max_tokens. It is not checked whether a batch takes
            them (`choose_lane`).
        mean_input_tokens: Mean uncached input tokens of one request.
        input_lengths: Instead of the mean, lengths in uncached input tokens with their shares (or counts).
        mean_output_tokens: Mean output tokens of one request.
        mean_cached_tokens: Mean input tokens of one request that are read from the cache, beside the uncached ones.
            They cost less and count in no rate limit.
        request_bytes: Mean encoded size of one request in a create call.
        model: An exact model id, for the prices.
        limits: The limits of the account that are free for this workload; None: the policy's, else the published
            limits of the Start tier.
        policy: A dispatcher's.
        window: The batch API's processing window; None: the policy's, else 24 h.
        rounds: How many batches a request may go through, one after the other, before the sync lane.
        overhead: Time lost on the way, over all rounds together: create calls, poll gaps, cancel settle,
            collection, and the last sync call's tail (at least `limits.latency`). What a policy's rescue loses on
            its way is in its reserve already.
        interval: Time between submissions; None: the longest that keeps the SLA, at most the policy's and what its
            delay cost makes worth it, without a policy two thirds of the buffer.
        burst: The most requests that come all at once beside the steady ones, at most once in a window; they are
            submitted at once. They count in no figure but the queue's peak and the reserve that is needed.
        prices: Prices of models, before genai-prices' bundled data (no network); None: the policy's.
        at: The time (aware) whose prices hold; None: the newest known.

    Raises:
        InvalidValueError: An argument is missing or out of range; the message names it.
    """
    if burst == 0 and arrivals_per_hour == 0:
        raise InvalidValueError("arrivals_per_hour=0 and burst=0: nothing to plan; give one of them")
    mix = mix_of(
        sample,
        model=model,
        mean_input_tokens=mean_input_tokens,
        input_lengths=input_lengths,
        mean_output_tokens=mean_output_tokens,
        mean_cached_tokens=mean_cached_tokens,
        request_bytes=request_bytes,
    )
    if limits is not None:
        check_limits(limits)
    if policy is not None:
        check_policy(policy)
    if policy is None:
        lanes, share = [limits or Limits.for_tier("start")], Fraction(1)
    else:
        window = policy.window if window is None else check_positive(window, "window")
        policy = attrs.evolve(policy, window=window, limits=limits or policy.limits)
        capacity = Capacity(policy, _START, models=(kind.model for kind in mix.kinds))
        lanes, share = [capacity.limits(name) for name in capacity.classes], FILLED
    tokens = mix.mean_input_tokens, mix.mean_output_tokens
    load = Load(
        arrivals=to_number(arrivals_per_hour, "arrivals_per_hour"),
        burst=check_whole(burst, "burst", 0),
        sla=check_positive(sla, "sla"),
        window=WINDOW if window is None else check_positive(window, "window"),
        rounds=check_whole(rounds, "rounds", 1),
        overhead=check_duration(overhead, "overhead"),
        each=max(lane_time(lane, *tokens) for lane in lanes) / share,  # as if the slowest class had to take all
        request_bytes=mix.request_bytes,
        queue_limit=queue_limit(limits if policy is None else policy.limits),
        policy=policy,
        interval=None if interval is None else check_positive(interval, "interval"),
    )
    bounded(
        lambda: (
            _START + (load.rounds * (load.window + (load.interval or ZERO)) + load.sla + load.overhead + 2 * SEARCHED)
        ),
        f"sla={exact(load.sla)} or rounds={rounds}",
    )
    own = {} if policy is None else policy.prices
    sync, batch = (mix.price(book_of(own if prices is None else prices), lane, at) for lane in (Lane.SYNC, Lane.BATCH))
    money = _Money(model=mix.kinds[0].model, sync=sync, batch=batch)
    load = attrs.evolve(load, worthwhile=_case(load, money).worthwhile)
    plan = _plan(load, load.interval or longest_interval(load), money)
    return attrs.evolve(plan, nearest=_nearest(load, money)) if plan.violations else plan


class Workload(TypedDict, total=False):
    """The arguments of `plan_workload` without the SLA."""

    arrivals_per_hour: Number
    sample: Iterable[Request] | None
    mean_input_tokens: Number | None
    input_lengths: Mapping[int, Number] | None
    mean_output_tokens: Number | None
    mean_cached_tokens: Number
    request_bytes: int | None
    model: str | None
    limits: Limits | None
    policy: Policy | None
    window: timedelta | None
    rounds: int
    overhead: timedelta
    interval: timedelta | None
    burst: int
    prices: Mapping[str, Rates] | PriceBook | None
    at: datetime | None


class PlanTable(list[WorkloadPlan]):
    """Plans as a list; `str` of it, which `print` shows, is a table with a line for each."""

    def __str__(self) -> str:
        return to_text([_HEAD, *map(_line, self)])

    def _repr_html_(self) -> str:
        """A table, for notebooks."""
        return to_html(map(_line, self), head=_HEAD)


_HEAD = "SLA", "lane", "interval", "batches a day", "reserve", "USD a month", "violates"


def _line(plan: WorkloadPlan) -> tuple[str, ...]:
    cost = plan.usd_per_month
    batched = plan.lane is Lane.BATCH
    return (
        human(plan.sla),
        plan.lane.value,
        "-" if not batched else human(plan.interval) if plan.interval else "at once",
        _few_digits(plan.batches_per_day) if batched else "-",
        human(plan.reserve) if batched else "-",
        "unknown" if cost is None else dollars(cost).removeprefix("$"),
        ", ".join(violation.name for violation in plan.violations) or "-",
    )


def _few_digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def compare_slas(slas: Iterable[timedelta], **workload: Unpack[Workload]) -> PlanTable:
    """Return the plans of one workload at several SLAs, to compare interval, batches a day, dollars and reserve.

    Args:
        slas: Times from dispatch to deadline.
        **workload: The arguments of `plan_workload` without the SLA.

    Returns:
        A list of the plans, in the order given; `print` it for a table.

    Raises:
        InvalidValueError: The SLAs are no iterable, or one is given beside them; else as for `plan_workload`.
    """
    if not isinstance(slas, Iterable):
        raise InvalidValueError(f"slas is a {type(slas).__name__}; give a list of SLAs, such as [timedelta(hours=30)]")
    if "sla" in workload:
        raise InvalidValueError("compare_slas takes each SLA from its list; leave sla= out")
    if (sample := workload.get("sample")) is not None:
        workload["sample"] = list(sample)  # it is read for each SLA
    return PlanTable(plan_workload(sla=sla, **workload) for sla in slas)
