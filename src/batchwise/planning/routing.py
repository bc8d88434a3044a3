"""`choose_lane`: an ordered list of rules, each with one reason.

To add a rule, write one `_Rule` and put it where it belongs in `_RULES`; no other rule has to change. The first rule
that decides wins; the last always does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cached_property, partial
from typing import NamedTuple

import attrs

from batchwise.basics.times import ZERO, check_aware
from batchwise.basics.wording import dollars, dollars_apart, human, human_apart
from batchwise.errors import InvalidRequestError, InvalidValueError, RequestTooLargeError, shown
from batchwise.models import Check, Decision, Lane, Latency, LatencyTag, Policy, Rates, Reason, ToolUse, check_policy
from batchwise.request import BILLED_TO_A_PROFILE, Request, Traits

from . import packing
from .custom_ids import MAX_LENGTH
from .forecast import Forecast
from .pricing import PriceBook, book_of, estimate, estimated_tokens, named_remedy, to_usd
from .prompt_prefix import Prefix, prefix_of, prefix_words
from .reserve import least_reserve, longest_batch_of, reserve_for
from .waiting_cost import Hedge, best_hedge, delay_cost, longest_worthwhile

__all__ = [
    "BATCH_ONLY_BETA",
    "SERVER_TOOLS",
    "Case",
    "check_size",
    "choose_lane",
    "decide",
    "hedge_wait",
    "infer_tool_use",
    "named",
]

BATCH_ONLY_BETA = "output-300k-2026-03-24"
"""With it a batch request may put out up to 300,000 tokens; the Messages API does not take it (API documentation)."""

_SYNC_ONLY_PARAMETERS = frozenset(
    {
        # "Batch requests cannot use" (API documentation, Message Batches, 2026-10):
        "cache_hint",
        "context_hint",
        "previous_thread_event_id",
        "speed",
        "store",
        # The row comes back errored (API documentation, server-side fallbacks):
        "fallbacks",
        # The row comes back errored (SDK 2.14, beta `MessageCreateParams.billing_policy`):
        BILLED_TO_A_PROFILE,
        # It continues what the API keeps between calls, as previous_thread_event_id does; no source names it:
        "thread",
    }
)
"""Parameters that a batch refuses, besides a `max_tokens` of 0 (API documentation, Message Batches, 2026-10).

