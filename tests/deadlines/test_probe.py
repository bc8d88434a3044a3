"""The row that goes ahead of a rescue, in virtual time: real ledger and procedures, an API that fails as it is told."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

import batchwise as bw
from batchwise.engine.progress import progress
from batchwise.planning.capacity import tail_of
from tests.reliability.simulation import HOUR, MINUTE, SECOND, World
from tests.strategies import params

NAMES = [f"prompt {number}" for number in range(10)]
MOMENTS = pytest.mark.parametrize("moment_of", ["decision", "deadline"])


@pytest.fixture
def world() -> Iterator[World]:
    made = World(bw.Policy(hedge=True))
    made.api.duration = 100 * HOUR
    yield made
    made.close()


def stuck(world: World, moment_of: str, *, after: timedelta) -> None:
    """Ten requests in a batch that is not done by its last safe moment; so long after that moment.

    The moment is that of a hedge's decision, or the last that the deadline allows: for work that no decision hedged,
    and that came to its batch with less than a window left.
    """
    if moment_of == "decision":
        world.dispatch_all(NAMES, 6 * HOUR, "job")
    else:
        world.api.order("create", "unconnected", always=True)
        world.dispatch_all(NAMES, 30 * HOUR, "job")
        world.pass_time(24 * HOUR)
        world.api.lasting.discard(("create", "unconnected"))
        world.ledger.conditions.resume()
    world.run()
    moment = last_safe_moment(world)
    world.pass_time(moment + after - world.now(), wakes=400)


def last_safe_moment(world: World) -> datetime:
    (batch,) = progress(world.engine, None).batches
    assert batch.rescue_at is not None
    return batch.rescue_at


def test_the_ledger_is_told_of_a_change_at_once_and_else_once_a_minute(world: World) -> None:
    def call(name: str, fault: str | None = None) -> tuple[bool, bool]:
        """Whether the ledger was told that the lane answered, or that it failed."""
        if fault is not None:
            world.api.order("call", fault)
        before = world.ledger.snapshot()
        world.dispatch(name, bw.Latency.BLOCKING)
        world.run()
        after = world.ledger.snapshot()
        return (
            after.sync_answered_at != before.sync_answered_at,
            after.sync_failed_at != before.sync_failed_at,
        )

    assert call("first") == (True, False)
    world.pass_time(30 * SECOND)
    assert call("soon after") == (False, False)
    assert world.engine.situation.read().sync_answered_at == world.now(), "this process knows"
    world.pass_time(31 * SECOND)
    assert call("a minute later") == (True, False)
    world.pass_time(MINUTE)
    assert call("refused for what it is", "400") == (True, False), "that is an answer, too"
    world.pass_time(MINUTE)
    world.api.duration = timedelta(0)
    assert call("lost", "unconnected") == (False, True)
    world.pass_time(SECOND)
    assert call("found") == (True, False)


def test_a_call_that_is_held_back_does_not_show_whether_the_lane_works(world: World) -> None:
    world.api.order("call", "429")
    number = world.dispatch("held back", bw.Latency.BLOCKING)
    world.run()
    assert not world.ledger.results_of([number])
    assert (world.engine.health.answered_at, world.engine.health.failed_at) == (None, None)


@MOMENTS
def test_an_answer_in_another_process_shows_that_the_lane_works(world: World, moment_of: str) -> None:
    stuck(world, moment_of, after=-7 * MINUTE)
    world.ledger.conditions.note(sync_answered_at=world.now() + 5 * MINUTE)
    world.pass_time(20 * MINUTE)
    assert world.api.batches[0].cancel_at is not None
    assert (
        world.ledger.statistics.report(job=None).met,
        world.ledger.statistics.report(job=None).possible_doubles,
    ) == (10, 0)


@MOMENTS
def test_one_row_goes_ahead_a_calls_tail_before_the_last_safe_moment(world: World, moment_of: str) -> None:
    stuck(world, moment_of, after=-7 * MINUTE)
    moment, tail = last_safe_moment(world), tail_of(world.engine.policy.limits)
    world.pass_time(moment - tail - SECOND - world.now())
    assert not world.api.sync
    world.pass_time(tail)
    assert sum(world.api.sync.values()) == 1
    assert world.api.batches[0].cancel_at is None
    world.pass_time(5 * SECOND)
    assert world.api.batches[0].cancel_at is not None
    world.pass_time(20 * MINUTE)
    report = world.ledger.statistics.report(job=None)
    assert (report.met, report.missed, report.possible_doubles) == (10, 0, 1)
    world.check()


def test_it_is_one_of_the_most_urgent(world: World) -> None:
    requests = [bw.Request(params(f"{due} {n}"), latency=6 * HOUR + due * SECOND) for due in (0, 9) for n in range(3)]
    world.engine.accepting.accept_all(requests, "job", None, None)
    world.pass_time(6 * HOUR - 9 * MINUTE, wakes=400)
    assert len(world.api.batches) == 1
    assert next(iter(world.api.sync)) == "0 2", "and of these the last"


@MOMENTS
@pytest.mark.parametrize("fault", ["401", "500", "unconnected"])
def test_a_lane_that_works_again_is_used_again(world: World, fault: str, moment_of: str) -> None:
    world.api.order("call", fault, always=True)
    stuck(world, moment_of, after=4 * MINUTE)
    assert world.api.calls["call"] > 0
    assert world.api.batches[0].cancel_at is None
    left = sum(group.requests for batch in world.ledger.snapshot().batches for group in batch.groups)
    assert 10 - left in range(1, 4), "one row at a time goes ahead, some minutes apart"
    world.api.heal()
    world.ledger.conditions.resume()
    world.pass_time(8 * MINUTE, wakes=400)
    assert world.api.batches[0].cancel_at is not None
    assert world.ledger.statistics.report(job=None).met >= left
    world.check()
