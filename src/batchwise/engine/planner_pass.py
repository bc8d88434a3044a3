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

from .deadlines import Deadlines
from .leadership import Leadership
from .setbacks import Setbacks
from .situation import Situation
from .spend_limit import SpendLimit
from .under_way import UnderWay

__all__ = ["PlannerPass"]

_WATCH = 2.0
"""The least seconds between two looks for deadlines in danger."""
_WATCH_SHARE = 20
"""Such a look takes at most 1 in so many parts of the time, however much is queued."""


class PlannerPass:
    """Asks the planner what is due.

    Args:
        ledger: The durable record.
        policy: The rules' figures.
        leadership: Takes the lease.
        situation: Reads what is known of the work.
        spend_limit: Holds back work for which the spend limit has no room.
        under_way: Knows which batches this process is sending.
        deadlines: Looks now and then for deadlines in danger.
        setbacks: Stores now and then what failed last.
        run: The ledger's number of this run.
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
        deadlines: Deadlines,
        setbacks: Setbacks,
        run: int,
        now: Callable[[], datetime],
    ) -> None:
        self._ledger, self._policy, self._now = ledger, policy, now
        self._leadership, self._situation, self._spend_limit = leadership, situation, spend_limit
        self._under_way, self._deadlines, self._setbacks, self._run = under_way, deadlines, setbacks, run
        self._watch_at = float("-inf")
        """When it looks for deadlines in danger again, by the monotonic clock."""

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
        """Look for deadlines in danger and store setbacks: now and then, not in each pass."""
        begun = monotonic()
        if begun >= self._watch_at:
            self._deadlines.watch(known, now)
            self._setbacks.store(self._ledger, self._run, known)
            self._watch_at = begun + max(_WATCH, _WATCH_SHARE * (monotonic() - begun))
