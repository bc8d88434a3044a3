"""Ctrl-C, a killed process, a cancelled task: the ledger stays whole, and the next run goes on from it."""

from __future__ import annotations

import signal
from contextlib import closing
from datetime import timedelta

import anyio
import pytest

from batchwise import Lane, Latency, Outcome, Status
from batchwise.api.batches import BatchLane
from batchwise.engine.effects import drive, drive_async, pause
from batchwise.ledger.sqlite import SqliteLedger
from batchwise.planning.state import BatchState
from tests.strategies import params

from .world import HOURS_30, PATIENCE, Async, SlowToLearn, Sync, World, listed, many

FLEXIBLE = Latency.FLEXIBLE
ASYNC = [Async("asyncio"), Async("trio")]
INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have its jobs ignore it
"""
BUSY = """
import sys
with bw.Dispatcher(policy=policy) as d:
    d.dispatch_all([bw.Request(params(f"r-{n}"), key=f"r-{n}") for n in range(3)], job="j", latency=timedelta(hours=30))
    d.dispatch(params("queued"), key="queued", latency=timedelta(hours=90))
    blocking = d.dispatch(params("blocking"), key="blocking")
    soon = d.dispatch(params("soon"), key="soon", latency=timedelta(hours=2))
    while not (found := d.progress("j").batches) or found[0].remote_id is None:
        pass
    print("ready")
    blocking.result()
