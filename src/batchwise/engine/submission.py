"""Submits a batch; reconciliation.py finds it again. docs/explanation/reliability.md.

1. List once: the newest id is the watermark, and the server's `Date` is noted.
2. Seal: a fresh nonce in every custom_id, and a count that no unfinished batch has.
3. Make `posting` durable, then POST once. The last chunk is held back until it is certain that this process sends the
   batch.
4. A batch whose create has an unknown outcome is in doubt: it is looked for before any of its requests is sent again.
5. Failures in a row suspend the lane with their reason, so that nothing is sent for ever. The ledger counts them, for
   each run of a cron line is a new process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timedelta
from time import monotonic

import attrs

from batchwise.api.faults import LaneFault
from batchwise.api.types import BatchInfo, Listing
from batchwise.errors import BatchwiseError, LedgerError
from batchwise.events import Hedged, Submitted
from batchwise.ledger.values import Which
from batchwise.models import Lane, Outcome
from batchwise.planning.agenda import Seal
from batchwise.planning.clock_skew import longest_pause
from batchwise.planning.custom_ids import new_nonce, sealer
from batchwise.planning.outcomes import CreateOutcome, CreateRuling, Fault, rule_create
from batchwise.planning.packing import MAX_BYTES, Sizes, body_chunks
from batchwise.planning.state import BatchState, BatchView

from .core import Engine
from .effects import store, store_surely
from .pauses import backoff
from .ports import api
from .settlements import settlement_without_answer
from .suspensions import MAX_FAILURES

__all__ = ["FenceError", "record_created", "submit", "take_back"]

_SENDING = "sending"
"""The setback's name when the API takes no batch."""
_REFUSED = 10
"""Batches of one request refused in a row before the lane is suspended."""
_CUT_OFF = 3
"""Uploads cut off in a row before they are taken for too large: a proxy may close without a 413."""
_LARGE = 1_000_000
"""Bytes from which on a body may be too large for some proxy; 1 MB is the smallest limit in common use."""
_CHECKED = 50_000
"""Bytes of bodies between two checks whether the process stood still."""


class FenceError(BatchwiseError):
    """The create was broken off before its last chunk: it stood still too long, or its requests had gone elsewhere."""


def _clock() -> Callable[[], float]:
    """Return a clock that also runs while the machine sleeps, where the system has one."""
    import time

    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return monotonic if boot is None else lambda: time.clock_gettime(boot)


async def submit(engine: Engine, seal: Seal) -> None:
    """Seal queued requests into a batch and send it."""
    resumes = engine.suspensions.resumes
    try:
        listing = await api.list()
    except LaneFault as error:
        await _not_created(engine, error.fault, rule_create(error.fault), resumes)
        return
    await store(engine.workspace.note_from, listing)
    batch = await store(_seal, engine, seal, listing)
    if batch is None:
        return
    token = engine.under_way.sealed(batch.id)
    try:
        if await store(_mark_posting, engine, batch, listing):
            await _post(engine, batch)
    finally:  # if it is still `posting`, the next pass puts it in doubt
        engine.under_way.end(token)


def _seal(engine: Engine, seal: Seal, listing: Listing) -> BatchView | None:
    """Seal a batch whose number of requests no unfinished batch has, whether that is listed or not."""
    listed = {info.counts.total for info in listing.batches if info.status != "ended"}
    known = engine.ledger.snapshot()
    unfinished = {batch.requests for batch in known.batches if batch.state is not BatchState.ENDED}
    return engine.ledger.batches.seal(
        seal.terms,
        nonce=new_nonce(os.urandom(16)),
        taken=frozenset(listed | unfinished),
        now=engine.now(),
        max_requests=known.sizes.most(seal.max_requests),
        max_bytes=MAX_BYTES,
        caching=seal.caching,
    )


def _mark_posting(engine: Engine, batch: BatchView, listing: Listing) -> bool:
    """Store that the batch is `posting`; False if its requests have left it, or another process has the lease."""
    posting = attrs.evolve(
        batch,
        state=BatchState.POSTING,
        watermark=listing.batches[0].id if listing.batches else None,
        posting_server=listing.server_time,
        posting_at=engine.now(),
    )
    return engine.ledger.batches.update(posting, was=batch)


