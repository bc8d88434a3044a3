"""The planner: from what is, and what time it is, to what has to be done. No clock, no I/O.

1. Whatever is unsettled at its last safe moment (unsent, in doubt, canceling, unreadable) goes to the sync lane.
2. The last safe moment is computed over everything that may have to be rescued at the same time.
3. A batch is cancelled only while the sync lane works, only for rows that can still be in time, and only after a
   fresh look at it: it may have ended. A lane that has not answered lately gets one row ahead of the others; while
   that fails, the batch runs on.
4. Queued work is sealed when its interval is over, its `submit_by` comes, a batch is full, or somebody waits.
5. A batch gets only what still has a window and its rescue before its deadline (hedged work apart), and nothing that
   would have to be cancelled before it is looked at again.
6. A create of unknown outcome is looked for. Past the grace, on the server's clock, its requests go into another batch,
   and it is watched for.
7. A suspended lane gets nothing; its work stays queued, or takes the other lane at its last safe moment.
8. Overdue work runs on the cheapest lane, or fails unsent, as the policy says.
9. What would be too late when the planner is asked next is done now.
10. The lease's holder may stand still (stopped, asleep) and hold it all the same: at the last safe moment the others
    take what is unsettled to the sync lane, and leave its batches alone.
11. Where the policy asks for it, one of the requests that share a prefix goes ahead to write it to the prompt cache, if
    that is cheaper and a window more fits; the others wait for its batch, never longer than they can.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from datetime import datetime, timedelta

import attrs

from batchwise.basics.times import ZERO
from batchwise.models import Policy

from .agenda import Action, Agenda, Run, WaitUntil
from .batch_rules import tend, tend_stranded
from .queue_rules import divert, tend_batch_queue, tend_sync_queue
from .rescue import Rescues
from .state import BatchState, BatchView, Snapshot

__all__ = ["next_due", "plan", "safe_moments"]

_STEPS = 100
"""Moments looked at, at most, to find since when something has been due."""


def _walk(agenda: Agenda) -> Agenda:
    """Look at everything; without the lease only at what concerns the sync lane."""
    tend_sync_queue(agenda)
    if agenda.snapshot.leased:
        for batch in agenda.batches:
            tend(agenda, batch)
        tend_batch_queue(agenda)
    else:
        for batch in agenda.batches:
            tend_stranded(agenda, batch)
        for group in agenda.snapshot.batch_queue:
            divert(agenda, group, sendable=True)
    return agenda


def safe_moments(snapshot: Snapshot, now: datetime, policy: Policy) -> dict[int, datetime]:
    """By batch: its last safe moment, for people to see."""
    rescues = Rescues(snapshot, now, policy)
    found = {batch.id: rescues.cancel_moments(batch) for batch in snapshot.batches}
    return {number: min(moments) for number, moments in found.items() if moments}


def next_due(snapshot: Snapshot, now: datetime, policy: Policy, *, job: int | None = None) -> datetime | None:
    """When some process must run at the latest so that every deadline is kept; None: nothing waits.

    A moment in the past is the one at which somebody should have come, and nobody did. Looks at batches that a pump
    takes in between, to be early, are not counted. With a job (its number) only what that one needs counts; rescues are
    computed over everything all the same.
    """
    asked = _asked(snapshot, now, policy, job)
    if not _undone(asked):
        return now if asked.actions else asked.next
    arrivals = sorted(moment for moment in _arrivals(snapshot) if moment <= now)
    at = arrivals[0] if arrivals else now
    for _ in range(_STEPS):
        asked = _asked(_as_of(snapshot, at), at, policy, job)
        if _undone(asked):
            return at
        later = [*arrivals[bisect_right(arrivals, at) :], *([asked.next] if asked.next is not None else ())]
        at = min((moment for moment in later if moment > at), default=now)
        if at >= now:
            break
    return now


def _asked(snapshot: Snapshot, at: datetime, policy: Policy, job: int | None) -> Agenda:
    return _walk(Agenda(attrs.evolve(snapshot, leased=True), at, policy, ZERO, optional_polls=False, job=job))


def _undone(agenda: Agenda) -> bool:
    """Whether something is due that nobody does. Whoever runs calls comes to those that are queued behind them."""
    return any(not (isinstance(action, Run) and agenda.snapshot.sync_running) for action in agenda.actions)


def _arrivals(snapshot: Snapshot) -> Iterator[datetime]:
    """Since when each group has been in its queue, and each batch as it was last seen."""
    yield from (group.since for group in (*snapshot.sync_running, *snapshot.sync_queue, *snapshot.batch_queue))
    yield from map(_since, snapshot.batches)


def _since(batch: BatchView) -> datetime:
    """Since when it is known to be as it is; an open one runs from its seal on."""
    return batch.sealed_at if batch.state is BatchState.OPEN else batch.polled_at or batch.sealed_at


def _as_of(snapshot: Snapshot, at: datetime) -> Snapshot:
    """What was there already at a moment before now."""
    return attrs.evolve(
        snapshot,
        batch_queue=tuple(group for group in snapshot.batch_queue if group.since <= at),
        sync_queue=tuple(group for group in snapshot.sync_queue if group.since <= at),
        sync_running=tuple(group for group in snapshot.sync_running if group.since <= at),
        batches=tuple(batch for batch in snapshot.batches if _since(batch) <= at),
    )


def plan(snapshot: Snapshot, now: datetime, policy: Policy, *, wake_gap: timedelta = ZERO) -> tuple[Action, ...]:
    """What has to be done now.

    Args:
        snapshot: The unsettled work.
        now: The moment (aware UTC).
        policy: The rules' figures.
        wake_gap: How much later than asked for the planner may be asked again (a cron's period; 0 for a pump).

    Returns:
        Actions in the order in which to begin them; a `WaitUntil` stands last where something falls due later.
        Without the lease only what concerns the sync lane.
    """
    agenda = _walk(Agenda(snapshot, now, policy, wake_gap))
    waits = () if agenda.next is None else (WaitUntil(agenda.next),)
    return (*agenda.actions, *waits)
