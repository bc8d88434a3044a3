"""Where an AsyncDispatcher may be opened and closed, and what it leaves to the application that it lives in."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from batchwise import (
    AsyncDispatcher,
    ClosedDispatcherError,
    Dispatcher,
    Latency,
    LedgerError,
    Request,
    Status,
    WrongLoopError,
)
from batchwise.engine.core import Engine
from batchwise.sandbox import Sandbox
from tests.strategies import params

from .world import HOURS_30, PATIENCE, Async, World, listed, many

ASYNCIO, TRIO = Async("asyncio"), Async("trio")
on_asyncio = pytest.mark.parametrize("colour", [ASYNCIO], ids=["asyncio"])
on_trio = pytest.mark.parametrize("colour", [TRIO], ids=["trio"])
on_both = pytest.mark.parametrize("colour", [ASYNCIO, TRIO], ids=["asyncio", "trio"])


async def opened(world: World, **policy: Any) -> AsyncDispatcher:
    return await AsyncDispatcher.open(world.client(), ledger=world.path, policy=world.policy(**policy))


async def in_a_task(function: Callable[[], Awaitable[Any]]) -> Any:
    """Run it in a task of its own, as each cell of a notebook and each step of a fixture is."""

    async def run() -> Any:
        return await function()

    return await asyncio.wait_for(asyncio.get_running_loop().create_task(run()), PATIENCE)


@on_asyncio
async def test_one_task_opens_it_others_use_it_and_another_closes_it(world: World):
    d = await in_a_task(lambda: opened(world))
    ticket = await in_a_task(lambda: d.dispatch(params("now")))
    assert (await in_a_task(ticket.result)).text == "echo: now"
    later = await in_a_task(lambda: d.dispatch(params("later"), key="later", latency=HOURS_30))
    assert later.status is Status.QUEUED
    await in_a_task(d.aclose)
    assert world.creates == 1, "what was queued is sent at the end"
    await in_a_task(d.aclose)
    with pytest.raises(ClosedDispatcherError, match="closed"):
        await later.result()


@on_asyncio
async def test_an_exit_stack_may_be_closed_in_another_task(world: World):
    stack = AsyncExitStack()
    d = await in_a_task(lambda: stack.enter_async_context(world.open()))
    assert (await (await d.dispatch(params("x"))).result()).text == "echo: x"
    await in_a_task(stack.aclose)
    with pytest.raises(ClosedDispatcherError):
        await d.progress()
    await asyncio.sleep(0)  # a task that was cancelled would notice it here


@on_asyncio
async def test_whoever_closes_it_second_waits_for_the_end(world: World):
    world.sandbox.sync_latency = 0.3
    d = await opened(world)
    await d.dispatch(params("x"), key="x")
    first = asyncio.get_running_loop().create_task(d.aclose())
    await asyncio.sleep(0)
    with pytest.raises(ClosedDispatcherError, match="being closed"):
        await d.dispatch(params("too late"))
    await in_a_task(d.aclose)
    assert world.books.billed("sync") == 1, "the call that ran has ended"
    await first
    async with world.open() as d:
        assert (await (await d.ticket("x")).result(0)).text == "echo: x"


@on_asyncio
async def test_closing_without_finishing_leaves_queued_work_queued(world: World):
    d = await opened(world)
    await d.dispatch(params("x"), key="x", latency=HOURS_30)
    await d.aclose(finish=False)
    assert world.creates == 0
    async with world.open() as d:
        assert (await d.ticket("x")).status is Status.QUEUED


def test_a_dispatcher_ends_with_its_event_loop(tmp_path):
    """`asyncio.run` cancels its tasks. Then its locks are free, and the next dispatcher does its work."""
    world = World(ASYNCIO, tmp_path)
    world.sandbox.sync_latency = 60

    async def forgetful() -> AsyncDispatcher:
        d = await opened(world)
        await d.dispatch(params("x"), key="x", latency=timedelta(hours=2))
        await world.until(lambda: world.calls)
        return d

    async def next_one() -> None:
        await left.aclose()  # it has ended
        async with world.open() as d:
            result = await (await d.ticket("x")).result(PATIENCE)
            assert (result.text, result.attempts) == ("echo: x", 2)

    left = asyncio.run(forgetful())
    world.sandbox.sync_latency = 0
    asyncio.run(next_one())
    world.close()


@on_asyncio
async def test_an_error_of_the_dispatchers_own_cancels_nobody_else(world: World, monkeypatch: pytest.MonkeyPatch):
    world.sandbox.sync_latency = 60
    d = await opened(world)
    ticket = await d.dispatch(params("x"), key="x")

    def broken(_now: float) -> None:
        raise ZeroDivisionError

    waiting = asyncio.get_running_loop().create_task(ticket.result(PATIENCE))
    await world.until(lambda: world.calls)
    monkeypatch.setattr(d._engine.queue, "next", broken)
    d._driver.call()
    with pytest.raises(ClosedDispatcherError, match="fault within batchwise"):
        await waiting
    await d.aclose()
    async with world.open() as d:
        assert (await (await d.ticket("x")).result(PATIENCE)).error.type == "abandoned"


@on_both
async def test_an_open_that_fails_or_is_cancelled_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(LedgerError):
        async with world.open(ledger=world.folder):
            pass
    for delay in (0.0, 0.003, 0.03):
        with anyio.move_on_after(delay):
            async with world.open():
                await anyio.sleep_forever()
    async with world.open() as d:
        assert (await (await d.dispatch(params("x"))).result()).ok
        assert d._engine.ledger.lease.held, "no other one has it"


@on_trio
async def test_on_trio_leaving_from_another_task_is_refused_in_plain_words(world: World):
    def leave() -> Awaitable[Any]:
        return d.__aexit__(None, None, None)

    async with world.open() as d:
        (error,) = await world.together(leave)
        assert isinstance(error, WrongLoopError)
        assert "entered in one task and is left in another" in str(error)
        assert (await (await d.dispatch(params("x"))).result()).text == "echo: x"  # nothing was ended
    with pytest.raises(ClosedDispatcherError):
        await d.progress()


@on_trio
async def test_on_trio_it_is_not_opened_without_a_block_but_may_be_closed_early(world: World):
    with pytest.raises(WrongLoopError, match="async with"):
        await opened(world)
    async with world.open() as d:
        await d.dispatch(params("x"), latency=HOURS_30)
        await world.together(d.aclose)
        assert world.creates == 1
        await anyio.lowlevel.checkpoint()  # the block goes on


@on_both
async def test_threads_that_the_application_keeps_waiting_hold_nothing_up(world: World):
    """anyio gives an application 40 threads; an iterable of a bulk dispatch that blocks takes one of the callers'."""
    free, waiting = threading.Event(), threading.Semaphore(0)

    def block() -> None:
        waiting.release()
        assert free.wait(PATIENCE)

    def slow() -> Any:
        block()
        yield Request(params("bulk"))

    async def application() -> None:
        await anyio.to_thread.run_sync(block)

    with anyio.fail_after(PATIENCE):
        async with world.open() as d, anyio.create_task_group() as tasks:
            await (await d.dispatch(params("first"))).result()  # the SDK itself needs a thread once for each client
            job = await d.dispatch_all(many(2), job="j", latency=Latency.FLEXIBLE)
            for _ in range(60):
                tasks.start_soon(application)
            tasks.start_soon(d.dispatch_all, slow())
            for _ in range(41):
                await anyio.to_thread.run_sync(waiting.acquire, limiter=anyio.CapacityLimiter(1))
            try:
                assert (await (await d.dispatch(params("x"))).result()).text == "echo: x"
                assert len(await listed(job.results())) == 2
            finally:
                free.set()


