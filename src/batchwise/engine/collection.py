"""How a batch's end is noticed and its rows are collected: each once, and none taken for granted.

`ended` proves nothing: every custom_id that was sent is ticked off, and rows without an answer are checked against the
API's `request_counts`; a short, broken or doubtful read is read again before anything is bought again. Reads that fail
are never a reason to buy again: they go on, and in the end suspend the lane.
"""

from __future__ import annotations

import logging
from contextlib import closing
from datetime import timedelta

import attrs

from batchwise.errors import printable
from batchwise.events import Collected, Ended, Rescued
from batchwise.lanes.faults import LaneFault
from batchwise.lanes.values import BatchInfo
from batchwise.models import Lane, Outcome, ResultError
from batchwise.planning.batches import pause_after_failures
from batchwise.planning.outcomes import Ruling, Verdict, archived, credible, rule_call
from batchwise.planning.state import BatchState, BatchView

from .core import Engine
from .effects import Procedure, api, page, store
from .reading import CHUNK, Reader, Sorter

__all__ = ["cancel", "collect", "poll", "probe", "release"]

_log = logging.getLogger("batchwise")

_ZERO = timedelta(0)
_REREADS = 3
"""How often a short read is repeated before missing rows are bought again."""
_TROUBLES = 10
"""Polls or reads of one batch that fail in a row before the lane is suspended."""
_YOUNG = timedelta(minutes=5)
"""A batch just created may be unknown to `retrieve` for a moment (seen: a second or so)."""


def poll(engine: Engine, batch: BatchView) -> Procedure[None]:
    """Ask how a batch is doing."""
    remote, resumes = batch.remote_id or "", engine.resumes
    try:
        info = yield from api(lambda ports: ports.retrieve(remote))
    except LaneFault as error:
        yield from _unreadable(engine, batch, error, resumes)
        return
    yield from _seen(engine, batch, info)


def _seen(engine: Engine, batch: BatchView, info: BatchInfo) -> Procedure[None]:
    """Take over what the API says of a batch, unless that cannot be any more."""
    if info.status != "ended" and _overdue(engine, info):
        yield from _again(engine, batch, f"it should have ended at {info.expires_at:%Y-%m-%d %H:%M} UTC")
        return
    engine.setbacks.mended(_asking(batch))
    yield from store(lambda: _update(engine, batch, info, was=batch))


def _overdue(engine: Engine, info: BatchInfo) -> bool:
    """Whether it ought to have ended long ago; both times are the server's."""
    return info.server_time is not None and info.server_time > info.expires_at + engine.policy.create_grace


def cancel(engine: Engine, batch: BatchView) -> Procedure[None]:
    """Cancel a batch; what it finished is collected when it has ended."""
    remote, now = batch.remote_id or "", engine.now()
    if batch.groups and not batch.canceled and batch.cancel_at is None:  # else it is asked again, and was told
        requests = sum(group.requests for group in batch.groups)
        engine.telling.tell(Rescued(at=now, batch=remote, requests=requests, canceled=True))
    asked = attrs.evolve(batch, state=BatchState.CANCELING, cancel_at=batch.cancel_at or now, polled_at=now)
    try:
        info = yield from api(lambda ports: ports.cancel(remote))
    except LaneFault:  # it may have ended just now, or the cancel may have arrived: the next poll tells
        yield from store(lambda: engine.ledger.update_batch(asked, was=batch))
        return
    yield from store(lambda: _update(engine, asked, info, was=batch))


def release(engine: Engine, batch: BatchView, terms: tuple[int, ...]) -> Procedure[None]:
    """Queue its rows for the sync lane, whatever becomes of it: their last safe moment has come."""

    def queue() -> None:
        if batch.state is BatchState.SEALED:  # never sent: back into the queue, where what is due changes lanes
            engine.ledger.unseal(batch.id, now=engine.now())
            return
        now = engine.now()
        moved = engine.ledger.unseal(batch.id, lane=Lane.SYNC, now=now, keep=True, doubtful=True, terms=terms)
        if moved:
            engine.telling.tell(Rescued(at=now, batch=batch.remote_id, requests=moved, canceled=False))
        left = {group.terms.id for group in batch.groups} - set(terms)
        if batch.state is BatchState.DOUBT and not left:
            engine.ledger.update_batch(attrs.evolve(batch, state=BatchState.WATCHED), was=batch)

    yield from store(queue)


