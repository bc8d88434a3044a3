"""Refused requests go to other models: on the cheapest lane in time, all tries billed and counted."""

from __future__ import annotations

import time
from contextlib import closing
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import batchwise as bw
from batchwise import Dispatcher, InvalidValueError, Lane, Outcome, Policy, UnknownPriceError
from batchwise.ledger.sqlite import SqliteLedger
from batchwise.sandbox import Reply, Sandbox
from tests.strategies import params
from tests.waiting import until

from .world import FAST, HOURS_30, LATENCIES, LINGER, World, listed

FIRST, SECOND, THIRD = "claude-opus-5-5", "claude-sonnet-5", "claude-haiku-4-5"
DATED = "claude-haiku-4-5-20251001"
"""The name that the third one's answers carry."""
PRICES = {FIRST: Decimal(4), SECOND: Decimal(2), THIRD: Decimal(1)}
"""USD a million input tokens; five times as much for output."""


class Model:
    """What the sandbox's models answer, and what they were asked."""

    def __init__(self, *accepting: str) -> None:
        self.accepting, self.asked = set(accepting), list[dict[str, Any]]()

    def __call__(self, body: dict[str, Any]) -> Any:
        self.asked.append(body)
        model = body["model"]
        reply = Reply.text(f"by {model}") if model in self.accepting else Reply.refusal("no")
        return reply.with_usage(input_tokens=1_000, output_tokens=100)


def cost_of(model: str, lane: Lane) -> Decimal:
    return PRICES[model] * (1_000 + 5 * 100) / 1_000_000 / (2 if lane is Lane.BATCH else 1)


def asked(**others: Any) -> dict[str, Any]:
    return params(model=FIRST, **others)


@pytest.mark.parametrize("lane", Lane)
async def test_the_next_model_answers_and_all_is_counted(world: World, lane: Lane):
    world.sandbox.reply = model = Model(THIRD)
    async with world.open(fallback_models=[FIRST, SECOND, THIRD]) as d:
        requests = [bw.Request(asked(text=text), key=text) for text in ("one", "two")]
        job = await d.dispatch_all(requests, job="j", latency=LATENCIES[lane])
        found = await listed(job.results())
        for result in found:
            assert (result.outcome, result.text, result.message.model) == (Outcome.SUCCEEDED, f"by {THIRD}", DATED)
            assert (result.lane, result.attempts, result.met_deadline) == (lane, 3, True)
            assert result.cost == sum(cost_of(each, lane) for each in (FIRST, SECOND, THIRD))
            assert result.usage.input_tokens == 1_000
        report = await job.report()
        assert (report.requests, report.refused, report.met, report.attempts) == (2, 0, 2, 6)
        assert (report.possible_doubles, report.wasted) == (0, 0)
        assert report.cost == sum(result.cost for result in found)
    assert sorted(body["model"] for body in model.asked) == sorted([FIRST, SECOND, THIRD] * 2)
    assert (world.creates > 0) == (lane is Lane.BATCH)
    assert (world.calls > 0) == (lane is Lane.SYNC)


@pytest.mark.parametrize("lane", Lane)
async def test_what_all_models_refuse_is_refused_and_begins_anew_when_it_is_tried_again(world: World, lane: Lane):
    world.sandbox.reply = model = Model()
    async with world.open(fallback_models=[SECOND], max_attempts=1) as d:
        job = await d.dispatch_all([bw.Request(asked(), key="k")], job="j", latency=LATENCIES[lane])
        (result,) = await listed(job.results())
        assert (result.outcome, result.attempts, result.met_deadline) == (Outcome.REFUSED, 2, False)
        assert result.cost == cost_of(FIRST, lane) + cost_of(SECOND, lane)
        model.accepting.add(FIRST)
        assert await job.retry([Outcome.REFUSED]) == 1
        (result,) = await listed(job.results())
        assert (result.text, result.attempts) == (f"by {FIRST}", 1)
        # The same key with the same content is the same request, whatever was sent for it.
        assert (await (await d.dispatch(asked(), key="k", job="j")).result()).text == f"by {FIRST}"
    assert [body["model"] for body in model.asked] == [FIRST, SECOND, FIRST]


async def test_without_fallback_models_a_refusal_ends(world: World):
    world.sandbox.reply = model = Model()
    async with world.open() as d:
        result = await (await d.dispatch(asked())).result()
        assert (result.outcome, result.attempts) == (Outcome.REFUSED, 1)
    assert len(model.asked) == 1


@pytest.mark.parametrize("lane", Lane)
async def test_what_the_refusing_model_thought_and_began_is_left_out(world: World, lane: Lane):
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    said = {"type": "text", "text": "Let me see."}
    history = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": [thought, said]},
        {"role": "user", "content": "Go on"},
    ]
    seen: list[dict[str, Any]] = []

    def reply(body: dict[str, Any]) -> Any:
        seen.append(body)
        if body["model"] == SECOND:
            return "done"
        return Reply.refusal() if body["messages"][-1]["role"] == "assistant" else Reply.pause_turn("I look.")

    world.sandbox.reply = reply
    async with world.open(fallback_models=[SECOND]) as d:
        ticket = await d.dispatch(asked(messages=history), latency=LATENCIES[lane])
        result = await ticket.result()
        assert (result.text, result.attempts) == ("done", 2)
        assert [block.type for block in result.message.content] == ["text"]
    assert [body["model"] for body in seen] == [FIRST, FIRST, SECOND]
    assert seen[1]["messages"][:-1] == seen[0]["messages"] == history
    assert seen[2]["messages"] == [history[0], {"role": "assistant", "content": [said]}, history[2]]


