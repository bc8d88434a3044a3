"""What each call of the sync lane reports: an event, its pace, and whether the lane answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta
from time import monotonic
from typing import Any

from batchwise.api.types import Reply
from batchwise.events import Called
from batchwise.ledger.values import Claim
from batchwise.models import Outcome

from .core import Engine
from .effects import store, store_surely
from .money import tokens_of
from .queue import Slot

__all__ = ["emit_call", "learn_from", "note_pace", "store_health", "store_pace"]

_log = logging.getLogger("batchwise")


def emit_call(
    engine: Engine,
    claim: Claim,
    latency: timedelta,
    *,
    error: str | None = None,
    outcome: Outcome | None = None,
    usage: Mapping[str, Any] | None = None,
) -> None:
    """Emit the event of a call that was answered, or that failed with this error."""
    if not engine.emitter.wanted:
        return
    fresh, read, cached, written = tokens_of(usage or {}) or (None, 0, 0, None)
    engine.emitter.emit(
        Called(
            at=engine.now(),
            request=claim.id,
            model=claim.terms.model,
            outcome=outcome,
            latency=latency,
            error=error,
            input_tokens=None if fresh is None else fresh + read + cached,
            output_tokens=written,
        )
    )


def note_pace(engine: Engine, slot: Slot, reply: Reply, usage: Mapping[str, Any]) -> None:
    """Let the queue learn from an answer. If that fails, `finish` gives the claim's permit back to the pacing."""
    try:
        fresh, _, cached, written = tokens_of(usage) or (0, 0, 0, 0)
        engine.queue.done(
            slot, monotonic(), headers=reply.headers, used_in=fresh + cached, used_out=written, took=reply.latency
        )
    except Exception:  # noqa: BLE001  # headers may hold anything
        _log.exception("batchwise: the pacing could not use an answer's headers or usage")


async def learn_from(engine: Engine, claim: Claim, reply: Reply, *, news: bool) -> None:
    """Store what an answer tells beside its request; `news`: the ledger does not know yet that the lane answers."""
    if not engine.workspace.known and reply.workspace is not None:
        await store_surely(engine.workspace.bind, reply.workspace)
    engine.sync_lane.forget_unpaid(claim.id)
    if news:
        await store_health(engine, answered=True)
    await store_pace(engine, claim)


async def store_health(engine: Engine, *, answered: bool) -> None:
    """Store whether the sync lane answers, for the planners of all processes."""
    note, now = engine.ledger.conditions.note, engine.now()
    await (store(note, sync_answered_at=now) if answered else store(note, sync_failed_at=now))


async def store_pace(engine: Engine, claim: Claim) -> None:
    """Store how much the sync lane takes, if that has changed, for the planners of all processes."""
    news = engine.health.paced(claim.terms.model)
    if news is not None:
        name, measured = news
        await store(engine.ledger.conditions.note, measured={name: measured})
