"""A clock that was wrong while something was stored, and is set right: nothing stops, and no promise is missed for it.

The world's clock is set off by an hour, a day or a year, either way, a batch is brought to each of its stages, and the
clock is set right. All must settle from there, by the true time, as if it had never been wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache

import pytest

import batchwise as bw
from batchwise.ledger.values import Which
from batchwise.models import Lane
from batchwise.planning.state import BatchState
from tests.reliability.simulation import HOUR, MINUTE, START, World

DAY = timedelta(days=1)
STEPS = [sign * step for sign in (1, -1) for step in (HOUR, DAY, 365 * DAY)]
PROMISE = START + 60 * HOUR
NAMES = [f"prompt {number}" for number in range(6)]
POLICY = bw.Policy(flexible_interval=30 * MINUTE)


def queued(world: World) -> None:
    world.dispatch("more", bw.Latency.FLEXIBLE)
    world._plan()


def sealed(world: World) -> None:
    """Sealed by a process that died before it sent anything."""
    left_at(world, BatchState.SEALED)


def posting(world: World) -> None:
    left_at(world, BatchState.POSTING)


def left_at(world: World, state: BatchState) -> None:
    world._plan()
    for _ in range(100):
        if [batch.state for batch in world.ledger.snapshot().batches] == [state]:
            return
        world.tasks[0].step(world.api)
    raise AssertionError(world.ledger.snapshot())


def doubt(world: World) -> None:
    world.api.order("create", "dropped after")
    world.run()


def doubt_unsent(world: World) -> None:
    world.api.order("create", "dropped before")
    world.run()


def watched(world: World) -> None:
    """Given up, and never created."""
    world.api.order("create", "dropped before")
    world.pass_time(HOUR)
    assert BatchState.WATCHED in {batch.state for batch in world.ledger.snapshot().batches}


def opened(world: World) -> None:
    world.run()
    world.pass_time(10 * MINUTE)


def failing(world: World) -> None:
    """Open, and the last polls have failed."""
    world.run()
    world.api.order("retrieve", "500", always=True)
    world.pass_time(5 * MINUTE)
    world.api.heal()


def canceling(world: World) -> None:
    world.run()
    world.cancel()
    world.run()


def ended(world: World) -> None:
    world.run()
    world.api.order("read", "half", always=True)
    world.pass_time(HOUR + MINUTE)
    world.api.heal()


def paused(world: World) -> None:
    world.api.order("create", "queue")
    world.run()


def for_sync(world: World) -> None:
    queued = Which(terms=[group.terms.id for group in world.ledger.snapshot().batch_queue])
    world.ledger.requeue(queued, lane=Lane.SYNC, now=world.now())


def unanswered(world: World) -> None:
    """The sync lane fails, and a batch has to be rescued later on."""
    world.api.duration = 200 * HOUR
    world.dispatch("call", bw.Latency.BLOCKING)
    world.api.order("call", "500")
    world.run()
    world.pass_time(MINUTE)
    world.run()


STAGES = [
    queued,
    sealed,
    posting,
    doubt,
    doubt_unsent,
    watched,
    opened,
    failing,
    canceling,
    ended,
    paused,
    for_sync,
    unanswered,
]


@pytest.fixture
def world() -> Iterator[World]:
    made = World(POLICY)
    yield made
    made.close()


CASES = [(step, False) for step in STEPS] + [(step, True) for step in (DAY, -DAY)]


@pytest.mark.parametrize(("step", "restarts"), CASES, ids=str)
@pytest.mark.parametrize("stage", STAGES)
def test_what_a_wrong_clock_stored_delays_nothing(
    stage: Callable[[World], None], step: timedelta, restarts: bool, world: World
) -> None:
    took = live_through(stage, step, restarts, world)
    usual, doubles = as_usual(stage, restarts)
    assert took <= usual + 2 * HOUR, f"{took} instead of {usual}"
    assert START + took <= PROMISE
    assert world.ledger.statistics.report(job=None).possible_doubles <= doubles, "nothing is bought once more for it"


@cache
def as_usual(stage: Callable[[World], None], restarts: bool) -> tuple[timedelta, int]:
    """How long it takes with a clock that was never wrong, and how much may be bought twice."""
    world = World(POLICY)
    took, doubles = (
        live_through(stage, timedelta(0), restarts, world),
        world.ledger.statistics.report(job=None).possible_doubles,
    )
    world.close()
    return took, doubles


def live_through(stage: Callable[[World], None], step: timedelta, restarts: bool, world: World) -> timedelta:
    """Come to a stage with a clock that is wrong, set it right, and settle all; returns how long that took."""
    world.dispatch_all(NAMES, PROMISE)  # promised by the right clock
    world.skew = step
    stage(world)
    world.skew = timedelta(0)
    if restarts or world.tasks:
        world.crash(done=False)
    return settle(world)


def settle(world: World) -> timedelta:
    """Let time pass until all is settled; returns how long that took since the beginning."""
    for _ in range(70):
        world.pass_time(HOUR, wakes=1_000)
        world.check()
        if len(world.seen) == len(world.accepted):
            return world.true - START
    raise AssertionError(f"not settled: {world.ledger.snapshot()}")
