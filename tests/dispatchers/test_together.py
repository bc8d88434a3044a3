"""What many tasks ask of the ledger at the same time is done together, by one thread and with one commit."""

from __future__ import annotations

import threading
from collections import Counter

import anyio
import pytest

from batchwise import Latency, Request
from batchwise.engine.worker_threads import Threads
from batchwise.ledger.bulk import _ROWS
from batchwise.ledger.sqlite import SqliteLedger
from batchwise.ledger.sqlite_database import SqliteDatabase
from tests.strategies import params

from .world import PATIENCE, Async, World, many

ASYNC = [Async("asyncio"), Async("trio")]


class Counting(SqliteDatabase):
    """Counts commits by their names."""

    def __init__(self, path: object) -> None:
        self.commits: Counter[str] = Counter()
        super().__init__(path)

    def commit(self, name: str) -> None:
        self.commits[name] += 1
        super().commit(name)


@pytest.mark.parametrize("colour", ASYNC, ids=lambda colour: colour.name)
async def test_calls_of_many_tasks_share_commits(world: World):
    async def call(name: str) -> None:
        ticket = await d.dispatch(params(name))
        assert (await ticket.result()).text == f"echo: {name}"

    ledger = SqliteLedger(Counting(world.path))
    world.sandbox.sync_latency = 0.2
    async with world.open(ledger=ledger) as d, anyio.create_task_group() as tasks:
        for n in range(60):
            tasks.start_soon(call, f"t-{n}")
    assert ledger.database.commits["accept"] <= 6
    assert ledger.database.commits["settle"] <= 30
    ledger.close()


@pytest.mark.parametrize("colour", ASYNC, ids=lambda colour: colour.name)
async def test_the_error_of_one_is_its_own(world: World):
    """What is asked for meanwhile is done next, even if the task that began is cancelled."""

    def begin(number: int):
        def end() -> int:
            running.set()
            go_on.wait(PATIENCE)
            if number % 2:
                raise ValueError(number)
            return number

        if number == 4:
            raise KeyError(number)
        return end

    async def ask(number: int) -> None:
        try:
            found[number] = await threads.together(lambda: begin(number))
        except (ValueError, KeyError) as error:
            found[number] = error.args[0]

    threads, found = Threads(), dict[int, object]()
    running, go_on = threading.Event(), threading.Event()
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as first:
                first.start_soon(ask, 0)
                await anyio.to_thread.run_sync(running.wait)
                for number in range(1, 6):
                    tasks.start_soon(ask, number)
                await anyio.sleep(0.01)
                scope.cancel()
                go_on.set()
    assert found == {number: number for number in range(1, 6)} | ({0: 0} if 0 in found else {})


@pytest.mark.parametrize("colour", ASYNC, ids=lambda colour: colour.name)
@pytest.mark.parametrize("interrupted", ["begin", "end"])
async def test_what_interrupts_one_leaves_the_others_to_be_done(world: World, interrupted: str):
    begun = Counter[str]()

    def begin(name: str):
        def end() -> str:
            if name == "end":
                raise KeyboardInterrupt
            return name

        begun[name] += 1
        if name == "begin":
            raise KeyboardInterrupt
        return end

    async def ask(name: str) -> None:
        if name == interrupted:
            with pytest.raises(KeyboardInterrupt):
                await threads.together(lambda: begin(name))
        else:
            assert await threads.together(lambda: begin(name)) == name

    threads = Threads()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            for name in (interrupted, "a", "b"):
                tasks.start_soon(ask, name)
    assert begun == {interrupted: 1, "a": 1, "b": 1}


@pytest.mark.parametrize("colour", ASYNC, ids=lambda colour: colour.name)
async def test_who_waits_for_a_bulk_dispatch_holds_up_no_other(world: World):
    def slow():
        yield from many(_ROWS + 1, "b", latency=Latency.FLEXIBLE)
        stored.set()
        go_on.wait(PATIENCE)

    async def bulk() -> None:
        await d.dispatch_all(slow(), job="j")

    async def same() -> None:
        await d.dispatch(Request(params("b-0"), key="b-0", latency=Latency.FLEXIBLE), job="j")
        assert go_on.is_set()

    stored, go_on = threading.Event(), threading.Event()
    async with world.open() as d, anyio.create_task_group() as tasks:
        tasks.start_soon(bulk)
        await anyio.to_thread.run_sync(stored.wait)
        tasks.start_soon(same)
        with anyio.fail_after(PATIENCE):
            assert (await (await d.dispatch(params("x"))).result()).text == "echo: x"
        go_on.set()
        await d.cancel()
