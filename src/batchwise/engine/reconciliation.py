"""Finds a batch again when the outcome of its create is unknown. docs/explanation/reliability.md.

Until one outcome is proved the batch is in doubt, and is looked for in the listing down to the watermark. The nonce of
one row proves a candidate ours, or strikes it off; an unproved candidate is never cancelled. If the batch is not seen
within the grace, its requests go elsewhere, and it is watched for until its window has passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import attrs

from batchwise.api.faults import LaneFault
from batchwise.api.lines import LineSplitter
from batchwise.api.types import BatchInfo
from batchwise.basics.jsontext import decode
from batchwise.errors import SpendLimitError
from batchwise.ledger.values import Which
from batchwise.models import Lane, Policy
from batchwise.planning.clock_skew import sent_by
from batchwise.planning.custom_ids import parse
from batchwise.planning.outcomes import Fault, Verdict, rule_call
from batchwise.planning.retries import pause_after_failures
from batchwise.planning.state import BatchState, BatchView

from .core import Engine
from .effects import store
from .ports import api
from .sorting import buy_again
from .submission import record_created
from .suspensions import MAX_FAILURES

__all__ = ["give_up", "reconcile", "too_old"]

_LOOKING = "looking"
"""The setback's name when the API does not list its batches."""
_VANISHED = 3
"""Creates given up in a row before the lane is suspended."""
_SKEW = timedelta(minutes=5)
"""How long before the POST a listed batch may have been created, where there is no watermark."""


async def reconcile(engine: Engine, batch: BatchView) -> None:
    """Look for a batch when the outcome of its create is unknown."""
    now, resumes = engine.now(), engine.suspensions.resumes
    try:
        found = await _candidates(engine, batch)
    except LaneFault as error:
        await _unseen(engine, batch, batch, error.fault, now, resumes)
        return
    engine.setbacks.resolved(_LOOKING)
    evidence = await _examine(engine, batch, found)
    offset = (await store(engine.ledger.snapshot)).clock_offset
    looked = attrs.evolve(batch, candidates=evidence.candidates, struck=evidence.struck, polled_at=now, failures=0)
    looked = sent_by(looked, now + offset)
    if evidence.ours is not None:
        await store(engine.ledger.batches.update, looked, was=batch)
        # The planner cancels it if its requests have gone elsewhere; its results are booked when it ends.
        await store(record_created, engine, looked, evidence.ours)
    elif evidence.unread is not None:
        await _unseen(engine, batch, looked, evidence.unread, now, resumes)
    elif (
        batch.state is BatchState.WATCHED
        and not evidence.candidates
        and _window_is_over(batch, engine.policy, now, now + offset)
    ):
        await store(engine.ledger.batches.update, attrs.evolve(looked, state=BatchState.VOID), was=batch)
    else:
        await store(engine.ledger.batches.update, looked, was=batch)


class _Evidence(NamedTuple):
    """What the candidates for a batch have shown."""

    ours: BatchInfo | None
    """The one that is the batch."""
    candidates: tuple[str, ...]
    """Those that may be."""
    struck: tuple[str, ...]
    """Those that are not."""
    unread: Fault | None
    """Why one could not be read."""


async def _examine(engine: Engine, batch: BatchView, found: Sequence[BatchInfo]) -> _Evidence:
    """Read a row of each candidate that has ended, until one proves to be the batch.

    In a workspace that nobody else uses, the only candidate is the batch even if it has not ended.
    """
    exclusive = engine.policy.exclusive_workspace and len(found) == 1
    certain = exclusive and await store(_alone_with_its_count, engine, batch)
    struck, ours, unread = set(batch.struck), None, None
    for info in found:
        proof: bool | None = None
        if info.status == "ended":
            try:
                proof = await _proved(batch, info)
            except LaneFault as error:  # it stays a candidate
                unread = error.fault
        if proof or (proof is None and certain):
            ours = info
            break
        if proof is False:
            struck.add(info.id)
    candidates = tuple(info.id for info in found if info.id not in struck)
    return _Evidence(ours, candidates, tuple(sorted(struck)), unread)


def _window_is_over(batch: BatchView, policy: Policy, now: datetime, server_now: datetime) -> bool:
    """Whether a batch cannot turn up any more: by the server's clock too, because ours may have been changed."""
    lasts = policy.window + policy.create_grace
    return now > batch.sealed_at + lasts and (batch.posting_server is None or server_now > batch.posting_server + lasts)


