"""How the end of a batch is noticed, and how its rows are collected: each once, and none taken for granted.

`ended` proves nothing. Every custom_id that was sent is ticked off, and rows without an answer are checked against the
API's `request_counts`. A read that is short, broken or differs from those counts is repeated before a row is bought
again. A failed read is no reason to buy a row again: it is repeated, and in the end suspends the lane.
"""

from __future__ import annotations

import logging
from datetime import timedelta

import attrs

from batchwise.api.faults import LaneFault
from batchwise.api.types import BatchInfo
from batchwise.errors import printable
from batchwise.events import Collected, Ended, Rescued
from batchwise.ledger.values import Which
from batchwise.models import Lane, Outcome, ResultError
from batchwise.planning.batch_results import archived, credible
from batchwise.planning.outcomes import Ruling, Verdict, rule_call
from batchwise.planning.retries import pause_after_failures
from batchwise.planning.state import BatchState, BatchView

from .core import Engine
from .effects import store
from .ports import api
from .reading import Reader
from .sorting import CHUNK, Sorter
from .suspensions import MAX_FAILURES

__all__ = ["cancel", "collect", "move_from_batch", "poll", "probe"]

_log = logging.getLogger("batchwise")

_ZERO = timedelta(0)
_REREADS = 3
"""How often a read that lacks rows is repeated before they are bought again."""
_YOUNG = timedelta(minutes=5)
"""A batch so young may be unknown to `retrieve` (seen: for a second or so)."""


async def poll(engine: Engine, batch: BatchView) -> None:
    """Ask the API how far a batch is."""
    remote, resumes = batch.remote_id or "", engine.suspensions.resumes
    try:
        info = await api.retrieve(remote)
    except LaneFault as error:
        await _unreadable(engine, batch, error, resumes)
        return
    await _seen(engine, batch, info)


async def _seen(engine: Engine, batch: BatchView, info: BatchInfo) -> None:
    """Store what the API says of a batch, unless the batch should have ended long ago and has not."""
    if info.status != "ended" and _overdue(engine, info):
        await _note_failed_look(engine, batch, f"it should have ended at {info.expires_at:%Y-%m-%d %H:%M} UTC")
        return
    engine.setbacks.resolved(_asking(batch))
    await store(_update, engine, batch, info, was=batch)


def _overdue(engine: Engine, info: BatchInfo) -> bool:
    """Return whether the batch should have ended long ago; both times are the server's."""
    return info.server_time is not None and info.server_time > info.expires_at + engine.policy.create_grace


async def cancel(engine: Engine, batch: BatchView) -> None:
    """Cancel a batch; the rows that it finished are collected when it has ended."""
    remote, now = batch.remote_id or "", engine.now()
    if batch.groups and not batch.canceled and batch.cancel_at is None:  # else it was announced before
        requests = sum(group.requests for group in batch.groups)
        engine.emitter.emit(Rescued(at=now, batch=remote, requests=requests, canceled=True))
    asked = attrs.evolve(batch, state=BatchState.CANCELING, cancel_at=batch.cancel_at or now, polled_at=now)
    # First: the last safe moment of its rows may come before the API answers.
    if not await store(engine.ledger.batches.update, asked, was=batch):
        return
    try:
        info = await api.cancel(remote)
    except LaneFault:  # the batch may have ended, or the cancel may have arrived: the next poll tells
        return
    await store(_update, engine, asked, info, was=asked)


async def move_from_batch(engine: Engine, batch: BatchView, terms: tuple[int, ...]) -> None:
    """Queue rows of a batch for the sync lane, whatever becomes of the batch: their last safe moment has come."""

    def queue() -> None:
        if batch.state is BatchState.SEALED:  # never sent: the planner moves due rows from the queue
            engine.ledger.requeue(Which(batch=batch.id), lane=Lane.BATCH, now=engine.now())
            return
        now = engine.now()
        due = Which(batch=batch.id, terms=terms)
        moved = engine.ledger.requeue(due, lane=Lane.SYNC, now=now, keep=True, maybe_billed=True)
        if moved:
            engine.emitter.emit(Rescued(at=now, batch=batch.remote_id, requests=moved, canceled=False))
        left = {group.terms.id for group in batch.groups} - set(terms)
        if batch.state is BatchState.IN_DOUBT and not left:
            engine.ledger.batches.update(attrs.evolve(batch, state=BatchState.WATCHED), was=batch)

    await store(queue)


