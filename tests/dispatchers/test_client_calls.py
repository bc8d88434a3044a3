"""What the SDK offers, through the client in front of a dispatcher, on threads, asyncio and trio."""

from __future__ import annotations

import inspect
import signal
from datetime import datetime, timedelta, timezone
from typing import Any

import anthropic
import anyio
import httpx2
import pytest
from anthropic import beta_async_tool, beta_tool
from pydantic import BaseModel

import batchwise as bw
from batchwise import Lane, Latency, ToolUse
from batchwise.sandbox import Reply
from tests.strategies import params

from .world import HOURS_30, PATIENCE, Async, Sync, World, clock_of, front, got, listed

ASYNC = [Async("asyncio"), Async("trio")]


class Verdict(BaseModel):
    fine: bool


def asked(text: str = "x") -> dict[str, Any]:
    return params(text, model="claude-haiku-4-5")


async def test_parse_gives_the_type_from_a_batch(world: World):
    world.sandbox.reply = lambda _: '{"fine": true}'
    async with world.open() as d:
        message = await got(front(d, latency=HOURS_30).messages.parse(**asked(), output_format=Verdict))
        assert message.parsed_output == Verdict(fine=True)
    assert (world.creates, world.calls) == (1, 0)


async def test_a_patient_loop_goes_to_batches_until_its_deadline_is_near(world: World):
    def reply(body: dict[str, Any]) -> Any:
        steps = sum(message["role"] == "assistant" for message in body["messages"])
        return Reply.tool_use("read", {"page": steps}, call_id=f"toolu_{steps}") if steps < 2 else "done"

    def read(page: int) -> str:
        """Read a page."""
        step(timedelta(hours=8))
        return f"page {page}"

    async def read_async(page: int) -> str:
        """Read a page."""
        return read(page)

    world.sandbox.reply = reply
    async with world.open() as d:
        step = clock_of(d)
        client = front(d, latency=datetime.now(timezone.utc) + timedelta(hours=40), tool_use=ToolUse.PATIENT)
        tool = beta_tool(read) if world.colour.name == "sync" else beta_async_tool(read_async, name="read")
        run = client.beta.messages.tool_runner
        plain = {"thread": False} if "thread" in inspect.signature(run).parameters else {}  # since SDK 2.14
        message = await got(run(**asked(), tools=[tool], **plain).until_done())
        assert message.content[0].text == "done"
        lanes = [result.lane for result in await listed(d.results())]
    assert lanes == [Lane.BATCH, Lane.BATCH, Lane.SYNC], "24 h and their reserve were left for two turns"
    assert (world.creates, world.calls) == (2, 1)


async def test_the_client_may_be_derived_and_middleware_runs_around_calls_and_their_api_calls(world: World):
    seen: list[str] = []

    def around(request: Any, call_next: Any) -> Any:
        seen.append("call")
        return call_next(request)

    async def around_async(request: Any, call_next: Any) -> Any:
        seen.append("call")
        return await call_next(request)

    made = world.client(middleware=[around if world.colour.name == "sync" else around_async])
    async with world.open(client=made) as d:
        client = front(d)
        derived = client.with_options(timeout=PATIENCE, max_retries=5), client.copy(default_headers={"x-team": "a"})
        for one in (client, *derived):
            seen.clear()
            assert (await got(one.messages.create(**asked()))).content[0].text == "echo: x"
            assert len(seen) == 2, "the call of the code, and the call to the API"
        seen.clear()
        await got(client.models.retrieve("claude-haiku-4-5"))
        assert len(seen) == 1, "what goes to the API as it is"
        assert (await d.progress()).total == 3
        raw = await got(client.models.with_raw_response.retrieve("claude-haiku-4-5"))
        assert raw.headers["request-id"].startswith("req_")
    assert world.calls == 3


async def test_an_event_hook_of_the_client_may_read_what_goes_to_the_api_as_it_is(world: World):
    seen: list[str] = []

    def read(response: httpx2.Response) -> None:
        seen.append(f"{response.url.path} {len(response.read())}")

    async def read_async(response: httpx2.Response) -> None:
        seen.append(f"{response.url.path} {len(await response.aread())}")

    if world.colour.name == "sync":
        http: Any = httpx2.Client(event_hooks={"response": [read]})
    else:
        http = httpx2.AsyncClient(event_hooks={"response": [read_async]})
    async with world.open(client=world.client(http_client=http)) as d:
        client = front(d).with_options(timeout=PATIENCE)
        assert (await got(client.models.retrieve("claude-haiku-4-5"))).id.startswith("claude-haiku-4-5")
        assert len(seen) == 1, seen


