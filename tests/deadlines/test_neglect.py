"""What `Progress` shows of a ledger that nobody works on: virtual time, real ledger and procedures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

import batchwise as bw
from batchwise import events
from batchwise.engine.collection import move_from_batch, poll
from batchwise.engine.core import Engine
from batchwise.engine.finding import job_number
from batchwise.engine.progress import progress
from batchwise.ledger.sqlite import SqliteLedger
from tests.reliability.simulation import HOUR, MINUTE, SECOND, Task, World

FIRST, SECOND_JOB = "first", "second"


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    made.api.duration = 100 * HOUR
    yield made
    made.close()


def seen(world: World, job: str | None = None) -> tuple[int, int]:
    found = progress(world.engine, None if job is None else job_number(world.ledger, job))
    return found.at_risk, found.overdue


def test_with_nobody_advancing_requests_are_at_risk_from_their_rescue_on_and_overdue_from_their_deadline_on(
    world: World,
) -> None:
    world.dispatch_all([f"a{n}" for n in range(10)], 30 * HOUR, FIRST)
    world.dispatch_all([f"b{n}" for n in range(3)], 60 * HOUR, SECOND_JOB)
    world.dispatch("somebody waits", bw.Latency.BLOCKING)
    world.run()
    start = progress(world.engine, None)
    moment = min(batch.rescue_at for batch in start.batches if batch.rescue_at is not None)
    assert world.now() + 29 * HOUR < moment < world.now() + 30 * HOUR
    assert (start.at_risk, start.overdue) == (0, 0)

    world.true = moment - SECOND
    assert seen(world) == (0, 0)
    world.true = moment + SECOND
    assert seen(world) == seen(world, FIRST) == (10, 0)
    assert seen(world, SECOND_JOB) == (0, 0)
    world.true += moment - world.true + HOUR
    assert seen(world) == seen(world, FIRST) == (0, 10)
    world.true += 40 * HOUR
    assert seen(world, SECOND_JOB) == (0, 3)
    assert seen(world) == (0, 13)


def test_next_due_stays_at_the_moment_at_which_somebody_should_have_come(world: World) -> None:
    world.dispatch_all(["a"], 30 * HOUR, FIRST)
    world.dispatch("b", 60 * HOUR, SECOND_JOB)  # queued for its interval
    world.run()
    start, job = world.now(), partial(job_number, world.ledger)
    over = start + world.policy.window
    later = start + 24 * HOUR  # a third of the buffer is the reserve
    assert progress(world.engine, None).next_due == progress(world.engine, job(FIRST)).next_due == over
    assert progress(world.engine, job(SECOND_JOB)).next_due == later
    for ahead in (30 * HOUR, 50 * HOUR, 70 * HOUR):
        world.true = start + ahead
        assert progress(world.engine, None).next_due == progress(world.engine, job(FIRST)).next_due == over
        assert progress(world.engine, job(SECOND_JOB)).next_due == later


def test_queued_work_that_nobody_submits_is_due_since_its_interval_was_over(world: World) -> None:
    world.dispatch("a", 30 * HOUR)
    due = progress(world.engine, None).next_due
    assert due is not None
    assert due - world.now() == pytest.approx(4 * HOUR, abs=MINUTE)
    world.true = due + HOUR
    world.dispatch("b", 30 * HOUR)
    assert progress(world.engine, None).next_due == due
    world.run()
    assert progress(world.engine, None).next_due > world.now()


def test_what_nobody_submitted_in_time_goes_to_the_sync_lane_and_is_told(world: World) -> None:
    world.dispatch("a", 30 * HOUR)
    told: list[events.Event] = []
    world.engine.emitter.listen(told.append)
    world.true += 29 * HOUR
    world.run()
    rescued = [(event.batch, event.requests) for event in told if isinstance(event, events.Rescued)]
    assert rescued == [(None, 1)]
    assert world.ledger.statistics.report(job=None).met == 1


@pytest.fixture
def hedging() -> Iterator[World]:
    made = World(bw.Policy(hedge=True))
    made.api.duration = 100 * HOUR
    yield made
    made.close()


def until_the_rescue(world: World) -> None:
    world.dispatch_all([f"a{n}" for n in range(10)], 6 * HOUR, FIRST)
    world.run()
    rescue = progress(world.engine, None).batches[0].rescue_at
    assert rescue is not None
    world.pass_time(rescue - world.now() + 10 * SECOND, wakes=400)


def test_a_rescue_that_goes_on_as_it_should_puts_nothing_at_risk_and_is_told(hedging: World) -> None:
    told: list[events.Event] = []
    hedging.engine.emitter.listen(told.append)
    until_the_rescue(hedging)
    assert hedging.api.batches[0].cancel_at is not None
    assert seen(hedging) == (0, 0)
    hedging.pass_time(HOUR)
    assert hedging.ledger.statistics.report(job=None).met == 10
    assert progress(hedging.engine, None).next_due is None
    assert [event.requests for event in told if isinstance(event, events.Hedged)] == [10]
    rescued = [(event.canceled, event.requests) for event in told if isinstance(event, events.Rescued)]
    assert rescued == [(True, 9), (False, 9)], "one went ahead"
    assert sum(event.requests for event in told if isinstance(event, events.Settled)) == 10
    assert not any(isinstance(event, (events.AtRisk, events.Missed)) for event in told)


@pytest.mark.parametrize("fault", ["dropped", "500"])
def test_a_rescue_whose_cancel_has_to_be_asked_for_again_is_told_once(hedging: World, fault: str) -> None:
    told: list[events.Event] = []
    hedging.engine.emitter.listen(told.append)
    hedging.api.order("cancel", fault)
    until_the_rescue(hedging)
    hedging.pass_time(HOUR)
    assert (hedging.api.calls["cancel"], hedging.ledger.statistics.report(job=None).met) == (2, 10)
    assert [event.requests for event in told if isinstance(event, events.Rescued) and event.canceled] == [9]


def test_a_sync_lane_that_does_not_work_puts_the_rescue_at_risk(hedging: World) -> None:
    hedging.api.order("call", "401", always=True)
    told: list[events.Event] = []
    hedging.engine.emitter.listen(told.append)
    until_the_rescue(hedging)
    assert hedging.api.batches[0].cancel_at is None
    assert seen(hedging) == (9, 0), "but for the one that went ahead"
    hedging.pass_time(6 * HOUR)
    dangers = [(event.at_risk, event.overdue) for event in told if isinstance(event, events.AtRisk)]
    assert dangers[0] == (9, 0)
    assert dangers[-1] == (0, 10)
    assert len(dangers) < 5
    assert seen(hedging) == (0, 10)


def test_an_end_that_two_looks_see_is_told_once(world: World) -> None:
    world.api.duration = HOUR
    world.dispatch_all(["a"], 30 * HOUR, FIRST)
    world.run()
    told: list[events.Event] = []
    world.engine.emitter.listen(told.append)
    world.true += 2 * HOUR
    (batch,) = world.ledger.snapshot().batches
    world.tasks += [Task(poll(world.engine, batch), lambda: None) for _ in range(2)]
    world.run()
    assert [event.requests for event in told if isinstance(event, events.Ended)] == [1]
    assert world.ledger.statistics.report(job=None).met == 1


def test_requests_that_two_looks_send_to_the_sync_lane_are_told_of_once(world: World) -> None:
    world.dispatch_all(["a", "b", "c"], 30 * HOUR, FIRST)
    world.run()
    told: list[events.Event] = []
    world.engine.emitter.listen(told.append)
    (batch,) = world.ledger.snapshot().batches
    terms = tuple(group.terms.id for group in batch.groups)
    world.tasks += [Task(move_from_batch(world.engine, batch, terms), lambda: None) for _ in range(2)]
    world.run()
    assert [event.requests for event in told if isinstance(event, events.Rescued)] == [3]
    assert world.ledger.statistics.report(job=None).met == 3


def test_what_fails_in_one_process_is_seen_by_another_until_it_works_or_nobody_renews_it(tmp_path: Path) -> None:
    path = str(tmp_path / "ledger.db")
    with closing(World(path=path)) as world, closing(SqliteLedger(path)) as ledger:
        looking = Engine(ledger, None, endpoint=None, now=world.now)
        world.api.duration = 10 * HOUR
        world.dispatch_all(["secret"], bw.Latency.FLEXIBLE)
        world.run()
        assert progress(looking, None).last_error is None
        world.api.order("retrieve", "500", always=True)
        world.pass_time(10 * MINUTE)
        seen = progress(looking, None).last_error or ""
        assert seen.startswith("asking about batch msgbatch_0001 failed ")
        assert seen.endswith(" UTC (told by another process)")
        assert "secret" not in seen
        assert progress(world.engine, None).last_error in seen

        world.api.heal()
        world.pass_time(HOUR)
        assert progress(looking, None).last_error is None

        world.api.order("retrieve", "500", always=True)
        world.pass_time(10 * MINUTE)
        assert progress(looking, None).last_error is not None
        world.restart()
        world.api.heal()
        world.pass_time(HOUR)
        assert progress(looking, None).last_error is None