"""


async def left_behind(world: World) -> None:
    """What the next run makes of a batch under way, a request queued for one, and two calls that were cut off."""
    world.sandbox.sync_latency = 0
    async with world.open() as d:
        soon = await (await d.ticket("soon")).result()
        assert (soon.text, soon.lane, soon.attempts, soon.met_deadline) == ("echo: soon", Lane.SYNC, 2, True)
        assert (await d.report()).possible_doubles == 2  # both calls may have been answered when the process died
        ticket = await d.ticket("blocking")
        abandoned = await ticket.result()
        assert (abandoned.outcome, abandoned.error.type, abandoned.error.retryable) == (
            Outcome.CANCELED,
            "abandoned",
            True,
        )
        assert (await d.ticket("queued")).status is Status.QUEUED
        assert [batch.requests for batch in (await d.progress("j")).batches] == [3]
        world.sandbox.finish(world.books.batches[0].id)
        assert sorted(r.text for r in await listed((await d.job("j")).results())) == [f"echo: r-{n}" for n in range(3)]
        world.sandbox.batch_latency = 0.02
        assert (await (await d.ticket("queued")).result()).text == "echo: queued"
        again = await d.dispatch(params("blocking"), key="blocking")
        assert (await again.result()).text == "echo: blocking"
    assert world.books.bought_by_prompt("batch") == {**{f"r-{n}": 1 for n in range(3)}, "queued": 1}
    assert world.calls == 4


@pytest.mark.parametrize(
    "driven",
    [lambda procedure: drive(procedure, None), lambda procedure: anyio.run(drive_async, procedure, None)],
    ids=["thread", "task"],
)
def test_a_procedure_that_is_interrupted_ends_at_once(driven):
    def interrupt() -> None:
        raise KeyboardInterrupt

    async def procedure() -> None:
        try:
            await pause(interrupt)
        finally:
            ended.append(True)

    ended: list[bool] = []
    with pytest.raises(KeyboardInterrupt) as caught:
        driven(procedure())
    assert caught.tb  # it keeps the frames alive, and all that they hold
    assert ended


async def test_sigkill(world: World):
    world.sandbox.batch_latency = world.sandbox.sync_latency = 60
    with world.script(BUSY) as process:
        assert process.stdout.readline() == "ready\n"
        await world.until(lambda: world.calls == 2)
        process.kill()
        process.wait(PATIENCE)
    await left_behind(world)


@pytest.mark.parametrize("colour", [Sync()], ids=["sync"])
async def test_keyboard_interrupt(world: World):
    world.sandbox.batch_latency = world.sandbox.sync_latency = 60
    with world.script(INTERRUPTIBLE + BUSY) as process:
        assert process.stdout.readline() == "ready\n"
        await world.until(lambda: world.calls == 2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
        assert errors.rstrip().endswith("KeyboardInterrupt")
        assert process.returncode
    await left_behind(world)


@pytest.mark.parametrize("colour", ASYNC, ids=lambda colour: colour.name)
async def test_a_cancelled_task(world: World):
    world.sandbox.batch_latency = world.sandbox.sync_latency = 60

    async def work():
        async with world.open() as d:
            job = await d.dispatch_all(many(3), job="j", latency=HOURS_30)
            await d.dispatch(params("queued"), key="queued", latency=3 * HOURS_30)
            blocking = await d.dispatch(params("blocking"), key="blocking")

            await d.dispatch(params("soon"), key="soon", latency=timedelta(hours=2))

            async def all_sent():
                batches = (await job.progress()).batches
                return world.calls == 2 and batches and batches[0].remote_id

            await world.until(all_sent)
            sent.set()
            await blocking.result()

    sent = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await sent.wait()
        tasks.cancel_scope.cancel()
    await left_behind(world)


@pytest.mark.parametrize("colour", ASYNC, ids=lambda colour: colour.name)
async def test_an_answer_that_came_is_stored_by_a_task_that_is_cancelled(world: World):
    ledger = SlowToLearn(world.path)
    with anyio.CancelScope() as scope:
        async with world.open(ledger=ledger) as d:
            await d.dispatch(params("x"), key="k")
            await world.until(ledger.answered.is_set)
            scope.cancel()
            await world.colour.sleep(60)
    ledger.close()
    async with world.open() as d:
        assert (await (await d.ticket("k")).result()).text == "echo: x"
    assert world.books.bought("x") == 1


@pytest.mark.parametrize("colour", ASYNC, ids=lambda colour: colour.name)
async def test_a_batch_that_was_created_is_recorded_by_a_task_that_is_cancelled(world: World, monkeypatch):
    async def create(lane, *args, **keywords):
        created = await real(lane, *args, **keywords)
        scope.cancel()
        return created

    real = BatchLane.create
    monkeypatch.setattr(BatchLane, "create", create)
    with anyio.CancelScope() as scope:
        async with world.open() as d:
            job = await d.dispatch_all(many(2), job="j", latency=FLEXIBLE)
            await job.wait()
    assert scope.cancelled_caught
    with closing(SqliteLedger(world.path)) as ledger:
        assert [(batch.state, batch.remote_id) for batch in ledger.snapshot().batches] == [
            (BatchState.OPEN, world.books.batches[0].id)
        ]


@pytest.mark.parametrize("colour", ASYNC, ids=lambda colour: colour.name)
async def test_a_cancelled_wait_loses_nothing(world: World):
    world.sandbox.sync_latency = 0.3
    async with world.open() as d:
        ticket = await d.dispatch(params("x"))
        job = await d.dispatch_all(many(2), job="j", latency=FLEXIBLE)
        world.sandbox.batch_latency = 0.2
        for wait in (ticket.result, job.wait, lambda: listed(job.results())):
            with anyio.move_on_after(0.01) as scope:
                await wait()
            assert scope.cancelled_caught
        assert (await ticket.result()).text == "echo: x"
        assert len(await listed(job.results())) == 2
    assert world.books.bought_twice() == {}


@pytest.mark.parametrize("colour", ASYNC, ids=lambda colour: colour.name)
async def test_a_cancelled_dispatch_is_durable_or_not_there(world: World):
    async with world.open() as d:
        for n in range(8):
            with anyio.move_on_after(n * 0.002):
                await d.dispatch_all(many(20, f"b{n}"), job=f"j{n}", latency=FLEXIBLE)
        for n in range(8):
            job = await d.dispatch_all(many(20, f"b{n}"), job=f"j{n}", latency=FLEXIBLE)
            assert (await job.progress()).total == 20
            assert len(await listed(job.results())) == 20
    assert world.books.bought_twice() == {}


@pytest.mark.parametrize("colour", [Async("asyncio")], ids=["asyncio"])
async def test_a_task_that_asyncio_cancels(world: World):
    import asyncio

    world.sandbox.sync_latency = 60

    async def work():
        async with world.open() as d:
            await (await d.dispatch(params("x"), key="k")).result()

    task = asyncio.get_running_loop().create_task(work())
    await world.until(lambda: world.calls)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    world.sandbox.sync_latency = 0
    async with world.open() as d:
        assert (await (await d.ticket("k")).result()).error.type == "abandoned"
        assert (await (await d.dispatch(params("x"), key="k")).result()).ok
