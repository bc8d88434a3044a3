"""No prompt and no answer in logs, errors or reprs, whatever happens."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest

from batchwise import BatchwiseError, KeyConflictError, Latency, Request
from batchwise.sandbox import Reply
from tests.strategies import params

from .world import World, listed

FLEXIBLE = Latency.FLEXIBLE
PROMPT, ANSWER = "prompt-of-Ada", "answer-to-Ada"


async def test_a_whole_scenario_at_debug(world: World, caplog):
    caplog.set_level(logging.DEBUG)
    world.sandbox.reply = lambda _: Reply.text(ANSWER)
    world.sandbox.fault("messages.error_500", times=1)
    world.sandbox.fault("create.drop_before", times=1)
    world.sandbox.fault("results.drop", times=1)
    world.sandbox.fault("batch.row_error", times=1, probability=0.5, type="overloaded_error", message="Overloaded")
    shown: list[object] = []
    async with world.open(create_grace=timedelta(milliseconds=200), max_attempts=3) as d:
        ticket = await d.dispatch(params(PROMPT), key="k")
        shown += [ticket, await ticket.result(), ticket.decision, ticket.decision.explanation]
        requests = [Request(params(PROMPT + str(n)), key=f"r-{n}") for n in range(5)]
        job = await d.dispatch_all(requests, job="j", latency=FLEXIBLE)
        shown += [job, *requests, *await listed(job.results())]
        shown += [await d.progress(), await d.report(), d]
        world.sandbox.reply = lambda _: Reply.error("invalid_request_error", "no")
        failed = await (await d.dispatch(params(PROMPT + "!"), key="f")).result()
        shown += [failed, failed.error]
        await (await d.dispatch(params(PROMPT, max_tokens=64_000))).result()  # streamed by the SDK
        for wrong in (
            lambda: d.dispatch(params(PROMPT + "other"), key="k"),
            lambda: d.dispatch(params(PROMPT, timeout=3)),
            lambda: d.dispatch({"messages": PROMPT}),
            lambda: d.dispatch(params(PROMPT, tools=PROMPT)),
            lambda: d.dispatch_all([params(PROMPT)]),
            lambda: d.dispatch(params(PROMPT, thing=PROMPT.encode())),
            lambda: d.dispatch([params(PROMPT)]),
        ):
            with pytest.raises(BatchwiseError) as caught:
                await wrong()
            shown += [caught.value, caught.value.__cause__]
        with pytest.raises(BatchwiseError) as caught:
            failed.unwrap()
        shown.append(caught.value)
    text = caplog.text + "".join(f"{thing!r} {thing}" for thing in shown)
    for secret in (PROMPT, ANSWER):
        leaks = [line for line in text.splitlines() if secret in line]
        assert leaks == []


async def test_keys_are_shown_escaped_and_short(world: World):
    key = "\x1b[31m" + "x" * 500
    async with world.open() as d:
        ticket = await d.dispatch(params("x"), key=key, latency=FLEXIBLE)
        with pytest.raises(KeyConflictError) as caught:
            await d.dispatch(params("y"), key=key, latency=FLEXIBLE)
        for text in (str(caught.value), repr(ticket), repr(await ticket.result())):
            assert "\x1b" not in text
            assert "x" * 100 not in text