async def _post(engine: Engine, batch: BatchView) -> None:
    resumes = engine.suspensions.resumes
    seal, clock, grace = sealer(batch.nonce), _clock(), engine.policy.create_grace / timedelta(seconds=1)
    seen = [clock()]

    def go_on() -> None:
        now = clock()
        if now - seen[0] > max(grace, 600.0):
            raise FenceError("the process stood still while it sent a batch; the create was broken off")
        seen[0] = now

    def entries() -> object:
        passed = 0
        for number, key, body in engine.ledger.batches.entries(batch.id):
            passed += len(body)
            if passed > _CHECKED:
                go_on()
                passed = 0
            yield seal(key, number), body

    def check_sender() -> None:
        go_on()
        if not engine.ledger.batches.still_posting(batch.id):
            raise FenceError("a batch's requests had gone elsewhere before its create was sent; it was broken off")

    chunks = body_chunks(entries(), before_last=check_sender)  # type: ignore[arg-type]  # a generator of pairs
    try:
        created = await api.create(chunks, batch.size, batch.betas)
    except LaneFault as error:
        await _not_answered(engine, batch, error.fault, engine.now(), resumes)
        return
    except (FenceError, LedgerError):  # the last chunk was not sent: nothing is created
        await store_surely(take_back, engine, batch)
        return
    await store_surely(record_created, engine, batch, created)


def take_back(engine: Engine, batch: BatchView) -> None:
    """Queue the requests of a batch again that was not created."""
    engine.ledger.requeue(Which(batch=batch.id), lane=Lane.BATCH, now=engine.now())


def _resize(engine: Engine, batch: BatchView, because: Callable[[Sizes, int], Sizes]) -> None:
    """Store the sizes of the next batches, for all processes, after a create of this size."""
    engine.ledger.conditions.resize(lambda sizes: because(sizes, batch.requests))


def record_created(engine: Engine, batch: BatchView, info: BatchInfo) -> None:
    """Record that the batch was created, and let batches grow again."""
    engine.ledger.batches.created(
        batch.id,
        remote_id=info.id,
        created_at=info.created_at,
        expires_at=info.expires_at,
        now=engine.now(),
    )
    engine.setbacks.resolved(_SENDING)
    _resize(engine, batch, Sizes.worked)
    _emit_created(engine, batch, info)


def _emit_created(engine: Engine, batch: BatchView, info: BatchInfo) -> None:
    jobs = dict.fromkeys(group.terms.job for group in batch.groups)
    engine.emitter.emit(
        Submitted(
            at=engine.now(),
            batch=info.id,
            requests=batch.requests,
            model=batch.model,
            jobs=tuple(map(engine.ledger.jobs.name, jobs)),
            size=batch.size,
            sealed_at=batch.sealed_at,
            expires_at=info.expires_at,
        )
    )
    hedged = sum(group.requests for group in batch.groups if group.terms.hedged)
    if hedged:
        engine.emitter.emit(Hedged(at=engine.now(), batch=info.id, requests=hedged))


async def _cut_off(engine: Engine, batch: BatchView, fault: Fault) -> bool:
    """Whether the upload seems to be too large: the API listed its batches, yet cuts off large bodies every time."""
    if fault.status is not None or fault.request_sent or batch.requests < 2 or batch.size < _LARGE:
        return False
    cut_off = await store(engine.ledger.conditions.note_failure, "cut off", now=engine.now())
    return cut_off.times >= _CUT_OFF


async def _not_answered(engine: Engine, batch: BatchView, fault: Fault, sent: datetime, resumes: int) -> None:
    ledger, ruling = engine.ledger, rule_create(fault)
    if await _cut_off(engine, batch, fault):
        ruling = attrs.evolve(ruling, outcome=CreateOutcome.TOO_LARGE)
    match ruling.outcome:
        case CreateOutcome.UNKNOWN:
            engine.setbacks.refused(_SENDING, "sending a batch", fault, engine.policy.poll_every[0])
            # Read it again: `batch` was read before `posting`, and a caller may have cancelled meanwhile.
            posting = await store(engine.ledger.batches.get, batch.id)
            if posting is not None:
                doubt = attrs.evolve(posting, state=BatchState.IN_DOUBT, last_byte_at=sent, polled_at=None, failures=0)
                await store(ledger.batches.update, doubt, was=posting)
        case CreateOutcome.TOO_LARGE if batch.requests > 1:
            await store(_resize, engine, batch, Sizes.too_large)
            await store(take_back, engine, batch)
        case CreateOutcome.TOO_LARGE | CreateOutcome.INVALID:
            await _culprit(engine, batch, ruling)
        case _:
            smaller = ruling.outcome is CreateOutcome.QUEUE_FULL and batch.requests > 1
            if smaller:
                await store(_resize, engine, batch, Sizes.full)
            # First: requests that are queued while the lane takes work are sent again at once.
            await _not_created(engine, fault, ruling, resumes, smaller=smaller)
            await store(take_back, engine, batch)