`stream: true`, which it refuses too, is no parameter here but a tag of the request. `fallback_credit_token` is not
refused: a batch ignores it, and it lives for 5 minutes (API documentation, fallback credit).
"""
_SYNC_ONLY_BETAS = frozenset({"research_preview_2026_02"})
"""Betas that "batch requests cannot use" (API documentation, Message Batches, 2026-10)."""
SERVER_TOOLS = ("web_search_", "web_fetch_", "code_execution_", "tool_search_tool_", "mcp_toolset", "advisor_")
"""Prefixes of the types of tools that the API runs itself (SDK 2.12, `types/*tool*_param.py`)."""


def infer_tool_use(traits: Traits) -> ToolUse:
    """Return the tool use that the params show, cautiously: client tools without a forced choice are ITERATIVE."""
    if traits.tool_choice == "none" or not (traits.tool_types or "mcp_servers" in traits.parameters):
        return ToolUse.NONE
    if all(kind.startswith(SERVER_TOOLS) for kind in traits.tool_types):
        return ToolUse.SERVER
    return ToolUse.SINGLE if traits.tool_choice in {"tool", "any"} else ToolUse.ITERATIVE


@attrs.frozen(kw_only=True)
class Case:
    """One routing question, with all that its rules need."""

    now: datetime
    policy: Policy
    forecast: Forecast
    saving: Callable[[], Decimal | None]
    """Returns the estimated USD that the batch lane saves on it; None: unknown price."""
    traits: Traits
    latency: LatencyTag
    tool_use: ToolUse = ToolUse.NONE
    betas: tuple[str, ...] = ()
    stream: bool = False
    deadline: datetime | None
    prefix: Prefix | None = None

    @property
    def left(self) -> timedelta:
        """The SLA: from now to the deadline."""
        return ZERO if self.deadline is None else self.deadline - self.now

    @property
    def buffer(self) -> timedelta:
        """The part of the SLA that the window leaves; negative if the deadline is inside the window."""
        return ZERO if self.deadline is None else self.left - self.policy.window

    @cached_property
    def reserve(self) -> timedelta:
        """The part of the buffer that is kept for a rescue."""
        return reserve_for(self.policy, self.buffer)

    @property
    def usual_interval(self) -> timedelta:
        """The longest wait for its batch to be sent, whatever waiting costs."""
        if self.deadline is None:
            return self.policy.flexible_interval
        room = max(ZERO, self.buffer - self.reserve)
        return room if self.policy.interval is None else min(room, self.policy.interval)

    @property
    def interval(self) -> timedelta:
        """The longest wait for its batch to be sent that its deadline allows and that pays."""
        usual, worthwhile = self.usual_interval, self.worthwhile
        return usual if worthwhile is None else max(ZERO, min(usual, worthwhile))

    @property
    def worthwhile(self) -> timedelta | None:
        """The longest interval that pays; None: waiting costs nothing.

        Negative if even a batch that is sent at once does not pay.
        """
        cost = self.policy.delay_cost_per_hour
        if not cost or self.batch_only:
            return None
        return longest_worthwhile(self.saving() or Decimal(0), cost, self.run)

    @property
    def run(self) -> timedelta:
        """The mean time that a batch takes."""
        return self.forecast.expected(self.policy.window)

    @property
    def batch_only(self) -> tuple[str, ...]:
        """Features of the request that only the batch API accepts."""
        return tuple(f"beta {beta}" for beta in self.betas if beta == BATCH_ONLY_BETA)

    @property
    def sync_only(self) -> tuple[str, ...]:
        """Features of the request that only the Messages API accepts."""
        names = [f"parameter {name!r}" for name in self.traits.parameters if name in _SYNC_ONLY_PARAMETERS]
        names += [f"beta {beta}" for beta in self.betas if beta in _SYNC_ONLY_BETAS]
        return (*names, *(("max_tokens 0",) if self.traits.max_tokens == 0 else ()))


class _Rule(NamedTuple):
    """A routing rule: its reason, its lane, when it decides, and its view in words, whether it decides or not."""

    reason: Reason
    lane: Lane
    decides: Callable[[Case], object]
    words: Callable[[Case], str]
    needs_sync: bool = False
    """Only the sync lane will do, whatever the deadline; a request that only a batch takes is then refused."""


def _inside_window(case: Case) -> bool:
    return case.deadline is not None and case.left < case.policy.window + case.reserve


def hedge_wait(sla: timedelta) -> timedelta:
    """Return how long hedged work is grouped: 5 % of the SLA, at most 5 minutes."""
    return min(sla / 20, timedelta(minutes=5))


def _hedge_rescue(case: Case) -> timedelta:
    """Return how long before its deadline a hedge has to be cancelled."""
    return max(case.policy.min_reserve, least_reserve(case.policy)) + case.policy.cancel_settle


def _best_hedge(case: Case) -> Hedge | None:
    """Return the hedge that is worth most; None: no time is left for one."""
    room = case.left - hedge_wait(case.left) - _hedge_rescue(case)
    if room <= ZERO:
        return None
    saving = case.saving()
    return best_hedge(
        room,
        saving=Decimal(1) if saving is None else saving,  # any figure will do: without a cost of waiting only p counts
        cost_per_hour=case.policy.delay_cost_per_hour,
        settle=case.policy.cancel_settle,
        forecast=case.forecast,
    )


def _hedge(case: Case) -> bool:
    """Whether a hedge pays. With more time the request must go to a batch, too: a longer latency never costs more."""
    if not case.policy.hedge or case.batch_only or not _inside_window(case) or _delay_costs_more(case):
        return False
    hedge = _best_hedge(case)
    return hedge is not None and hedge.pays


def _delay_costs_more(case: Case) -> bool:
    worthwhile = case.worthwhile
    return worthwhile is not None and worthwhile < ZERO


def _an_hour(case: Case) -> str:
    return f"{dollars(case.policy.delay_cost_per_hour)} an hour (Policy.delay_cost_per_hour)"


def _delay_words(case: Case) -> str:
    if not case.policy.delay_cost_per_hour:
        return "waiting costs nothing (Policy.delay_cost_per_hour is 0)"
    if case.batch_only:
        return f"waiting costs {_an_hour(case)}, but no other lane takes it"
    saving, wait = case.saving(), case.interval / 2 + case.run
    if saving is None:
        return (
            f"waiting costs {_an_hour(case)}, and the price of {shown(case.traits.model)} is unknown, so no saving can "
            f"be set against it; {named_remedy(case.traits.model)}"
        )
    mean = delay_cost(case.interval + 2 * case.run, case.policy.delay_cost_per_hour) / 2
    cost, saved = dollars_apart(mean, saving)
    if _delay_costs_more(case):
        return (
            f"even a batch that is sent at once takes {human(wait)} on average, which costs {cost} at "
            f"{_an_hour(case)}; it saves {saved}"
        )
    return f"waiting {human(wait)} on average costs {cost} at {_an_hour(case)}; a batch saves {saved}"


def _window_words(case: Case) -> str:
    if case.deadline is None:
        return "no deadline"
    if case.buffer < ZERO:
        left, window = human_apart(case.left, case.policy.window)
        return f"deadline in {left} is inside the {window} window of a batch"
    verdict = "too little for" if _inside_window(case) else "enough for"
    buffer, reserve = human_apart(case.buffer, case.reserve)
    window = human(case.policy.window)
    return (
        f"deadline in {human(case.left)} leaves {buffer} past the {window} window, {verdict} the reserve of {reserve}"
    )


def _tolerant_words(case: Case) -> str:
    if any(rule.decides(case) for rule in _RULES[:-1]):
        return "not asked: a rule before it decides"
    sent = f"within {human(case.interval)}" if case.interval else "at once"
    if case.interval < case.usual_interval:
        sent += f" (a longer wait at {_an_hour(case)} would cost more than it saves)"
    if case.deadline is None:
        return f"no deadline: goes with a batch {sent}, at half price{_caching_words(case)}"
    kept = f"{human(case.reserve)} are" if case.reserve else "nothing is"
    return (
        f"{_window_words(case)}: goes with a batch {sent}, at half price, and {kept} kept to redo what fails"
        f"{_caching_words(case)}"
    )


def _caching_words(case: Case) -> str:
    if case.prefix is None:
        return ""
    needed = longest_batch_of(case.policy) + case.policy.window + case.reserve
    left = None if case.deadline is None else case.left
    return f"; {prefix_words(case.prefix.tokens, case.traits.model, left, needed)}"


def _batch_only_words(case: Case) -> str:
    if not case.batch_only:
        return "nothing in it is for batches only"
    words = f"{', '.join(case.batch_only)} is accepted in a batch only, so there is no rescue on the sync lane"
    if case.deadline is None:
        return words
    left, two = human_apart(case.left, 2 * case.policy.window)
    if case.left >= 2 * case.policy.window:
        return f"{words}; the deadline in {left} leaves time for two windows ({two})"
    return f"{words}; its deadline in {left} is not guaranteed, since two windows ({two}) do not fit"


def _hedge_words(case: Case) -> str:
    if not case.policy.hedge:
        return "hedging is off (Policy.hedge)"
    if not _inside_window(case):
        return "nothing to hedge: the window and the reserve fit" if case.deadline else "nothing to hedge: no deadline"
    if case.batch_only:
        return "nothing to hedge: there is no rescue on the sync lane"
    hedge = _best_hedge(case)
    if hedge is None:
        return f"no hedge: a deadline in {human(case.left)} leaves no time for a batch before a rescue had to begin"
    if case.saving() is None and case.policy.delay_cost_per_hour:
        return f"no hedge: {_delay_words(case)}"
    bet = f"a batch ends within {human(hedge.run)} with a chance of {hedge.chance:.1%}"
    if hedge.delay_cost:
        bet += f" and costs {dollars(hedge.delay_cost)} of waiting at {_an_hour(case)}"
    if not hedge.pays:
        return f"no hedge: {bet}, which is not expected to pay"
    if _delay_costs_more(case):
        return f"no hedge: {bet}, but with more time {_delay_words(case)}"
    rescued = human(case.left - hedge_wait(case.left) - hedge.run)
    return f"{_window_words(case)}, but {bet}; what is not done {rescued} before the deadline is rescued"


_RULES: tuple[_Rule, ...] = (
    _Rule(
        Reason.ITERATIVE_TOOL_USE,
        Lane.SYNC,
        lambda case: case.tool_use is ToolUse.ITERATIVE,
        lambda case: (
            "the caller runs tools and goes on, and a batch cannot return tool results in the middle of a request "
            "(say tool_use=ToolUse.SINGLE if one turn's answer is the result, ToolUse.PATIENT if each turn may wait)"
            if case.tool_use is ToolUse.ITERATIVE
            else "the caller runs tools and goes on, and says that each turn may wait"
            if case.tool_use is ToolUse.PATIENT
            else f"tool use is {case.tool_use.value}: one answer ends it"
        ),
        needs_sync=True,
    ),
    _Rule(
        Reason.BLOCKING,
        Lane.SYNC,
        lambda case: case.latency is Latency.BLOCKING,
        lambda case: (
            f"somebody is waiting for the answer, and a batch may take {human(case.policy.window)}"
            if case.latency is Latency.BLOCKING
            else "nobody is waiting for the answer"
        ),
        needs_sync=True,
    ),
    _Rule(
        Reason.STREAMING,
        Lane.SYNC,
        lambda case: case.stream,
        lambda case: "the caller wants streaming, which a batch has not" if case.stream else "no streaming asked for",
        needs_sync=True,
    ),
    _Rule(
        Reason.SYNC_ONLY_PARAMETER,
        Lane.SYNC,
        lambda case: case.sync_only,
        lambda case: (
            f"{', '.join(case.sync_only)} is refused in a batch" if case.sync_only else "a batch takes all parameters"
        ),
        needs_sync=True,
    ),
    _Rule(
        Reason.BATCH_ONLY_PARAMETER,
        Lane.BATCH,
        lambda case: case.batch_only,
        _batch_only_words,
    ),
    _Rule(
        Reason.ZERO_DATA_RETENTION,
        Lane.SYNC,
        lambda case: case.policy.zero_data_retention,
        lambda case: (
            "zero data retention does not cover batches"
            if case.policy.zero_data_retention
            else "no zero data retention asked for"
        ),
        needs_sync=True,
    ),
    _Rule(Reason.HEDGED, Lane.BATCH, _hedge, _hedge_words),
    _Rule(Reason.DEADLINE_INSIDE_WINDOW, Lane.SYNC, _inside_window, _window_words),
    _Rule(Reason.DELAY_COSTS_MORE, Lane.SYNC, _delay_costs_more, _delay_words),
    _Rule(Reason.LATENCY_TOLERANT, Lane.BATCH, lambda _case: True, _tolerant_words),
)


def _deadline_of(latency: LatencyTag, now: datetime) -> datetime | None:
    """The absolute deadline (UTC) that a latency tag gives at `now`; None without one."""
    if isinstance(latency, timedelta):
        return now + latency
    return latency if isinstance(latency, datetime) else None


def _refuse_contradictions(case: Case, where: str) -> None:
    if case.deadline is not None and case.deadline <= case.now:
        raise InvalidRequestError(
            f"{where}: its deadline {case.deadline.isoformat()} is past (now {case.now.isoformat()}); "
            "give a later one, or leave latency out for an answer now"
        )
    if case.traits.max_tokens == 0 and case.latency is not Latency.BLOCKING:
        raise InvalidRequestError(
            f"{where}: max_tokens is 0 (a cache warm-up), which a batch refuses; leave latency out or raise it"
        )
    if not case.batch_only:
        return
    for rule in _RULES:
        if rule.needs_sync and rule.decides(case):
            raise InvalidRequestError(
                f"{where} fits neither lane: {', '.join(case.batch_only)} is accepted in a batch only, but "
                f"{rule.words(case)}; drop one of the two"
            )
    if case.deadline is not None and case.left < case.policy.window:
        left, window = human_apart(case.left, case.policy.window)
        raise InvalidRequestError(
            f"{where} fits neither lane in time: {', '.join(case.batch_only)} is accepted in a batch only, and its "
            f"deadline in {left} is inside the {window} window; give it at least {window}"
        )


def check_size(size: int, lane: Lane, *, rescue: bool, where: str) -> None:
    """Refuse a body of so many bytes that is too large for its lane, or for the sync lane where that is its rescue.

    Raises:
        RequestTooLargeError: It exceeds what a Messages call, or a create call, may carry.
    """
    if size > packing.MAX_CALL_BYTES and (lane is Lane.SYNC or rescue):
        needs = "it goes to the sync lane" if lane is Lane.SYNC else "its deadline needs the sync lane as its rescue"
        raise RequestTooLargeError(
            f"{where} has {size:,} bytes and a Messages call takes {packing.MAX_CALL_BYTES:,}, but {needs}; "
            "shorten it, send large content through the Files API, or give it latency=Latency.FLEXIBLE"
        )
    if lane is Lane.BATCH:
        packing.check_entry(packing.entry_size(MAX_LENGTH, size), where)


def decide(case: Case, where: str = "request") -> Decision:
    """Ask the rules in their order.

    Raises:
        InvalidRequestError: The deadline is past, `max_tokens` is 0 in a batch, or it fits neither lane in time.
    """
    _refuse_contradictions(case, where)
    rule = next(rule for rule in _RULES if rule.decides(case))
    submit_by = rescue_at = None
    if rule.lane is Lane.BATCH and case.deadline is not None:
        if rule.reason is Reason.HEDGED and (hedge := _best_hedge(case)) is not None:
            submit_by = case.now + hedge_wait(case.left)
            rescue_at = submit_by + hedge.run
        elif case.batch_only:
            submit_by = max(case.now, case.deadline - case.policy.window)
        else:
            rescue_at = case.deadline - case.reserve
            submit_by = rescue_at - case.policy.window
    return Decision(
        rule.lane,
        rule.reason,
        lambda: rule.words(case),
        case.deadline,
        submit_by,
        rescue_at,
        lambda: tuple(Check(each.reason, each is rule, each.words(case)) for each in _RULES),
    )


def named(request: Request) -> str:
    """What to call a request in an error."""
    return "request" if request.key is None else f"request {shown(request.key)}"


def _saving(model: str, tokens: tuple[int, int], prices: PriceBook | None, at: datetime) -> Decimal | None:
    if prices is None:
        return None
    sync, batch = (prices.rates(model, lane, at=at) for lane in (Lane.SYNC, Lane.BATCH))
    if sync is None or batch is None:
        return None
    return to_usd(estimate(*tokens, sync) - estimate(*tokens, batch))


_DEFAULT_POLICY = Policy()
_PRIOR = Forecast.prior()


def case_of(
    request: Request,
    *,
    now: datetime,
    policy: Policy,
    forecast: Forecast | None,
    prices: PriceBook | None,
    latency: LatencyTag | None = None,
    tool_use: ToolUse | None = None,
) -> Case:
    """The routing question that a request poses; `latency` and `tool_use` are defaults for its own tags."""
    tag = request.latency_tag if request.latency_tag is not None else latency
    tag = Latency.BLOCKING if tag is None else tag
    return Case(
        now=now,
        policy=policy,
        forecast=_PRIOR if forecast is None else forecast,
        saving=partial(_saving, request.model, estimated_tokens(request), prices, now),
        traits=request.traits,
        latency=tag,
        tool_use=request.tool_use or tool_use or infer_tool_use(request.traits),
        betas=request.betas,
        stream=request.stream,
        deadline=_deadline_of(tag, now),
        prefix=prefix_of(request.model, request.body) if policy.cache == "prime" else None,
    )


def choose_lane(
    request: Request,
    *,
    now: datetime,
    policy: Policy = _DEFAULT_POLICY,
    forecast: Forecast | None = None,
    prices: Mapping[str, Rates] | None = None,
) -> Decision:
    """Which lane `request` should take when it is dispatched at `now`. Pure.

    Args:
        request: The request with its tags.
        now: The moment of the dispatch (aware).
        policy: How time is traded for money.
        forecast: How long batches take; None: a documented prior.
        prices: What models charge, for the rules that compare dollars, before genai-prices; None: the policy's.

    Returns:
        The decision; its `explanation` and `checks` are built when read.

    Raises:
        InvalidValueError: The request is no `Request`, the policy no `Policy`; or `now` is naive, or too near to the
            years 1 or 9999.
        InvalidRequestError: The deadline is past, `max_tokens` is 0 in a batch, or it fits neither lane in time.
        RequestTooLargeError: It exceeds what a lane that it needs may carry.
    """
    if not isinstance(request, Request):
        raise InvalidValueError(f"request is a {type(request).__name__}, not a Request; write Request(params)")
    check_policy(policy)
    book = book_of(policy.prices if prices is None else prices)
    now, where = check_aware(now, "now"), named(request)
    try:
        case = case_of(request, now=now, policy=policy, forecast=forecast, prices=book)
        decision = decide(case, where)
    except OverflowError:
        raise InvalidValueError(f"{where}: now={now.isoformat()} is too near to the end of all dates") from None
    rescue = decision.deadline is not None and not case.batch_only
    check_size(len(request.body), decision.lane, rescue=rescue, where=where)
    return decision
