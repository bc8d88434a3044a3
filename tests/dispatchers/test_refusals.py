"""Refusals: billed, no answer, and counted as what they are, on both lanes."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest

import batchwise as bw
from batchwise import Lane, Outcome, RequestFailedError
from batchwise.sandbox import Reply, Sandbox
from tests.strategies import params

from .world import FAST, HOURS_30, LATENCIES, LINGER, World, listed

POLICY = bw.Policy(poll_every=FAST, linger=LINGER)
WHY = "It asks for malware."


def declining(params: dict[str, Any]) -> Any:
    """Declines what speaks of a virus."""
    if "virus" in params["messages"][0]["content"]:
        return Reply.refusal(WHY, category="cyber")
    return "fine"


async def dispatched(d: Any, lane: Lane) -> Any:
    """A job of two requests, one of which is declined."""
    requests = [bw.Request(params(text), key=text) for text in ("virus", "poem")]
    return await d.dispatch_all(requests, job="j", latency=LATENCIES[lane])


@pytest.mark.parametrize("lane", Lane)
async def test_a_refusal_is_no_answer_and_is_billed(world: World, lane: Lane):
    world.sandbox.reply = declining
    async with world.open() as d:
        job = await dispatched(d, lane)
        found = {result.key: result for result in await listed(job.results())}
        refused, answered = found["virus"], found["poem"]
        assert (refused.outcome, refused.ok, refused.lane) == (Outcome.REFUSED, False, lane)
        assert refused.error.type == "refusal"
        assert WHY in refused.error.message
        assert b'"stop_reason":"refusal"' in refused.raw
        assert refused.usage.input_tokens > 0
        assert (refused.attempts, refused.met_deadline, answered.met_deadline) == (1, False, True)
        assert refused.cost > 0
        for look in ("text", "message", "tool_calls"):
            with pytest.raises(RequestFailedError, match="refused, refusal"):
                getattr(refused, look)
        with pytest.raises(RequestFailedError) as caught:
            refused.unwrap()
        assert caught.value.error_type == "refusal"
        progress, report = await job.progress(), await job.report()
        assert progress.by_outcome == {Outcome.SUCCEEDED: 1, Outcome.REFUSED: 1}
        assert (report.requests, report.refused, report.met, report.missed) == (2, 1, 1, 1)
        assert report.cost == refused.cost + answered.cost
        assert report.possible_doubles == 0
        assert report.wasted == 0


@pytest.mark.parametrize("lane", Lane)
async def test_refusals_are_tried_again_when_asked_for(world: World, lane: Lane):
    world.sandbox.reply = declining
    async with world.open() as d:
        job = await dispatched(d, lane)
        await job.wait()
        world.sandbox.reply = lambda _params: "now fine"
        assert await job.retry() == 0
        assert await job.retry([Outcome.REFUSED]) == 1
        found = {result.key: result async for result in job.results()}
        assert (found["virus"].text, found["poem"].text) == ("now fine", "fine")
        report = await job.report()
        assert (report.requests, report.refused) == (2, 0)
    assert world.books.bought("virus") == 2


async def test_a_batch_that_was_refused_whole_suspends_no_lane(world: World):
    world.sandbox.reply = declining
    async with world.open() as d:
        requests = [bw.Request(params(f"virus {n}")) for n in range(3)]
        job = await d.dispatch_all(requests, latency=HOURS_30)
        progress = await job.wait()
        assert progress.by_outcome == {Outcome.REFUSED: 3}
        assert not progress.suspended


@pytest.mark.parametrize("stream", [False, True])
def test_the_sdk_sees_the_refusal_as_the_api_gave_it(stream: bool, tmp_path: Any):
    with (
        Sandbox(batch_latency=0.01, reply=declining) as sandbox,
        sandbox.client() as inner,
        bw.Dispatcher(inner, ledger=tmp_path / "l.db", policy=POLICY) as d,
    ):
        seen = []
        for client in (inner, d.client(), d.client(latency=HOURS_30)):
            message = answer(client, stream=stream)
            assert message.stop_details is not None
            seen.append((message.stop_reason, message.content, message.stop_details.explanation))
        assert seen == [("refusal", [], WHY)] * 3
        assert d.report().refused == (1 if stream else 2)  # a stream that is wanted now goes past the ledger


def answer(client: anthropic.Anthropic, *, stream: bool) -> anthropic.types.Message:
    asked = params("virus", model="claude-haiku-4-5")
    if not stream:
        made: anthropic.types.Message = client.messages.create(**asked)
        return made
    with client.messages.stream(**asked) as events:
        return events.get_final_message()
