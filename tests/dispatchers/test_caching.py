"""The prompt cache: what it is used for is shown, and what primes it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from batchwise import Latency, Rates, Request
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