def probe(engine: Engine, batch: int, terms: int) -> Procedure[None]:
    """Queue one of its requests for the sync lane, to see that it works before the others need it."""

    def queue() -> None:
        ledger = engine.ledger
        numbers = ledger.missing(batch)[::-1]  # the last may be the one that the batch comes to last
        for start in range(0, len(numbers), CHUNK):
            members = ledger.members(numbers[start : start + CHUNK], batch=batch)
            found = [number for number in members if members[number].terms.id == terms]
            if found:
                one, now = max(found), engine.now()
                ledger.requeue([one], lane=Lane.SYNC, costs_attempt=False, now=now, doubtful=True, batch=batch)
                return

    yield from store(queue)


def _tell_ended(engine: Engine, batch: BatchView, info: BatchInfo) -> None:
    ended = info.ended_at or info.expires_at
    engine.telling.tell(
        Ended(
            at=engine.now(),
            batch=info.id,
            requests=batch.requests,
            model=batch.model,
            duration=max(_ZERO, ended - info.created_at),
        )
    )


def _update(engine: Engine, batch: BatchView, info: BatchInfo, *, was: BatchView) -> None:
    """Take over what the API says. One that still runs although we asked for its end is open: it is asked again."""
    states = {"in_progress": BatchState.OPEN, "canceling": BatchState.CANCELING, "ended": BatchState.ENDED}
    state = states[info.status]
    now = engine.now()
    if info.server_time is not None:
        engine.ledger.note(clock_offset=info.server_time - now)
    stored = engine.ledger.update_batch(
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
        _tell_ended(engine, batch, info)


def _asking(batch: BatchView) -> str:
    """Under which name it is noted that the API does not answer for a batch."""
    return f"batch {batch.id}"


def _unreadable(engine: Engine, batch: BatchView, error: LaneFault, resumes: int) -> Procedure[None]:
    """A poll or a read failed: again later. A 404 alone loses nothing: the results may come later than the end."""
    fault, ruling = error.fault, rule_call(error.fault)
    words = f"{fault.type}: {fault.message}"
    engine.setbacks.refused(
        _asking(batch),
        f"asking about batch {printable(batch.remote_id or '')}",
        fault,
        pause_after_failures(batch.failures + 1, engine.policy),
    )
    if fault.status == 404:
        young = engine.now() - (batch.posting_at or batch.sealed_at) < _YOUNG
        if batch.failures >= _REREADS and not young:
            yield from _unknown(engine, batch, words)
            return
        noted = attrs.evolve(batch, polled_at=engine.now(), failures=batch.failures + 1)
        yield from store(lambda: engine.ledger.update_batch(noted, was=batch))
        return
    reason = (ruling.reason or "") if ruling.verdict is Verdict.SUSPEND else None
    yield from _again(engine, batch, words, reason, resumes=resumes)


def _unknown(engine: Engine, batch: BatchView, words: str) -> Procedure[None]:
    """The API goes on not knowing the batch, or its results: what the listing shows decides."""
    try:
        info, certain = yield from _listed(batch)
    except LaneFault as unlisted:
        yield from _again(engine, batch, f"{unlisted.fault.type}: {unlisted.fault.message}")
        return
    if info is None and certain:
        yield from _lost(engine, batch, _gone("batch_gone", "the API knows the batch no more", verdict=Verdict.RETRY))
    elif info is not None and batch.state is not BatchState.ENDED:
        yield from _seen(engine, batch, info)
    elif info is not None and archived(info.archived_at, info.created_at, info.server_time or engine.now()):
        words = "the batch's results were not read within 29 days of its creation, and the API keeps them no longer"
        yield from _lost(engine, batch, _gone("results_archived", words, verdict=Verdict.SETTLE))
    else:
        yield from _again(engine, batch, words)


def _listed(batch: BatchView) -> Procedure[tuple[BatchInfo | None, bool]]:
    """The batch as the listing shows it; None: not there, or, unless that is certain, there but not readable."""
    after: str | None = None
    certain = True
    while True:
        listing = yield from page(after)
        for info in listing.batches:
            if info.id == batch.remote_id:
                return info, True
            if batch.created_at is not None and info.created_at < batch.created_at:
                return None, certain and not listing.unknown
        certain = certain and not listing.unknown
        if not listing.has_more or listing.last_id is None:
            return None, certain
        after = listing.last_id


def _again(
    engine: Engine, batch: BatchView, words: str, reason: str | None = None, *, resumes: int | None = None
) -> Procedure[None]:
    """Look again later, ever more seldom. Who waits is told in the end; nothing is bought again because of it."""
    failures = batch.failures + 1
    noted = attrs.evolve(batch, polled_at=engine.now(), failures=failures)
    yield from store(lambda: engine.ledger.update_batch(noted, was=batch))
    if reason is None and failures >= _TROUBLES:
        reason = (
            f"batch {printable(batch.remote_id or '')} could not be read {failures} times in a row ({words}); "
            "see whether the API can be reached, then resume()"
        )
    if reason is not None:
        told = reason
        yield from store(lambda: engine.suspend(Lane.BATCH, told, resumes=resumes))


def _gone(kind: str, words: str, *, verdict: Verdict) -> Ruling:
    """What rows that will not come mean for their requests. They may have been paid for."""
    error = ResultError(kind, words, retryable=True)
    return Ruling(verdict=verdict, outcome=Outcome.FAILED, error=error, doubtful=True)


def _lost(engine: Engine, batch: BatchView, ruling: Ruling) -> Procedure[None]:
    """Its unsettled rows will not come."""
    engine.setbacks.mended(_asking(batch))

    def give_back() -> list[int]:
        sorter = Sorter(engine, batch)
        numbers = engine.ledger.missing(batch.id)
        for start in range(0, len(numbers), CHUNK):
            members = engine.ledger.members(numbers[start : start + CHUNK], batch=batch.id)
            for number, member in members.items():
                sorter.failed(number, member, ruling, None)
            sorter.write()
        engine.ledger.update_batch(attrs.evolve(batch, state=BatchState.CLOSED), was=batch)
        return sorter.ended

    engine.settled((yield from store(give_back)))


def collect(engine: Engine, batch: BatchView) -> Procedure[None]:
    """Read an ended batch's rows, settle them, and tick them off."""
    last = batch.failures >= _REREADS
    with closing((yield from store(lambda: Reader(engine, batch, last=last)))) as reader:
        yield from _collect(engine, batch, reader)


def _tell_collected(engine: Engine, batch: BatchView, reader: Reader, missing: int) -> None:
    rescued = reader.sorter.rescued
    if rescued:
        engine.telling.tell(Rescued(at=engine.now(), batch=batch.remote_id, requests=rescued, canceled=False))
    engine.telling.tell(
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


def _collect(engine: Engine, batch: BatchView, reader: Reader) -> Procedure[None]:
    remote, resumes = batch.remote_id or "", engine.resumes
    fault: LaneFault | None = None
    try:
        yield from api(lambda ports: ports.read(remote, reader.feed))
    except LaneFault as error:
        fault = error
    whole = fault is None
    missing = yield from store(lambda: reader.finish(whole=whole))
    _tell_collected(engine, batch, reader, len(missing))
    if reader.off and whole and (batch.failures >= _REREADS or not missing):
        _log.warning(
            "batchwise: the results of batch %s differ from its request_counts (%s); what its rows say stands",
            printable(remote),
            ", ".join(f"{kind}: {more:+d}" for kind, more in reader.off.items()),
        )
    if whole:
        engine.setbacks.mended(_asking(batch))
    if not missing:
        closed = attrs.evolve(batch, state=BatchState.CLOSED, polled_at=engine.now())
        yield from store(lambda: engine.ledger.update_batch(closed, was=batch))
    elif fault is not None:
        yield from _unreadable(engine, batch, fault, resumes)
    elif batch.failures < _REREADS:
        yield from _again(engine, batch, "rows are missing from its results, or differ from what the API counted")
    else:
        words = "the batch ended without a readable row for this request"
        yield from _lost(engine, batch, _gone("missing_row", words, verdict=Verdict.RETRY))
