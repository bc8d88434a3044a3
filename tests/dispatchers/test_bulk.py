"""`dispatch_all`: accepted whole or not at all, streamed in and out, and each request has its own outcome."""

from __future__ import annotations

import sqlite3
import tracemalloc
from datetime import datetime, timedelta, timezone

import pytest

from batchwise import (
    InvalidRequestError,
    JobNotFoundError,
    Lane,
    Latency,
    Outcome,
    Request,
    RequestFailedError,
    ResultTimeoutError,
    Status,
    ToolUse,
)
from batchwise.engine import handles
from batchwise.ledger.sqlite import SqliteLedger
from batchwise.ledger.sqlite_database import SqliteDatabase
from batchwise.ledger.values import Settlement
from batchwise.sandbox import Reply, turns
from tests.strategies import params

from .world import HOURS_30, PATIENCE, World, listed, many

FLEXIBLE = Latency.FLEXIBLE
SECRET = "the prompt's secret"


def rows_in(world: World) -> int:
    with sqlite3.connect(world.path) as db:
        return db.execute("SELECT count(*) FROM request").fetchone()[0]


async def test_a_generator_is_read_once_and_everything_comes_back(world: World):
    asked = []

    def paths():
        for request in many(300, "file"):
            asked.append(request.key)
            yield request

    async with world.open() as d:
        job = await d.dispatch_all(paths(), job="nightly", latency=HOURS_30)
        assert job.name == "nightly"
        found = [(r.key, r.text, r.lane, r.job) async for r in job.results()]
        assert sorted(found) == sorted((k, f"echo: {k}", Lane.BATCH, "nightly") for k in asked)
        assert (await job.progress()).done
        assert [r.key async for r in job.results()] == [key for key, *_ in found]
    assert world.creates == 1


async def test_dispatch_all_submits_without_anybody_waiting(world: World):
    async with world.open() as d:
        await d.dispatch_all(many(3), latency=HOURS_30)
        await world.until(lambda: world.creates == 1)


async def test_one_bad_among_a_thousand(world: World):
    requests = many(1_000, latency=FLEXIBLE)
    requests[617] = Request(params("x", max_tokens=300_000), key="r-617", betas=["output-300k-2026-03-24"])
    async with world.open() as d:
        with pytest.raises(InvalidRequestError, match=r"#617.*'r-617'"):
            await d.dispatch_all(requests, job="j")
        with pytest.raises(InvalidRequestError, match=r"#2.*dict"):
            await d.dispatch_all([*many(2), params("x")], job="j", latency=FLEXIBLE)
        with pytest.raises(JobNotFoundError):
            await d.job("j")
        assert (await d.progress()).total == 0
        assert rows_in(world) == 0
        await d.flush()
        await d.advance()
        job = await d.dispatch_all(many(2), job="j", latency=FLEXIBLE)
        assert (await job.wait()).total == 2
    assert (world.creates, world.calls, world.books.billed()) == (1, 0, 2)


async def test_a_generator_that_breaks_leaves_nothing(world: World):
    def broken():
        yield from many(2_500)
        raise OSError("disk gone")

    async with world.open() as d:
        with pytest.raises(OSError, match="disk gone"):
            await d.dispatch_all(broken(), job="j", latency=FLEXIBLE)
        with pytest.raises(JobNotFoundError):
            await d.job("j")
        assert rows_in(world) == 0
        ticket = await d.dispatch(params("other"), key="r-0", job="j", latency=FLEXIBLE)
        assert (await ticket.result()).text == "echo: other"
    assert world.books.billed() == 1


async def test_tags_given_to_the_bulk_are_defaults(world: World):
    tool = {"name": "look", "input_schema": {"type": "object"}}
    requests = [
        Request(params("default"), key="default"),
        Request(params("own"), key="own", latency=Latency.BLOCKING),
        Request(params("tool", tools=[tool]), key="tool"),
        Request(params("agent", tools=[tool]), key="agent", tool_use=ToolUse.ITERATIVE),
    ]
    async with world.open() as d:
        job = await d.dispatch_all(requests, job="j", latency=HOURS_30, tool_use=ToolUse.SINGLE)
        lanes = {r.key: r.lane async for r in job.results()}
        with pytest.raises(ValueError, match="latency"):
            await d.dispatch_all(requests, latency="soon")
    assert lanes == {"default": Lane.BATCH, "own": Lane.SYNC, "tool": Lane.BATCH, "agent": Lane.SYNC}


