"""Calls one request on the sync lane, continues it while its turn is paused, and settles it or queues it again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta
from time import monotonic
from typing import Any, NamedTuple

from batchwise.api.faults import LaneFault
from batchwise.api.types import Reply
from batchwise.errors import BatchwiseError, SpendLimitError
from batchwise.ledger.values import Claim, Settlement, Turn
from batchwise.models import Lane, Outcome, ResultError
from batchwise.planning.continuation import next_call, received, usage_of
from batchwise.planning.custom_ids import UNSEALED, custom_id
from batchwise.planning.outcomes import (
    UNAFFORDABLE,
    Refusal,
    Ruling,
    Verdict,
    bills_profile,
    refusal_of,
    rule_answer,
    rule_call,
)
from batchwise.planning.retries import call_costs, may_call_again

from .call_reports import emit_call, learn_from, note_pace, store_health, store_pace
from .core import Engine
from .effects import Ask, store, store_surely, store_together
from .money import Biller
from .pauses import backoff, overload_pause
from .ports import api
from .queue import Slot
from .setbacks import lasting, passing
from .settlements import settlement_of, settlement_without_answer

__all__ = ["call"]

_log = logging.getLogger("batchwise")
_ZERO = timedelta(0)
_CALLING = "calling"
"""The setback's name when the sync lane does not answer."""


async def call(engine: Engine, slot: Slot) -> None:
    """Run one claim to its end, or give it back to the queue."""
    claim: Claim | None = slot.claim
    try:
        while claim is not None:
            reply = await _reply(engine, slot, claim)
            if reply is None:
                return
            claim = await _take_in(engine, slot, claim, reply)
    finally:
        _finish(engine, slot)


async def _reply(engine: Engine, slot: Slot, claim: Claim) -> Reply | None:
    """Return the API's answer; None: there is none, and the consequence for the request is stored."""
    try:
        await _check_workspace(engine, slot)
        begun, resumes = monotonic(), engine.suspensions.resumes
        try:
            reply = await _ask(claim)
        except LaneFault as error:
            emit_call(engine, claim, timedelta(seconds=monotonic() - begun), error=error.fault.type)
            await _faulted(engine, slot, claim, error, resumes)
            return None
    except Exception as error:
        if lasting(error) or passing(error):
            raise
        await _broke(engine, slot, claim, error)
        return None
    return reply


async def _broke(engine: Engine, slot: Slot, claim: Claim, error: Exception) -> None:
    """Handle a fault within batchwise, not the API's: try the request again, or settle it as failed."""
    _log.error("batchwise: a call failed within batchwise; its request is tried again or fails", exc_info=error)
    tried = _tried(claim, costs=True)
    if _may_call(engine, tried):
        await _retry(engine, slot, tried, backoff(tried.attempts, engine.policy), costs=True, maybe_billed=True)
        return
    await _settle(engine, slot, _failed_within(claim, error))


def _failed_within(claim: Claim, error: Exception) -> Settlement:
    reason = ResultError(
        "internal_error", f"{type(error).__name__} within batchwise; the log says where", retryable=True
    )
    return _failure(claim, Outcome.FAILED, reason, maybe_billed=True)  # it may have been answered


class _Answer(NamedTuple):
    """An answer, read."""

    line: bytes
    message: Any
    ruling: Ruling
    usage: Mapping[str, Any]
    """The tokens that were billed."""
    goes_on: Claim | None
    """The claim that goes on with it: a paused turn, or a refusal that the next model is asked about."""


def _read(engine: Engine, claim: Claim, reply: Reply) -> _Answer:
    line, message = received(custom_id(claim.key, UNSEALED, claim.id), reply.body)
    ruling = rule_answer(message, structured=claim.terms.structured)
    models = engine.policy.fallback_models
    follows = next_call(ruling, claim.body, claim.turns, line, terms=claim.terms, fallback_models=models)
    goes_on = None
    if follows is not None:
        body, terms = follows
        goes_on = claim._replace(body=body, terms=terms, turns=(*claim.turns, line))
    return _Answer(line, message, ruling, usage_of(message) if ruling.billed else {}, goes_on)


