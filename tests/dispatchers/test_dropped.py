"""A dispatcher without references ends by itself. A ticket or a job of it is a reference to it."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import batchwise as bw
from batchwise.sandbox import Sandbox
from tests.reliability.crossing import POLICY
from tests.strategies import params
from tests.waiting import until

from .world import PATIENCE

LATER = timedelta(hours=30)


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    with Sandbox(batch_latency=0.05) as made:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", made.base_url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sandbox")
        yield made


@contextmanager
def told(times: int) -> Iterator[None]:
    """So many dispatchers are dropped in the block, and each says so."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield
        gc.collect()
        found = [str(each.message) for each in seen if each.category is ResourceWarning and "nobody" in str(each)]
    assert len(found) == times, found
    assert all("never closed" in each and "ledger.db" in each for each in found)


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("batchwise-")}


def descriptors() -> set[str]:
    """What this process has open of a ledger, or of a connection to the API: a socket's name has its own number."""
    found = []
    for each in Path("/proc/self/fd" if Path("/proc").exists() else "/dev/fd").iterdir():
        try:
            found.append(str(each.readlink()))
        except OSError:
            continue
    return {each for each in found if "ledger.db" in each or "socket" in each}


def held() -> set[object]:
    return {*threads(), *descriptors()}


def nothing_left(before: set[object]) -> None:
    """Nothing that was not there before; what tests before this one left may go meanwhile."""
    gc.collect()
    with suppress(AssertionError):
        until(lambda: held() <= before, seconds=20.0)
    assert held() - before == set()


def test_dropped_ones_leave_no_threads_and_no_descriptors(sandbox: Sandbox, tmp_path: Path) -> None:
    shared = sandbox.client()  # making one takes longer than all the rest

    def used(number: int) -> None:
        client = None if number == 0 else shared
        d = bw.Dispatcher(client, ledger=tmp_path / "ledger.db", policy=POLICY)
        assert d.dispatch(params(f"now {number}")).result(PATIENCE).ok
        d.dispatch(params(f"later {number}"), key=f"later {number}", latency=LATER)

    before = held()
    with told(30):
        for number in range(30):
            used(number)
    shared.close()
    nothing_left(before)
    assert sandbox.books.requests_by_path["POST /v1/messages/batches"] == 0, "queued work stays queued"
    with bw.Dispatcher(ledger=tmp_path / "ledger.db", policy=POLICY) as d:
        assert all(d.ticket(f"later {number}").status is bw.Status.QUEUED for number in range(30))


def test_dropped_ones_of_an_event_loop_leave_no_threads_and_no_descriptors(sandbox: Sandbox, tmp_path: Path) -> None:
    async def used(number: int, shared: Any) -> None:
        client = None if number == 0 else shared
        d = await bw.AsyncDispatcher.open(client, ledger=tmp_path / "ledger.db", policy=POLICY)
        assert (await (await d.dispatch(params(f"now {number}"))).result(PATIENCE)).ok
        await d.dispatch(params(f"later {number}"), latency=LATER)

    async def all_used() -> None:
        async with sandbox.async_client() as shared:
            for number in range(30):
                await used(number, shared)
        gc.collect()
        end = time.monotonic() + PATIENCE
        while len(asyncio.all_tasks()) > 1:
            assert time.monotonic() < end, asyncio.all_tasks()
            await asyncio.sleep(0.01)
        assert not [each for each in descriptors() if "ledger.db" in each]

    before = held()
    with told(30):
        asyncio.run(all_used())
    nothing_left(before)
    assert sandbox.books.requests_by_path["POST /v1/messages/batches"] == 0, "queued work stays queued"


def test_one_that_outlived_its_event_loop_is_only_told_of(sandbox: Sandbox, tmp_path: Path) -> None:
    before = held()
    loop = asyncio.new_event_loop()
    kept: list[Any] = []

    async def keep_one() -> None:
        """Returns nothing: before 4.15 anyio keeps the first task of a loop, and with it what that returned."""
        kept.append(await bw.AsyncDispatcher.open(ledger=tmp_path / "ledger.db", policy=POLICY))

    for end in (asyncio.run, loop.run_until_complete):
        end(keep_one())
        if end is not asyncio.run:
            end(asyncio.sleep(0.05))
            loop.close()  # without cancelling what runs
        with told(1):
            kept.clear()
    with bw.Dispatcher(ledger=tmp_path / "ledger.db", policy=POLICY) as other:
        until(other._engine.ledger.lease.acquire, "the lease is held by nobody who lives")
    nothing_left(before)