async def test_without_tags_nothing_goes_to_a_batch(world: World):
    async with world.open() as d:
        job = await d.dispatch_all(many(5), job="j")
        assert {r.lane async for r in job.results()} == {Lane.SYNC}
    assert (world.calls, world.creates) == (5, 0)


async def test_an_empty_bulk(world: World):
    async with world.open() as d:
        for name in (None, "empty"):
            job = await d.dispatch_all([], job=name, latency=FLEXIBLE)
            assert await listed(job.results()) == []
            assert (await job.wait()).total == 0
        assert (await d.job("empty")).name == "empty"


async def test_failures_come_as_results(world: World):
    bad = Request(params(SECRET, max_tokens=10**9), key="bad")
    async with world.open() as d:
        job = await d.dispatch_all([*many(4), bad], job="j", latency=FLEXIBLE)
        results = {r.key: r async for r in job.results()}
        assert {key: r.ok for key, r in results.items()} == {**{f"r-{n}": True for n in range(4)}, "bad": False}
        failed = results["bad"]
        assert failed.outcome is Outcome.FAILED
        assert (failed.error.type, failed.error.retryable) == ("invalid_request_error", False)
        assert failed.error.message
        assert failed.usage is None
        for look in (lambda: failed.text, lambda: failed.message, lambda: failed.tool_calls, failed.unwrap):
            with pytest.raises(RequestFailedError, match="'bad'") as caught:
                look()
            assert caught.value.error_type == "invalid_request_error"
        assert SECRET not in "".join(map(repr, [*results.values(), job, bad, caught.value, d]))
        assert "echo" not in repr(results["r-0"])
    assert len(world.books.batches) == 1  # what cannot succeed is not tried again


async def test_overloaded_rows_are_tried_again_up_to_max_attempts(world: World):
    world.sandbox.fault("batch.row_error", times=1, probability=0.5, type="overloaded_error", message="Overloaded")
    async with world.open(max_attempts=3) as d:
        results = await listed((await d.dispatch_all(many(10), job="a", latency=FLEXIBLE)).results())
        assert all(r.text == f"echo: {r.key}" for r in results)
        assert {r.attempts for r in results} == {1, 2}
        assert len(world.books.batches) == 2
        world.sandbox.reply = lambda _: Reply.error("overloaded_error", "Overloaded")
        results = await listed((await d.dispatch_all(many(3), job="b", latency=FLEXIBLE)).results())
        assert {(r.outcome, r.error.type, r.error.retryable, r.attempts) for r in results} == {
            (Outcome.FAILED, "overloaded_error", True, 3)
        }
    assert len(world.books.batches) == 5
    assert world.books.bought_twice().keys() == set()


async def test_expired_rows_are_redone(world: World):
    world.sandbox.window = timedelta(milliseconds=300)
    world.sandbox.batch_latency = 0.5  # a part of the rows is done when the window ends
    async with world.open(max_attempts=2) as d:
        job = await d.dispatch_all(many(10), job="a", latency=FLEXIBLE)
        await world.until(lambda: world.creates)
        world.sandbox.batch_latency = 0.01
        results = await listed(job.results())
        assert all(r.text == f"echo: {r.key}" for r in results)
        assert {r.attempts for r in results} == {1, 2}
        world.sandbox.fault("batch.row_expired", times=2)
        results = await listed((await d.dispatch_all(many(2), job="b", latency=FLEXIBLE)).results())
        assert {(r.outcome, r.error.type) for r in results} == {(Outcome.EXPIRED, "expired")}
    assert world.books.bought_twice() == {}


@pytest.mark.parametrize("latency", [Latency.BLOCKING, FLEXIBLE])
async def test_a_paused_turn_is_continued(world: World, latency):
    world.sandbox.reply = turns(
        Reply.pause_turn("first, ").with_usage(output_tokens=100), Reply.text("last").with_usage(output_tokens=10)
    )
    search = [{"type": "web_search_20250305", "name": "web_search"}]
    async with world.open() as d:
        result = await (await d.dispatch(params("find", tools=search), latency=latency)).result()
        assert (result.text, result.message.stop_reason) == ("first, last", "end_turn")
        assert result.usage.output_tokens == 110
        assert [block.type for block in result.message.content] == ["text", "server_tool_use", "text"]
        report = await d.report()
        assert report.cost == result.cost > 0
        assert result.tool_calls == ()
    assert world.books.tokens().output == 110
    assert (world.calls, world.creates) == ((2, 0) if latency is Latency.BLOCKING else (0, 2))


