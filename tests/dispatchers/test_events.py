"""What happens is told: to `on_event`, to the log, and to OpenTelemetry; never with content."""

from __future__ import annotations

import logging
import re
from collections import Counter
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from batchwise import InvalidValueError, Lane, LaneSuspendedError, Limits, Outcome, Request, events
from batchwise.sandbox import Reply, echo
from tests.strategies import params

from .world import HOURS_30, World, clock_of, listed, many


def kinds(seen: list[Any]) -> Counter[type]:
    return Counter(map(type, seen))


async def test_the_life_of_a_batch_is_told(world: World):
    seen: list[Any] = []
    world.sandbox.reply = lambda p: Reply.error("invalid_request_error") if "bad" in str(p["messages"]) else echo(p)
    async with world.open(on_event=seen.append) as d:
        job = await d.dispatch_all([*many(3), Request(params("bad"), key="bad")], job="j", latency=HOURS_30)
        await job.wait()
        assert (await (await d.dispatch(params("now"), key="k")).result()).ok
        report = await d.report()
    assert all(event.at.tzinfo is timezone.utc and str(event).isprintable() for event in seen)
    batch = world.books.batches[0].id
    (bulk, single) = [event for event in seen if isinstance(event, events.Accepted)]
    assert (bulk.job, bulk.batch, bulk.sync, bulk.request) == ("j", 4, 0, None)
    assert (single.job, single.batch, single.sync) == (None, 0, 1)
    (submitted,) = [event for event in seen if isinstance(event, events.Submitted)]
    assert (submitted.batch, submitted.requests, submitted.jobs) == (batch, 4, ("j",))
    assert [(event.batch, event.requests) for event in seen if isinstance(event, events.Ended)] == [(batch, 4)]
    (collected,) = [event for event in seen if isinstance(event, events.Collected)]
    assert (collected.batch, collected.requests, collected.settled, collected.missing) == (batch, 4, 4, 0)
    settled = [event for event in seen if isinstance(event, events.Settled)]
    assert Counter({(e.lane, e.outcome, e.job): e.requests for e in settled}) == {
        (Lane.BATCH, Outcome.SUCCEEDED, "j"): 3,
        (Lane.BATCH, Outcome.FAILED, "j"): 1,
        (Lane.SYNC, Outcome.SUCCEEDED, None): 1,
    }
    assert sum(event.cost for event in settled) == report.cost
    assert sum(event.saved for event in settled) == report.saved
    (called,) = [event for event in seen if isinstance(event, events.Called)]
    assert (called.request, called.outcome, called.error) == (single.request, Outcome.SUCCEEDED, None)
    assert called.output_tokens > 0
    assert [event.requests for event in seen if isinstance(event, events.Missed)] == [1]
    assert not any(secret in str(event) + repr(event) for event in seen for secret in ("echo", "r-0", "r-1"))


async def test_a_hook_that_raises_harms_nothing_and_is_logged_once(world: World, caplog: pytest.LogCaptureFixture):
    def fail(_event: object) -> None:
        raise RuntimeError("hook")

    async with world.open(on_event=fail) as d:
        job = await d.dispatch_all(many(3), latency=HOURS_30)
        assert sorted(result.text for result in await listed(job.results())) == [f"echo: r-{n}" for n in range(3)]
        assert (await (await d.dispatch(params("a"))).result()).ok
        assert (await d.progress()).last_error is None
    assert [record.levelname for record in caplog.records if "on_event" in record.message] == ["ERROR"]


class AsyncHook:
    async def __call__(self, _event: object) -> None: ...


async def async_hook(_event: object) -> None: ...


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        (5, "on_event=5 cannot be called; give a function that takes an event"),
        (async_hook, "on_event is a coroutine function, which nobody would await; give a plain function"),
        (AsyncHook(), "on_event is a coroutine function, which nobody would await; give a plain function"),
    ],
)
async def test_a_hook_that_could_never_run_is_refused(world: World, hook: Any, said: str):
    with pytest.raises(InvalidValueError, match=re.escape(said)):
        async with world.open(on_event=hook):
            pass


