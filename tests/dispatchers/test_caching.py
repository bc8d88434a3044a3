"""The prompt cache: what it is used for is shown, and what primes it."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from itertools import groupby
from typing import Any

import pytest

from batchwise import Dispatcher, Latency, Outcome, Rates, Request
from batchwise.sandbox import Sandbox
from tests.strategies import params

from .world import World

PRICES = {"claude-sonnet-5": Rates(input=3, output=15, cache_write="3.9", cache_read="0.3")}
FACTORS = Decimal("0.1"), Decimal("1.3"), Decimal("2.08")
"""What those prices are, of the price of input: an hour costs 1.6 times as much as 5 minutes."""


def shared(text: str, *, prefix: str = "p" * 8_000, **control: Any) -> dict[str, Any]:
    block = {"type": "text", "text": prefix, "cache_control": {"type": "ephemeral", **control}}
    return params(text, system=[block])


async def test_the_use_of_the_cache_is_shown(world: World):
    async with world.open(prices=PRICES) as d:
        for n in range(3):
            assert (await (await d.dispatch(shared(str(n)), key=f"s-{n}")).result()).ok
        job = await d.dispatch_all(
            [Request(shared(str(n), ttl="1h"), key=str(n)) for n in range(40)], job="j", latency=Latency.FLEXIBLE
        )
        results = [result async for result in job.results()]
        paid = world.sandbox.books.cost({"claude-sonnet-5": (3, 15)}, cache=FACTORS)
        report, of_sync = await d.report(), await (await d.ticket("s-0")).result()
        none = await (await d.dispatch(params("x"), key="none")).result()
    written = of_sync.cache_written_tokens
    assert (of_sync.cache_read_tokens, of_sync.cache_saved) == (0, -written * Decimal("0.9") / 10**6)
    assert (none.cache_read_tokens, none.cache_written_tokens, none.cache_saved) == (0, 0, 0)
    assert of_sync.to_dict()["cache_written_tokens"] == written > 0
    readers = [result for result in results if result.cache_read_tokens]
    assert 0 < len(readers) < 40
    assert {result.cache_saved for result in readers} == {written * Decimal("1.35") / 10**6}
    tokens = world.sandbox.books.tokens()
    assert (report.cache_read_tokens, report.cache_written_tokens) == (tokens.cache_read, tokens.cache_written)
    assert report.cache_hit_rate == tokens.cache_read / (tokens.cache_read + tokens.cache_written)
    everything = [*results, of_sync]
    expected = sum(result.cache_saved for result in everything) + 2 * written * Decimal("2.7") / 10**6
    assert report.cache_saved == expected
    assert report.cost == paid


LONG = "p" * 40_000
HOURS_80 = timedelta(hours=80)


def many(count: int, **about: Any) -> list[Request]:
    return [Request(shared(f"q-{n}", **about), key=f"q-{n}") for n in range(count)]


def sizes(world: World) -> list[int]:
    return [len(batch.rows) for batch in world.sandbox.books.batches]


async def test_one_request_primes_the_cache_for_the_others(world: World):
    async with world.open(cache="prime") as d:
        job = await d.dispatch_all(many(200, prefix=LONG), job="j", latency=HOURS_80)
        results = [result async for result in job.results()]
        assert sizes(world) == [1, 199]
        assert sum(1 for result in results if result.cache_written_tokens) == 1
        report = await d.report()
        assert report.met == 200
        assert report.cache_hit_rate == pytest.approx(199 / 200, abs=1e-3)
        assert "written to the cache by one request ahead" in (await d.ticket("q-7", job="j")).decision.explanation
        again = await d.dispatch_all(many(200, prefix=LONG), job="k", latency=HOURS_80)  # the cache is still warm
        assert all([result.cache_read_tokens async for result in again.results()])
    assert sizes(world) == [1, 199, 200]
    rows = [row["params"] for batch in world.sandbox.books.batches for row in batch.rows]
    assert {row["system"][0]["cache_control"]["ttl"] for row in rows} == {"1h"}
    async with world.open() as d:  # the content is what the caller gave
        assert (await (await d.dispatch(many(1, prefix=LONG)[0], job="j")).result()).ok
    assert len(sizes(world)) == 3


@pytest.mark.parametrize(
    ("hours", "prefix", "words"),
    [
        (27, LONG, "is not primed: that takes a window more"),
        (80, "p" * 2_000, "is under the 2,048 from which on it is cached"),
    ],
)
async def test_nothing_goes_ahead_where_the_time_or_the_prefix_is_too_short(world: World, hours, prefix, words):
    async with world.open(cache="prime") as d:
        job = await d.dispatch_all(many(30, prefix=prefix), job="j", latency=timedelta(hours=hours))
        async for result in job.results():
            assert result.met_deadline
        assert words in (await d.ticket("q-7", job="j")).decision.explanation
    assert sizes(world) == [30]


async def test_rows_of_a_batch_that_share_a_prefix_are_side_by_side(world: World):
    prefixes = ["a" * 12_000, "b" * 12_000, "c" * 300_000]
    mixed = [Request(shared(f"q-{n}", prefix=prefixes[n % 3]), key=f"q-{n}") for n in range(60)]
    mixed[31:31] = [Request(params("plain"), key=f"plain-{n}") for n in range(3)]
    async with world.open(cache="prime") as d:
        job = await d.dispatch_all(mixed, job="j", latency=timedelta(hours=27))
        assert {result.key: result.ok async for result in job.results()} == {each.key: True for each in mixed}
    (batch,) = world.sandbox.books.batches

    def sort(row: dict[str, Any]) -> str:
        return row["params"]["system"][0]["text"][0] if "system" in row["params"] else "plain"

    kinds = [sort(row) for row in batch.rows]
    assert [kind for kind, _ in groupby(kinds)] == ["a", "b", "c", "plain"]
    asked = [row["params"]["messages"][0]["content"] for row in batch.rows]
    expected = [f"q-{n}" for first in range(3) for n in range(first, 60, 3)]
    assert asked == [*expected, *["plain"] * 3]


async def test_a_primer_that_came_to_nothing_is_not_followed_by_another(world: World):
    world.sandbox.fault("batch.row_expired", times=1)
    async with world.open(cache="prime") as d:
        job = await d.dispatch_all(many(30, prefix=LONG), job="j", latency=HOURS_80)
        assert [result.outcome async for result in job.results()] == [Outcome.SUCCEEDED] * 30
    assert sizes(world) == [1, 30]
    assert not world.sandbox.books.bought_twice()


async def test_a_primer_whose_create_is_refused_for_now_is_sent_again(world: World):
    world.sandbox.fault("create.rate_limited_429", retry_after=0)
    async with world.open(cache="prime") as d:
        job = await d.dispatch_all(many(30, prefix=LONG), job="j", latency=HOURS_80)
        assert len([result async for result in job.results()]) == 30
    assert sizes(world) == [1, 29]


async def test_a_process_that_comes_later_goes_on_behind_the_primer(world: World):
    world.sandbox.batch_latency = 3600.0
    async with world.open(cache="prime") as d:
        await d.dispatch_all(many(30, prefix=LONG), job="j", latency=HOURS_80)
        await d.flush()
        await world.until(lambda: sizes(world) == [1])
    world.sandbox.batch_latency = 0.0
    world.sandbox.finish(world.sandbox.books.batches[0].id)
    async with world.open(cache="prime") as d:
        job = await d.job("j")
        assert len([result async for result in job.results()]) == 30
    assert sizes(world) == [1, 29]


def test_a_breakpoint_that_does_nothing_is_told_once(tmp_path, caplog):
    with Sandbox() as sandbox, Dispatcher(sandbox.client(), ledger=tmp_path / "l.db") as d:
        for n in range(3):
            d.dispatch(shared(str(n), prefix="short")).result()
    (record,) = (record for record in caplog.records if "too short for the prompt cache" in record.message)
    assert "short" not in record.message.replace("too short", "")
    assert "claude-sonnet-5" in record.message
