"""What is refused on acceptance because it is too large, or could pass the spend limit."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from batchwise import InvalidValueError, Lane, Latency, Policy, Request, RequestTooLargeError, SpendLimitError
from batchwise.engine.finding import find_request
from batchwise.planning import packing
from tests.strategies import params

from .world import HOURS_30, Sync, World, many

SLOW = """
with bw.Dispatcher(policy=bw.Policy(max_spend="0.036")) as d:
    ticket = d.dispatch(params("x"), key="k")
    print("sent")
    ticket.result()
"""


async def test_what_no_lane_can_carry_is_refused_whole_and_by_name(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packing, "MAX_CALL_BYTES", 2_000)
    monkeypatch.setattr(packing, "MAX_BYTES", 4_000)
    large, huge = params("x" * 2_500), params("x" * 5_000)
    async with world.open() as d:
        for body, latency in ((large, None), (large, HOURS_30), (huge, Latency.FLEXIBLE)):
            with pytest.raises(RequestTooLargeError, match="'big'"):
                await d.dispatch(body, key="big", latency=latency)
            with pytest.raises(RequestTooLargeError, match=r"item #2 .*'big'"):
                await d.dispatch_all([*many(2), Request(body, key="big", latency=latency)], latency=HOURS_30)
        assert (await d.progress()).total == 0
        job = await d.dispatch_all([Request(large, key="big")], latency=Latency.FLEXIBLE)
        assert (await job.wait()).done
    assert world.books.billed() == 1


@pytest.mark.parametrize("money", ["inf", "-inf", "nan", "snan", "-1", -0.01, "1e13", "much", None, True, float("nan")])
def test_what_is_no_amount_of_money_is_refused_when_the_policy_is_made(money: object) -> None:
    with pytest.raises(InvalidValueError, match=r"delay_cost_per_hour=.* US dollars"):
        Policy(delay_cost_per_hour=money)  # type: ignore[arg-type]
    if money is not None:
        with pytest.raises(InvalidValueError, match=r"max_spend=.* US dollars"):
            Policy(max_spend=money)  # type: ignore[arg-type]


async def test_amounts_of_any_size_give_an_answer_or_our_error(world: World):
    async with world.open(max_spend="1e-13") as d:  # less than the books tell apart: nothing
        with pytest.raises(SpendLimitError):
            await d.dispatch(params("x"))
    largest = params("x", max_tokens=1_000_000_000)
    async with world.open(max_spend="1e12", delay_cost_per_hour="1e12") as d:
        assert (await d.dispatch(params("y"), latency=HOURS_30)).decision.lane is Lane.SYNC
        job = await d.dispatch_all([Request(largest, key=str(n)) for n in range(300)], latency=Latency.FLEXIBLE)
        await job.cancel()
    async with world.open(max_spend="1000000") as d:
        with pytest.raises(SpendLimitError):
            await d.dispatch_all([Request(largest, key=f"z{n}") for n in range(300)], latency=Latency.FLEXIBLE)


async def test_the_reserve_of_a_bulk_counts_the_price_tiers_of_all_models_that_it_may_reach(world: World):
    """A longer request of one bulk costs more by the fallback model's tiers, though not by its own model's."""
    requests = [Request(params("x" * size, model="claude-sonnet-5"), key=str(size)) for size in (90_000, 120_000)]
    async with world.open(max_spend="100", fallback_models=("claude-haiku-5-5",)) as d:
        await (await d.dispatch_all(requests, job="j", latency=Latency.FLEXIBLE)).cancel()
        groups = [find_request(d._engine.ledger, each.key, "j").terms.max_cost_per_byte for each in requests]
    assert groups[0] < groups[1]


async def test_a_retry_may_not_pass_the_spend_limit(world: World):
    async with world.open() as d:
        job = await d.dispatch_all(many(10), job="j", latency=Latency.FLEXIBLE)
        await job.cancel()
        await job.wait()
    async with world.open(max_spend="0.1") as d:
        before = await d.report()
        with pytest.raises(SpendLimitError):
            await (await d.job("j")).retry()
        assert await d.report() == before
    async with world.open(max_spend="100") as d:
        with pytest.raises(SpendLimitError):  # for work without a limit, all that the model takes is reserved
            await d.dispatch(params("x", tools=[{"type": "web_search_20260101", "name": "web_search"}]))
        found = await d.job("j")
        done = (await d.progress("j")).by_outcome
        assert await found.retry() == sum(done.values()) - done.get("succeeded", 0)
        await found.wait()


@pytest.mark.timeout(180)  # five processes start; on a busy machine each takes up to 15 s
def test_calls_of_processes_that_died_are_counted_and_stopped_by_the_spend_limit(tmp_path: Path) -> None:
    world = World(Sync(), tmp_path)
    world.sandbox.sync_latency = 30
    try:
        killed = 0
        for _ in range(12):
            with world.script(SLOW) as process:
                assert process.stdout is not None
                if process.stdout.readline() != "sent\n":
                    assert "SpendLimitError" in process.communicate()[1]
                    break
                killed += 1
        cost = Decimal(1_024) * 10 / 10**6
        assert 3 <= killed <= Decimal("0.036") / cost, "the spend limit stops it"
        world.sandbox.sync_latency = 0
        shown = world.ran("""
with bw.Dispatcher() as d:
    d.advance()
    print(d.report().possible_doubles)
""")
        assert int(shown) == killed
    finally:
        world.close()