async def test_a_suspended_lane_is_told_once_and_so_is_its_end(world: World, caplog: pytest.LogCaptureFixture):
    seen: list[Any] = []
    world.sandbox.fault("messages.unauthorized_401", times=None)
    async with world.open(on_event=seen.append) as d:
        tickets = [await d.dispatch(params(f"p{n}"), latency=timedelta(hours=1)) for n in range(3)]
        with pytest.raises(LaneSuspendedError):
            await tickets[0].result()
        world.sandbox.clear_faults()
        await d.resume()
        assert all([(await ticket.result()).ok for ticket in tickets])
    assert [(event.lane, "API key" in event.reason) for event in seen if isinstance(event, events.Suspended)] == [
        (Lane.SYNC, True)
    ]
    assert [event.lanes for event in seen if isinstance(event, events.Resumed)] == [(Lane.SYNC,)]
    lines = [record for record in caplog.records if "the sync lane is suspended" in record.message]
    assert [record.levelname for record in lines][:1] == ["WARNING"]


async def test_whoever_looks_tells_once_that_deadlines_are_at_risk_and_that_they_have_passed(
    world: World, caplog: pytest.LogCaptureFixture
):
    world.sandbox.batch_latency = 3600
    async with world.open() as d:
        await d.dispatch_all(many(3), job="left alone", latency=HOURS_30)
        await world.until(lambda: world.creates)
    seen: list[Any] = []
    async with world.open(on_event=seen.append) as d:
        d._ledger.conditions.suspend(Lane.SYNC, "no credit")  # no rescue can begin
        rescue, set_clock = (await d.progress()).batches[0].rescue_at, clock_of(d)
        for ahead in (rescue - datetime.now(timezone.utc) + timedelta(minutes=2), HOURS_30):
            set_clock(ahead)
            for _ in range(3):
                await d.progress()
    dangers = [(event.at_risk, event.overdue) for event in seen if isinstance(event, events.AtRisk)]
    assert dangers == [(3, 0), (0, 3)]
    assert [record.levelname for record in caplog.records if "at risk" in record.message] == ["WARNING", "WARNING"]


async def test_the_log_of_a_run_with_faults_tells_what_happened_without_content(
    world: World, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, logger="batchwise")
    sandbox = world.sandbox
    sandbox.batch_latency = 0.5
    sandbox.fault("create.rate_limited_429", times=1)
    sandbox.fault("results.drop", times=1)
    sandbox.fault("batch.row_expired", times=None, probability=0.3)
    sandbox.fault("messages.overloaded_529", times=2)
    async with world.open(max_attempts=2) as d:
        job = await d.dispatch_all(
            [Request(params(f"secret {n}"), key=f"key {n}") for n in range(30)], job="nightly", latency=HOURS_30
        )
        await job.wait()
    text = caplog.text
    for words in (
        "sending a batch failed once: the API answered 429 rate_limit_error",
        "submitted batch msgbatch_",
        " ended after ",
        "collected batch msgbatch_",
        " read again",
        "calling the sync lane failed once: the API answered 529 overloaded_error",
        " go to the sync lane",
    ):
        assert words in text, (words, text)
    assert "secret" not in text
    assert "echo" not in text


async def test_each_call_of_the_batch_api_has_a_line_at_debug_without_content(
    world: World, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG, logger="batchwise")
    world.sandbox.fault("create.rate_limited_429", times=1)
    async with world.open() as d:
        job = await d.dispatch_all([Request(params("secret"))], latency=HOURS_30)
        await job.wait()
        world.sandbox.batch_latency = 3600
        left = await d.dispatch_all(many(2), job="left", latency=HOURS_30)
        await world.until(lambda: len(world.books.batches) == 2)
        await world.until(lambda: caplog.text.count("bytes: msgbatch_") == 2)
        await left.cancel()
        await world.until(lambda: "cancel of batch" in caplog.text)
    first, second = (batch.id for batch in world.books.batches)
    for line in (
        r"list of batches: 0 of them, after \d\.\d{3} s",
        r"create of a batch of [\d,]+ bytes: the API answered 429 rate_limit_error, after ",
        rf"create of a batch of [\d,]+ bytes: {first}, after ",
        rf"poll of batch {first}: ended, after ",
        rf"results of batch {first}: read, after ",
        rf"cancel of batch {second}: canceling, after ",
    ):
        assert re.search(f"DEBUG.*batchwise: {line}", caplog.text), (line, caplog.text)
    assert "secret" not in caplog.text


async def test_what_calls_wait_for_is_told_once_in_a_while(world: World):
    seen: list[Any] = []
    world.sandbox.sync_latency = 0.3
    async with world.open(on_event=seen.append, limits=Limits(concurrency=1)) as d:
        job = await d.dispatch_all(many(6), job="j", latency=timedelta(hours=1))
        await job.wait()
    paced = [(event.models, event.limit, event.waiting > 0) for event in seen if isinstance(event, events.Paced)]
    assert paced == [("claude-sonnet-5", "concurrency", True)]
