"""How a batch is submitted, and found again when its create's outcome is unknown. docs/explanation/reliability.md.

1. List once: the newest id is the watermark, and the server's `Date` is noted.
2. Seal: a fresh nonce in every custom_id, and a count that no unfinished batch has.
3. Make `posting` durable, then POST once. The last chunk is held back until the fence has been checked.
4. What is not proved, either way, is in doubt: looked for in the listing down to the watermark. One row's nonce
   proves a candidate ours or strikes it off; an unproved candidate is never cancelled.
5. Nothing seen past the grace: its requests go elsewhere, and it is watched for until its window has passed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from time import monotonic

import attrs
import orjson

from batchwise.errors import BatchwiseError
from batchwise.lanes.faults import LaneFault
from batchwise.lanes.lines import LineSplitter
from batchwise.lanes.values import BatchInfo, Listing
from batchwise.models import Lane, Outcome
from batchwise.planning.custom_ids import new_nonce, parse, sealer
from batchwise.planning.outcomes import CreateOutcome, CreateRuling, rule_create
from batchwise.planning.packing import MAX_BYTES, body_chunks
from batchwise.planning.planner import Seal
from batchwise.planning.state import BatchState, BatchView

from .core import Engine
from .effects import Ports, Procedure, api, store

__all__ = ["FenceError", "give_up", "reconcile", "reseal", "submit"]

_PAGE = 100
_TROUBLES = 10
"""Creates that fail in a row, without proof of a lasting cause, before the lane is suspended."""
_SKEW = timedelta(minutes=5)
"""How far behind the watermark's moment a listing is read where there is no watermark."""


class FenceError(BatchwiseError):
    """The create was broken off before its last chunk: its requests had gone elsewhere."""


def _clock() -> Callable[[], float]:
    """A clock that counts suspension, where the system has one."""
    import time

    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return monotonic if boot is None else lambda: time.clock_gettime(boot)


def submit(engine: Engine, seal: Seal) -> Procedure[None]:
    """Seal queued requests into a batch and send it."""
    try:
        listing = yield from api(lambda ports: ports.list(limit=_PAGE))
    except LaneFault as error:
        yield from _trouble(engine, rule_create(error.fault))
        return
    yield from store(lambda: _greet(engine, listing))
    unfinished = {info.counts.total for info in listing.batches if info.status != "ended"}
    batch = yield from store(
        lambda: engine.ledger.seal(
            seal.terms,
            nonce=new_nonce(os.urandom(16)),
            taken=frozenset(unfinished),
            now=engine.now(),
            max_requests=min(seal.max_requests, engine.ceiling or seal.max_requests),
            max_bytes=MAX_BYTES,
        )
    )
    if batch is None:
        return
    token = engine.sealed(batch.id)
    try:
        watermark = listing.batches[0].id if listing.batches else None
        yield from store(
            lambda: engine.ledger.posting(batch.id, watermark=watermark, server=listing.server_time, now=engine.now())
        )
        yield from _post(engine, batch)
    finally:
        engine.end(token)


def _greet(engine: Engine, listing: Listing) -> None:
    engine.ledger.bind(endpoint=engine.endpoint, workspace=listing.workspace)
    if listing.server_time is not None:
        engine.ledger.note_clock(listing.server_time - engine.now())


def _post(engine: Engine, batch: BatchView) -> Procedure[None]:
    seal, clock, patience = sealer(batch.nonce), _clock(), engine.policy.create_grace / timedelta(seconds=1)
    seen = [clock()]

    def entries() -> object:
        for number, key, body in engine.ledger.entries(batch.id):
            now = clock()
            if now - seen[0] > max(patience, 600.0):
                raise FenceError("the process stood still while it sent a batch; the create was broken off")
            seen[0] = now
            yield seal(key, number), body

    def fence() -> None:
        if not (engine.ledger.lease.held and engine.ledger.still_posting(batch.id)):
            raise FenceError("a batch's requests had gone elsewhere before its create was sent; it was broken off")

    chunks = body_chunks(entries(), before_last=fence)  # type: ignore[arg-type]  # a generator of pairs
    try:
        created = yield from api(lambda ports: ports.create(chunks, batch.size, batch.betas))
    except LaneFault as error:
        yield from _not_answered(engine, batch, rule_create(error.fault), engine.now())
        return
    except FenceError:
        yield from store(lambda: engine.ledger.unseal(batch.id, now=engine.now()))
        return
    engine.failures["create"] = 0
    yield from store(lambda: _record(engine, batch, created.batch))


