"""A lane that the API refuses for good is suspended: callers are told what to do, and the work stays queued."""

from __future__ import annotations

import time
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest

from batchwise import Lane, LaneSuspendedError, Latency, Status
from batchwise.ledger.sqlite import SqliteLedger
from batchwise.sandbox import Reply, echo
from tests.strategies import params

from .world import World, listed, many

FLEXIBLE = Latency.FLEXIBLE


@pytest.mark.parametrize(
    ("fault", "advice"),
    [
        ("messages.unauthorized_401", "API key"),
        ("messages.spend_cap", "spend limit in the Console"),
        ("messages.billing_402", "billing"),
    ],
)
async def test_the_sync_lane_takes_no_work_until_resume(world: World, fault, advice):
    world.sandbox.fault(fault, times=None)
    world.sandbox.sync_latency = 0.05
    async with world.open() as d:
        tickets = [await d.dispatch(params(f"p{n}"), key=f"k{n}") for n in range(3)]
        found = await world.together(*(ticket.result for ticket in tickets))
        for error in found:
            assert isinstance(error, LaneSuspendedError)
            assert "sync lane" in str(error)
            assert advice in str(error)
            assert "resume()" in str(error)
        progress = await d.progress()
        assert list(progress.suspended) == [Lane.SYNC]
        assert progress.by_status == {Status.QUEUED: 3}
        late = await d.dispatch(params("late"), key="late")
        with pytest.raises(LaneSuspendedError):
            await late.result()
        calls = world.calls
        await world.colour.sleep(0.1)
        assert world.calls == calls  # it rests
        world.sandbox.clear_faults()
        await d.resume()
        assert [(await t.result()).text for t in [*tickets, late]] == [*(f"echo: p{n}" for n in range(3)), "echo: late"]
        assert (await d.progress()).suspended == {}
    assert world.books.bought_twice() == {}


async def test_a_refusal_of_a_call_that_began_before_the_resume_suspends_nothing(world: World):
    refused: list[object] = []

    def refuse_once(asked: dict[str, Any]) -> Any:
        if asked["messages"] == params("slow")["messages"] and not refused:
            refused.append(asked)
            return Reply.error("authentication_error", "invalid x-api-key")
        return echo(asked)

    world.sandbox.reply = refuse_once
    world.sandbox.fault("messages.slow", times=1, delay=0.5)
    async with world.open() as d:
        slow = await d.dispatch(params("slow"))
        await world.until(lambda: world.books.running("sync"))
        world.sandbox.fault("messages.unauthorized_401", times=1)
        fast = await d.dispatch(params("fast"))
        with pytest.raises(LaneSuspendedError):
            await fast.result()
        await d.resume()
        assert (await slow.result()).text == "echo: slow"
        assert (await fast.result()).text == "echo: fast"
        assert (await d.progress()).suspended == {}
    assert len(refused) == 1


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "by another process"])
async def test_a_resume_while_a_refusal_is_noted_leaves_the_lane_at_work(
    world: World, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
):
    """The refusal was read before the resume, and would be stored after it."""
    world.sandbox.fault("messages.unauthorized_401", times=1)
    async with world.open() as d:
        suspend = d._engine.suspensions.suspend

        def resumed_first(*args: Any, **others: Any) -> Any:
            monkeypatch.undo()
            if elsewhere:
                with closing(SqliteLedger(world.path)) as ledger:
                    ledger.conditions.resume()
            else:
                d._engine.suspensions.resume()
            return suspend(*args, **others)

        monkeypatch.setattr(d._engine.suspensions, "suspend", resumed_first)
        assert (await (await d.dispatch(params("a"))).result()).text == "echo: a"
        assert (await d.progress()).suspended == {}


async def test_a_refusal_of_a_create_that_began_before_the_resume_suspends_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    world.sandbox.fault("create.unauthorized_401", times=1)
    world.sandbox.batch_latency = 0.2
    async with world.open() as d:
        suspend, noted = d._engine.suspensions.suspend, []

        def resumed_first(lane: Lane, reason: str, **others: Any) -> Any:
            d._engine.suspensions.resume()
            noted.append(suspend(lane, reason, **others))
            return noted[-1]

        monkeypatch.setattr(d._engine.suspensions, "suspend", resumed_first)
        job = await d.dispatch_all(many(3), job="j", latency=FLEXIBLE)
        await d.flush()
        assert len(await listed(job.results())) == 3
        assert (await d.progress()).suspended == {}
    assert noted == [False]


async def test_leaving_finishes_what_was_begun_although_the_sync_lane_is_suspended(world: World):
    world.sandbox.sync_latency = 0.5
    async with world.open() as d:
        await d.dispatch(params("paid"), key="paid")
        await world.until(lambda: world.books.running("sync"))
        world.sandbox.fault("messages.unauthorized_401", times=None)
        with pytest.raises(LaneSuspendedError):
            await (await d.dispatch(params("refused"), key="refused")).result()
        world.sandbox.fault("create.slow", delay=1.0)
        await d.dispatch(params("later"), key="later", latency=FLEXIBLE)
    world.sandbox.clear_faults()
    with closing(SqliteLedger(world.path)) as ledger:
        assert [batch.remote_id for batch in ledger.snapshot().batches] == [world.books.batches[0].id]
    async with world.open() as d:
        assert (await (await d.ticket("paid")).result()).text == "echo: paid"
    assert world.books.bought("paid") == 1