async def test_a_later_process_goes_on_with_the_model_that_was_reached(world: World):
    world.sandbox.reply = model = Model(SECOND)
    async with world.open(fallback_models=[SECOND]) as d:
        await d.dispatch_all([bw.Request(asked(), key="k")], job="j", latency=HOURS_30)
        await world.until(lambda: model.asked)
    async with world.open(fallback_models=[SECOND]) as d:
        (result,) = await listed((await d.job("j")).results())
        assert (result.message.model, result.attempts) == (SECOND, 2)
        assert result.cost == cost_of(FIRST, Lane.BATCH) + cost_of(SECOND, Lane.BATCH)
    assert [body["model"] for body in model.asked] == [FIRST, SECOND]


def test_a_spend_limit_reserves_what_all_models_may_cost(tmp_path: Path):
    with Sandbox(reply=Model(THIRD)) as sandbox, sandbox.client() as inner:

        def reserved(policy: Policy) -> Any:
            with Dispatcher(inner, ledger=":memory:", policy=policy) as d:
                return d.dispatch(asked()).result()

        for cap, fits in ((Decimal("0.025"), [()]), (Decimal("0.1"), [(), (SECOND,)])):
            for models in ((), (SECOND,)):
                policy = Policy(max_spend=cap, fallback_models=models, poll_every=FAST)
                if models in fits:
                    assert reserved(policy).cost <= cap
                else:
                    with pytest.raises(bw.SpendLimitError):
                        reserved(policy)
        with pytest.raises(UnknownPriceError, match="gpt"):
            reserved(Policy(max_spend=1, fallback_models=["gpt-99"]))


def test_the_sdk_gets_the_message_of_the_model_that_answered(tmp_path: Path):
    policy = Policy(poll_every=FAST, linger=LINGER, fallback_models=[SECOND])
    with (
        Sandbox(batch_latency=0.01, reply=Model(SECOND)) as sandbox,
        sandbox.client() as inner,
        Dispatcher(inner, ledger=tmp_path / "l.db", policy=policy) as d,
    ):
        for client in (d.client(), d.client(latency=HOURS_30)):
            message = client.messages.create(**asked())
            assert (message.model, message.stop_reason) == (SECOND, "end_turn")


@pytest.mark.parametrize("models", ["claude-haiku-4-5", [""], [3], 3, None])
def test_what_is_no_list_of_models_is_refused(models: Any):
    with pytest.raises(InvalidValueError, match="fallback_models="):
        Policy(fallback_models=models)


async def test_the_calls_of_a_fallback_model_keep_to_its_limits(world: World):
    arrived: list[float] = []

    def reply(body: dict[str, Any]) -> Any:
        if body["model"] == FIRST:
            return Reply.refusal()
        arrived.append(time.monotonic())
        return "done"

    world.sandbox.reply, world.sandbox.sync_latency = reply, 0.1
    limits = {FIRST: bw.Limits(concurrency=10), SECOND: bw.Limits(concurrency=1)}
    async with world.open(fallback_models=[SECOND], limits=limits) as d:
        requests = [bw.Request(asked(text=str(n)), key=str(n)) for n in range(4)]
        job = await d.dispatch_all(requests, job="j", latency=LATENCIES[Lane.SYNC])
        assert {result.attempts for result in await listed(job.results())} == {2}
    arrived.sort()
    assert min(later - earlier for earlier, later in pairwise(arrived)) > 0.08, "one at a time"


@pytest.mark.parametrize("lane", Lane)
def test_work_for_a_fallback_model_counts_as_work_for_it(tmp_path: Path, lane: Lane):
    """Whoever plans with it, be it another process, sees the model that is asked; begun anew it is the first one."""
    model, path = Model(SECOND), tmp_path / "l.db"

    def latency() -> float:
        return 0.8 if model.asked else 0.0

    policy = Policy(poll_every=FAST, linger=LINGER, fallback_models=[SECOND])
    with (
        Sandbox(reply=model, sync_latency=latency, batch_latency=latency) as sandbox,
        sandbox.client() as inner,
        closing(SqliteLedger(path)) as ledger,
        Dispatcher(inner, ledger=path, policy=policy) as d,
    ):

        def models() -> set[str]:
            seen = ledger.snapshot()
            places = (seen.batch_queue, seen.sync_queue, seen.sync_running, *(batch.groups for batch in seen.batches))
            return {group.terms.model for groups in places for group in groups}

        job = d.dispatch_all([bw.Request(asked(), key="k")], job="j", latency=LATENCIES[lane])
        until(lambda: models() == {SECOND})
        # Asked for again, and earlier: it is still the same request, at the model that it has reached.
        d.dispatch(asked(), key="k", job="j", latency=LATENCIES[lane] * 0.9)
        assert models() == {SECOND}
        (result,) = job.results()
        assert (result.message.model, result.deadline) == (SECOND, d.ticket("k", job="j").decision.deadline)
        assert job.retry([Outcome.SUCCEEDED]) == 1
        until(lambda: models() == {FIRST})
        tightened = d.dispatch(asked(), key="k", job="j", latency=LATENCIES[lane] * 0.8)
        until(lambda: models() == {SECOND})
        (result,) = job.results()
        assert (result.message.model, result.deadline) == (SECOND, tightened.decision.deadline)


async def test_a_fallback_model_is_streamed_where_the_sdk_would_stream_it(world: World):
    slow = "claude-opus-4-0"  # SDK 2.14, `MODEL_NONSTREAMING_TOKENS`: 8,192
    world.sandbox.models = [FIRST, slow]
    world.sandbox.reply = model = Model(slow)
    async with world.open(fallback_models=[slow]) as d:
        assert (await (await d.dispatch(asked(max_tokens=10_000))).result()).ok
    assert [(body["model"], body.get("stream", False)) for body in model.asked] == [(FIRST, False), (slow, True)]
