"""Batches that fail again and again while the sync lane could answer: virtual time, real ledger and procedures."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

import batchwise as bw
from tests.reliability.simulation import HOUR, MINUTE, SECOND, World

NAMES = [f"prompt {number}" for number in range(4)]
DAYS = timedelta(days=1)


@pytest.fixture(params=[1, 2, 3])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(bw.Policy(max_attempts=request.param))
    yield made
    made.close()


def ends(world: World) -> list[tuple[bw.Outcome, bw.Lane, bool | None]]:
    rows = world.ledger.results(job=None, after=0, limit=100)
    return sorted({(row.how.outcome, row.how.lane, row.how.met) for row in rows})


def test_what_expires_again_and_again_is_answered_by_the_sync_lane_in_time(world: World) -> None:
    world.api.duration = 1_000 * HOUR
    world.dispatch_all(NAMES, 6 * DAYS, "week")
    for _ in range(6 * 24):
        world.pass_time(HOUR)
    assert ends(world) == [(bw.Outcome.SUCCEEDED, bw.Lane.SYNC, True)]
    most = world.policy.max_attempts
    attempts = {row.how.attempts for row in world.ledger.results(job=None, after=0, limit=9)}
    assert attempts == {most}
    assert len(world.api.batches) == max(1, most - 1)
    assert world.ledger.statistics.report(job=None).met == len(NAMES)


def settle(world: World) -> list[tuple[bw.Outcome, bw.Lane, bool | None]]:
    """Let hours pass until all have ended."""
    for _ in range(6 * 24):
        world.pass_time(HOUR)
        if len(found := ends(world)) and world.ledger.statistics.report(job=None).requests == len(NAMES):
            return found
    raise AssertionError("they never end")


@pytest.mark.parametrize("fault", ["dropped after", "500"])
@pytest.mark.parametrize("world", [2, 3], indirect=True)
def test_what_batches_used_up_is_not_missing_when_a_call_fails_in_passing(world: World, fault: str) -> None:
    world.api.duration = 1_000 * HOUR
    world.dispatch_all(NAMES, 6 * DAYS, "week")
    for _ in range((world.policy.max_attempts - 1) * len(NAMES)):
        world.api.order("call", fault)
    assert settle(world) == [(bw.Outcome.SUCCEEDED, bw.Lane.SYNC, True)]


@pytest.mark.parametrize("fault", ["529", "429", "unconnected"])
@pytest.mark.parametrize("world", [3], indirect=True)
def test_hours_without_a_sync_lane_cost_no_promise(world: World, fault: str) -> None:
    """What the API refuses for load, or was never sent, is not paid: the deadline alone ends it."""
    world.dispatch_all(NAMES, 6 * HOUR, "soon")
    world.api.order("call", fault, always=True)
    for _ in range(4 * 180):
        world.pass_time(20 * SECOND)
    world.api.heal()
    assert settle(world) == [(bw.Outcome.SUCCEEDED, bw.Lane.SYNC, True)]


def test_calls_that_may_be_billed_end_where_attempts_end(world: World) -> None:
    world.api.order("call", "dropped after", always=True)
    world.dispatch_all(NAMES, 23 * HOUR, "soon")
    assert settle(world) == [(bw.Outcome.FAILED, bw.Lane.SYNC, False)]
    assert set(world.api.sync.values()) == {world.policy.max_attempts}


def test_somebody_who_goes_on_cancelling_does_not_cost_the_deadline(world: World) -> None:
    world.api.duration = 20 * HOUR
    world.dispatch_all(NAMES, 6 * DAYS, "week")
    for _ in range(6 * 24):
        world.pass_time(HOUR)
        for batch in world.api.batches:
            batch.cancel_at = batch.cancel_at or world.api.now() - MINUTE
    assert {(outcome, met) for outcome, _, met in ends(world)} == {(bw.Outcome.SUCCEEDED, True)}


def test_without_a_deadline_attempts_end(world: World) -> None:
    world.api.duration = 1_000 * HOUR
    world.dispatch_all(NAMES, bw.Latency.FLEXIBLE, "some day")
    for _ in range(5 * 24):
        world.pass_time(HOUR)
    assert ends(world) == [(bw.Outcome.EXPIRED, bw.Lane.BATCH, None)]
    assert len(world.api.batches) == world.policy.max_attempts
