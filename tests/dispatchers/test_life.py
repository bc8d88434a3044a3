"""Submit, leave, come back: what a dispatcher does at its end, and what the next one finds."""

from __future__ import annotations

import time
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import pytest

from batchwise import InvalidValueError, Lane, Latency, Limits, Outcome, Request, Status
from tests.strategies import params

from .world import HOURS_30, SlowToLearn, World, listed, many

FLEXIBLE = Latency.FLEXIBLE


async def test_leaving_sends_what_is_queued_and_does_not_wait_for_batches(world: World):
    world.sandbox.batch_latency = 60
    async with world.open() as d:
        for number in range(3):
            await d.dispatch(params(f"p{number}"), key=f"k{number}", latency=HOURS_30)
        started = time.monotonic()
    assert time.monotonic() - started < 10
    assert (world.creates, world.books.running("batch")) == (1, 3)
    world.sandbox.finish(world.books.batches[0].id)
    async with world.open() as d:
        ticket = await d.ticket("k1")
        assert (await ticket.result()).text == "echo: p1"
        assert len(await listed(d.results())) == 3
    assert world.creates == 1


def size(job: Any) -> int:
    """Return the length of a job of either dispatcher."""
    found = getattr(job, "_inner", job)
    assert found  # one without requests is true, too
    return len(found)


async def test_a_job_is_as_long_as_it_has_requests(world: World):
    async with world.open() as d:
        named = await d.dispatch_all(many(3), job="j", latency=HOURS_30)
        assert (size(named), size(await d.dispatch_all([], job="none"))) == (3, 0)
        again = await d.dispatch_all([*many(2), many(1)[0]], latency=HOURS_30)
        assert (size(again), size(await d.dispatch_all([]))) == (2, 0)
        await named.wait()
        assert size(named) == size(await d.job("j")) == 3


async def test_results_of_some_outcomes(world: World):
    async with world.open() as d:
        world.sandbox.batch_latency = 60
        await (await d.dispatch(params("a"), key="a")).result()
        await (await d.dispatch(params("b"), key="b", latency=HOURS_30)).cancel()
        for outcomes, keys in [
            (None, ["a", "b"]),
            (Outcome.SUCCEEDED, ["a"]),
            ("canceled", ["b"]),
            ([Outcome.CANCELED, "succeeded"], ["a", "b"]),
            ((), []),
        ]:
            assert [result.key for result in await listed(d.results(outcomes=outcomes))] == keys
        with pytest.raises(InvalidValueError, match="outcomes='lost'"):
            await listed(d.results(outcomes="lost"))


async def test_leaving_finishes_sync_calls(world: World):
    world.sandbox.sync_latency = 0.2
    async with world.open() as d:
        await d.dispatch(params("now"), key="now")
        dated = await d.dispatch(params("soon"), key="soon", latency=timedelta(hours=1))
        assert dated.decision.lane is Lane.SYNC
        await d.dispatch_all(many(3), job="j", latency=timedelta(hours=1))
    assert world.books.billed("sync") == 5
    async with world.open() as d:
        assert {r.key: r.ok for r in await listed(d.results())} == dict.fromkeys(
            ["now", "soon", "r-0", "r-1", "r-2"], True
        )
    assert world.calls == 5


async def test_an_exception_leaves_queued_work_queued(world: World):
    with pytest.raises(OSError, match="mine"):  # noqa: PT012  # the block is what is tested
        async with world.open() as d:
            ticket = await d.dispatch(params("x"), key="k", latency=HOURS_30)
            raise OSError("mine")
    assert world.creates == 0
    async with world.open() as d:
        ticket = await d.ticket("k")
        assert ticket.status is Status.QUEUED
        assert (await ticket.result()).text == "echo: x"


async def test_an_exception_lets_calls_end_that_are_paid_for(world: World):
    world.sandbox.sync_latency = 0.4
    with pytest.raises(OSError, match="mine"):  # noqa: PT012  # the block is what is tested
        async with world.open() as d:
            await d.dispatch(params("x"), key="k")
            await world.until(lambda: world.calls)
            raise OSError("mine")
    async with world.open() as d:
        assert (await (await d.ticket("k")).result()).text == "echo: x"
    assert world.books.bought("x") == 1


async def test_an_exception_has_no_more_calls_begin(world: World):
    world.sandbox.sync_latency = 0.8
    begun: list[int] = []
    with pytest.raises(OSError, match="mine"):  # noqa: PT012  # the block is what is tested
        async with world.open(limits=Limits(concurrency=2)) as d:
            await d.dispatch(params("first"), latency=timedelta(hours=1))
            await world.until(lambda: world.calls)
            await world.colour.sleep(0.4)  # so that one ends while the other runs
            await d.dispatch_all(many(20), job="j", latency=timedelta(hours=1))
            await world.until(lambda: world.calls == 2)
            begun.append(world.calls)
            raise OSError("mine")
    assert world.books.billed("sync") == world.calls <= begun[0] + 1, "one may begin while it is being raised"
    async with world.open() as d:
        assert (await d.progress()).by_status[Status.SETTLED] == world.books.billed("sync")


