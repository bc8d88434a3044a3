"""One request: which lane it takes, what its ticket knows, and how its result comes."""

from __future__ import annotations

import gc
import re
from datetime import datetime, timedelta, timezone

import pytest

from batchwise import Lane, Latency, Outcome, Reason, Request, ResultTimeoutError, Status, ToolUse
from tests.strategies import params

from .world import HOURS_30, World, listed

TOOL = {"name": "look", "description": "looks", "input_schema": {"type": "object"}}
CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}\Z")


async def test_blocking_is_answered_now(world: World):
    async with world.open() as d:
        ticket = await d.dispatch(params("hello"), key="k")
        result = await ticket.result()
        assert (result.text, result.ok, result.outcome) == ("echo: hello", True, Outcome.SUCCEEDED)
        assert (result.key, result.job, result.lane, result.attempts) == ("k", None, Lane.SYNC, 1)
        assert (result.deadline, result.met_deadline, result.error) == (None, None, None)
        assert result.message.content[0].text == "echo: hello"
        assert result.unwrap() is result.message
        assert result.usage.output_tokens == result.message.usage.output_tokens > 0
        assert ticket.status is Status.SETTLED
    assert (world.calls, world.creates) == (1, 0)


async def test_a_request_with_a_deadline_goes_to_a_batch_and_waiting_submits_it(world: World):
    async with world.open() as d:
        before = datetime.now(timezone.utc).replace(microsecond=0)  # counted from the last full second
        ticket = await d.dispatch(params("later"), key="k", latency=HOURS_30)
        assert ticket.status is Status.QUEUED
        assert ticket.decision.lane is Lane.BATCH
        assert before + HOURS_30 <= ticket.decision.deadline <= datetime.now(timezone.utc) + HOURS_30
        result = await ticket.result()
        assert (result.text, result.lane, result.met_deadline) == ("echo: later", Lane.BATCH, True)
        assert result.deadline == ticket.decision.deadline
        assert result.settled_at.tzinfo is not None
        assert result.cost > 0
        assert result.saved == result.cost  # a batch costs half
    assert (world.calls, world.creates) == (0, 1)


LANES = [
    ({}, {}, Lane.SYNC, Reason.BLOCKING),
    ({}, {"latency": Latency.FLEXIBLE}, Lane.BATCH, Reason.LATENCY_TOLERANT),
    ({}, {"latency": "flexible"}, Lane.BATCH, Reason.LATENCY_TOLERANT),
    ({}, {"latency": timedelta(hours=2)}, Lane.SYNC, Reason.DEADLINE_INSIDE_WINDOW),
    ({"tools": [TOOL]}, {"latency": HOURS_30}, Lane.SYNC, Reason.ITERATIVE_TOOL_USE),
    ({"tools": [TOOL]}, {"latency": HOURS_30, "tool_use": ToolUse.SINGLE}, Lane.BATCH, Reason.LATENCY_TOLERANT),
    ({}, {"latency": HOURS_30, "stream": True}, Lane.SYNC, Reason.STREAMING),
    ({"speed": "fast"}, {"latency": HOURS_30}, Lane.SYNC, Reason.SYNC_ONLY_PARAMETER),
]


async def test_the_lane_and_why(world: World):
    async with world.open() as d:
        tickets = [await d.dispatch(params(f"p{n}", **more), **tags) for n, (more, tags, _, _) in enumerate(LANES)]
        for ticket, (_, _, lane, reason) in zip(tickets, LANES, strict=True):
            decision = ticket.decision
            assert (decision.lane, decision.reason) == (lane, reason)
            assert decision.explanation
            assert [check.rule for check in decision.checks if check.decided] == [reason]
            assert len(decision.checks) > 5
            assert (await ticket.result()).lane is lane


async def test_a_forced_tool_is_one_turn(world: World):
    async with world.open() as d:
        forced = params("extract", tools=[TOOL], tool_choice={"type": "tool", "name": "look"})
        result = await (await d.dispatch(forced, latency=HOURS_30)).result()
        assert (result.lane, result.text) == (Lane.BATCH, "echo: extract")
        assert [(call.name, call.input) for call in result.tool_calls] == [("look", {"echo": "extract"})]


async def test_zero_data_retention_keeps_to_the_sync_lane(world: World):
    async with world.open(zero_data_retention=True) as d:
        ticket = await d.dispatch(params("x"), latency=HOURS_30)
        assert ticket.decision.reason is Reason.ZERO_DATA_RETENTION
        assert (await ticket.result()).lane is Lane.SYNC
    assert world.creates == 0


async def test_betas_reach_the_api_and_give_the_beta_message(world: World):
    from anthropic.types.beta import BetaMessage

    async with world.open() as d:
        plain = await d.dispatch(params("p"), latency=Latency.FLEXIBLE)
        beta = await d.dispatch(params("b"), latency=Latency.FLEXIBLE, betas=["files-api-2025-04-14"])
        assert isinstance((await beta.result()).message, BetaMessage)
        assert not isinstance((await plain.result()).message, BetaMessage)
        now = await d.dispatch(params("n"), betas=["files-api-2025-04-14"])
        assert isinstance((await now.result()).message, BetaMessage)
    betas = {batch.rows[0]["params"]["messages"][0]["content"]: set(batch.betas) for batch in world.books.batches}
    assert "files-api-2025-04-14" in betas["b"]
    assert "files-api-2025-04-14" not in betas["p"]


KEYS = ["k", "src/été.py", "\ud800", "\0", "x" * 1024, "\U0001f600" * 100, " ", "#0", "a\nb", "a b", "a-b"]