async def _take_in(engine: Engine, slot: Slot, claim: Claim, reply: Reply) -> Claim | None:
    """Settle an answer; if its turn was paused, return the claim that continues it.

    The answer is paid for. If batchwise fails here, the answer is not bought again.
    """
    usage: Mapping[str, Any] = {}
    news, outcome = False, Outcome.FAILED
    try:
        answer = _read(engine, claim, reply)
        usage, ruling = answer.usage, answer.ruling
        if answer.goes_on is not None and ruling.verdict is Verdict.CONTINUE:
            emit_call(engine, claim, reply.latency, usage=usage)
            return answer.goes_on
        outcome = ruling.outcome or outcome
        # Before the request settles: a planner that saw neither would probe with another row.
        news = engine.health.note_call(answered=True)
        engine.setbacks.resolved(_CALLING)
        note_pace(engine, slot, reply, usage)
        if answer.goes_on is not None:
            await _fall_back(engine, slot, answer.goes_on, answer.line)
        else:
            await _settle(engine, slot, _end(engine, claim, answer))
    except Exception as error:
        if lasting(error) or passing(error):
            raise
        _log.error("batchwise: an answer could not be taken in; its request fails", exc_info=error)
        news = engine.health.note_call(answered=True) or news
        await _settle(engine, slot, _failed_within(claim, error)._replace(cost=None, saved=None))
    emit_call(engine, claim, reply.latency, usage=usage, outcome=outcome)
    await learn_from(engine, claim, reply, news=news)
    return None


async def _fall_back(engine: Engine, slot: Slot, claim: Claim, refusal: bytes) -> None:
    """Ask the next model. The refusal is paid, so it is durable first."""
    tried = _tried(claim, costs=True)
    await _retry(engine, slot, tried, timedelta(0), costs=True, maybe_billed=False, turn=refusal)


def _end(engine: Engine, claim: Claim, answer: _Answer) -> Settlement:
    """Return the settlement of a request whose call was answered with a 200."""
    ruling, line = answer.ruling, answer.line
    outcome, error = ruling.outcome or Outcome.FAILED, ruling.error
    if ruling.billed or error is None:
        biller, asked = Biller(engine.prices, engine.now()), claim.terms.asked
        return settlement_of(biller, claim.id, Lane.SYNC, asked, line, answer.message, claim.turns, outcome)
    return _failure(claim, outcome, error, maybe_billed=True)._replace(line=line, cost=None, saved=None)


async def _check_workspace(engine: Engine, slot: Slot) -> None:
    """Check that the client's workspace is the ledger's, before a prompt is sent with its key."""
    if not engine.workspace.may_differ:
        return
    try:
        await engine.workspace.check()
    except BatchwiseError:
        await store(engine.sync_lane.give_back, [slot.claim])
        raise


def _ask(claim: Claim) -> Ask[Reply]:
    terms = claim.terms
    return api.call(claim.body, model=terms.model, max_tokens=terms.max_tokens, betas=terms.betas)


async def _settle(engine: Engine, slot: Slot, settlement: Settlement) -> None:
    await store_together(lambda: engine.ledger.begin_settle(settlement, now=engine.now(), run=engine.run), sure=True)
    _finish(engine, slot)


def _finish(engine: Engine, slot: Slot) -> None:
    """Mark the claim as finished, and then announce its end: until it is finished, waiters do not look for it."""
    if engine.queue.finish(slot, monotonic()):
        engine.announcing.settled([slot.claim.id])


def _tried(claim: Claim, *, costs: bool) -> Claim:
    """Return the claim after a try; `costs`: the try counts among its attempts."""
    return claim._replace(attempts=claim.attempts + costs, calls=claim.calls + costs)


def _may_call(engine: Engine, claim: Claim) -> bool:
    return may_call_again(
        claim.terms, attempts=claim.attempts, calls=claim.calls, now=engine.now(), policy=engine.policy
    )


def _failure(
    claim: Claim, outcome: Outcome, error: ResultError, said: LaneFault | None = None, *, maybe_billed: bool = False
) -> Settlement:
    """Return the settlement of a request without an answer; `said`: the error of its call."""
    return settlement_without_answer(
        claim.id,
        claim.key,
        outcome,
        error,
        lane=Lane.SYNC,
        maybe_billed=maybe_billed,
        status=None if said is None else said.fault.status,
        request_id=None if said is None else said.headers.get("request-id"),
    )


