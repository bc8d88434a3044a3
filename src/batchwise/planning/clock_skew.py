"""Corrects stored moments that lie in the future and ought to be past.

A clock that was ahead stored them, and has been set right since. They are replaced by now, and stored so: replaced at
each look they would never get old.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import attrs

from batchwise.basics.times import ZERO
from batchwise.models import Policy

from .state import BatchView, Group, Snapshot

__all__ = ["corrected", "longest_pause", "sent_at", "sent_by"]

_HEEDED = timedelta(hours=1)
"""The longest `retry-after` that is followed: our choice; the API's limits refill within minutes."""
_OURS = ("sealed_at", "posting_at", "last_byte_at", "cancel_at", "polled_at")
"""A batch's moments by our clock; the others are the server's."""


def longest_pause(policy: Policy) -> timedelta:
    """Return the longest pause of any kind: the longest `retry-after` that is followed, or the longest backoff.

    A pause that ends later was stored by a clock that was ahead.
    """
    shortest, longest = policy.poll_every
    return max(shortest + longest, _HEEDED)


def corrected(snapshot: Snapshot, now: datetime, policy: Policy) -> Snapshot:
    """Return the snapshot with moments that lie in the future and ought to be past replaced by now.

    It is the snapshot itself if there is nothing of the kind; else what is as it was is the same object in the new one.
    """
    right: dict[str, Any] = {
        name: _groups(getattr(snapshot, name), now) for name in ("batch_queue", "sync_queue", "sync_running")
    }
    batches = tuple(_batch(batch, now) for batch in snapshot.batches)
    if any(batch is not was for batch, was in zip(batches, snapshot.batches, strict=True)):
        right["batches"] = batches
    until = snapshot.batch_paused_until
    if until is not None and until > now + longest_pause(policy):
        right["batch_paused_until"] = None
    right |= _calls(snapshot, now)
    changed = {name: value for name, value in right.items() if value is not getattr(snapshot, name)}
    return attrs.evolve(snapshot, **changed) if changed else snapshot


def sent_at(batch: BatchView) -> datetime | None:
    """Return when the last byte of the batch's create was sent, by the server's clock; None: unknown."""
    if batch.posting_at is None or batch.posting_server is None:
        return None
    return batch.posting_server + ((batch.last_byte_at or batch.posting_at) - batch.posting_at)


def sent_by(batch: BatchView, server_now: datetime) -> BatchView:
    """Return the batch as sent by now at the latest, by the server's clock.

    If its create was sent in the server's future, our clock was set while it was sent.
    """
    sent = sent_at(batch)
    if sent is None or sent <= server_now or batch.posting_at is None:
        return batch
    return attrs.evolve(batch, posting_at=batch.posting_at + (sent - server_now))


def _groups(groups: tuple[Group, ...], now: datetime) -> tuple[Group, ...]:
    if all(group.since <= now for group in groups):
        return groups
    return tuple(group if group.since <= now else attrs.evolve(group, since=now) for group in groups)


def _batch(batch: BatchView, now: datetime) -> BatchView:
    right: dict[str, Any] = {
        name: now for name in _OURS if (moment := getattr(batch, name)) is not None and moment > now
    }
    groups = _groups(batch.groups, now)
    if groups is not batch.groups:
        right["groups"] = groups
    return attrs.evolve(batch, **right) if right else batch


def _calls(snapshot: Snapshot, now: datetime) -> dict[str, datetime]:
    """When calls were answered, or failed; where both lie in the future the order of the two stays."""
    moments = {name: getattr(snapshot, name) for name in ("sync_answered_at", "sync_failed_at")}
    ahead = {name: moment - now for name, moment in moments.items() if moment is not None and moment > now}
    shift = max(ahead.values(), default=ZERO)
    return {name: moments[name] - shift for name in ahead}
