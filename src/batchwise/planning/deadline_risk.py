"""Finds deadlines that are in danger, and those that have passed. No clock, no I/O.

A deadline is in danger when the rescue that keeps it should have begun and has not, or when the sync lane can no longer
serve all due work in time, in whatever order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from fractions import Fraction

import attrs

from batchwise.basics.times import ZERO
from batchwise.models import Outcome, Policy

from .capacity import Capacity
from .rescue import Rescues, cohorts_of, groups_of
from .state import BatchState, BatchView, Group, Snapshot
from .sync_schedule import Cohort, at_risk, servable

__all__ = ["SAFE", "Risk", "punctuality", "risks"]


@attrs.frozen
class Risk:
    """Counts of unsettled requests in danger.

    Attributes:
        at_risk: Requests whose deadline is still to come and may be missed.
        overdue: Requests whose deadline has passed.
    """

    at_risk: int = 0
    overdue: int = 0

    def __add__(self, other: Risk) -> Risk:
        return Risk(self.at_risk + other.at_risk, self.overdue + other.overdue)


SAFE = Risk()


def risks(snapshot: Snapshot, now: datetime, policy: Policy, *, leeway: timedelta = ZERO) -> Mapping[int, Risk]:
    """Return the requests in danger by the number of their job; a job without any is left out.

    A rescue counts as not begun once it is later than `leeway`.
    """
    found: dict[int, Risk] = {}
    for group in groups_of(snapshot):
        if group.terms.deadline is not None and group.terms.deadline <= now:
            found[group.terms.job] = found.get(group.terms.job, SAFE) + Risk(overdue=group.requests)
    for group, requests in _in_danger(snapshot, now, policy, leeway):
        if requests:
            found[group.terms.job] = found.get(group.terms.job, SAFE) + Risk(at_risk=requests)
    return found


def _in_danger(snapshot: Snapshot, now: datetime, policy: Policy, leeway: timedelta) -> Iterator[tuple[Group, int]]:
    """Yield how many requests of each group may miss a deadline that is still to come."""
    places = cohorts_of(snapshot, now)
    if not places:
        return
    rescues = Rescues(snapshot, now, policy)
    running = snapshot.sync_running
    working = {rescues.class_of(group) for group in running}
    for name, members in rescues.capacity.by_class(places, lambda place: place[0].model).items():
        unserved = _unserved(rescues.capacity, name, [cohort for cohort, _, _ in members], now)
        for (_, group, batch), lost in zip(members, unserved, strict=True):
            moment = None if group in running else _rescue_moment(rescues, group, batch, working)
            missed = moment is not None and now > moment + leeway
            yield group, group.requests if missed else lost


def _rescue_moment(
    rescues: Rescues, group: Group, batch: BatchView | None, working: Collection[str]
) -> datetime | None:
    """Return when the group's rescue has to begin; None: it has begun, or there is none."""
    if batch is None:
        # The sync lane works through its queue, and comes to this group in its turn.
        return None if rescues.class_of(group) in working else rescues.start(group)
    canceled = batch.cancel_at is not None or batch.state is not BatchState.OPEN
    return rescues.start(group) if canceled else rescues.cancel_at(group)


def _unserved(capacity: Capacity, name: str, cohorts: Sequence[Cohort], now: datetime) -> list[int]:
    """Return how many requests of each cohort the lane cannot finish in time at its pace."""
    pace, tail = capacity.pace(name, Fraction(1)), capacity.tail(name)
    left = at_risk(cohorts, pace, now=now, tail=tail)
    if not left:
        return [0] * len(cohorts)
    found = []
    for cohort, kept in zip(cohorts, servable(cohorts, pace, now=now, tail=tail), strict=True):
        lost = min(left, cohort.requests - kept)  # impossible requests are counted exactly
        left -= lost
        found.append(lost)
    return found


def punctuality(outcome: Outcome, deadline: datetime | None, settled: datetime) -> tuple[bool | None, timedelta]:
    """Return whether a request that settles now meets its deadline, and by how much it is late.

    Only an answer meets a deadline. A cancelled request no longer has one, whoever cancelled it and when.

    Returns:
        True or False, None without a deadline; and the time from the deadline to the end, zero where it is in time.
    """
    if deadline is None or outcome is Outcome.CANCELED:
        return None, ZERO
    lateness = max(ZERO, settled - deadline)
    return outcome is Outcome.SUCCEEDED and not lateness, lateness
