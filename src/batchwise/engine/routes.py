"""Routes requests: makes the decision on each, and the terms that the ledger keeps of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, NoReturn, Protocol

import attrs

from batchwise.basics.jsontext import decode
from batchwise.errors import InvalidRequestError, SpendLimitError, shown
from batchwise.ledger.values import Entry
from batchwise.models import Check, Decision, Lane, Latency, LatencyTag, Policy, Reason, ToolUse
from batchwise.planning import packing, routing
from batchwise.planning.cost_bound import length_class, media_tokens, most_cost, refuse_unbounded
from batchwise.planning.forecast import Forecast
from batchwise.planning.pricing import PriceBook, estimated_tokens
from batchwise.planning.prompt_prefix import Prefixes, is_never_cached, prefix_of
from batchwise.planning.state import Terms
from batchwise.request import Request, Traits

__all__ = ["Router", "check_size", "decision_of", "moment_of"]

_log = logging.getLogger("batchwise")

_REMEMBERED = 1_000
"""The most decisions that a router remembers."""
_SOON = timedelta(hours=1)


class _Forecaster(Protocol):
    """Returns the forecast for batches of a model that are created at a moment."""

    def __call__(self, model: str | None, /, *, at: datetime | None) -> Forecast: ...


def moment_of(latency: LatencyTag, now: datetime) -> datetime:
    """Return the moment as of which a single request is routed: the last full second.

    So requests that come one by one within a second share their terms, and the ledger and the planner have far fewer
    terms than requests. A request that is due within the hour, or overdue, is routed as of `now` itself.
    """
    if isinstance(latency, datetime):
        latency = latency - now
    if isinstance(latency, timedelta) and latency < _SOON:
        return now
    return now.replace(microsecond=0)


class Router:
    """Routes requests by a policy.

    Args:
        policy: The rules' figures.
        prices: The price book.
        forecast: Forecasts how long batches take.
    """

    def __init__(self, policy: Policy, prices: PriceBook, forecast: _Forecaster) -> None:
        self._policy, self._prices, self._forecast = policy, prices, forecast
        self._prefixes = Prefixes() if policy.cache == "prime" else None
        self._warned: set[str] = set()
        self._by_size = bool(policy.hedge or policy.delay_cost_per_hour)
        self._known: dict[object, tuple[Decision, Terms]] = {}

    def route(
        self, request: Request, now: datetime, latency: LatencyTag | None = None, tool_use: ToolUse | None = None
    ) -> tuple[Decision, Terms]:
        """Return the decision for a request and the terms to store; `latency`, `tool_use`: defaults for its tags.

        Raises:
            InvalidRequestError: No lane can keep its tags and parameters; see `choose_lane`.
            UnknownPriceError: There is a spend limit and no price.
        """
        where = routing.named(request)
        case = routing.case_of(
            request,
            now=now,
            policy=self._policy,
            forecast=self._forecast(request.model, at=now),
            prices=self._prices,
            latency=latency,
            tool_use=tool_use,
        )
        decision = routing.decide(case, where)
        self._warn_of_a_short_prefix(request)
        max_cost = (0, 0) if self._policy.max_spend is None else self._max_cost(request, now, where)
        return decision, _terms(request, case, decision, max_cost)

    def _warn_of_a_short_prefix(self, request: Request) -> None:
        """Warn once for each model that a cache breakpoint has no effect. Called for the first of requests alike."""
        prefix = None if request.model in self._warned else prefix_of(request.model, request.body)
        if prefix is not None and is_never_cached(prefix.tokens):
            self._warned.add(request.model)
            _log.warning(
                "batchwise: a prefix of about %d tokens is too short for the prompt cache of %s, whatever its "
                "cache_control asks for; leave the breakpoint out, or put more before it",
                prefix.tokens,
                shown(request.model),
            )

    def recall(self, request: Request, now: datetime) -> tuple[Decision, Terms]:
        """As `route` at `moment_of(request.latency, now)`, with a memory for requests that are alike."""
        if self._policy.max_spend is not None:  # prices may change
            return self.route(request, now)
        moment = moment_of(request.latency, now)
        # The decision on a blocking request depends neither on the time nor on a forecast.
        signature = (None if request.latency is Latency.BLOCKING else moment, self.signature(request, moment))
        known = self._known.get(signature)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[signature] = self.route(request, moment)
        return known

    def entries(
        self, requests: Iterable[Request], now: datetime, latency: LatencyTag | None, tool_use: ToolUse | None
    ) -> Iterator[Entry]:
        """Yield the ledger's entry for each request of a bulk dispatch; requests that are alike are routed once.

        Raises:
            InvalidRequestError: An item cannot be sent as it is, or is no `Request`; the message says which.
        """
        routes: dict[object, Terms] = {}
        position, signature, too_large = -1, self.signature, packing.MAX_CALL_BYTES
        try:
            for position, request in enumerate(requests):
                if not isinstance(request, Request):
                    _refuse_item(request, position)
                alike = signature(request, now)
                terms = routes.get(alike)
                if terms is None:
                    with _item_named(position):
                        terms = routes[alike] = self.route(request, now, latency, tool_use)[1]
                if len(request.body) > too_large:
                    with _item_named(position):
                        check_size(request, terms)
                yield Entry(request.key, request.body, terms)
        except Exception as error:
            # Most errors come out of the caller's own iterable, which does not know what became of the items before.
            if add_note := getattr(error, "add_note", None):  # Python 3.11
                add_note(f"dispatch_all had taken {position + 1} items; nothing of it was accepted")
            raise

    def signature(self, request: Request, now: datetime) -> tuple[object, ...]:
        """Return a key that is equal for requests that are routed alike at one moment."""
        return (
            request.traits,
            request.latency_tag,
            request.tool_use,
            request.betas,
            request.stream,
            request.expected_output_tokens,
            request.label_pairs,
            self._prefixes and self._prefixes.of(request.model, request.body),
            len(request.body) >> 10 if self._by_size else 0,
            self._policy.max_spend is not None
            and length_class(self._prices, request, self._models(request.model), at=now),
        )

    def reroute(self, terms: Terms, body: bytes, latency: LatencyTag, now: datetime) -> Terms:
        """Return the terms of a request that is tried again with a new latency, which counts from now.

        Raises:
            InvalidRequestError: No lane can keep the latency; see `choose_lane`.
        """
        params: Any = {**decode(body), "model": terms.asked[0]}  # a fallback model may have been asked last
        request = Request(
            params,
            betas=terms.betas,
            stream=terms.stream,
            tool_use=terms.tool_use,
            expected_output_tokens=terms.output_tokens if terms.expected else None,
            labels=dict(terms.labels),
        )
        return self.route(request, now, latency)[1]

    def with_max_cost(self, terms: Terms, *, now: datetime) -> Terms:
        """Return the terms with the most that one of their requests can cost; it may fill its model's context.

        Raises:
            SpendLimitError: It may use tools, and nothing bounds what those cost.
            UnknownPriceError: A price is unknown.
        """
        if terms.max_cost_each:
            return terms
        where = f"a request for {shown(terms.model)}"
        if terms.tool_use not in {ToolUse.NONE, ToolUse.SINGLE}:
            raise SpendLimitError(
                f"{where} was accepted without Policy.max_spend, and nothing bounds what its tools can cost; dispatch "
                "it anew under a key of its own. Nothing was queued"
            )
        fast = self._prices.rates(terms.model, Lane.SYNC, speed="fast", at=now) is not None
        unknown = Traits(terms.model, terms.max_tokens, (), (), "auto", "fast" if fast else "")
        each, per_byte = self._max_cost_of(unknown, at=now, betas=terms.betas, media=None, where=where)
        return attrs.evolve(terms, max_cost_each=each, max_cost_per_byte=per_byte)

    def with_max_cost_of(self, terms: Terms, body: bytes, *, now: datetime) -> Terms:
        """Return the terms with the most that their request with this body can cost, as if it were accepted now.

        Raises:
            InvalidRequestError: The request could not be dispatched any more.
            SpendLimitError: Nothing bounds what its tools can cost.
            UnknownPriceError: A price is unknown.
        """
        request = Request(decode(body), betas=terms.betas)
        each, per_byte = self._max_cost(request, now, f"a request for {shown(terms.model)}")
        return attrs.evolve(terms, max_cost_each=each, max_cost_per_byte=per_byte)

    def _max_cost(self, request: Request, now: datetime, where: str) -> tuple[int, int]:
        refuse_unbounded(request, where)
        return self._max_cost_of(
            request.traits,
            at=now,
            betas=request.betas,
            size=len(request.body),
            media=media_tokens(request),
            where=where,
        )

    def _models(self, model: str) -> Iterable[str]:
        """Return the models to which a request for `model` may go: itself, and the fallback models."""
        return dict.fromkeys((model, *self._policy.fallback_models))

    def _max_cost_of(self, traits: Traits, **about: Any) -> tuple[int, int]:
        """Return the most that a request can cost: every model but the last fallback model refuses it."""
        models = self._models(traits.model)
        costs = [most_cost(self._prices, traits._replace(model=model), **about) for model in models]
        return sum(each for each, _ in costs), sum(per_byte for _, per_byte in costs)


def _terms(request: Request, case: routing.Case, decision: Decision, max_cost: tuple[int, int]) -> Terms:
    """Return what the ledger keeps of a decision, with the most that the request can cost, each and per byte."""
    hedged = decision.reason is Reason.HEDGED
    return Terms(
        lane=decision.lane,
        reason=decision.reason,
        explanation=decision.explanation,
        blocking=case.latency is Latency.BLOCKING,
        deadline=decision.deadline,
        submit_by=decision.submit_by,
        rescue_at=decision.rescue_at,
        interval=routing.hedge_wait(case.left) if hedged else case.interval,
        model=request.model,
        max_tokens=request.max_tokens,
        output_tokens=estimated_tokens(request)[1],
        expected=request.expected_output_tokens is not None,
        betas=request.betas,
        stream=request.stream,
        tool_use=case.tool_use,
        structured=request.traits.structured,
        prefix=case.prefix.digest if case.prefix else "",
        prefix_tokens=case.prefix.tokens if case.prefix else 0,
        breakpoints=case.prefix.breakpoints if case.prefix else 0,
        labels=request.label_pairs,
        batch_only=bool(case.batch_only),
        max_cost_each=max_cost[0],
        max_cost_per_byte=max_cost[1],
    )


def check_size(request: Request, terms: Terms) -> None:
    """Refuse a request that is too large for a lane that its terms need.

    Raises:
        RequestTooLargeError: The request is too large.
    """
    if len(request.body) > packing.MAX_CALL_BYTES:  # hardly ever
        routing.check_size(len(request.body), terms.lane, rescue=terms.due is not None, where=routing.named(request))


def decision_of(terms: Terms) -> Decision:
    """Return the decision that the terms record."""
    return Decision(
        terms.lane,
        terms.reason,
        terms.explanation,
        terms.deadline,
        terms.submit_by,
        terms.rescue_at,
        (Check(terms.reason, True, terms.explanation),),
    )


@contextmanager
def _item_named(position: int) -> Iterator[None]:
    """Say in an error which item of the bulk dispatch it is about."""
    try:
        yield
    except InvalidRequestError as error:
        raise type(error)(f"item #{position} of dispatch_all: {error}") from None


def _refuse_item(item: object, position: int) -> NoReturn:
    raise InvalidRequestError(
        f"item #{position} of dispatch_all is a {type(item).__name__}; wrap params in Request(...)"
    )
