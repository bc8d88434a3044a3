"""The planner: from the state of the work and the time to the actions that are due. No clock, no I/O.

1. Work that is unsettled at its last safe moment (unsent, in doubt, canceling, unreadable) goes to the sync lane.
2. The last safe moment is computed over all work that may have to be rescued at the same time.
3. A batch is cancelled only while the sync lane works, only for rows that can still be in time, and only after a
   fresh look at it: it may have ended. A lane that has not answered lately gets one row ahead of the others; while
   that fails, the batch runs on.
4. Queued work is sealed when its interval is over, its `submit_by` comes, a batch is full, or somebody waits.
5. A batch gets only work that still has a window and its rescue before its deadline (hedged work apart), and none that
   would have to be cancelled before the next look.
6. A batch whose create has an unknown outcome is looked for. After the grace, by the server's clock, its requests go
   into another batch, and it is watched for.
7. A suspended lane gets no work; its work stays queued, or takes the other lane at its last safe moment.
8. Overdue work runs on the cheapest lane, or fails unsent, as the policy says.
9. An action that would be too late at the next pass is due now.
10. A process that stands still (stopped, asleep) keeps the lease. At the last safe moment other processes move its
    unsettled work to the sync lane, and leave its batches alone.
11. If the policy asks for it, one of the requests that share a prefix goes ahead to write it to the prompt cache, where
    that is cheaper and another window fits. The others wait for its batch, never longer than their deadlines allow.
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
"""The most moments that are tried to find since when an action has been due."""


def _walk(agenda: Agenda) -> Agenda:
    """Apply all rules. Without the lease: the rules of the sync lane, and those that move endangered work to it."""
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
    """Return the last safe moment of each batch, to be shown."""
    rescues = Rescues(snapshot, now, policy)
    found = {batch.id: rescues.cancel_moments(batch) for batch in snapshot.batches}
    return {number: min(moments) for number, moments in found.items() if moments}


def next_due(snapshot: Snapshot, now: datetime, policy: Policy, *, job: int | None = None) -> datetime | None:
    """Return when a process must run at the latest so that every deadline is kept; None: no work waits.

    A moment in the past means that a process should have run then, and none did. Optional polls do not count. With a
    job (its number) only its needs count; rescues are still computed over all work.
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
    """Whether an action is due that no process does. A process that runs calls comes to the queued ones by itself."""
    return any(not (isinstance(action, Run) and agenda.snapshot.sync_running) for action in agenda.actions)


def _arrivals(snapshot: Snapshot) -> Iterator[datetime]:
    """Yield since when each group has been in its queue, and each batch in its last known state."""
    yield from (group.since for group in (*snapshot.sync_running, *snapshot.sync_queue, *snapshot.batch_queue))
    yield from map(_since, snapshot.batches)


def _since(batch: BatchView) -> datetime:
    """Return since when the batch has been in its state, as far as known; an open one since its seal."""
    return batch.sealed_at if batch.state is BatchState.OPEN else batch.polled_at or batch.sealed_at


def _as_of(snapshot: Snapshot, at: datetime) -> Snapshot:
    """Return the part of the snapshot that was there already at an earlier moment."""
    return attrs.evolve(
        snapshot,
        batch_queue=tuple(group for group in snapshot.batch_queue if group.since <= at),
        sync_queue=tuple(group for group in snapshot.sync_queue if group.since <= at),
        sync_running=tuple(group for group in snapshot.sync_running if group.since <= at),
        batches=tuple(batch for batch in snapshot.batches if _since(batch) <= at),
    )


def plan(snapshot: Snapshot, now: datetime, policy: Policy, *, wake_gap: timedelta = ZERO) -> tuple[Action, ...]:
    """Return the actions that are due now, in the order in which to begin them.

    A `WaitUntil` stands last where something falls due later. Without the lease only actions of the sync lane are due.
    `wake_gap` says how late the planner's next pass may be (a cron's period; 0 for a pump).
    """
    agenda = _walk(Agenda(snapshot, now, policy, wake_gap))
    waits = () if agenda.next is None else (WaitUntil(agenda.next),)
    return (*agenda.actions, *waits)