def _record(engine: Engine, batch: BatchView, info: BatchInfo) -> None:
    engine.ledger.created(
        batch.id,
        remote_id=info.id,
        created_at=info.created_at,
        expires_at=info.expires_at,
        now=engine.now(),
    )


def _not_answered(engine: Engine, batch: BatchView, ruling: CreateRuling, sent: datetime) -> Procedure[None]:
    ledger = engine.ledger
    match ruling.outcome:
        case CreateOutcome.UNKNOWN:
            doubt = attrs.evolve(batch, state=BatchState.DOUBT, last_byte_at=sent, polled_at=None, failures=0)
            yield from store(lambda: ledger.update_batch(doubt))
        case CreateOutcome.TOO_LARGE if batch.requests > 1:
            engine.ceiling = max(1, batch.requests // 2)
            yield from store(lambda: ledger.unseal(batch.id, now=engine.now()))
        case CreateOutcome.TOO_LARGE | CreateOutcome.INVALID:
            yield from _culprit(engine, batch, ruling)
        case _:
            yield from store(lambda: ledger.unseal(batch.id, now=engine.now()))
            yield from _trouble(engine, ruling)


def _culprit(engine: Engine, batch: BatchView, ruling: CreateRuling) -> Procedure[None]:
    """Fail the requests that spoil a create; where the API names none, halve until one is left."""
    ledger = engine.ledger
    if ruling.everyone or batch.requests == 1:
        positions: set[int] | None = None
    elif ruling.culprits:
        positions = set(ruling.culprits)
    else:
        engine.ceiling = max(1, batch.requests // 2)
        yield from store(lambda: ledger.unseal(batch.id, now=engine.now()))
        return

    def fail() -> list[int]:
        guilty = [
            number
            for position, (number, _, _) in enumerate(ledger.entries(batch.id))
            if positions is None or position in positions
        ]
        members = ledger.members(batch.id, guilty)
        settlements = [
            engine.failure(
                number,
                member.key,
                member.terms,
                Outcome.FAILED,
                ruling.error,
                lane=Lane.BATCH,
                nonce=batch.nonce,
            )
            for number, member in members.items()
        ]
        ledger.settle(settlements, now=engine.now(), batch=batch.id)
        ledger.unseal(batch.id, now=engine.now())
        return guilty

    engine.settled((yield from store(fail)))
    engine.ceiling = None


def _trouble(engine: Engine, ruling: CreateRuling) -> Procedure[None]:
    """Nothing was created: wait, or suspend the lane."""
    engine.failures["create"] += 1
    failures = engine.failures["create"]
    reason = ruling.reason
    if reason is None and ruling.outcome is not CreateOutcome.QUEUE_FULL and failures >= _TROUBLES:
        reason = (
            f"{failures} create calls in a row failed, the last with {ruling.error.type}: {ruling.error.message}; "
            "see whether the API can be reached, then resume()"
        )
    if reason is not None:
        engine.failures["create"] = 0
        words = reason
        yield from store(lambda: engine.ledger.suspend(Lane.BATCH, words, now=engine.now()))
        return
    wait = ruling.wait or engine.backoff(failures)
    yield from store(lambda: engine.ledger.pause_batches(engine.now() + wait))


def reseal(engine: Engine, batch: BatchView) -> Procedure[None]:
    """Queue the rows of a batch again that was sealed by a process that died before it sent it."""
    yield from store(lambda: engine.ledger.unseal(batch.id, now=engine.now()))


def give_up(engine: Engine, batch: BatchView) -> Procedure[None]:
    """Not seen within the grace: its requests go into another batch, and this one is watched for."""

    def queue() -> None:
        engine.ledger.unseal(batch.id, now=engine.now(), keep=True, doubtful=True)
        engine.ledger.update_batch(attrs.evolve(batch, state=BatchState.WATCHED, failures=0))

    yield from store(queue)


# -- reconciliation ---------------------------------------------------------------------------------------------------


def reconcile(engine: Engine, batch: BatchView) -> Procedure[None]:
    """Look for a batch whose create's outcome is unknown."""
    now = engine.now()
    if batch.state is BatchState.WATCHED and now > batch.sealed_at + engine.policy.window + engine.policy.create_grace:
        yield from store(lambda: engine.ledger.update_batch(attrs.evolve(batch, state=BatchState.VOID)))
        return
    try:
        found = yield from _candidates(engine, batch)
        struck = set(batch.struck)
        ours: BatchInfo | None = None
        for info in found:
            if engine.policy.exclusive_workspace or (info.status == "ended" and (yield from _proved(batch, info))):
                ours = info
                break
            if info.status == "ended":
                struck.add(info.id)
    except LaneFault:
        failed = attrs.evolve(batch, polled_at=now, failures=batch.failures + 1)
        yield from store(lambda: engine.ledger.update_batch(failed))
        return
    candidates = tuple(info.id for info in found if info.id not in struck)
    looked = attrs.evolve(batch, candidates=candidates, struck=tuple(sorted(struck)), polled_at=now, failures=0)
    yield from store(lambda: engine.ledger.update_batch(looked))
    if ours is not None:
        yield from _adopt(engine, looked, ours)


def _candidates(engine: Engine, batch: BatchView) -> Procedure[list[BatchInfo]]:
    """Batches listed above the watermark that the ledger does not know, with our count, not struck off."""
    found: list[BatchInfo] = []
    after: str | None = None
    while True:
        listing = yield from api(partial(_list, after))
        yield from store(partial(_greet, engine, listing))
        newer = []
        for info in listing.batches:
            if info.id == batch.watermark or _too_old(batch, info):
                break
            newer.append(info)
        known = yield from store(partial(engine.ledger.known_remotes, [info.id for info in newer]))
        found += [
            info
            for info in newer
            if info.id not in known and info.id not in batch.struck and info.counts.total == batch.requests
        ]
        if len(newer) < len(listing.batches) or not listing.has_more or listing.last_id is None:
            return found
        after = listing.last_id


def _list(after: str | None, ports: Ports) -> Listing:
    return ports.list(limit=_PAGE, after_id=after)


def _too_old(batch: BatchView, info: BatchInfo) -> bool:
    """Both times are the server's."""
    return batch.posting_server is not None and info.created_at < batch.posting_server - _SKEW


def _proved(batch: BatchView, info: BatchInfo) -> Procedure[bool]:
    """Read one row of an ended candidate: does it carry our nonce?"""
    splitter, first = LineSplitter(), list[bytes]()

    def feed(chunk: bytes) -> bool:
        first.extend(line for line in splitter.feed(chunk) if line)
        return not first

    yield from api(lambda ports: ports.read(info.id, feed))
    line = first[0] if first else splitter.rest()
    try:
        ours = parse(str(orjson.loads(line)["custom_id"]))
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return False
    return ours is not None and ours.nonce == batch.nonce


def _adopt(engine: Engine, batch: BatchView, info: BatchInfo) -> Procedure[None]:
    """It is ours. One whose requests have gone elsewhere is cancelled; what it did is booked."""
    yield from store(lambda: _record(engine, batch, info))
    if batch.state is not BatchState.WATCHED:
        return
    if info.status != "ended":
        try:
            info = yield from api(lambda ports: ports.cancel(info.id))
        except LaneFault:
            return  # it is polled like any other from now on
    state = BatchState.ENDED if info.status == "ended" else BatchState.CANCELING
    known = attrs.evolve(
        batch,
        state=state,
        remote_id=info.id,
        created_at=info.created_at,
        expires_at=info.expires_at,
        ended_at=info.ended_at,
        cancel_at=engine.now(),
        polled_at=engine.now(),
    )
    yield from store(lambda: engine.ledger.update_batch(known))