@pytest.mark.parametrize("fault", ["create.unauthorized_401", "create.billing_402"])
async def test_the_batch_lane_takes_no_work_until_resume(world: World, fault):
    world.sandbox.fault(fault, times=None)
    async with world.open() as d:
        job = await d.dispatch_all(many(3), job="j", latency=FLEXIBLE)
        with pytest.raises(LaneSuspendedError, match="job 'j': the batch lane is suspended"):
            await job.wait()
        with pytest.raises(LaneSuspendedError, match=r"resume\(\)"):
            await listed(job.results())
        with pytest.raises(LaneSuspendedError, match="'r-1'"):
            await (await d.ticket("r-1", job="j")).result()
        assert (await d.progress("j")).by_status == {Status.QUEUED: 3}
        assert (await (await d.dispatch(params("now"))).result()).ok  # the other lane works
        world.sandbox.clear_faults()
        await d.resume()
        assert sorted(r.text for r in await listed(job.results())) == [f"echo: r-{n}" for n in range(3)]
    assert world.books.bought_twice() == {}


async def test_all_rows_of_a_batch_refused_alike_suspends_it(world: World):
    world.sandbox.fault("batch.all_rows_error", times=1)
    async with world.open() as d:
        job = await d.dispatch_all(many(3), job="j", latency=FLEXIBLE)
        with pytest.raises(LaneSuspendedError, match="credit balance"):
            await job.wait()
        await d.resume()
        assert {(r.ok, r.attempts) for r in await listed(job.results())} == {(True, 1)}


async def test_whoever_waits_already_is_told(world: World):
    world.sandbox.fault("create.unauthorized_401", times=None, skip=0)
    async with world.open() as d:
        ticket = await d.dispatch(params("x"), latency=FLEXIBLE)
        job = await d.dispatch_all(many(2), job="j", latency=FLEXIBLE)
        found = await world.together(ticket.result, job.wait, lambda: listed(job.results()))
        assert [type(error) for error in found] == [LaneSuspendedError] * 3


async def test_leaving_with_a_suspended_lane_keeps_the_work(world: World):
    world.sandbox.fault("messages.unauthorized_401", times=None)
    world.sandbox.fault("create.unauthorized_401", times=None)
    started = time.monotonic()
    async with world.open() as d:
        job = await d.dispatch_all(many(3), job="j", latency=FLEXIBLE)
        await d.dispatch(params("x"), key="k", job="j")
        with pytest.raises(LaneSuspendedError):
            await job.wait()
    assert time.monotonic() - started < 10
    world.sandbox.clear_faults()
    async with world.open() as d:  # a new process tries again
        results = {r.key: r for r in await listed((await d.job("j")).results())}
        assert [results[f"r-{n}"].ok for n in range(3)] == [True] * 3
        assert results["k"].ok or results["k"].error.type == "abandoned"


async def test_a_new_process_tries_again_and_looking_does_not(world: World):
    world.sandbox.fault("messages.unauthorized_401", times=None)
    async with world.open() as d:
        with pytest.raises(LaneSuspendedError):
            await (await d.dispatch(params("x"), key="k")).result()
    async with world.open() as d:
        await world.colour.sleep(0.1)  # for whatever entering has begun
        assert list((await d.progress()).suspended) == [Lane.SYNC]
    world.sandbox.clear_faults()
    async with world.open() as d:
        assert (await (await d.dispatch(params("y"))).result()).text == "echo: y"
        assert (await d.progress()).suspended == {}


async def test_whoever_looks_first_may_wait_then(world: World):
    world.sandbox.fault("create.unauthorized_401", times=None)
    async with world.open() as d:
        job = await d.dispatch_all(many(3), job="j", latency=FLEXIBLE)
        with pytest.raises(LaneSuspendedError):
            await job.wait()
    world.sandbox.clear_faults()
    async with world.open() as d:
        job = await d.job("j")
        assert list((await job.progress()).suspended) == [Lane.BATCH]
        assert (await job.wait()).by_status == {Status.SETTLED: 3}
        assert (await d.progress()).suspended == {}


async def test_a_cron_line_that_never_succeeds_is_told_in_the_end(world: World):
    world.sandbox.fault("create.rate_limited_429", times=None, retry_after=0)
    soon = (timedelta(milliseconds=1), timedelta(milliseconds=2))
    async with world.open(poll_every=soon) as d:
        await d.dispatch_all(many(2), job="j", latency=FLEXIBLE)
    for _ in range(12):
        async with world.open(poll_every=soon) as d:
            suspended = (await d.advance()).suspended
            if suspended:
                break
    assert "create calls in a row failed" in suspended[Lane.BATCH]
    assert 10 <= world.creates < 40  # the pump may have sent, too
    world.sandbox.clear_faults()
    async with world.open() as d:
        assert len(await listed((await d.job("j")).results())) == 2


async def test_a_batch_that_runs_is_delivered_though_the_lane_is_suspended(world: World):
    world.sandbox.batch_latency = 0.4
    async with world.open() as d:
        job = await d.dispatch_all(many(2), job="j", latency=FLEXIBLE)
        await world.until(lambda: world.creates)
        world.sandbox.fault("create.unauthorized_401", times=None)
        refused = await d.dispatch(params("x"), key="x", latency=FLEXIBLE)
        with pytest.raises(LaneSuspendedError):
            await refused.result()
        assert len(await listed(job.results())) == 2
