"""The state of the work: the ledger's snapshot, completed by what only this process knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

import attrs

from batchwise.ledger.ledger import Ledger
from batchwise.models import Lane, Policy
from batchwise.planning.clock_skew import corrected, longest_pause
from batchwise.planning.pricing import PriceBook, Tariff
from batchwise.planning.state import Snapshot

from .forecasts import Forecasts
from .health import Health
from .queue import CallQueue
from .suspensions import Suspensions

__all__ = ["Situation"]


class Situation:
    """Reads the state of the work, and remembers the problems that callers are told of.

    Args:
        ledger: The durable record.
        policy: The rules' figures.
        prices: The price book.
        suspensions: Reads the ledger's snapshot.
        health: What this process sees of the sync lane.
        forecasts: Forecasts how long batches take.
        queue: Learns the limits that other processes have measured.
        now: The wall clock.
    """

    def __init__(
        self,
        ledger: Ledger,
        policy: Policy,
        prices: PriceBook,
        *,
        suspensions: Suspensions,
        health: Health,
        forecasts: Forecasts,
        queue: CallQueue,
        now: Callable[[], datetime],
    ) -> None:
        self._ledger, self._policy, self._prices, self._now = ledger, policy, prices, now
        self._suspensions, self._health, self._forecasts, self._queue = suspensions, health, forecasts, queue
        self.stalled: frozenset[int] = frozenset()
        """Jobs of which no batch could be read the last time."""
        self.backlog = False
        """Whether the ledger held queued sync requests the last time."""

    def read(self) -> Snapshot:
        """Return the ledger's snapshot with what only this process knows."""
        known = self._suspensions.read()
        snapshot = attrs.evolve(
            self._health.seen_with(known),
            batch_ends=self._forecasts.ends(group.terms.model for group in known.batch_queue),
            tariffs=self._tariffs(known),
            leased=self._ledger.lease.held,
        )
        self._queue.learn_limits(known.measured)
        self.stalled = _stalled(snapshot)
        self.note_backlog(snapshot)
        return snapshot

    def _tariffs(self, known: Snapshot) -> dict[str, Tariff]:
        """Return the batch lane's tariffs for the models of queued requests that share a prefix."""
        models = {group.terms.model for group in known.batch_queue if group.terms.prefix}
        found = {model: self._prices.rates(model, Lane.BATCH, at=self._now()) for model in models}
        return {model: tariff for model, tariff in found.items() if tariff is not None}

    def note_backlog(self, sendable: Snapshot) -> None:
        """Remember whether the work that may be sent has queued sync requests."""
        self.backlog = bool(sendable.sync_queue)

    def set_right(self, known: Snapshot, now: datetime) -> Snapshot:
        """Return the snapshot with its times corrected after a step of the clock; a correction is stored, too."""
        right = corrected(known, now, self._policy)
        if right is not known:
            self._health.set_right(right)
            for batch, was in zip(right.batches, known.batches, strict=True):
                if batch is not was:
                    self._ledger.batches.update(batch, was=was)
            self._ledger.conditions.set_right(right, now=now, latest=now + longest_pause(self._policy))
        return right

    @property
    def problems(self) -> tuple[Mapping[Lane, str], frozenset[int]]:
        """The problems that waiting callers are told of: suspended lanes, and jobs whose batches cannot be read."""
        return self._suspensions.lanes, self.stalled


def _stalled(known: Snapshot) -> frozenset[int]:
    """Return the jobs of which no batch can be read."""
    unread = frozenset(group.terms.job for batch in known.batches if batch.failures for group in batch.groups)
    return unread - {group.terms.job for batch in known.batches if not batch.failures for group in batch.groups}