async def probe(engine: Engine, batch: int, terms: int) -> None:
    """Queue one request of a batch for the sync lane, to see that the lane works before the others need it."""

    def queue() -> None:
        ledger = engine.ledger
        numbers = ledger.numbers(Which(batch=batch))[::-1]  # the batch may come to the last one last
        for start in range(0, len(numbers), CHUNK):
            members = ledger.rows(Which(requests=numbers[start : start + CHUNK], batch=batch))
            found = [number for number in members if members[number].terms.id == terms]
            if found:
                one = Which(requests=[max(found)], batch=batch)
                ledger.requeue(one, lane=Lane.SYNC, now=engine.now(), maybe_billed=True)
                return

    await store(queue)


def _emit_ended(engine: Engine, batch: BatchView, info: BatchInfo) -> None:
    ended = info.ended_at or info.expires_at
    engine.emitter.emit(
        Ended(
            at=engine.now(),
            batch=info.id,
            requests=batch.requests,
            model=batch.model,
            duration=max(_ZERO, ended - info.created_at),
        )
    )


def _update(engine: Engine, batch: BatchView, info: BatchInfo, *, was: BatchView) -> None:
    """Store what the API says of a batch. One that runs on after a cancel is open, so it is cancelled again."""
    states = {"in_progress": BatchState.OPEN, "canceling": BatchState.CANCELING, "ended": BatchState.ENDED}
    state = states[info.status]
    now = engine.now()
    if info.server_time is not None:
        engine.ledger.conditions.note(clock_offset=info.server_time - now)
    stored = engine.ledger.batches.update(
        attrs.evolve(
            batch,
            state=state,
            created_at=info.created_at,
            expires_at=info.expires_at,
            ended_at=info.ended_at,
            counts=credible(info.counts.by_result, batch.requests) if state is BatchState.ENDED else None,
            polled_at=now,
            failures=0,
        ),
        was=was,
    )
    if stored and state is BatchState.ENDED and batch.state is not BatchState.ENDED:
        _emit_ended(engine, batch, info)


def _asking(batch: BatchView) -> str:
    """Return the setback's name when the API does not answer for a batch."""
    return f"batch {batch.id}"


async def _unreadable(engine: Engine, batch: BatchView, error: LaneFault, resumes: int) -> None:
    """Note a poll or read that failed, for another try. One 404 proves nothing: results may come later than the end."""
    fault, ruling = error.fault, rule_call(error.fault)
    words = fault.summary
    engine.setbacks.refused(
        _asking(batch),
        f"asking about batch {printable(batch.remote_id or '')}",
        fault,
        pause_after_failures(batch.failures + 1, engine.policy),
    )
    if fault.status == 404:
        young = engine.now() - (batch.posting_at or batch.sealed_at) < _YOUNG
        if batch.failures >= _REREADS and not young:
            await _unknown(engine, batch, words)
            return
        noted = attrs.evolve(batch, polled_at=engine.now(), failures=batch.failures + 1)
        await store(engine.ledger.batches.update, noted, was=batch)
        return
    reason = (ruling.reason or "") if ruling.verdict is Verdict.SUSPEND else None
    await _note_failed_look(engine, batch, words, reason, resumes=resumes)


async def _unknown(engine: Engine, batch: BatchView, words: str) -> None:
    """Decide by the listing when the API still does not know the batch, or its results."""
    try:
        info, certain = await _listed(batch)
    except LaneFault as unlisted:
        await _note_failed_look(engine, batch, unlisted.fault.summary)
        return
    if info is None and certain:
        await _lost(engine, batch, _gone("batch_gone", "the API knows the batch no more", verdict=Verdict.RETRY))
    elif info is not None and batch.state is not BatchState.ENDED:
        await _seen(engine, batch, info)
    elif info is not None and archived(info.archived_at, info.created_at, info.server_time or engine.now()):
        words = "the batch's results were not read within 29 days of its creation, and the API keeps them no longer"
        await _lost(engine, batch, _gone("results_archived", words, verdict=Verdict.SETTLE))
    else:
        await _note_failed_look(engine, batch, words)


