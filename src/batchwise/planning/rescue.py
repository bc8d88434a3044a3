"""The joint schedule of all rescues: when what is unsettled has to be on the sync lane, or its batch cancelled."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import lru_cache

import attrs

from batchwise.models import Lane, Limits, Policy, Reason

from .reserve import margin_of, reserve_for
from .schedule import Cohort, latest_starts, servable, work
from .state import BatchView, Group, Snapshot, Terms

__all__ = ["Rescues", "cohort_of", "cohorts_of", "is_hedged", "next_attempt", "usable"]

_ZERO = timedelta(0)
_FILLED = 0.95
"""The share of its limits that the sync lane surely keeps filled."""
_CALM = 0.7
"""The share of its limits that hedged work counts on, so that urgent work still to come finds room: our choice."""


@lru_cache(maxsize=64)
def usable(limits: Limits, share: float = _FILLED) -> Limits:
    """The limits that rescues are planned with: what the lane surely keeps filled."""

    def part(limit: int | None) -> int | None:
        return None if limit is None else max(1, int(limit * share))

    return attrs.evolve(
        limits,
        requests_per_minute=part(limits.requests_per_minute),
        input_tokens_per_minute=part(limits.input_tokens_per_minute),
        output_tokens_per_minute=part(limits.output_tokens_per_minute),
        latency=limits.latency / share,  # concurrency / latency is a rate, too
    )


def is_hedged(terms: Terms, policy: Policy) -> bool:
    """Whether its batch may be broken off before its window is over."""
    return policy.hedge or terms.reason is Reason.HEDGED


def next_attempt(
    terms: Terms, attempts: int, now: datetime, policy: Policy, *, costs: bool, sync_works: bool
) -> tuple[Lane, bool] | None:
    """Where a request goes on that its batch gave no answer: another batch if the time allows one, else the sync lane.

    The last attempt that a deadline needs belongs to the sync lane: batches leave it there, and one that had no other
    attempt does not use it up.

    Args:
        terms: The request's terms.
        attempts: What it has used up before.
        now: The moment.
        policy: The rules' figures.
        costs: Whether this try counts among its attempts.
        sync_works: Whether the sync lane takes work now.

    Returns:
        The lane, and whether the try counts; None: no attempt is left, or it was adopted, so it ends.
    """
    if terms.adopted:
        return None
    spent = attempts + costs
    due = None if terms.batch_only else terms.deadline
    if spent >= policy.max_attempts:
        return (Lane.SYNC, False) if due is not None and due > now else None
    if due is None:
        return Lane.BATCH, costs
    left = due - now
    fits = left >= policy.window + reserve_for(policy, left - policy.window)
    last = costs and spent == policy.max_attempts - 1
    return (Lane.BATCH if fits and not (last and sync_works) else Lane.SYNC), costs


def _rescuable(group: Group) -> bool:
    return group.terms.deadline is not None and not group.terms.batch_only


def _places(snapshot: Snapshot) -> Iterator[tuple[Group, BatchView | None]]:
    """Every group that may need the sync lane, with the batch that it is in."""
    for group in (*snapshot.sync_running, *snapshot.sync_queue, *snapshot.batch_queue):
        yield group, None
    for batch in snapshot.batches:
        for group in batch.groups:
            yield group, batch


def cohort_of(group: Group, deadline: datetime, release: datetime | None) -> Cohort:
    """A group as work for the sync lane."""
    return Cohort(
        deadline=deadline,
        requests=group.requests,
        input_tokens=group.input_tokens,
        output_tokens=group.output_tokens,
        release=release,
    )


def cohorts_of(snapshot: Snapshot, now: datetime) -> list[tuple[Cohort, Group, BatchView | None]]:
    """What may have to be on the sync lane before a deadline that is still to come."""
    return [
        (cohort_of(group, group.terms.deadline, _release(group, batch, snapshot.clock_offset, now)), group, batch)
        for group, batch in _places(snapshot)
        if group.terms.deadline is not None and _rescuable(group) and group.terms.deadline > now
    ]


def _release(group: Group, batch: BatchView | None, clock_offset: timedelta, now: datetime) -> datetime | None:
    """The moment at which it could be on the sync lane without paying twice, should its batch expire."""
    if batch is not None and batch.expires_at is not None:
        return max(now, batch.expires_at - clock_offset)
    return group.not_before


class Rescues:
    """Rule 2: the last safe moments, computed over everything that may have to be rescued at the same time."""

    def __init__(self, snapshot: Snapshot, now: datetime, policy: Policy) -> None:
        self._now, self._policy = now, policy
        self.margin, self._limits = margin_of(policy), usable(policy.limits)
        self._cohorts = [cohort for cohort, _, _ in cohorts_of(snapshot, now)]
        self._starts = self._latest(self._limits)
        self._calm = self._latest(usable(policy.limits, _CALM)) if policy.hedge else self._starts
        self._lost = self._hopeless()

    def _latest(self, limits: Limits) -> dict[datetime, datetime]:
        """By deadline: when its work has to start on the sync lane at the latest."""
        starts: dict[datetime, datetime] = {}
        for cohort, start in zip(self._cohorts, latest_starts(self._cohorts, limits, tail=self.margin), strict=True):
            starts[cohort.deadline] = min(start, starts.get(cohort.deadline, start))
        return starts

    def _hopeless(self) -> set[datetime]:
        """Deadlines that cannot be kept for a single request."""
        if min(self._starts.values(), default=self._now) >= self._now:
            return set()
        at_once = [attrs.evolve(cohort, release=None) for cohort in self._cohorts]
        counts = servable(at_once, self._limits, now=self._now, tail=_ZERO)
        return self._starts.keys() - {each.deadline for each, count in zip(at_once, counts, strict=True) if count}

    def start(self, group: Group) -> datetime | None:
        """When it has to be on the sync lane; None: no deadline, or none that can be kept."""
        deadline = group.terms.deadline
        if deadline is None or group.terms.batch_only or deadline in self._lost:
            return None
        return self._starts.get(deadline)

    def cancel_at(self, group: Group) -> datetime | None:
        """When a batch with it has to be cancelled; None: never.

        Hedged work by the moment of its decision at the latest, from which on waiting costs more than it may save.
        """
        start, terms = self.start(group), group.terms
        if start is None or terms.deadline is None:
            return None
        last = self._calm[terms.deadline] - self._policy.cancel_settle
        return last if terms.reason is not Reason.HEDGED or terms.rescue_at is None else min(last, terms.rescue_at)

    def cancel_moments(self, batch: BatchView) -> list[datetime]:
        """The same for each of its groups."""
        return [moment for group in batch.groups if (moment := self.cancel_at(group)) is not None]

    def last_seal(self, group: Group) -> datetime | None:
        """Rule 5: until when it may go into a batch; None: as long as it likes."""
        last, deadline = self.cancel_at(group), group.terms.deadline
        if last is None or deadline is None:
            return None
        if is_hedged(group.terms, self._policy):
            return last
        return min(last, deadline - self.margin - self.lane_time(group) - self._policy.window)

    def lane_time(self, group: Group) -> timedelta:
        """What it takes of the sync lane, alone."""
        return work(group, self._limits)