async def test_a_jobs_timeout_loses_nothing(world: World):
    world.sandbox.batch_latency = 0.4
    async with world.open() as d:
        job = await d.dispatch_all(many(3), job="j", latency=FLEXIBLE)
        with pytest.raises(ResultTimeoutError, match="3 requests of job 'j'"):
            await job.wait(timeout=0.02)
        with pytest.raises(ResultTimeoutError):
            await listed(job.results(timeout=timedelta(milliseconds=20)))
        assert len(await listed(job.results(timeout=PATIENCE))) == 3
        assert (await job.wait(timeout=0)).settled == 3
    assert world.books.bought_twice() == {}


async def test_a_bulk_without_a_name_is_waited_for_whatever_is_queued_anew(world: World, monkeypatch):
    monkeypatch.setattr(handles, "_PAGE", 2)
    requests = [Request(params("bad", max_tokens=10**9), key="bad", latency=FLEXIBLE), *many(4, latency=FLEXIBLE)]
    async with world.open() as d:
        job = await d.dispatch_all(requests)
        again = await d.dispatch_all(requests)
        assert (await job.wait()).by_outcome == {Outcome.SUCCEEDED: 4, Outcome.FAILED: 1}
        for one in (job, again):
            assert await one.retry([Outcome.FAILED]) == 1
            assert (await job.wait()).by_status == {Status.SETTLED: 5}
            assert (await again.wait()).by_status == {Status.SETTLED: 5}
        assert len(await listed(job.results())) == 5


async def test_waiting_for_a_bulk_without_a_name_counts_nothing(world: World):
    def counting(*, job):
        asked.append(job)
        return counts(job=job)

    class Counting(SqliteLedger):
        def numbers(self, which, *, after=0, limit=None):
            starts.append(after)
            return super().numbers(which, after=after, limit=limit)

    asked: list[int] = []
    starts: list[int] = []
    world.sandbox.batch_latency = 60
    ledger = Counting(world.path)
    counts, ledger.statistics.counts = ledger.statistics.counts, counting
    async with world.open(ledger=ledger) as d:
        job = await d.dispatch_all(many(7, latency=FLEXIBLE))
        for wait in (lambda: job.wait(timeout=0), lambda: listed(job.results(timeout=0))):
            asked.clear()
            with pytest.raises(ResultTimeoutError, match="7 requests"):
                await wait()
            assert len(asked) == 1  # for the error's words
        last = (await d.ticket("r-6"))._row.id
        ended = [Settlement(number, Outcome.SUCCEEDED, Lane.BATCH, b"{}", 0, 0) for number in range(1, last)]
        ledger.settle(ended, now=datetime.now(timezone.utc))
        with pytest.raises(ResultTimeoutError, match="1 requests"):
            await job.wait(timeout=0)
        starts.clear()
        with pytest.raises(ResultTimeoutError, match="1 requests"):
            await job.wait(timeout=0)
        assert not starts  # the first one that was not settled still is not: no other is looked at
        world.sandbox.finish((await world.until(lambda: world.books.batches))[0].id)
        await job.wait()
    ledger.close()


async def test_a_repeated_bulk_without_a_name_is_read_in_bounded_memory(world: World, monkeypatch):
    monkeypatch.setattr(handles, "_PAGE", 20)
    world.sandbox.reply = lambda _: Reply.text("x" * 20_000)
    requests = many(300, latency=FLEXIBLE)
    async with world.open() as d:
        await (await d.dispatch_all(requests)).wait()
        again = await d.dispatch_all(requests)
        tracemalloc.start()
        try:
            seen = [result.key async for result in again.results()]
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert sorted(seen) == sorted(request.key for request in requests)
    assert peak < 3_000_000  # 6 MB are 300 results, 0.4 MB a page of 20


async def test_cancelling_a_bulk_without_a_name_is_a_few_transactions(world: World):
    class Counting(SqliteDatabase):
        def write(self, name: str, **options: bool):
            names.append(name)
            return super().write(name, **options)

    names: list[str] = []
    world.sandbox.batch_latency = 60
    ledger = SqliteLedger(Counting(world.path))
    async with world.open(ledger=ledger) as d:
        job = await d.dispatch_all(many(50), latency=timedelta(days=30))
        await world.until(lambda: world.creates)
        await job.cancel()
        assert names.count("cancel") == 1
        assert {result.outcome for result in await listed(job.results())} == {Outcome.CANCELED}
    ledger.close()
