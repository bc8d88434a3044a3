"""The policies that are compared, and the mutants of batchwise that must miss deadlines."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from math import ceil
from typing import Any
from unittest import mock

import attrs

from batchwise.models import Policy
from batchwise.planning import admission, agenda, planner, rescue, sync_schedule
from batchwise.planning.state import Snapshot

from .lane import SyncLane
from .traffic import DAY, HOUR, MINUTE, WINDOW, Arrival, Scenario, limits_for
from .world import BATCH_PRICE, SYNC_PRICE, Tallies, Tally, World, settle

POLL = 5 * MINUTE
"""How late the simple policies notice that a batch has ended."""


def policy_for(tokens_per_minute: float, *, hedge: bool = False) -> Policy:
    """Batchwise with a lane of this size; everything else is its default, but for the polls' pace."""
    return Policy(
        limits=limits_for(tokens_per_minute),
        hedge=hedge,
        poll_every=(timedelta(minutes=2), timedelta(minutes=30)),
    )


# -- without a planner -------------------------------------------------------------------------------------------------


class _Simple:
    """A sync lane that serves the earliest deadline first, and batches without a rescue."""

    def __init__(self, scenario: Scenario, tokens_per_minute: float) -> None:
        self.scenario = scenario
        self.tallies: Tallies = defaultdict(Tally)
        self.lane = SyncLane(tokens_per_minute, 3, self._called)
        self._arrivals: list[Arrival] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0

    def run(self, arrivals: Sequence[Arrival], accept: Callable[[_Simple, int, Arrival], None]) -> Tallies:
        for arrival in arrivals:
            self.tallies[arrival.sla].requests += arrival.requests
            self._arrivals.append(arrival)
            self.at(arrival.time, partial(accept, self, len(self._arrivals) - 1, arrival))
        while self._events:
            moment, _, call = heapq.heappop(self._events)
            self.lane.serve(moment)
            call()
        self.lane.serve(arrivals[-1].time + 60 * DAY)
        return self.tallies

    def at(self, moment: float, call: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (moment, self._sequence, call))

    def sync(self, number: int, count: int) -> None:
        arrival = self._arrivals[number]
        self.lane.push(number, count, priority=0, due=arrival.time + arrival.sla)

    def batch(self, number: int, count: int, moment: float, redo: Callable[[int, int, float], None]) -> None:
        """A batch created then, or when the API is up again; what it leaves is redone when that is seen."""
        created = self.scenario.up_again(moment)
        end = self.scenario.ends(created)
        done = min(count, int(count * self.scenario.share_done(created, end) + 1e-9))
        seen = self.scenario.up_again(end + POLL)
        self._book(number, done, seen, BATCH_PRICE)
        if done < count:
            self.at(seen, partial(redo, number, count - done, seen))

    def _called(self, number: int, count: int, first: float, last: float) -> None:
        self._book(number, count, last, SYNC_PRICE, first)

    def _book(self, number: int, count: int, last: float, price: float, first: float | None = None) -> None:
        arrival = self._arrivals[number]
        tally = self.tallies[arrival.sla]
        tally.settled += count
        tally.cost += count * price
        if count:
            settle(tally, count, last if first is None else first, last, arrival.time + arrival.sla)


def all_sync(arrivals: Sequence[Arrival], scenario: Scenario, tokens_per_minute: float) -> Tallies:
    world = _Simple(scenario, tokens_per_minute)
    return world.run(arrivals, lambda world, number, arrival: world.sync(number, arrival.requests))


def all_batch(arrivals: Sequence[Arrival], scenario: Scenario, tokens_per_minute: float) -> Tallies:
    """Everything into batches, what expires into the next one."""

    def again(number: int, count: int, moment: float) -> None:
        world.batch(number, count, moment, again)

    world = _Simple(scenario, tokens_per_minute)
    return world.run(arrivals, lambda _, number, arrival: again(number, arrival.requests, arrival.time))


