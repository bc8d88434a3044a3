"""Grouping: single dispatches wait for their interval and go together, unless somebody waits."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

from batchwise import Lane, Latency, Limits, Status
from batchwise.ledger.sqlite import SqliteLedger
from tests.strategies import params

from .world import HOURS_30, PATIENCE, World, listed, many

FLEXIBLE = Latency.FLEXIBLE
FILES = "files-api-2025-04-14"


async def test_single_requests_with_a_deadline_wait_for_their_interval_and_go_together(world: World):
    async with world.open(interval=timedelta(seconds=0.6)) as d:
        started = time.monotonic()
        tickets = [await d.dispatch(params(f"p{n}"), latency=HOURS_30) for n in range(3)]
        await world.colour.sleep(max(0.0, started + 0.4 - time.monotonic()))
        assert world.creates == 0
        await world.until(lambda: world.creates)
        assert time.monotonic() - started >= 0.6
        await world.until(lambda: len(world.books.batches) == 1 and len(world.books.batches[0].rows) == 3)
        assert [(await t.result()).text for t in tickets] == [f"echo: p{n}" for n in range(3)]
    assert world.creates == 1


async def test_flexible_requests_wait_for_the_flexible_interval(world: World):
    async with world.open(flexible_interval=timedelta(seconds=0.3)) as d:
        for n in range(2):
            await d.dispatch(params(f"p{n}"), latency=FLEXIBLE)
        assert world.creates == 0
        await world.until(lambda: world.creates)
    assert [len(batch.rows) for batch in world.books.batches] == [2]


async def test_a_flush_sends_them_at_once_and_together(world: World):
    async with world.open() as d:
        tickets = [await d.dispatch(params(f"p{n}"), latency=HOURS_30) for n in range(3)]
        await world.colour.sleep(0.1)
        assert world.creates == 0
        assert {t.status for t in tickets} == {Status.QUEUED}
        await d.flush()
        await world.until(lambda: world.creates)
        assert [len(batch.rows) for batch in world.books.batches] == [3]


async def test_waiting_for_one_sends_its_group_only(world: World):
    async with world.open() as d:
        first = await d.dispatch(params("a"), latency=HOURS_30)
        second = await d.dispatch(params("b"), latency=HOURS_30)
        other = await d.dispatch(params("c"), latency=HOURS_30, betas=[FILES])
        assert (await first.result()).ok
        assert len(world.books.batches) == 1
        assert (await other.refresh()) is not None
        assert other.status is Status.QUEUED
        assert (await second.result()).ok


async def test_waiting_for_a_job_sends_what_was_appended(world: World):
    async with world.open() as d:
        job = await d.dispatch_all(many(2), job="j", latency=HOURS_30)
        await job.wait()
        late = await d.dispatch(params("late"), job="j", latency=HOURS_30)
        alone = await d.dispatch(params("alone"), latency=timedelta(hours=90))
        assert {r.key async for r in job.results()} == {"r-0", "r-1", late.key}
        await alone.refresh()
        assert alone.status is Status.QUEUED


async def test_different_betas_go_into_different_batches(world: World):
    async with world.open() as d:
        tickets = [await d.dispatch(params(f"p{n}"), latency=HOURS_30, betas=[FILES] * (n % 2)) for n in range(6)]
        await d.flush()
        assert [(await t.result()).text for t in tickets] == [f"echo: p{n}" for n in range(6)]
    found = {False: set(), True: set()}
    for batch in world.books.batches:
        found[FILES in batch.betas] |= {row["params"]["messages"][0]["content"] for row in batch.rows}
    assert found == {False: {"p0", "p2", "p4"}, True: {"p1", "p3", "p5"}}


async def test_a_batch_is_sent_by_the_one_who_seals_it(world: World):
    def slow(*args, **keywords):
        batch = seal(*args, **keywords)
        looked.wait(0.3)  # the pump sees a sealed batch that nobody seems to send
        return batch

    class Looking(SqliteLedger):
        def snapshot(self):
            found = super().snapshot()
            if found.batches:
                looked.set()
            return found

    looked = threading.Event()
    ledger = Looking(world.path)
    seal, ledger.batches.seal = ledger.batches.seal, slow
    async with world.open(ledger=ledger) as d:
        job = await d.dispatch_all(many(3), job="j", latency=FLEXIBLE)
        for _ in range(10):
            await d.flush()
            await world.colour.sleep(0.02)
        assert len(await listed(job.results(timeout=PATIENCE))) == 3
    ledger.close()
    assert world.creates == 1


async def test_a_planner_that_is_slow_runs_less_often(world: World):
    class Slow(SqliteLedger):
        def snapshot(self):
            looks.append(time.monotonic())
            time.sleep(0.1)
            return super().snapshot()

    looks: list[float] = []
    ledger = Slow(world.path)
    async with world.open(ledger=ledger) as d:
        await d.dispatch(params("first"), latency=FLEXIBLE)
        end = time.monotonic() + 0.8  # less than a second, which is when it is asked next
        while time.monotonic() < end:  # each is a change, but none makes anything due
            await d.dispatch(params("more"), latency=FLEXIBLE)
            await world.colour.sleep(0.02)
        assert 1 <= len(looks) <= 3
    ledger.close()


async def test_what_comes_while_the_planner_is_slow_is_sent_in_time(world: World):
    class Slow(SqliteLedger):
        def snapshot(self):
            found = super().snapshot()
            planning.set()
            time.sleep(pause)
            return found

    planning, pause = threading.Event(), 0.4
    ledger = Slow(world.path)
    async with world.open(ledger=ledger, flexible_interval=timedelta(milliseconds=10)) as d:
        await d.flush()
        await world.colour.sleep(3 * pause)  # it has planned twice, and looks for changes every four seconds only
        planning.clear()
        await d.flush()
        await world.until(planning.is_set)
        await d.dispatch(params("x"), latency=FLEXIBLE)
        pause = 0
        await world.until(lambda: world.creates, seconds=2)
    ledger.close()


async def test_requests_with_deadlines_far_apart_go_into_different_batches(world: World):
    async with world.open() as d:
        near = await d.dispatch(params("near"), latency=HOURS_30)
        far = await d.dispatch(params("far"), latency=timedelta(days=20))
        await d.flush()
        assert [(await t.result()).text for t in (near, far)] == ["echo: near", "echo: far"]
    assert [len(batch.rows) for batch in world.books.batches] == [1, 1]


async def test_a_rescue_when_the_batch_is_late(world: World):
    world.sandbox.batch_latency = 60
    async with world.open(
        window=timedelta(seconds=1),
        min_reserve=timedelta(seconds=10),
        cancel_settle=timedelta(seconds=9.5),
        limits=Limits(latency=timedelta(milliseconds=20), concurrency=20),
    ) as d:
        job = await d.dispatch_all(many(3), job="j", latency=timedelta(seconds=12.5))
        results = await listed(job.results())
        assert {(r.lane, r.ok, r.met_deadline) for r in results} == {(Lane.SYNC, True, True)}
        report = await d.report("j")
        assert (report.met, report.missed) == (3, 0)
        assert report.possible_doubles == 1, "the row that went ahead, to see that the sync lane works"
    assert world.paths["POST /v1/messages/batches/{id}/cancel"] == 1
    assert world.books.bought_twice() == {}


async def test_the_window_expires_and_the_reserve_redoes_it(world: World):
    world.sandbox.batch_latency, world.sandbox.window = 60, 1
    async with world.open(
        window=timedelta(seconds=1),
        min_reserve=timedelta(seconds=10),
        cancel_settle=timedelta(seconds=0.1),
        limits=Limits(latency=timedelta(milliseconds=20), concurrency=20),
    ) as d:
        ticket = await d.dispatch(params("x"), latency=timedelta(seconds=11.9))
        assert ticket.decision.lane is Lane.BATCH
        result = await ticket.result()
        assert (result.lane, result.text, result.met_deadline, result.attempts) == (Lane.SYNC, "echo: x", True, 2)
