"""Counts deadlines in danger, and announces them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from batchwise.ledger.ledger import Ledger
from batchwise.models import Policy
from batchwise.planning.capacity import tail_of
from batchwise.planning.clock_skew import corrected
from batchwise.planning.deadline_risk import SAFE, Risk, risks
from batchwise.planning.state import Snapshot

from .event_emitter import EventEmitter

__all__ = ["Deadlines"]

_SOON = timedelta(seconds=1)


class Deadlines:
    """Looks for requests whose deadline may not be kept.

    Args:
        ledger: The durable record.
        policy: The rules' figures.
        emitter: Is told of deadlines in danger.
        now: The wall clock.
    """

    def __init__(self, ledger: Ledger, policy: Policy, emitter: EventEmitter, now: Callable[[], datetime]) -> None:
        self._ledger, self._policy, self._emitter, self._now = ledger, policy, emitter, now

    def risk(self) -> Risk:
        """Return how many requests of all jobs are in danger."""
        now = self._now()
        known = corrected(self._ledger.snapshot(), now, self._policy)
        return sum(risks(known, now, self._policy).values(), SAFE)

    def watch(self, known: Snapshot, now: datetime) -> None:
        """Announce deadlines in danger. A request whose rescue begins in the next moment does not count."""
        leeway = tail_of(self._policy.limits) + _SOON
        self._emitter.emit_risk(sum(risks(known, now, self._policy, leeway=leeway).values(), SAFE))