async def _unseen(
    engine: Engine, batch: BatchView, looked: BatchView, fault: Fault, now: datetime, resumes: int
) -> None:
    """Note that the listing, or a candidate, could not be read; in the end suspend the lane."""
    failures = batch.failures + 1
    failed = attrs.evolve(looked, polled_at=now, failures=failures)
    await store(engine.ledger.batches.update, failed, was=batch)
    engine.setbacks.refused(_LOOKING, "looking for a batch", fault, pause_after_failures(failures, engine.policy))
    ruling = rule_call(fault)
    reason = ruling.reason if ruling.verdict is Verdict.SUSPEND else None
    if reason is None and failures >= MAX_FAILURES and batch.state is BatchState.IN_DOUBT:
        reason = (
            f"a batch whose create was not answered could not be looked for {failures} times in a row, the last time: "
            f"{fault.summary}; see whether the API can be reached, then resume()"
        )
    if reason is not None:
        await store(engine.suspensions.suspend, Lane.BATCH, reason, resumes=resumes)


def _alone_with_its_count(engine: Engine, batch: BatchView) -> bool:
    """Whether no other of our batches without an id has the same count."""
    return not any(
        other.id != batch.id and other.remote_id is None and other.requests == batch.requests
        for other in engine.ledger.snapshot().batches
    )


async def _candidates(engine: Engine, batch: BatchView) -> list[BatchInfo]:
    """Return listed batches above the watermark with our count that the ledger does not know and has not struck off."""
    found: list[BatchInfo] = []
    after: str | None = None
    while True:
        listing = await api.list(after_id=after)
        await store(engine.workspace.note_from, listing)
        newer = []
        for info in listing.batches:
            if info.id == batch.watermark or too_old(batch, info):
                break
            newer.append(info)
        known = await store(engine.ledger.batches.known, [info.id for info in newer])
        found += [
            info
            for info in newer
            if info.id not in known and info.id not in batch.struck and info.counts.total == batch.requests
        ]
        if len(newer) < len(listing.batches) or not listing.has_more or listing.last_id is None:
            return found
        after = listing.last_id


def too_old(batch: BatchView, info: BatchInfo) -> bool:
    """Whether a listed batch was made before the batch's POST began. Both times are the server's."""
    return batch.posting_server is not None and info.created_at < batch.posting_server - _SKEW


async def _proved(batch: BatchView, info: BatchInfo) -> bool | None:
    """Return whether a row of an ended candidate carries our nonce; None: no row could be read."""
    splitter, ids = LineSplitter(), list[str]()

    def feed(chunk: bytes) -> bool:
        ids.extend(filter(None, map(_id_of, splitter.feed(chunk))))
        return not ids

    await api.read(info.id, feed)
    ids.extend(filter(None, (_id_of(splitter.rest()),)))
    if not ids:
        return None
    ours = [parse(each) for each in ids]
    return any(each is not None and each.nonce == batch.nonce for each in ours)


def _id_of(line: bytes) -> str | None:
    try:
        return str(decode(line)["custom_id"])
    except (ValueError, KeyError, TypeError):
        return None


async def give_up(engine: Engine, batch: BatchView) -> None:
    """Queue the requests of a batch again that was not seen within the grace; the batch is watched for."""

    def queue() -> list[int]:
        ended: list[int] = []
        try:
            engine.ledger.requeue(
                Which(batch=batch.id),
                lane=Lane.BATCH,
                now=engine.now(),
                keep=True,
                maybe_billed=True,
                max_spend=engine.spend_limit.max_spend(),
            )
        except SpendLimitError:  # there is no room for all of them
            numbers = engine.ledger.numbers(Which(batch=batch.id))
            ended = buy_again(engine, batch, numbers, lane=Lane.BATCH, costs_attempt=False)
        engine.ledger.batches.update(attrs.evolve(batch, state=BatchState.WATCHED, failures=0), was=batch)
        return ended

    vanished = await store(engine.ledger.conditions.note_failure, "vanished", now=engine.now())
    if vanished.times >= _VANISHED:
        reason = (
            f"{vanished.times} create calls in a row were not answered, and their batches were never listed; "
            "see what lies between here and the API, then resume()"
        )
        await store(engine.suspensions.suspend, Lane.BATCH, reason)
    engine.announcing.settled(await store(queue))
