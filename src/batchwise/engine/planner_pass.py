"""One pass of the planner: read the ledger, correct the clock, and ask the planner what is due."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from time import monotonic

import attrs

from batchwise.ledger.ledger import Ledger
from batchwise.models import Policy
from batchwise.planning import agenda, planner
from batchwise.planning.state import BatchState, Snapshot

from .leadership import Leadership
from .situation import Situation
from .spend_limit import SpendLimit
from .under_way import UnderWay

__all__ = ["PlannerPass"]

_WATCH = 2.0
"""The least seconds between two calls of `watch`."""
_WATCH_SHARE = 20
"""`watch` takes at most 1 in so many parts of the time, however much is queued."""


class PlannerPass:
    """Asks the planner what is due.

    Args:
        ledger: The durable record.
        policy: The rules' figures.
        leadership: Takes the lease.
        situation: Reads what is known of the work.
        spend_limit: Holds back work for which the spend limit has no room.
        under_way: Knows which batches this process is sending.
        watch: Is called now and then with the snapshot and the time.
        now: The wall clock.
    """

    def __init__(
        self,
        ledger: Ledger,
        policy: Policy,
        *,
        leadership: Leadership,
        situation: Situation,
        spend_limit: SpendLimit,
        under_way: UnderWay,
        watch: Callable[[Snapshot, datetime], None],
        now: Callable[[], datetime],
    ) -> None:
        self._ledger, self._policy, self._now = ledger, policy, now
        self._leadership, self._situation, self._spend_limit = leadership, situation, spend_limit
        self._under_way, self._watch = under_way, watch
        self._watch_at = float("-inf")
        """When `watch` is called again, by the monotonic clock."""

    def actions(self, wake_gap: timedelta) -> tuple[agenda.Action, ...]:
        """Take the lease if it is free, and ask the planner; see `Engine.plan`."""
        self._leadership.take()
        known = self._situation.read()
        if known.leased and self._put_orphans_in_doubt(known):
            known = self._situation.read()
        now = self._now()
        right = self._situation.set_right(known, now)
        self._watch_now_and_then(right, now)
        sendable, waits = self._spend_limit.sendable(
            right, now, lambda: self._situation.set_right(self._situation.read(), now)
        )
        self._situation.note_backlog(sendable)
        return (*planner.plan(sendable, now, self._policy, wake_gap=wake_gap), *waits)

    def _put_orphans_in_doubt(self, known: Snapshot) -> bool:
        """Put batches in doubt whose create no process sends any more; returns whether there were any.

        Their process has died, or has broken the create off. Its last byte may have been sent just now, so the grace
        begins now.
        """
        changed = False
        for batch in known.batches:
            if batch.state is BatchState.POSTING and not self._under_way.sends(batch.id):
                doubt = attrs.evolve(batch, state=BatchState.IN_DOUBT, last_byte_at=self._now(), polled_at=None)
                changed = self._ledger.batches.update(doubt, was=batch) or changed
        return changed

    def _watch_now_and_then(self, known: Snapshot, now: datetime) -> None:
        begun = monotonic()
        if begun >= self._watch_at:
            self._watch(known, now)
            self._watch_at = begun + max(_WATCH, _WATCH_SHARE * (monotonic() - begun))
