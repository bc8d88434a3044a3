"""The joint schedule of all rescues: when work has to be on the sync lane, and when its batch has to be cancelled."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from fractions import Fraction
from operator import attrgetter

from batchwise.basics.times import ZERO
from batchwise.models import Policy

from .capacity import FILLED, Capacity
from .reserve import margin_of
from .state import BatchView, Group, Snapshot, Terms
from .sync_schedule import Cohort, latest_starts, servable, work

__all__ = [
    "Rescues",
    "capacity_of",
    "cohort_of",
    "cohorts_of",
    "groups_of",
    "is_hedged",
]

_HEDGED = Fraction(70, 100)
"""The share of the limits that hedged work counts on, so that later urgent work finds room: our choice."""


def is_hedged(terms: Terms, policy: Policy) -> bool:
    """Whether a batch with such work may be cancelled before its window is over."""
    return policy.hedge or terms.hedged


def _places(snapshot: Snapshot) -> Iterator[tuple[Group, BatchView | None]]:
    """Yield every group that may need the sync lane, with the batch that it is in."""
    for group in (*snapshot.sync_running, *snapshot.sync_queue, *snapshot.batch_queue):
        yield group, None
    for batch in snapshot.batches:
        for group in batch.groups:
            yield group, batch


def groups_of(snapshot: Snapshot) -> Iterator[Group]:
    """Yield every unsettled group."""
    return (group for group, _ in _places(snapshot))


def capacity_of(snapshot: Snapshot, now: datetime, policy: Policy) -> Capacity:
    """Return the capacity of the sync lane for all work of the snapshot."""
    return Capacity(policy, now, snapshot.measured, (group.terms.model for group in groups_of(snapshot)))


def cohort_of(group: Group, deadline: datetime, release: datetime | None = None) -> Cohort:
    """Return a group as a cohort for the sync lane."""
    return Cohort(
        deadline=deadline,
        requests=group.requests,
        input_tokens=group.input_tokens,
        output_tokens=group.output_tokens,
        release=release,
        model=group.terms.model,
    )


def cohorts_of(snapshot: Snapshot, now: datetime) -> list[tuple[Cohort, Group, BatchView | None]]:
    """Return the cohorts that may have to run on the sync lane before a deadline that is still to come.

    They count as available at once: running batches can be cancelled.
    """
    return [
        (cohort_of(group, due), group, batch)
        for group, batch in _places(snapshot)
        if (due := group.terms.due) is not None and due > now
    ]


class Rescues:
    """Rule 2: the last safe moments, computed over all work that may have to be rescued at the same time.

    Each class of models has a sync lane to itself.
    """

    def __init__(self, snapshot: Snapshot, now: datetime, policy: Policy) -> None:
        self._now, self._policy = now, policy
        self.margin = margin_of(policy)
        self.capacity = capacity_of(snapshot, now, policy)
        cohorts = (cohort for cohort, _, _ in cohorts_of(snapshot, now))
        self._cohorts = self.capacity.by_class(cohorts, attrgetter("model"))
        self._starts = self._latest(FILLED)
        self._hedged_starts = self._latest(_HEDGED) if policy.hedge else self._starts
        self._lost = self._hopeless()

    def _latest(self, share: Fraction) -> dict[tuple[str, datetime], datetime]:
        """Return, by class and deadline, when work has to start on the sync lane at the latest."""
        starts: dict[tuple[str, datetime], datetime] = {}
        for name, cohorts in self._cohorts.items():
            pace = self.capacity.pace(name, share)
            for cohort, start in zip(cohorts, latest_starts(cohorts, pace, tail=self.margin), strict=True):
                key = name, cohort.deadline
                starts[key] = min(start, starts.get(key, start))
        return starts

    def _hopeless(self) -> set[tuple[str, datetime]]:
        """Return the deadlines that cannot be kept for any request of the class."""
        lost: set[tuple[str, datetime]] = set()
        for name, cohorts in self._cohorts.items():
            keys = {(name, cohort.deadline) for cohort in cohorts}
            if min(self._starts[key] for key in keys) >= self._now:
                continue
            counts = servable(cohorts, self.capacity.pace(name), now=self._now, tail=ZERO)
            lost |= keys - {(name, each.deadline) for each, count in zip(cohorts, counts, strict=True) if count}
        return lost

    def _key(self, group: Group) -> tuple[str, datetime] | None:
        due = group.terms.due
        if due is None:
            return None
        key = self.class_of(group), due
        return None if key in self._lost else key

    def class_of(self, group: Group) -> str:
        """Return the class of the group's model."""
        return self.capacity.class_of(group.terms.model)

    def start(self, group: Group) -> datetime | None:
        """Return when the group has to be on the sync lane; None: no deadline, or none that can be kept."""
        key = self._key(group)
        return None if key is None else self._starts.get(key)

    def cancel_at(self, group: Group) -> datetime | None:
        """Return when a batch with the group has to be cancelled; None: never.

        For hedged work at the latest at the moment of its decision: the hedge was priced by it.
        """
        key, terms = self._key(group), group.terms
        if key is None or key not in self._hedged_starts:
            return None
        last = self._hedged_starts[key] - self._policy.cancel_settle
        return min(last, terms.rescue_at) if terms.hedged and terms.rescue_at is not None else last

    def cancel_moments(self, batch: BatchView) -> list[datetime]:
        """Return when a batch has to be cancelled for each of its groups."""
        return [moment for group in batch.groups if (moment := self.cancel_at(group)) is not None]

    def last_seal(self, group: Group) -> datetime | None:
        """Return until when the group may go into a batch (rule 5); None: at any time."""
        last, deadline = self.cancel_at(group), group.terms.deadline
        if last is None or deadline is None:
            return None
        if is_hedged(group.terms, self._policy):
            return last
        return min(last, deadline - self.margin - self.lane_time(group) - self._policy.window)

    def lane_time(self, group: Group) -> timedelta:
        """Return the time that the group takes of the sync lane, alone."""
        return work(group, self.capacity.pace(self.class_of(group)))
