"""Where the work stands: what the ledger says of it, with what only this process knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

import attrs

from batchwise.ledger.ledger import Ledger
from batchwise.models import Lane, Policy
from batchwise.planning.clock_skew import believed, longest_pause
from batchwise.planning.pricing import PriceBook, Tariff
from batchwise.planning.state import Snapshot

from .forecasts import Forecasts
from .health import Health
from .queue import CallQueue
from .suspensions import Suspensions

__all__ = ["Situation"]


class Situation:
    """Reads where the work stands, and remembers of the last time what callers are told.

    Args:
        ledger: The durable record.
        policy: The rules' figures.
        prices: The price book.
        suspensions: Read the ledger's snapshot.
        health: How the sync lane does.
        forecasts: How long batches take.
        queue: Learns how much other processes reach.
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
        """Jobs none of whose batches could be read the last time."""
        self.backlog = False
        """Whether the ledger held calls to hand out, the last time."""

    def read(self) -> Snapshot:
        """The ledger's snapshot with what only this process knows."""
        known = self._suspensions.read()
        snapshot = attrs.evolve(
            self._health.seen_with(known),
            forecast=self._forecasts.of(),
            batch_ends=self._forecasts.ends(group.terms.model for group in known.batch_queue),
            tariffs=self._tariffs(known),
            leased=self._ledger.lease.held,
        )
        self._queue.stored_limits = known.measured
        self.stalled = _stalled(snapshot)
        self.note_backlog(snapshot)
        return snapshot

    def _tariffs(self, known: Snapshot) -> dict[str, Tariff]:
        """What the batch lane charges for the models of queued requests with a prefix."""
        models = {group.terms.model for group in known.batch_queue if group.terms.prefix}
        found = {model: self._prices.rates(model, Lane.BATCH, at=self._now()) for model in models}
        return {model: tariff for model, tariff in found.items() if tariff is not None}

    def note_backlog(self, sendable: Snapshot) -> None:
        """Remember whether there are calls to hand out, of what may be sent."""
        self.backlog = bool(sendable.sync_queue)

    def set_right(self, known: Snapshot, now: datetime) -> Snapshot:
        """What is believed of a snapshot. Where the clock was ahead, that is stored: the ledger has to agree to it."""
        right = believed(known, now, self._policy)
        if right is not known:
            self._health.set_right(right)
            for batch, was in zip(right.batches, known.batches, strict=True):
                if batch is not was:
                    self._ledger.batches.update(batch, was=was)
            self._ledger.conditions.set_right(right, now=now, latest=now + longest_pause(self._policy))
        return right

    @property
    def problems(self) -> tuple[Mapping[Lane, str], frozenset[int]]:
        """What callers who wait may have to be told: suspended lanes, and jobs whose batches cannot be read."""
        return self._suspensions.lanes, self.stalled


def _stalled(known: Snapshot) -> frozenset[int]:
    """The jobs none of whose batches can be read."""
    unread = frozenset(group.terms.job for batch in known.batches if batch.failures for group in batch.groups)
    return unread - {group.terms.job for batch in known.batches if not batch.failures for group in batch.groups}