def card(arrivals: Sequence[Arrival], scenario: Scenario, tokens_per_minute: float) -> Tallies:
    """The rule of thumb: SLAs of 30 h and more into a batch every 4 h, redone on the sync lane at expiry."""

    def accept(world: _Simple, number: int, arrival: Arrival) -> None:
        if arrival.sla < 30 * HOUR:
            world.sync(number, arrival.requests)
        else:
            tick = ceil(arrival.time / (4 * HOUR)) * 4 * HOUR
            world.at(tick, lambda: world.batch(number, arrival.requests, tick, redo))

    def redo(number: int, count: int, _moment: float) -> None:
        world.sync(number, count)

    world = _Simple(scenario, tokens_per_minute)
    return world.run(arrivals, accept)


def clairvoyant(arrivals: Sequence[Arrival], scenario: Scenario, instants: Mapping[Arrival, float]) -> Tallies:
    """It knows when each row would be done, and sends to a batch exactly what is done in time.

    Same requests, groups and submission instants as the run that `instants` were taken from; what that run never
    submitted could have gone when it came.
    """
    tallies: Tallies = defaultdict(Tally)
    for arrival in arrivals:
        created, tally = scenario.up_again(instants.get(arrival, arrival.time)), tallies[arrival.sla]
        last = min(arrival.time + arrival.sla, created + WINDOW)
        done = int(arrival.requests * scenario.share_done(created, last)) if created < last else 0
        tally.requests += arrival.requests
        tally.settled += arrival.requests
        tally.cost += done * BATCH_PRICE + (arrival.requests - done) * SYNC_PRICE
    return tallies


# -- mutants -----------------------------------------------------------------------------------------------------------


@contextmanager
def _no_reserve() -> Iterator[dict[str, Any]]:
    """Keep no reserve: every request may wait until its deadline."""
    with (
        mock.patch.object(rescue, "latest_starts", lambda cohorts, *_, **__: [each.deadline for each in cohorts]),
        mock.patch.object(rescue, "margin_of", return_value=timedelta(0)),
        mock.patch.object(admission.Promises, "kept", return_value=None),
    ):
        yield {"reserve": timedelta(0), "min_reserve": timedelta(0)}


@contextmanager
def _alone() -> Iterator[dict[str, Any]]:
    """Each rescue is planned, and promised, as if it had the sync lane for itself."""

    def starts(cohorts: Sequence[sync_schedule.Cohort], pace: object, *, tail: timedelta) -> list[datetime]:
        return [sync_schedule.latest_starts([each], pace, tail=tail)[0] for each in cohorts]

    def kept(self: admission.Promises, now: datetime) -> object:
        if not self.cohorts:
            return None
        last = self.cohorts[-1]
        pace = self.capacity.pace(self.capacity.class_of(last.model))
        return sync_schedule.fits([last], pace, now=now, tail=self.margin)

    with mock.patch.object(rescue, "latest_starts", starts), mock.patch.object(admission.Promises, "kept", kept):
        yield {}


@contextmanager
def _no_gap() -> Iterator[dict[str, Any]]:
    """The planner believes that it is asked the moment that it wants to be, and that cancels end at once."""
    real = planner.plan

    def plan(snapshot: Snapshot, now: datetime, policy: Policy, *, wake_gap: timedelta) -> tuple[agenda.Action, ...]:
        assert wake_gap
        return real(snapshot, now, policy)

    with mock.patch.object(planner, "plan", plan):
        yield {"cancel_settle": timedelta(0)}


MUTANTS = {"reserve 0": _no_reserve, "rescue planned per batch": _alone, "no poll gap": _no_gap}


def batchwise(arrivals: Sequence[Arrival], scenario: Scenario, policy: Policy, *, gap: float = 10 * MINUTE) -> World:
    return World(arrivals, scenario, policy, plan=planner.plan, gap=gap).run()


def mutant(name: str, arrivals: Sequence[Arrival], scenario: Scenario, policy: Policy) -> World:
    with MUTANTS[name]() as changes:
        return batchwise(arrivals, scenario, attrs.evolve(policy, **changes))