def test_a_call_that_runs_when_it_is_dropped_is_stored(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.sync_latency = 0.5
    with told(1):
        ticket = bw.Dispatcher(ledger=tmp_path / "ledger.db", policy=POLICY).dispatch(
            params("x"), key="x", latency=LATER / 30
        )
        until(lambda: sandbox.books.requests_by_path["POST /v1/messages"], "the call runs")
        del ticket
    until(lambda: sandbox.books.billed("sync"))
    with bw.Dispatcher(ledger=tmp_path / "ledger.db", policy=POLICY) as d:
        assert d.ticket("x").result(PATIENCE).ok
    assert sandbox.books.bought("x") == 1


def ticket(d: bw.Dispatcher) -> Callable[[], Any]:
    return d.dispatch(params("held"), latency=LATER).result


def job(d: bw.Dispatcher) -> Callable[[], Any]:
    made = d.dispatch_all([bw.Request(params("held"))], job="j", latency=LATER)
    return lambda: list(made.results(PATIENCE))


def results(d: bw.Dispatcher) -> Callable[[], Any]:
    made = d.dispatch_all([bw.Request(params("held"))], job="j", latency=LATER).results(PATIENCE)
    return lambda: list(made)


def client(d: bw.Dispatcher) -> Callable[[], Any]:
    made = d.client(latency=LATER)
    return lambda: made.messages.create(**params("held"))


@pytest.mark.parametrize("hold", [ticket, job, results, client])
def test_whoever_holds_something_of_it_holds_it(sandbox: Sandbox, tmp_path: Path, hold: Any) -> None:
    before = held()
    with told(1):
        use = hold(bw.Dispatcher(ledger=tmp_path / "ledger.db", policy=POLICY))
        gc.collect()
        assert use()
        assert sandbox.books.bought("held") == 1
        del use
    nothing_left(before)


def test_a_ticket_of_an_event_loops_holds_it(sandbox: Sandbox, tmp_path: Path) -> None:
    async def main() -> None:
        d = await bw.AsyncDispatcher.open(ledger=tmp_path / "ledger.db", policy=POLICY)
        ticket = await d.dispatch(params("x"), latency=LATER)
        job = await d.dispatch_all([bw.Request(params("y"))], latency=LATER)
        del d
        gc.collect()
        assert (await ticket.result(PATIENCE)).ok
        del ticket
        gc.collect()
        assert [result.ok async for result in job.results(PATIENCE)] == [True]

    with told(1):
        asyncio.run(main())


def test_one_that_was_closed_says_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    async def main() -> None:
        async with bw.AsyncDispatcher(ledger=tmp_path / "ledger.db", policy=POLICY) as d:
            await d.progress()
        await (await bw.AsyncDispatcher.open(ledger=tmp_path / "ledger.db", policy=POLICY)).aclose()
        left.append(await bw.AsyncDispatcher.open(ledger=tmp_path / "ledger.db", policy=POLICY))

    left: list[bw.AsyncDispatcher] = []
    with told(0):
        bw.Dispatcher(ledger=tmp_path / "ledger.db", policy=POLICY).close()
        with bw.Dispatcher(ledger=tmp_path / "ledger.db", policy=POLICY):
            pass
        asyncio.run(main())
        asyncio.run(left.pop().aclose())  # late, but it was closed


def test_whoever_was_told_what_ended_it_does_not_hold_it(sandbox: Sandbox, tmp_path: Path) -> None:
    before = held()
    caught: list[bw.BatchwiseError] = []
    with told(1):
        d = bw.Dispatcher(ledger=tmp_path / "ledger.db", policy=POLICY)
        d._driver.life.fail(bw.WrongWorkspaceError("of others"))
        for _ in range(2):
            try:
                d.dispatch(params("x"))
            except bw.WrongWorkspaceError as error:
                caught.append(error)
        assert caught[0] is not caught[1]
        caught.clear()
        del d
    nothing_left(before)