async def _listed(batch: BatchView) -> tuple[BatchInfo | None, bool]:
    """Return the batch as listed, and whether that is certain; (None, False): an unreadable entry may be it."""
    after: str | None = None
    certain = True
    while True:
        listing = await api.list(after_id=after)
        for info in listing.batches:
            if info.id == batch.remote_id:
                return info, True
            if batch.created_at is not None and info.created_at < batch.created_at:
                return None, certain and not listing.unknown
        certain = certain and not listing.unknown
        if not listing.has_more or listing.last_id is None:
            return None, certain
        after = listing.last_id


async def _note_failed_look(
    engine: Engine, batch: BatchView, words: str, reason: str | None = None, *, resumes: int | None = None
) -> None:
    """Note a failed look at the batch; in the end suspend the lane. No row is bought again because of it."""
    failures = batch.failures + 1
    noted = attrs.evolve(batch, polled_at=engine.now(), failures=failures)
    await store(engine.ledger.batches.update, noted, was=batch)
    if reason is None and failures >= MAX_FAILURES:
        reason = (
            f"batch {printable(batch.remote_id or '')} could not be read {failures} times in a row ({words}); "
            "see whether the API can be reached, then resume()"
        )
    if reason is not None:
        await store(engine.suspensions.suspend, Lane.BATCH, reason, resumes=resumes)


def _gone(kind: str, words: str, *, verdict: Verdict) -> Ruling:
    """Return the ruling on requests whose rows will not come. They may have been billed."""
    error = ResultError(kind, words, retryable=True)
    return Ruling(verdict=verdict, outcome=Outcome.FAILED, error=error, maybe_billed=True)


async def _lost(engine: Engine, batch: BatchView, ruling: Ruling) -> None:
    """Settle or requeue the requests of a batch whose rows will not come."""
    engine.setbacks.resolved(_asking(batch))

    def give_back() -> list[int]:
        sorter = Sorter(engine, batch)
        numbers = engine.ledger.numbers(Which(batch=batch.id))
        for start in range(0, len(numbers), CHUNK):
            members = engine.ledger.rows(Which(requests=numbers[start : start + CHUNK], batch=batch.id))
            for number, member in members.items():
                sorter.add_failure(number, member, ruling, None)
            sorter.write()
        engine.ledger.batches.update(attrs.evolve(batch, state=BatchState.CLOSED), was=batch)
        return sorter.ended

    engine.announcing.settled(await store(give_back))


async def collect(engine: Engine, batch: BatchView) -> None:
    """Read an ended batch's rows, settle them, and tick them off."""
    remote, resumes = batch.remote_id or "", engine.suspensions.resumes
    reader = await store(Reader, engine, batch, last=batch.failures >= _REREADS)
    fault: LaneFault | None = None
    try:
        await api.read(remote, reader.feed)
    except LaneFault as error:
        fault = error
    whole = fault is None
    missing = await store(reader.finish, whole=whole)
    _emit_collected(engine, batch, reader, len(missing))
    if reader.off and whole and (batch.failures >= _REREADS or not missing):
        _log.warning(
            "batchwise: the results of batch %s differ from its request_counts (%s); batchwise goes by the rows",
            printable(remote),
            ", ".join(f"{kind}: {more:+d}" for kind, more in reader.off.items()),
        )
    if whole:
        engine.setbacks.resolved(_asking(batch))
    if not missing:
        closed = attrs.evolve(batch, state=BatchState.CLOSED, polled_at=engine.now())
        await store(engine.ledger.batches.update, closed, was=batch)
    elif fault is not None:
        await _unreadable(engine, batch, fault, resumes)
    elif batch.failures < _REREADS:
        await _note_failed_look(engine, batch, "rows are missing from its results, or differ from what the API counted")
    else:
        words = "the batch ended without a readable row for this request"
        await _lost(engine, batch, _gone("missing_row", words, verdict=Verdict.RETRY))


def _emit_collected(engine: Engine, batch: BatchView, reader: Reader, missing: int) -> None:
    rescued = reader.sorter.rescued
    if rescued:
        engine.emitter.emit(Rescued(at=engine.now(), batch=batch.remote_id, requests=rescued, canceled=False))
    engine.emitter.emit(
        Collected(
            at=engine.now(),
            batch=batch.remote_id or "",
            requests=batch.requests,
            settled=reader.sorter.settled,
            missing=missing,
            model=batch.model,
            created_at=batch.created_at or batch.sealed_at,
        )
    )