async def test_a_timeout_of_the_caller_is_told_once_and_buys_nothing_again(world: World):
    world.sandbox.batch_latency = 60
    async with world.open() as d:
        client = front(d, latency=HOURS_30).with_options(timeout=0.3, max_retries=2)
        with pytest.raises(anthropic.APITimeoutError):
            await got(client.messages.create(**asked()))
        await world.until(lambda: world.creates)
        assert (await d.progress()).total == world.creates == 1


async def test_what_expires_or_is_cancelled_is_an_error_with_a_sentence(world: World):
    async with world.open(max_attempts=1) as d:
        client = front(d, latency=Latency.FLEXIBLE, job="j")
        world.sandbox.fault("batch.row_expired")
        with pytest.raises(anthropic.APIStatusError, match="expired") as caught:
            await got(client.messages.create(**asked()))
        assert (caught.value.status_code, caught.value.type) == (504, "expired")
        world.sandbox.batch_latency = 60

        async def ask() -> None:
            await got(client.messages.create(**asked("other")))

        async def cancel() -> None:
            async def is_there() -> bool:
                return (await d.progress("j")).total == 2

            await world.until(is_there)
            await d.cancel(job="j")
            for batch in world.books.batches:
                world.sandbox.finish(batch.id)

        error, _ = await world.together(ask, cancel)
        assert isinstance(error, anthropic.ConflictError)
        assert error.type == "canceled"
        assert "cancel" in error.message


async def test_inner_tags_replace_only_what_they_name(world: World):
    async with world.open() as d:
        client = front(d, latency=HOURS_30, job="outer")
        with bw.tags(job="inner", latency=timedelta(hours=2)):
            with bw.tags(key="k", latency=Latency.BLOCKING):
                await got(client.messages.create(**asked("now")))
            ticket = await d.ticket("k", job="inner")
            assert (ticket.decision.lane, ticket.decision.reason) == (Lane.SYNC, bw.Reason.BLOCKING)
            with bw.tags(key="k2"):
                await got(client.messages.create(**asked("soon")))
            ticket = await d.ticket("k2", job="inner")
            assert (ticket.decision.lane, ticket.decision.reason) == (Lane.SYNC, bw.Reason.DEADLINE_INSIDE_WINDOW)
        await got(client.messages.create(**asked("later")))
        assert [result.lane for result in await listed(d.results(job="outer"))] == [Lane.BATCH]


async def test_errors_of_the_api_are_typed_on_both_lanes(world: World):
    async with world.open(max_attempts=1) as d:
        for client in (front(d), front(d, latency=Latency.FLEXIBLE)):
            with pytest.raises(anthropic.NotFoundError) as caught:
                await got(client.messages.create(**{**asked(), "model": "claude-none"}))
            assert caught.value.type == "not_found_error"
            assert caught.value.request_id


@pytest.mark.parametrize("colour", ASYNC, ids=lambda colour: colour.name)
async def test_a_cancelled_task_leaves_its_request_in_the_ledger(world: World):
    world.sandbox.batch_latency = 0.5
    async with world.open() as d:
        client = front(d, latency=HOURS_30, job="j")
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: client.messages.create(**asked()))
                await world.until(lambda: world.creates)
                scope.cancel()
        assert (await client.messages.create(**asked())).content[0].text == "echo: x"
        assert (await d.progress("j")).total == 1
    assert world.books.bought_by_prompt() == {"x": 1}


@pytest.mark.parametrize("colour", [Sync()], ids=["sync"])
async def test_ctrl_c_leaves_its_request_in_the_ledger(world: World):
    world.sandbox.batch_latency = 60
    code = """
    import signal
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have its jobs ignore it
    with bw.Dispatcher(policy=policy) as d:
        client = d.client(latency=timedelta(hours=30), job="j")
        client.messages.create(**params("x", model="claude-haiku-4-5"))
    """
    with world.script(code) as process:
        await world.until(lambda: world.creates)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    world.sandbox.finish(world.books.batches[0].id)
    async with world.open() as d:
        assert front(d, latency=HOURS_30, job="j").messages.create(**asked()).content[0].text == "echo: x"
        assert (await d.progress("j")).total == 1
    assert world.books.bought_by_prompt() == {"x": 1}
