"""The result of one pass of the planner: the actions that are due, and the moment to ask again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Union

import attrs

from batchwise.models import Lane, Policy

from .cache_priming import Caching
from .rescue import Rescues
from .state import BatchView, Snapshot

__all__ = [
    "Action",
    "Agenda",
    "Cancel",
    "Collect",
    "FailLate",
    "GiveUp",
    "Move",
    "MoveFromBatch",
    "Poll",
    "Probe",
    "Reconcile",
    "Run",
    "Seal",
    "Unseal",
    "WaitUntil",
]


@attrs.frozen
class Seal:
    """Seal queued requests of these terms into a batch of at most so many."""

    terms: tuple[int, ...]
    betas: tuple[str, ...]
    max_requests: int
    caching: Caching = Caching.AS_IS


@attrs.frozen
class _OfOneBatch:
    batch: int


class Unseal(_OfOneBatch):
    """Queue the requests of a batch again that was sealed and never sent."""


class Reconcile(_OfOneBatch):
    """Look in the listing for a batch whose create has an unknown outcome."""


class GiveUp(_OfOneBatch):
    """Queue the requests of a batch again that was not seen within the grace, and watch for it."""


class Poll(_OfOneBatch):
    """Ask the API how far a batch is."""


class Cancel(_OfOneBatch):
    """Cancel a batch: its last safe moment has come."""


class Collect(_OfOneBatch):
    """Read the results of an ended batch."""


@attrs.frozen
class MoveFromBatch:
    """Queue a batch's unsettled requests of these terms for the sync lane, whatever becomes of the batch."""

    batch: int
    terms: tuple[int, ...]


@attrs.frozen
class Probe:
    """Queue one of a batch's requests, of these terms, for the sync lane, to see that it works; the batch runs on."""

    batch: int
    terms: int


@attrs.frozen
class Move:
    """Move queued requests of these terms to the other lane's queue."""

    terms: int
    lane: Lane


@attrs.frozen
class FailLate:
    """Settle queued requests of these terms unsent: their deadline has passed."""

    terms: int


@attrs.frozen
class Run:
    """Run queued requests of these terms on the sync lane; the first `Run` is the most urgent."""

    terms: int
    requests: int
    urgent: bool
    model: str = attrs.field(default="", eq=False)


@attrs.frozen
class WaitUntil:
    """Ask again at this moment, or when something has changed: nothing is due before."""

    moment: datetime


Action = Union[
    Seal, Unseal, Reconcile, GiveUp, Poll, Cancel, Collect, MoveFromBatch, Probe, Move, FailLate, Run, WaitUntil
]


class Agenda:
    """One pass: the snapshot, the actions found due, and the earliest moment at which something else falls due.

    With `optional_polls` batches are also polled before that is necessary, to collect them early. With the number of a
    job only what this job needs counts; all jobs share the lanes.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        now: datetime,
        policy: Policy,
        wake_gap: timedelta,
        *,
        optional_polls: bool = True,
        job: int | None = None,
    ) -> None:
        self.snapshot = snapshot if job is None else _queued_of(snapshot, job)
        self.batches = snapshot.batches if job is None else tuple(_batches_of(snapshot, job))
        self.now, self.policy, self.optional_polls = now, policy, optional_polls
        self.horizon = now + wake_gap
        self.actions: list[Action] = []
        self.next: datetime | None = None
        self.rescues = Rescues(snapshot, now, policy)
        self.batch_works = Lane.BATCH not in snapshot.suspended
        self.sync_works = Lane.SYNC not in snapshot.suspended

    def add(self, action: Action) -> None:
        """Add an action that is due now."""
        self.actions.append(action)

    def note(self, moment: datetime) -> None:
        """Note that the planner is to be asked again at `moment` (at once if that has come)."""
        moment = max(moment, self.now)
        self.next = moment if self.next is None else min(self.next, moment)

    def due(self, moment: datetime) -> bool:
        """Whether `moment` has come, or would have passed at the next pass; if not, note it."""
        if moment <= self.horizon:
            return True
        self.note(moment)
        return False

    def any_due(self, moments: Iterable[datetime]) -> bool:
        """Whether one of these moments is due; note those that are not."""
        return sum(map(self.due, moments)) > 0


def _queued_of(snapshot: Snapshot, job: int) -> Snapshot:
    return attrs.evolve(
        snapshot,
        batch_queue=tuple(group for group in snapshot.batch_queue if group.terms.job == job),
        sync_queue=tuple(group for group in snapshot.sync_queue if group.terms.job == job),
    )


def _batches_of(snapshot: Snapshot, job: int) -> Iterator[BatchView]:
    for batch in snapshot.batches:
        groups = tuple(group for group in batch.groups if group.terms.job == job)
        if groups:
            yield attrs.evolve(batch, groups=groups)
