"""How a request is routed: the decision, and the terms that the ledger keeps of it."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from batchwise.errors import UnknownPriceError, shown
from batchwise.models import Check, Decision, Lane, Latency, LatencyTag, Policy, Reason, ToolUse
from batchwise.planning import routing
from batchwise.planning.forecast import Forecast
from batchwise.planning.pricing import PriceBook, estimate
from batchwise.planning.state import Terms
from batchwise.request import Request

__all__ = ["Router", "decision_of"]

_REMEMBERED = 1_000
"""Decisions."""


class _Forecaster(Protocol):
    """How long batches of a model take that are created at a moment."""

    def __call__(self, model: str | None, /, *, at: datetime | None) -> Forecast: ...


class Router:
    """Routes requests by a policy.

    Args:
        policy: The rules' figures.
        prices: The price book.
        forecast: How long batches take.
    """

    def __init__(self, policy: Policy, prices: PriceBook, forecast: _Forecaster) -> None:
        self._policy, self._prices, self._forecast = policy, prices, forecast
        self._by_size = bool(policy.hedge or policy.delay_cost_per_hour)
        self._known: dict[object, tuple[Decision, Terms]] = {}

    def route(
        self, request: Request, now: datetime, latency: LatencyTag | None = None, tool_use: ToolUse | None = None
    ) -> tuple[Decision, Terms]:
        """The decision for a request and the terms to store; `latency`, `tool_use`: defaults for its own tags.

        Raises:
            InvalidRequestError: Its tags or parameters cannot be kept; see `choose_lane`.
            UnknownPriceError: There is a spend limit and no price.
        """
        where = "request" if request.key is None else f"request {shown(request.key)}"
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
        each, per_byte = self._reserve(case, decision.lane, where)
        hedged = decision.reason is Reason.HEDGED
        return decision, Terms(
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
            output_tokens=case.output_tokens,
            betas=request.betas,
            stream=request.stream,
            tool_use=case.tool_use,
            batch_only=bool(case.batch_only),
            reserve_each=each,
            reserve_per_byte=per_byte,
        )

    def recall(self, request: Request, now: datetime) -> tuple[Decision, Terms]:
        """As `route`, but remembered where somebody is waiting: then neither the time nor a forecast has a say."""
        if request.latency is not Latency.BLOCKING or self._policy.max_spend is not None:
            return self.route(request, now)
        signature = self.signature(request)
        known = self._known.get(signature)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[signature] = self.route(request, now)
        return known

    def signature(self, request: Request) -> tuple[object, ...]:
        """What requests have in common that are routed alike at one moment."""
        return (
            request.traits,
            request.latency_tag,
            request.tool_use,
            request.betas,
            request.stream,
            request.expected_output_tokens,
            len(request.body) >> 10 if self._by_size else 0,
        )

    def _reserve(self, case: routing.Case, lane: Lane, where: str) -> tuple[int, int]:
        """pico-USD kept for a request until it settles: its sync price, and its batch price too where both may come."""
        if self._policy.max_spend is None:
            return 0, 0
        lanes = (Lane.SYNC, Lane.BATCH) if lane is Lane.BATCH else (Lane.SYNC,)
        each = per_byte = 0
        for part in lanes:
            rates = self._prices.rates(case.traits.model, part, at=case.now)
            if rates is None:
                raise UnknownPriceError(
                    f"{where}: the price of {shown(case.traits.model)} is unknown, so Policy.max_spend cannot be kept; "
                    "use a model with a known price, or drop max_spend"
                )
            each += estimate(0, case.traits.max_tokens, rates)
            per_byte += -(-rates.cache_write_1h // 2)  # two bytes a token, the dearest kind of input
        return each, per_byte


def decision_of(terms: Terms) -> Decision:
    """The decision that was recorded in terms."""
    return Decision(
        terms.lane,
        terms.reason,
        terms.deadline,
        terms.submit_by,
        terms.rescue_at,
        lambda: terms.explanation,
        lambda: (Check(terms.reason, True, terms.explanation),),
    )