async def _culprit(engine: Engine, batch: BatchView, ruling: CreateRuling) -> None:
    """Fail the requests that make a create invalid; where the API names none, halve the batch until one is left."""
    named = ruling.everyone or bool(ruling.culprits)
    if not named and batch.requests > 1:
        await store(_resize, engine, batch, Sizes.spoiled)
        await store(take_back, engine, batch)
        return
    if not named:
        await _count_refusal(engine, ruling)
    engine.announcing.settled(await store(_fail_culprits, engine, batch, ruling))


async def _count_refusal(engine: Engine, ruling: CreateRuling) -> None:
    """A request was refused alone in its batch. If many are in a row, their cause is not theirs: suspend the lane."""
    refused = await store(engine.ledger.conditions.note_failure, "refused", now=engine.now())
    if refused.times >= _REFUSED:
        reason = (
            f"{refused.times} requests in a row were refused, each alone in its batch, the last with "
            f"{ruling.error.type}; their results say why. Fix what the requests share, then resume()"
        )
        await store(engine.suspensions.suspend, Lane.BATCH, reason)


def _fail_culprits(engine: Engine, batch: BatchView, ruling: CreateRuling) -> list[int]:
    """Fail the requests that make a create invalid, and queue the others again. Returns the numbers of the failed."""
    ledger, everyone = engine.ledger, ruling.everyone or batch.requests == 1
    guilty = [
        number
        for position, (number, _, _) in enumerate(ledger.batches.entries(batch.id))
        if everyone or position in ruling.culprits
    ]
    settlements = [
        settlement_without_answer(number, member.key, Outcome.FAILED, ruling.error, lane=Lane.BATCH, nonce=batch.nonce)
        for number, member in ledger.rows(Which(requests=guilty, batch=batch.id)).items()
    ]
    ledger.settle(settlements, now=engine.now(), batch=batch.id)
    take_back(engine, batch)
    return guilty


async def _not_created(
    engine: Engine, fault: Fault, ruling: CreateRuling, resumes: int, *, smaller: bool = False
) -> None:
    """Pause or suspend the lane: nothing was created. `smaller`: the next batch is smaller, and is tried soon."""
    full = ruling.outcome is CreateOutcome.QUEUE_FULL
    reason, wait = ruling.reason, fault.retry_after or timedelta(0)
    if reason is None:
        failed = await store(engine.ledger.conditions.note_failure, "full" if full else "create", now=engine.now())
        wait = fault.retry_after or (engine.policy.poll_every[0] if smaller else backoff(failed.times, engine.policy))
        if not full and failed.times >= MAX_FAILURES:
            reason = (
                f"{failed.times} create calls in a row failed, the last time: {fault.summary}; see whether the API can "
                "be reached, then resume()"
            )
        lasts = engine.now() - failed.since > engine.policy.window  # the batches that filled the queue have ended
        if full and lasts and failed.times >= MAX_FAILURES:  # the clock may have been set: one refusal lasts no window
            reason = (
                f"the API has refused every batch for a whole window ({fault.summary}); see what fills the "
                "account's queue, then resume()"
            )
    if reason is None:
        pause = min(wait, longest_pause(engine.policy))
        engine.setbacks.refused(_SENDING, "sending a batch", fault, pause)
        await store(engine.ledger.conditions.note, batch_paused_until=engine.now() + pause)
    else:
        engine.setbacks.resolved(_SENDING)  # the suspension says what to do
        await store(engine.suspensions.suspend, Lane.BATCH, reason, resumes=resumes)
