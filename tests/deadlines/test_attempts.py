"""Batches that fail again and again while the sync lane could answer: virtual time, real ledger and procedures."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

import batchwise as bw
from tests.reliability.simulation import HOUR, MINUTE, World

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
    assert world.ledger.report(job=None).met == len(NAMES)


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
