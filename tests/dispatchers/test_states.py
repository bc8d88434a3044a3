"""A dispatcher in the wrong state, on the wrong loop, with the wrong client or ledger: it says so and does nothing."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from functools import partial
from threading import Thread

import anyio
import pytest

from batchwise import (
    AsyncDispatcher,
    ClosedDispatcherError,
    Dispatcher,
    ForkedDispatcherError,
    InvalidValueError,
    Latency,
    LedgerError,
    WrongLoopError,
    WrongWorkspaceError,
)
from batchwise.sandbox import Sandbox
from tests.strategies import params

from .world import Async, World, _step, listed, many

ASYNC = [Async("asyncio"), Async("trio")]


def every_method(d):
    return [
        lambda: d.dispatch(params("x")),
        lambda: d.dispatch_all(many(1)),
        lambda: d.job("j"),
        lambda: d.ticket("k"),
        lambda: listed(d.results()),
        d.flush,
        d.advance,
        d.progress,
        d.report,
        d.cancel,
        d.resume,
        lambda: d.purge(before=datetime.now(timezone.utc)),
    ]


async def test_after_it_has_ended(world: World):
    async with world.open() as d:
        ticket = await d.dispatch(params("x"), key="k")
        job = await d.dispatch_all(many(1), job="j")
        result = await ticket.result()
    for method in [
        *every_method(d),
        ticket.refresh,
        ticket.cancel,
        ticket.result,
        job.wait,
        job.progress,
        job.report,
        job.cancel,
        job.retry,
        lambda: listed(job.results()),
    ]:
        with pytest.raises(ClosedDispatcherError, match="closed"):
            await method()
    assert (result.text, ticket.key, job.name) == ("echo: x", "k", "j")  # what is known stays known
    with pytest.raises(ClosedDispatcherError):
        async with d:
            pass


async def test_whoever_waits_when_it_ends_is_told(world: World):
    world.sandbox.batch_latency = 60
    tickets = []

    async def wait():
        await world.until(lambda: tickets)
        return await tickets[0].result()

    async def end():
        async with world.open() as d:
            tickets.append(await d.dispatch(params("x"), latency=Latency.FLEXIBLE))
            await d.flush()
            await world.until(lambda: world.creates)
            await world.colour.sleep(0.1)

    found = await world.together(wait, end)
    assert isinstance(found[0], ClosedDispatcherError)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_after_a_fork(world: World):
    async with world.open() as d:
        ticket = await d.dispatch(params("x"), key="k")
        await ticket.result()
        told, tell = os.pipe()
        child = os.fork()
        if not child:
            names = []
            for method in [*every_method(d), ticket.refresh, ticket.result]:
                try:
                    _step(method())
                except ForkedDispatcherError:
                    names.append("forked")
                except BaseException as error:  # noqa: BLE001  # told to the parent
                    names.append(repr(error))
            os.write(tell, " ".join(sorted(set(names))).encode())
            os._exit(0)
        os.close(tell)
        assert os.read(told, 10_000) == b"forked"
        os.close(told)
        os.waitpid(child, 0)  # noqa: ASYNC222  # it has ended
        assert (await (await d.dispatch(params("y"))).result()).text == "echo: y"


@pytest.mark.parametrize("colour", ASYNC, ids=lambda colour: colour.name)
async def test_not_entered_and_entered_twice(world: World):
    d = world.open()
    for method in every_method(d):
        with pytest.raises(ClosedDispatcherError, match="async with"):
            await method()
    async with d:
        with pytest.raises(ClosedDispatcherError, match="once"):
            async with d:
                pass
        assert (await (await d.dispatch(params("x"))).result()).ok


@pytest.mark.parametrize("colour", ASYNC, ids=lambda colour: colour.name)
async def test_on_another_loop(world: World):
    found = []

    async def elsewhere(methods):
        for method in methods:
            try:
                await method()
            except WrongLoopError as error:
                found.append(error)

    async with world.open() as d:
        ticket = await d.dispatch(params("x"))
        methods = [*every_method(d), ticket.result, ticket.refresh]
        thread = Thread(target=partial(anyio.run, elsewhere, methods, backend=world.colour.name))
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
        assert len(found) == len(methods)
        assert (await ticket.result()).ok
        assert (await d.progress()).total == 1


async def test_a_client_of_the_wrong_colour(world: World):
    import anthropic

    blocking = anthropic.Anthropic(base_url=world.sandbox.base_url, api_key="x")
    waiting = anthropic.AsyncAnthropic(base_url=world.sandbox.base_url, api_key="x")
    with pytest.raises(InvalidValueError, match="AsyncDispatcher"):
        Dispatcher(waiting, ledger=world.path)
    with pytest.raises(InvalidValueError, match="AsyncAnthropic"):
        AsyncDispatcher(blocking, ledger=world.path)
    for kind in (Dispatcher, AsyncDispatcher):
        with pytest.raises(InvalidValueError, match="str"):
            kind("client", ledger=world.path)
    assert not world.path.exists()
    blocking.close()
    await anyio_close(world, waiting)


async def anyio_close(world: World, client) -> None:
    if world.colour.name != "sync":
        await client.close()


async def test_a_ledger_of_another_endpoint(world: World):
    async with world.open() as d:
        await d.dispatch(params("x"), key="k", latency=Latency.FLEXIBLE)
    with Sandbox() as other:
        client = world.colour.client(other)
        with pytest.raises(WrongWorkspaceError, match="endpoint") as caught:
            async with world.open(client=client):
                pass
        assert str(world.path.resolve()) in str(caught.value)
        assert other.base_url in str(caught.value)
        assert other.books.requests_by_path == {}
        await client.close()
    async with world.open() as d:
        assert (await (await d.ticket("k")).result()).text == "echo: x"


async def test_a_ledger_of_another_workspace(world: World):
    world.sandbox.api_keys = {"mine": "wrkspc_mine", "theirs": "wrkspc_theirs"}
    world.sandbox.batch_latency = 60
    async with world.open(client=world.client(api_key="mine")) as d:
        await d.dispatch(params("x"), key="k", latency=Latency.FLEXIBLE)
    assert world.creates == 1
    before = dict(world.paths)
    world.sandbox.finish(world.books.batches[0].id)
    world.sandbox.batch_latency = 0.02
    with pytest.raises(WrongWorkspaceError, match="wrkspc_theirs"):
        async with world.open(client=world.client(api_key="theirs")) as d:
            await (await d.dispatch(params("y"), key="y", latency=Latency.FLEXIBLE)).result()
    new = {path: count - before.get(path, 0) for path, count in world.paths.items() if count != before.get(path, 0)}
    assert set(new) == {"GET /v1/messages/batches"}  # listed once to learn whose it is; nothing was polled or sent
    async with world.open(client=world.client(api_key="mine")) as d:
        assert (await (await d.ticket("k")).result()).text == "echo: x"
        assert (await (await d.ticket("y")).result()).text == "echo: y"
    assert world.books.bought_twice() == {}
    assert "mine" not in repr(world.path.read_bytes()).replace("wrkspc_mine", "")


async def test_a_path_that_is_no_ledger(world: World):
    text = world.folder / "notes.txt"
    text.write_text("no database at all, but long enough to be taken for one\n" * 100)
    for bad in (world.folder, text, text / "ledger.db"):
        with pytest.raises(LedgerError, match=r"notes|test_") as caught:
            async with world.open(ledger=bad):
                pass
        assert str(bad) in str(caught.value)
    assert text.read_text().startswith("no database")


async def test_the_default_ledger_is_hidden_from_git(world: World, monkeypatch):
    monkeypatch.chdir(world.folder)
    monkeypatch.delenv("BATCHWISE_LEDGER", raising=False)
    client = world.client()
    kind = Dispatcher if world.colour.name == "sync" else AsyncDispatcher
    made = kind(getattr(client, "_inner", client))
    if isinstance(made, Dispatcher):
        with made:
            pass
    else:
        async with made:
            pass
    assert (world.folder / ".batchwise" / ".gitignore").read_text() == "*\n"
    assert (world.folder / ".batchwise" / "ledger.db").stat().st_mode & 0o777 == 0o600


async def test_a_blocking_call_is_not_bought_in_another_workspace(world: World):
    world.sandbox.api_keys = {"mine": "wrkspc_mine", "theirs": "wrkspc_theirs"}
    async with world.open(client=world.client(api_key="mine")) as d:
        assert (await (await d.dispatch(params("one"))).result()).ok
    with pytest.raises(WrongWorkspaceError, match="wrkspc_mine"):
        async with world.open(client=world.client(api_key="theirs")) as d:
            await (await d.dispatch(params("two"))).result()
    assert world.books.bought("two") == 0
