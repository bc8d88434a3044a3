"""What would become of a file of requests if it were dispatched now. Nothing is stored or sent."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import attrs

from batchwise.basics.rendering import moment
from batchwise.basics.wording import dollars, human, in_requests
from batchwise.engine.core import Engine
from batchwise.errors import AdmissionError, InfeasibleSLAError, printable, shown
from batchwise.models import Lane, LatencyTag, Limits
from batchwise.planning.cadence import rescue_duration, sla_cadence
from batchwise.planning.capacity import class_of, limits_of, queue_limit
from batchwise.planning.custom_ids import MAX_LENGTH
from batchwise.planning.packing import BYTES_PER_TOKEN, MAX_BYTES, MAX_REQUESTS, entry_size
from batchwise.planning.pricing import estimate, named_remedy, to_usd
from batchwise.planning.state import Group, Terms
from batchwise.request import Request

__all__ = ["Plan", "plan_of"]


@attrs.define
class _Sum:
    """Sums over some requests; prices in pico-USD. None: the price of some is unknown."""

    requests: int = 0
    size: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    sync: int | None = 0
    batch: int | None = 0

    def add(self, other: _Sum) -> None:
        """Add another sum to this one."""
        self.requests += other.requests
        self.size += other.size
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.sync = None if self.sync is None or other.sync is None else self.sync + other.sync
        self.batch = None if self.batch is None or other.batch is None else self.batch + other.batch


@attrs.frozen(kw_only=True)
class Route:
    """Requests that go the same way."""

    lane: Lane
    reason: str
    explanation: str
    requests: int
    deadline: datetime | None
    submit_by: datetime | None
    rescue_at: datetime | None


@attrs.frozen(kw_only=True)
class Capacity:
    """How long a rescue of all requests of one class of models would take.

    Attributes:
        model: The class of models.
        requests: How many of its requests would go to a batch.
        redone_in: How long the sync lane needs for all of them if every batch expires.
        requests_per_minute: The limit by which that is computed. None: there is no such limit.
    """

    model: str
    requests: int
    redone_in: timedelta
    requests_per_minute: int | None


@attrs.frozen(kw_only=True)
class Plan:
    """What would become of the requests.

    Attributes:
        requests: How many requests there are.
        routes: How many go to which lane, and why.
        batches: How many batches would be created.
        bytes: The size of all bodies.
        input_tokens: An estimate, from the length of the bodies.
        output_tokens: The most that is possible: the sum of `max_tokens`.
        usd_sync: The most that they cost if all run on the sync lane. None: the price of some is unknown.
        usd_batch: The most that they cost if all run in batches. None: the price of some is unknown.
        usd: The most that they cost on the lanes that they would go to, without rescues.
        prices: The price list.
        priced_on: The day whose prices are used.
        unpriced: The models whose price is unknown.
        capacity: How long rescues would take.
        queue_limit: How many batch requests may wait in the account's queue. None: there is no limit.
        cadence: The arithmetic of the deadline, in words. None: there is no relative deadline.
        refused: Why the requests would not be accepted. None: they would be.
    """

    requests: int
    routes: tuple[Route, ...]
    batches: int
    bytes: int
    input_tokens: int
    output_tokens: int
    usd_sync: Decimal | None
    usd_batch: Decimal | None
    usd: Decimal | None
    prices: str
    priced_on: date
    unpriced: tuple[str, ...]
    capacity: tuple[Capacity, ...]
    queue_limit: int | None
    cadence: str | None
    refused: str | None

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield (
            f"{in_requests(self.requests)} of {self.bytes:,} bytes: about {self.input_tokens:,} tokens in, at most "
            f"{self.output_tokens:,} out"
        )
        for route in self.routes:
            yield f"{route.requests:,} on the {route.lane.value} lane ({route.reason}): {route.explanation}"
            moments = (("deadline", route.deadline), ("sent by", route.submit_by), ("rescue", route.rescue_at))
            if told := [f"{name} {moment(at)}" for name, at in moments if at is not None]:
                yield f"  {', '.join(told)} at the latest"
        if self.batches:
            yield f"{self.batches:,} {'batches' if self.batches > 1 else 'batch'}"
        if self.usd is None or self.usd_sync is None or self.usd_batch is None:
            unknown = self.unpriced[0]
            others = f" and of {len(self.unpriced) - 1} more" if len(self.unpriced) > 1 else ""
            yield f"dollars: the price of {shown(unknown)}{others} is unknown; {named_remedy(unknown)}"
        else:
            yield (
                f"at most {dollars(self.usd)} so; {dollars(self.usd_sync)} on the sync lane alone, "
                f"{dollars(self.usd_batch)} in batches alone, by the prices of {self.prices} on "
                f"{self.priced_on.isoformat()}"
            )
        if self.cadence is not None:
            yield self.cadence
        for each in self.capacity:
            pace = "" if each.requests_per_minute is None else f" at {each.requests_per_minute:,} requests a minute"
            yield (
                f"limits of {printable(each.model)}: if every batch expires, the sync lane redoes {each.requests:,} in "
                f"{human(each.redone_in)}{pace}"
            )
        queued = sum(each.requests for each in self.capacity)
        if self.queue_limit is not None and queued > self.queue_limit:
            yield f"the account's queue holds {self.queue_limit:,} batch requests: the others wait until there is room"
        if self.refused is not None:
            yield f"refused: {self.refused}"


def plan_of(engine: Engine, requests: Iterable[Request], latency: LatencyTag) -> Plan:
    """Say what would become of requests beside the work that the ledger has accepted. Reads them once.

    Raises:
        InvalidRequestError: One of them cannot be sent as it is.
    """
    now = engine.now()
    by_terms = _by_terms(engine, requests, latency, now)
    groups = [Group(terms=terms, requests=sum_.requests, size=sum_.size, since=now) for terms, sum_ in by_terms.items()]
    refused, moves = None, {}
    try:
        moves = engine.admissions.all(groups, now)
    except AdmissionError as error:
        refused = str(error)
    whole, routes, usd = _Sum(), Counter[Route](), 0
    per_header, per_class = defaultdict[tuple[str, ...], _Sum](_Sum), defaultdict[str, _Sum](_Sum)
    for terms, sum_ in by_terms.items():
        whole.add(sum_)
        count, diverted = moves.get(terms, (0, terms))
        on_batch = sum_.requests - count if terms.lane is Lane.BATCH else 0
        usd += _part(sum_.batch, on_batch, sum_.requests) + _part(sum_.sync, sum_.requests - on_batch, sum_.requests)
        routes[_route(terms)] += sum_.requests - count
        routes[_route(diverted)] += count
        if on_batch:
            part = _scaled(sum_, on_batch)
            per_header[terms.betas].add(part)
            per_class[class_of(terms.model, engine.policy.limits)].add(part)
    unpriced = tuple(sorted({terms.model for terms, sum_ in by_terms.items() if None in (sum_.sync, sum_.batch)}))
    limits, measured = engine.policy.limits, engine.ledger.snapshot().measured
    return Plan(
        requests=whole.requests,
        routes=tuple(attrs.evolve(route, requests=count) for route, count in routes.items() if count),
        batches=sum(_batches(sum_, engine) for sum_ in per_header.values()),
        bytes=whole.size,
        input_tokens=whole.input_tokens,
        output_tokens=whole.output_tokens,
        usd_sync=None if whole.sync is None else to_usd(whole.sync),
        usd_batch=None if whole.batch is None else to_usd(whole.batch),
        usd=None if unpriced else to_usd(usd),
        prices=engine.prices.source,
        priced_on=now.date(),
        unpriced=unpriced,
        capacity=tuple(
            _capacity(name, sum_, limits_of(name, limits, measured.get(name))) for name, sum_ in per_class.items()
        ),
        queue_limit=queue_limit(limits),
        cadence=_cadence(latency, engine),
        refused=refused,
    )


def _by_terms(engine: Engine, requests: Iterable[Request], latency: LatencyTag, now: datetime) -> dict[Terms, _Sum]:
    sums = defaultdict[Terms, _Sum](_Sum)
    rates: dict[tuple[str, Lane], Any] = {}
    for entry in engine.router.entries(requests, now, latency, None):
        terms, size = entry.terms, len(entry.body)
        tokens_in, tokens_out = size // BYTES_PER_TOKEN, terms.max_tokens
        cost: list[int | None] = []
        for lane in (Lane.SYNC, Lane.BATCH):
            known = terms.model, lane
            if known not in rates:
                rates[known] = engine.prices.rates(terms.model, lane, at=now)
            cost.append(None if rates[known] is None else estimate(tokens_in, tokens_out, rates[known]))
        sums[terms].add(_Sum(1, size, tokens_in, tokens_out, *cost))
    return sums


def _part(pico: int | None, requests: int, of: int) -> int:
    return 0 if pico is None else pico * requests // of


def _scaled(whole: _Sum, requests: int) -> _Sum:
    return _Sum(
        requests,
        *(amount * requests // whole.requests for amount in (whole.size, whole.input_tokens, whole.output_tokens)),
    )


def _route(terms: Terms) -> Route:
    """The route of requests of these terms, without their number. It is the same for different models."""
    return Route(
        lane=terms.lane,
        reason=terms.reason.value,
        explanation=terms.explanation,
        requests=0,
        deadline=terms.deadline,
        submit_by=terms.submit_by,
        rescue_at=terms.rescue_at,
    )


def _batches(sum_: _Sum, engine: Engine) -> int:
    """Create calls of requests with the same headers, by the API's limits and the policy's."""
    asked = engine.policy.max_batch_requests
    most = asked if isinstance(asked, int) else MAX_REQUESTS  # "auto" goes by what the ledger has seen
    size = sum_.size + sum_.requests * entry_size(MAX_LENGTH, 0)
    return max(-(-sum_.requests // min(most, MAX_REQUESTS)), -(-size // MAX_BYTES))


def _capacity(name: str, sum_: _Sum, limits: Limits) -> Capacity:
    return Capacity(
        model=name,
        requests=sum_.requests,
        redone_in=rescue_duration(
            sum_.requests,
            limits,
            mean_input_tokens=sum_.input_tokens // sum_.requests,
            mean_output_tokens=sum_.output_tokens // sum_.requests,
        ),
        requests_per_minute=limits.requests_per_minute,
    )


def _cadence(latency: LatencyTag, engine: Engine) -> str | None:
    if not isinstance(latency, timedelta):
        return None
    try:
        return str(sla_cadence(latency, policy=engine.policy))
    except InfeasibleSLAError:
        return None
