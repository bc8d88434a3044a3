"""Slow uploads and slow readings of results hold up nothing else: the sandbox holds back the answers of eight."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import anyio
import httpx2
import pytest

from batchwise import Latency, Limits, Progress
from batchwise.drivers.passes import one_by_one
from batchwise.planning import agenda
from tests.strategies import params

from .world import HOURS_30, PATIENCE, Sync, World, many

CREATE, RESULTS = ("POST", "/batches"), ("GET", "/results")
BATCH = "/v1/messages/batches/{id}"


class Held:
    """Requests of these kinds whose answers do not come before each is let go."""

    def __init__(self) -> None:
        self.kinds: list[tuple[str, str]] = []
        self.waiting: list[tuple[tuple[str, str], threading.Event]] = []

    def take(self, request: httpx2.Request) -> threading.Event:
        event = threading.Event()
        for kind in self.kinds:
            if request.method == kind[0] and request.url.path.endswith(kind[1]):
                self.waiting.append((kind, event))
                return event
        event.set()
        return event

    def count(self, kind: tuple[str, str]) -> int:
        return sum(each == kind for each, _ in self.waiting)

    def let_go(self) -> None:
        self.kinds.clear()
        for _, event in self.waiting:
            event.set()

    def client(self, world: World) -> Any:
        if isinstance(world.colour, Sync):
            return world.client(http_client=httpx2.Client(transport=_HeldThreads(self)))
        return world.client(http_client=httpx2.AsyncClient(transport=_HeldTasks(self)))


class _HeldThreads(httpx2.HTTPTransport):
    def __init__(self, held: Held) -> None:
        super().__init__()
        self._held = held

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = super().handle_request(request)
        self._held.take(request).wait(3 * PATIENCE)
        return response


class _HeldTasks(httpx2.AsyncHTTPTransport):
    def __init__(self, held: Held) -> None:
        super().__init__()
        self._held = held

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        event = self._held.take(request)
        while not event.is_set():  # noqa: ASYNC110  # one kind of event for both colours
            await anyio.sleep(0.01)
        return response


@pytest.mark.parametrize("slow", [CREATE, RESULTS], ids=["creates", "reads"])
async def test_eight_slow_ones_stop_neither_polls_nor_cancels(world: World, slow: tuple[str, str]):
    world.sandbox.batch_latency = 600
    held, size = Held(), iter(range(1, 20))

    async def send(name: str) -> Any:
        return await d.dispatch_all(many(next(size), name), job=name, latency=HOURS_30)

    async def reached(count: Callable[[], int], least: int) -> None:
        await world.until(lambda: count() >= least)

    async with world.open(client=held.client(world)) as d:
        try:
            await send("running")
            await reached(lambda: world.paths[f"GET {BATCH}"], 1)  # polled, so its create was answered and is not held
            if slow == RESULTS:
                for number in range(8):
                    await send(f"slow {number}")
                    await reached(lambda: len(world.books.batches), number + 2)
                held.kinds.append(RESULTS)
                for batch in world.books.batches[1:]:
                    world.sandbox.finish(batch.id)
                await reached(lambda: held.count(RESULTS), 8)
            held.kinds.append(CREATE)
            gone = await send("gone")
            await reached(lambda: held.count(CREATE), 1)
            assert await gone.cancel() == (await gone.progress()).total
            if slow == CREATE:
                for number in range(8):
                    await send(f"slow {number}")
                    await reached(lambda: held.count(CREATE), min(number + 2, 8))
            held.waiting[-8 if slow == CREATE else -1][1].set()  # nobody wants what this one makes
            await reached(lambda: held.count(slow), 9 if slow == CREATE else 8)
            await reached(lambda: world.paths[f"POST {BATCH}/cancel"], 1)
            polls = world.paths[f"GET {BATCH}"]
            await reached(lambda: world.paths[f"GET {BATCH}"], polls + 3)
            assert sum(not event.is_set() for _, event in held.waiting) == 8
        finally:
            held.let_go()
    assert world.books.bought_twice() == {}


@pytest.mark.parametrize("slow", [CREATE, RESULTS], ids=["create", "read"])
async def test_advance_polls_and_cancels_while_something_slow_goes_on(world: World, slow: tuple[str, str]):
    """A cron line's process asks no pump: it looks after what runs while its own upload or reading takes minutes."""
    world.sandbox.batch_latency = 600
    soon = timedelta(seconds=0.3)  # longer than the longest gap between two polls
    policy = {
        "window": timedelta(seconds=1),
        "min_reserve": timedelta(seconds=10),
        "cancel_settle": timedelta(seconds=9.5),
        "limits": Limits(latency=timedelta(milliseconds=20), concurrency=20),
        "flexible_interval": soon,
    }
    held = Held()
    with suppress(InterruptedError):
        async with world.open(**policy) as before:
            await before.dispatch_all(many(2), job="running", latency=timedelta(seconds=12.5))
            await world.until(lambda: len(world.books.batches) == 1)
            if slow == RESULTS:
                await before.dispatch_all(many(1), job="slow", latency=Latency.FLEXIBLE)
                await world.until(lambda: len(world.books.batches) == 2)
            else:
                await before.dispatch(params("queued"), latency=Latency.FLEXIBLE)
            raise InterruptedError
    await world.colour.sleep(soon / timedelta(seconds=1))
    if slow == RESULTS:
        world.sandbox.finish(world.books.batches[1].id)

    async def looked_after() -> None:
        try:
            await world.until(lambda: held.count(slow) == 1)
            polls = world.paths[f"GET {BATCH}"]
            await world.until(lambda: world.paths[f"GET {BATCH}"] >= polls + 2)
            await world.until(lambda: world.paths[f"POST {BATCH}/cancel"] == 1)
            assert not any(event.is_set() for _, event in held.waiting)
        finally:
            held.let_go()

    async with world.open(client=held.client(world), **policy) as d:
        held.kinds.append(slow)
        assert [type(each) for each in await world.together(d.advance, looked_after)] == [Progress, type(None)]
        assert len(world.books.batches) == 2, "advance returns when all that was due is done"
        assert slow == CREATE or (await d.progress("slow")).done


def test_what_may_take_minutes_comes_last_where_one_thing_is_done_after_the_other() -> None:
    seal, collect, poll, cancel = agenda.Seal((1,), (), 1), agenda.Collect(1), agenda.Poll(2), agenda.Cancel(3)
    assert one_by_one([collect, seal, poll, cancel]) == [poll, cancel, collect, seal]
