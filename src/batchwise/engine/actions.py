"""Maps each action of the planner to the procedure that carries it out. Exhaustive; decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import attrs

from batchwise.events import Rescued
from batchwise.ledger.values import Which
from batchwise.models import Lane, Outcome, ResultError
from batchwise.planning import agenda
from batchwise.planning.capacity import calls_at_once, limits_of
from batchwise.planning.state import BatchState, BatchView

from .collection import cancel, collect, move_from_batch, poll, probe
from .core import Engine
from .effects import store
from .reconciliation import give_up, reconcile
from .settlements import settlement_without_answer
from .submission import submit, take_back

__all__ = ["carry_out", "withdraw"]

_BACKLOG = 256
"""The most claims of a class that wait in one process: few, so that urgent work that comes later need not wait."""


async def carry_out(engine: Engine, action: agenda.Action) -> None:
    """Carry out an action of the planner."""
    match action:
        case agenda.Seal():
            await submit(engine, action)
        case agenda.Run():
            await _run_claims(engine, action)
        case agenda.Move():
            await _move(engine, action)
        case agenda.FailLate():
            await _fail_late(engine, action)
        case agenda.WaitUntil():
            return
        case agenda.MoveFromBatch():
            batch = await store(engine.ledger.batches.get, action.batch)
            if batch is not None:
                await move_from_batch(engine, batch, action.terms)
        case agenda.Probe():
            await probe(engine, action.batch, action.terms)
        case _:
            await engine.workspace.check()
            batch = await store(engine.ledger.batches.get, action.batch)
            if batch is not None:
                await _with_batch(engine, action, batch)


async def _with_batch(
    engine: Engine,
    action: agenda.Unseal | agenda.Reconcile | agenda.GiveUp | agenda.Poll | agenda.Cancel | agenda.Collect,
    batch: BatchView,
) -> None:
    match action:
        case agenda.Unseal() if batch.state is BatchState.SEALED:
            await store(take_back, engine, batch)  # the process that sealed it died before it sent it
        case agenda.Reconcile() if batch.state in {BatchState.IN_DOUBT, BatchState.WATCHED}:
            await reconcile(engine, batch)
        case agenda.GiveUp() if batch.state is BatchState.IN_DOUBT:
            await give_up(engine, batch)
        case agenda.Poll() if batch.state in {BatchState.OPEN, BatchState.CANCELING}:
            await poll(engine, batch)
        case agenda.Cancel() if batch.state is BatchState.OPEN:
            await cancel(engine, batch)
        case agenda.Collect() if batch.state is BatchState.ENDED:
            await collect(engine, batch)
        case agenda.Unseal() | agenda.Reconcile() | agenda.GiveUp():
            return  # it has moved on
        case agenda.Poll() | agenda.Cancel() | agenda.Collect():
            return
        case _:
            _unreachable(action)


def _unreachable(action: NoReturn) -> NoReturn:
    raise AssertionError(action)


async def _run_claims(engine: Engine, action: agenda.Run) -> None:
    """Hand queued requests to this process's sync lane, as many as it can soon call."""
    at_once = calls_at_once(limits_of(action.model, engine.policy.limits, engine.queue.stored_limits_of(action.model)))
    room = (_BACKLOG if action.urgent else 0) + at_once + _BACKLOG - engine.queue.busy_with(action.model)
    if room <= 0:
        return
    most = min(room, action.requests)
    claims = await store(engine.ledger.claim, action.terms, most, run=engine.run, now=engine.now())
    for claim in claims:
        engine.sync_lane.push(claim, urgent=action.urgent)


async def _move(engine: Engine, action: agenda.Move) -> None:
    queued = Which(terms=[action.terms])
    moved = await store(engine.ledger.requeue, queued, lane=action.lane, now=engine.now())
    if moved and action.lane is Lane.SYNC:
        engine.emitter.emit(Rescued(at=engine.now(), batch=None, requests=moved, canceled=False))


async def _fail_late(engine: Engine, action: agenda.FailLate) -> None:
    """Settle overdue queued requests unsent, as the policy says."""
    error = ResultError(
        "late", "its deadline passed before it could be sent, and Policy.late is 'fail'", retryable=True
    )

    def fail() -> list[int]:
        ended = []
        while claims := engine.ledger.claim(action.terms, 1_000, run=engine.run, now=engine.now(), any_lane=True):
            engine.ledger.settle(
                [
                    settlement_without_answer(
                        claim.id, claim.key, Outcome.FAILED, error, lane=claim.terms.lane, attempted=False
                    )
                    for claim in claims
                ],
                now=engine.now(),
                run=engine.run,
            )
            ended += [claim.id for claim in claims]
        return ended

    engine.announcing.settled(await store(fail))


async def withdraw(engine: Engine, *, request: int | None = None, job: int | None = None) -> int:
    """Cancel for the caller: one request, a job, or everything. Returns how many settled now.

    Queued requests settle at once. A batch whose rows all belong to them is cancelled, and the rows that it finished
    are still delivered. Rows in a batch with others, or in one that the API has not named yet, settle at once; if
    their results come later, their cost is booked.
    """
    ledger = engine.ledger
    which = Which(requests=None if request is None else [request], job=job)
    count, batches = await store(ledger.cancel, which, now=engine.now())
    for number in batches:
        batch = await store(ledger.batches.get, number)
        if batch is None:
            continue
        mine = await store(_mine, engine, batch, job, request)
        whole = len(mine) == sum(group.requests for group in batch.groups)
        if batch.adopted and not whole:
            continue  # only its results tell which request a row belongs to
        if batch.remote_id is None or not whole:
            count += await store(_settle_shared, engine, batch, mine)
            continue
        asked = attrs.evolve(batch, canceled=True)
        await store(ledger.batches.update, asked, was=batch)
        if asked.state is BatchState.OPEN:
            await cancel(engine, asked)
    engine.announcing.settled([] if request is None else [request])
    return count


def _mine(engine: Engine, batch: BatchView, job: int | None, request: int | None) -> list[int]:
    return [number for number in engine.ledger.numbers(Which(batch=batch.id, job=job)) if request in {None, number}]


def _settle_shared(engine: Engine, batch: BatchView, mine: Sequence[int]) -> int:
    error = ResultError("canceled", "canceled by the caller while its batch ran", retryable=True)
    settlements = [
        settlement_without_answer(
            number, member.key, Outcome.CANCELED, error, lane=Lane.BATCH, nonce=batch.nonce, unseen=True
        )
        for number, member in engine.ledger.rows(Which(requests=mine, batch=batch.id)).items()
    ]
    # Without `batch`: its rows may still come, and then their cost is booked.
    return engine.ledger.settle(settlements, now=engine.now())