@on_both
@pytest.mark.parametrize("left", [0, 1, 3])
async def test_work_is_done_though_no_thread_can_be_started_for_the_ledger(
    world: World, monkeypatch: pytest.MonkeyPatch, left: int
):
    start, started = threading.Thread.start, []

    def limited(thread: threading.Thread) -> None:
        if thread.name.startswith(("AnyIO", "Trio", "batchwise")):
            if len(started) >= left:
                raise RuntimeError("can't start new thread")
            started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    async with world.open() as d:
        assert (await (await d.dispatch(params("now"))).result(PATIENCE)).text == "echo: now"
        job = await d.dispatch_all(many(3), job="j", latency=Latency.FLEXIBLE)
        assert len(await listed(job.results(PATIENCE))) == 3
        tickets = [await d.dispatch(params(f"n{number}")) for number in range(5)]
        results = await world.together(*[ticket.result for ticket in tickets])
        assert [result.text for result in results] == [f"echo: n{number}" for number in range(5)]
        await d.dispatch(params("unread"))
        await d.dispatch(params("queued"), latency=HOURS_30)
    assert world.books.bought_twice() == {}
    assert (world.books.billed("sync"), world.creates) == (7, 2)
    assert isinstance(d._engine, Engine)
    assert d._engine.queue.busy == 0


def test_one_that_is_made_and_closed_within_the_iterable_of_another_has_ended_when_close_returns(tmp_path):
    with Sandbox() as sandbox, sandbox.client() as client, Dispatcher(client, ledger=tmp_path / "outer.db") as outer:

        def requests():
            for number in range(2):
                with Dispatcher(client, ledger=tmp_path / f"inner-{number}.db") as inner:
                    inner.dispatch(params(f"inner {number}"), latency=HOURS_30)
                sent.append(len(sandbox.books.batches))
                yield Request(params(f"outer {number}"))

        sent: list[int] = []
        outer.dispatch_all(requests(), latency=HOURS_30)
        assert sent == [1, 2], "what was queued is sent before the end"