@pytest.mark.parametrize("error", [None, OSError("mine"), KeyboardInterrupt()], ids=["done", "error", "Ctrl-C"])
async def test_an_answer_that_came_is_stored_before_the_end(world: World, error):
    ledger = SlowToLearn(world.path)
    with nullcontext() if error is None else pytest.raises(type(error)):
        async with world.open(ledger=ledger) as d:
            await d.dispatch(params("x"), key="k")
            await world.until(ledger.answered.is_set)
            if error is not None:
                raise error
    ledger.close()
    async with world.open() as d:
        assert (await (await d.ticket("k")).result()).text == "echo: x"
    assert world.books.bought("x") == 1


async def test_two_dispatchers_on_one_ledger(world: World):
    world.sandbox.batch_latency = 0.1
    async with world.open() as one, world.open() as two:
        mine = await one.dispatch(params("x"), key="k", latency=HOURS_30)
        theirs = await two.ticket("k")
        assert (await theirs.result()).text == "echo: x"
        assert (await mine.result()).text == "echo: x"
        job = await two.dispatch_all(many(4), job="j", latency=FLEXIBLE)
        first, second = await world.together(lambda: listed(job.results()), lambda: world_results(one, "j"))
        assert sorted(r.key for r in first) == sorted(r.key for r in second) == [f"r-{n}" for n in range(4)]
    assert world.books.bought_twice() == {}


async def world_results(dispatcher, name):
    return await listed((await dispatcher.job(name)).results())


async def test_the_other_goes_on_when_the_first_leaves(world: World):
    world.sandbox.batch_latency = 0.3
    async with world.open() as two:
        async with world.open() as one:
            await one.dispatch(params("x"), key="k", latency=HOURS_30)
        assert (await (await two.ticket("k")).result()).text == "echo: x"
    assert world.creates == 1


async def test_a_consumer_with_a_cursor_sees_each_result_once(world: World):
    seen, cursor = [], None
    for run in range(3):
        async with world.open() as d:
            job = await d.dispatch_all(many(4, f"run{run}"), job=f"j{run}", latency=FLEXIBLE)
            assert [r.key async for r in d.results(after=10**9)] == []
            async for result in d.results(after=cursor):  # what earlier runs left unseen
                seen.append(result.key)
                cursor = result.cursor
            if run < 2:
                await job.wait()
            taken = [r async for r in d.results(after=cursor)][:2]
            seen += [r.key for r in taken]
            cursor = taken[-1].cursor if taken else cursor
    async with world.open() as d:
        await (await d.job("j2")).wait()
        rest = await listed(d.results(after=cursor))
        assert [r.cursor for r in rest] == sorted(r.cursor for r in rest)
        seen += [r.key for r in rest]
        assert [r.job for r in await listed(d.results(job="j1"))] == ["j1"] * 4
    assert sorted(seen) == sorted(f"run{run}-{n}" for run in range(3) for n in range(4))


async def test_a_second_process_submits_and_this_one_delivers(world: World):
    world.sandbox.batch_latency = 0.5
    out = world.ran("""
        with bw.Dispatcher(policy=policy) as d:
            requests = (bw.Request(params(f"p{n}")) for n in range(4))
            job = d.dispatch_all(requests, job="nightly", latency=timedelta(hours=30))
            print(d.dispatch(params("single"), key="s", latency=timedelta(hours=30)).key)
    """)
    assert out.split() == ["s"]
    async with world.open() as d:
        job = await d.job("nightly")
        assert {r.key: r.text async for r in job.results()} == {f"#{n}": f"echo: p{n}" for n in range(4)}
        assert (await (await d.ticket("s")).result()).text == "echo: single"
        again = await d.dispatch_all((Request(params(f"p{n}")) for n in range(4)), job="nightly", latency=HOURS_30)
        assert (await again.progress()).done
    assert world.books.bought_twice() == {}


async def test_in_memory(world: World):
    async with world.open(ledger=":memory:") as d:
        job = await d.dispatch_all(many(3), job="j", latency=FLEXIBLE)
        assert len(await listed(job.results())) == 3
    async with world.open(ledger=":memory:") as d:
        assert (await d.progress()).total == 0
    assert not world.path.exists()


async def test_a_ledger_object_is_the_callers_to_close(world: World):
    from batchwise.ledger.sqlite import SqliteLedger

    ledger = SqliteLedger(world.path)
    for _ in range(2):
        async with world.open(ledger=ledger) as d:
            assert (await (await d.dispatch(params("x"), key="k")).result()).text == "echo: x"
    assert world.calls == 1
    ledger.close()
