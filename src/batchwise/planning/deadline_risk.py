"""Which deadlines are in danger, and which have passed. No clock, no I/O.

A deadline is in danger when the rescue that keeps it should have begun and has not, or when the sync lane cannot serve
all that is due in time any more, however it goes about it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from fractions import Fraction

import attrs

from batchwise.basics.times import ZERO
from batchwise.models import Policy

from .capacity import Capacity
from .rescue import Rescues, cohorts_of, groups_of
from .state import BatchState, BatchView, Group, Snapshot
from .sync_schedule import Cohort, at_risk, servable

__all__ = ["SAFE", "Risk", "risks"]


@attrs.frozen
class Risk:
    """How many unsettled requests are in danger.

    Attributes:
        at_risk: Those whose deadline is still to come and may not be kept.
        overdue: Those whose deadline has passed.
    """

    at_risk: int = 0
    overdue: int = 0

    def __add__(self, other: Risk) -> Risk:
        return Risk(self.at_risk + other.at_risk, self.overdue + other.overdue)


SAFE = Risk()


def risks(snapshot: Snapshot, now: datetime, policy: Policy, *, leeway: timedelta = ZERO) -> Mapping[int, Risk]:
    """The requests in danger, by the number of their job; a job without any is left out.

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
    """How many of each group may not keep a deadline that is still to come."""
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
    """When its rescue has to begin that has not begun yet; None: it has, or there is none."""
    if batch is None:
        # Whoever works through the queue of the sync lane comes to it in its turn.
        return None if rescues.class_of(group) in working else rescues.start(group)
    canceled = batch.cancel_at is not None or batch.state is not BatchState.OPEN
    return rescues.start(group) if canceled else rescues.cancel_at(group)


def _unserved(capacity: Capacity, name: str, cohorts: Iterable[Cohort], now: datetime) -> list[int]:
    """How many of each the lane cannot have in time, at the pace that it reaches, if all of it is taken up at once."""
    pace, tail = capacity.pace(name, Fraction(1)), capacity.tail(name)
    # Whatever runs can be cancelled at once: only what even that could not save is lost.
    at_once = [attrs.evolve(cohort, release=None) for cohort in cohorts]
    left = at_risk(at_once, pace, now=now, tail=tail)
    if not left:
        return [0] * len(at_once)
    found = []
    for cohort, kept in zip(at_once, servable(at_once, pace, now=now, tail=tail), strict=True):
        lost = min(left, cohort.requests - kept)  # what is said to be impossible is counted exactly
        left -= lost
        found.append(lost)
    return found