async def _faulted(engine: Engine, slot: Slot, claim: Claim, error: LaneFault, resumes: int) -> None:
    """Retry or settle a request whose call failed; `resumes`: `Suspensions.resumes` when the call began."""
    ruling = rule_call(error.fault, bills_profile=error.fault.status == 402 and bills_profile(claim.body))
    refusal, asked = refusal_of(error.fault), error.fault.retry_after
    engine.queue.failed(slot, monotonic(), refusal=refusal, retry_after=asked, headers=error.headers)
    answered = ruling.verdict is Verdict.SETTLE and error.fault.status is not None
    if refusal is not None:
        await store_pace(engine, claim)
    elif engine.health.note_call(answered=answered):
        await store_health(engine, answered=answered)
    if ruling.verdict is Verdict.SUSPEND:
        await _suspend(engine, slot, claim, ruling, resumes)
        return
    unpaid = 0
    if refusal is not None or not error.fault.request_sent:
        unpaid = engine.sync_lane.count_unpaid(claim.id)
    costs = call_costs(
        claim.terms, engine.now(), unpaid=unpaid, refused=refusal is not None, costs=ruling.costs_attempt
    )
    tried = _tried(claim, costs=costs)
    if refusal is None:
        wait = asked or backoff(max(tried.attempts, unpaid), engine.policy)
    elif refusal is Refusal.OVERLOADED:  # this call waits so long; the pacer decides how much the lane slows down
        wait = max(asked or _ZERO, overload_pause(unpaid))
    else:
        wait = _ZERO  # the pacer holds up the whole lane
    if ruling.verdict is Verdict.RETRY and _may_call(engine, tried):
        engine.setbacks.refused(_CALLING, "calling the sync lane", error.fault, max(wait, asked or _ZERO))
        await _retry(engine, slot, tried, wait, costs=costs, maybe_billed=ruling.maybe_billed)
        return
    engine.sync_lane.forget_unpaid(claim.id)
    outcome = ruling.outcome or Outcome.FAILED
    reason = ruling.error or ResultError("unknown_error", "the API gave no reason", retryable=True)
    await _settle(engine, slot, _failure(claim, outcome, reason, error, maybe_billed=ruling.maybe_billed))


async def _retry(
    engine: Engine,
    slot: Slot,
    claim: Claim,
    wait: timedelta,
    *,
    costs: bool,
    maybe_billed: bool,
    turn: bytes | None = None,
) -> None:
    """Store the try, and try again in this process. `turn`: a message that came, after which the request goes on."""
    if costs or maybe_billed:

        def note() -> bool:
            return engine.ledger.note_attempt(
                claim.id,
                run=engine.run,
                costs_attempt=costs,
                maybe_billed=maybe_billed,
                now=engine.now(),
                max_spend=engine.spend_limit.max_spend(),
                turn=None if turn is None else Turn(turn, claim.body, claim.terms.asked),
            )

        try:
            noted = await (store(note) if turn is None else store_surely(note))
        except SpendLimitError:
            await _settle(engine, slot, _failure(claim, Outcome.FAILED, UNAFFORDABLE, maybe_billed=True))
            return
        if not noted:
            return  # it is settled, or another run has it
    urgent = claim.terms.deadline is not None
    engine.sync_lane.push(claim, urgent=urgent, wait=max(0.001, wait / timedelta(seconds=1)) if wait else 0.0)


async def _suspend(engine: Engine, slot: Slot, claim: Claim, ruling: Ruling, resumes: int) -> None:
    """Suspend the sync lane, because no call can succeed now, and queue this request again.

    If the lane was resumed after this call began, the call proves nothing: the request is tried again.
    """
    costs = ruling.costs_attempt
    tried = _tried(claim, costs=costs)
    if not _may_call(engine, tried) and ruling.error is not None:
        await _settle(engine, slot, _failure(claim, Outcome.FAILED, ruling.error))
        return

    def rest() -> list[Claim] | None:
        if not engine.suspensions.suspend(Lane.SYNC, ruling.reason or "the API refuses all work", resumes=resumes):
            return None
        waiting = engine.queue.drain()
        engine.sync_lane.give_back([claim], costs_attempt=costs)
        engine.sync_lane.give_back(waiting)
        return waiting

    waiting = await store(rest)
    if waiting is None:
        await _retry(engine, slot, tried, timedelta(0), costs=costs, maybe_billed=False)
        return
    _finish(engine, slot)
    engine.announcing.settled([part.id for part in waiting])