async def test_any_key_gives_a_valid_custom_id(world: World):
    async with world.open() as d:
        tickets = [await d.dispatch(params(f"p {n}"), key=key, latency=Latency.FLEXIBLE) for n, key in enumerate(KEYS)]
        assert all(CUSTOM_ID.match(ticket.custom_id) for ticket in tickets)
        for number, (key, ticket) in enumerate(zip(KEYS, tickets, strict=True)):
            result = await ticket.result()
            assert (result.key, result.text) == (key, f"echo: p {number}")
            await ticket.refresh()
            assert ticket.custom_id == result.custom_id
            assert (await d.ticket(key)).key == key
        sent = {row["custom_id"] for batch in world.books.batches for row in batch.rows}
        assert len(sent) == len(KEYS)
        assert all(map(CUSTOM_ID.match, sent))
        assert {result.custom_id for result in await listed(d.results())} == sent
        for wrong in ("", "x" * 1025, 7):
            with pytest.raises(ValueError, match="key"):
                await d.dispatch(params("x"), key=wrong)


async def test_refresh_tells_the_status(world: World):
    world.sandbox.batch_latency = 60
    async with world.open() as d:
        ticket = await d.dispatch(params("x"), latency=Latency.FLEXIBLE)
        assert (await ticket.refresh()) is not None
        assert ticket.status is Status.QUEUED
        await d.flush()
        await world.until(lambda: world.creates)

        async def status():
            await ticket.refresh()
            return ticket.status

        async def in_flight():
            return await status() is Status.IN_FLIGHT

        await world.until(in_flight)
        world.sandbox.finish(world.books.batches[0].id)

        async def settled():
            return await status() is Status.SETTLED

        await world.until(settled)


@pytest.mark.parametrize("latency", [Latency.BLOCKING, HOURS_30])
async def test_a_timeout_loses_nothing(world: World, latency):
    world.sandbox.batch_latency = world.sandbox.sync_latency = 0.3
    async with world.open() as d:
        ticket = await d.dispatch(params("x"), key="k", latency=latency)
        for timeout in (0, 0.02, timedelta(milliseconds=20)):
            with pytest.raises(ResultTimeoutError, match="'k'") as caught:
                await ticket.result(timeout)
            assert isinstance(caught.value, TimeoutError)
        assert (await ticket.result()).text == "echo: x"
    assert world.books.bought("x") == 1


def notifiers() -> int:
    """Who listens for a result, or has; what earlier tests left is collected first, for it would go in between."""
    gc.collect()
    return sum(type(each).__name__ == "_Notifier" for each in gc.get_objects())


async def test_waits_that_time_out_leave_no_notifier_behind(world: World):
    async with world.open() as d:
        ticket = await d.dispatch(params("x"), key="k", latency=HOURS_30)
        before = notifiers()
        for _ in range(9):
            with pytest.raises(ResultTimeoutError):
                await ticket.result(0.001)
        assert notifiers() == before


async def test_a_caller_who_gives_up_waiting_leaves_the_others_waiting(world: World):
    world.sandbox.sync_latency = 0.3
    async with world.open() as d:
        ticket = await d.dispatch(params("x"), key="k")

        async def impatient():
            with pytest.raises(ResultTimeoutError):
                await ticket.result(0.05)

        found = await world.together(ticket.result, impatient, ticket.result)
        assert [found[0].text, found[2].text] == ["echo: x"] * 2


async def test_a_result_may_be_asked_for_twice_and_by_several(world: World):
    world.sandbox.sync_latency = 0.1
    async with world.open() as d:
        ticket = await d.dispatch(params("x"), key="k")
        other = await d.ticket("k")
        found = await world.together(ticket.result, ticket.result, other.result)
        assert [result.text for result in found] == ["echo: x"] * 3
        assert (await ticket.result()).cursor == found[0].cursor
        assert (await ticket.result(timeout=0)).text == "echo: x"
        assert len(await listed(d.results())) == 1
    assert world.calls == 1


async def test_what_is_no_timeout_is_refused(world: World):
    async with world.open() as d:
        ticket = await d.dispatch(params("x"))
        for wrong in (-1, "soon", True, timedelta(seconds=-1), float("nan")):
            with pytest.raises(ValueError, match="timeout"):
                await ticket.result(wrong)


async def test_a_request_and_tags_beside_it(world: World):
    async with world.open() as d:
        made = Request(params("x"), key="a")
        ticket = await d.dispatch(made, key="b", latency=Latency.FLEXIBLE)
        assert (ticket.key, ticket.decision.lane) == ("b", Lane.BATCH)
        with pytest.raises(ValueError, match="betas and stream"):
            await d.dispatch(made, betas=["x"])
        with pytest.raises(ValueError, match="dispatch_all"):
            await d.dispatch([made])
        with pytest.raises(ValueError, match="max_tokens"):
            await d.dispatch({"model": "m", "messages": [{"role": "user", "content": "x"}]})
        with pytest.raises(ValueError, match="past"):
            await d.dispatch(params("x"), latency=datetime(2020, 1, 1, tzinfo=timezone.utc))
        assert (await d.progress()).total == 1


async def test_sdk_blocks_may_be_passed_back(world: World):
    async with world.open() as d:
        first = await (await d.dispatch(params("one"))).result()
        turns = [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": first.message.content},
            {"role": "user", "content": "two"},
        ]
        second = await (await d.dispatch({**params(), "messages": turns})).result()
        assert second.text == "echo: two"
