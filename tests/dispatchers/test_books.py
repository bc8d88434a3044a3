"""Money, deadlines and figures: spend limits, prices, late work, `progress`, `report`, `advance`."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from decimal import Decimal
from importlib.metadata import version

import pytest

from batchwise import Lane, Latency, Limits, Outcome, Rates, Request, SpendLimitError, Status, UnknownPriceError
from batchwise.sandbox import Reply, echo
from tests.strategies import params

from .world import HOURS_30, World, listed, many

FLEXIBLE = Latency.FLEXIBLE
PRICES = {"claude-sonnet-5": (2, 10)}


async def test_a_spend_limit_refuses_before_anything_is_stored(world: World):
    async with world.open(max_spend=Decimal("0.05")) as d:  # one call may cost 1,024 tokens x $10/M = $0.0102
        first = await d.dispatch(params("x"), key="x")
        with pytest.raises(SpendLimitError, match="max_spend"):
            await d.dispatch_all(many(100), job="j", latency=FLEXIBLE)
        assert (await first.result()).ok
        assert (await d.progress()).total == 1
        for n in range(20):  # what settled gives back what was kept for it
            assert (await (await d.dispatch(params(f"p{n}"))).result()).ok
        with pytest.raises(SpendLimitError):
            await d.dispatch(params("dear", max_tokens=64_000))
    assert (world.calls, world.creates) == (21, 0)


async def test_a_model_without_a_price(world: World):
    world.sandbox.models = ["claude-next-9"]
    async with world.open() as d:
        result = await (await d.dispatch(params("x", model="claude-next-9"))).result()
        assert (result.text, result.cost, result.saved) == ("echo: x", None, None)
        assert (await d.report()).unpriced == 1
    async with world.open(max_spend=5) as d:
        with pytest.raises(UnknownPriceError, match=r"Policy\(prices=\{'claude-next-9': Rates\(input=3, output=15\)\}"):
            await d.dispatch(params("y", model="claude-next-9"), key="y")
        with pytest.raises(UnknownPriceError, match="claude-next-9"):
            await d.dispatch_all([*many(2), Request(params("y", model="claude-next-9"))], latency=FLEXIBLE)
        assert (await d.progress()).total == 1
    told = {"claude-next-9": Rates(input=3, output=15)}
    async with world.open(max_spend=5, prices=told) as d:
        ticket = await d.dispatch(params("y", model="claude-next-9"), key="y")
        result = await ticket.result()
        assert result.cost == Decimal(3 * result.usage.input_tokens + 15 * result.usage.output_tokens) / 10**6
        prices = (await d.report()).prices
    data = f"genai-prices {version('genai-prices')}"
    assert prices.keys() == {data, f"Policy.prices before {data}"}
    assert abs(datetime.now(timezone.utc).date() - max(prices.values())) <= timedelta(days=1)


@pytest.mark.parametrize("late", ["run", "fail"])
async def test_overdue_work(world: World, late):
    timing = {
        "window": timedelta(seconds=0.2),
        "min_reserve": timedelta(seconds=0.1),
        "cancel_settle": timedelta(seconds=0.1),
        "limits": Limits(latency=timedelta(milliseconds=10)),
    }
    with pytest.raises(OSError, match="mine"):  # noqa: PT012  # the block is what is tested
        async with world.open(**timing) as d:
            ticket = await d.dispatch(params("x"), key="k", latency=timedelta(seconds=0.5))
            assert ticket.decision.lane is Lane.BATCH
            raise OSError("mine")
    await world.colour.sleep(0.5)
    async with world.open(late=late, **timing) as d:
        result = await (await d.ticket("k")).result()
        assert result.met_deadline is False
        report = await d.report()
        assert (report.met, report.missed) == (0, 1)
        assert report.worst_lateness > timedelta(0)
        if late == "fail":
            assert (result.outcome, result.error.type, result.attempts) == (Outcome.FAILED, "late", 0)
        else:
            assert (result.text, result.lane) == ("echo: x", Lane.BATCH)
    assert world.books.billed() == (late == "run")


async def test_the_figures_of_a_job(world: World):
    world.sandbox.batch_latency = 60
    world.sandbox.reply = lambda p: Reply.error("invalid_request_error") if "bad" in str(p["messages"]) else echo(p)
    async with world.open() as d:
        job = await d.dispatch_all([*many(4), Request(params("bad"), key="bad")], job="j", latency=HOURS_30)
        await (await d.dispatch(params("now"), job="j")).result()
        await d.dispatch(params("other"), latency=timedelta(days=9))

        async def posted():
            found = (await job.progress()).batches
            return found and found[0].remote_id and found

        (batch,) = await world.until(posted)
        assert (batch.remote_id, batch.requests, batch.status) == (world.books.batches[0].id, 5, "in_progress")
        assert timedelta(0) <= batch.elapsed < timedelta(seconds=30)
        first, last = batch.expected_end
        assert first <= last
        assert batch.rescue_at is not None
        progress = await job.progress()
        assert (progress.total, progress.settled, progress.done, progress.at_risk) == (6, 1, False, 0)
        assert progress.by_status == {Status.IN_FLIGHT: 5, Status.SETTLED: 1}
        assert progress.by_outcome == {Outcome.SUCCEEDED: 1}
        assert progress.by_lane == {Lane.BATCH: 5}
        assert (await d.progress("j")).by_status == progress.by_status
        everything = await d.progress()
        assert everything.by_status == {Status.IN_FLIGHT: 5, Status.SETTLED: 1, Status.QUEUED: 1}
        assert everything.next_due is not None
        assert everything.next_due < datetime.now(timezone.utc) + HOURS_30  # else the deadline could be missed
        world.sandbox.finish(batch.remote_id)
        done = await job.wait()
        assert done.by_outcome == {Outcome.SUCCEEDED: 5, Outcome.FAILED: 1}
        assert (done.done, done.batches, done.by_lane) == (True, (), {})
        report = await job.report()
        assert (report.requests, report.met, report.missed, report.attempts) == (6, 4, 1, 6)
        assert report.cost == world.books.cost(PRICES) > 0
        assert report.cost_by_lane == {lane: world.books.cost(PRICES, lane=lane.value) for lane in Lane}
        assert report.saved == report.cost_by_lane[Lane.BATCH]
        assert (report.wasted, report.possible_doubles, report.unpriced) == (0, 0, 0)
        assert report.input_tokens == world.books.tokens().input
        results = await listed(d.results(job="j"))
        assert sum(r.cost for r in results) == report.cost
        assert (await d.report("j")) == report
        await d.cancel()


async def test_nothing_to_do(world: World):
    async with world.open() as d:
        progress = await d.advance()
        assert (progress.total, progress.done, progress.next_due, progress.batches) == (0, True, None, ())
        assert (await d.report()).cost == 0
    assert dict(world.paths) == {}


async def test_advance_does_what_is_due_and_returns(world: World):
    world.sandbox.batch_latency = 60
    with pytest.raises(OSError, match="mine"):  # noqa: PT012  # the block is what is tested
        async with world.open(interval=timedelta(milliseconds=500)) as d:
            for n in range(3):
                await d.dispatch(params(f"p{n}"), key=f"k{n}", latency=HOURS_30)
            raise OSError("mine")
    assert world.creates == 0
    await world.colour.sleep(0.5)
    async with world.open() as d:
        progress = await d.advance()
        assert progress.next_due is not None
        await world.until(lambda: world.creates == 1)
    world.sandbox.finish(world.books.batches[0].id)
    async with world.open() as d:

        async def done():
            return (await d.advance()).done

        await world.until(done)
        assert sorted(r.text for r in await listed(d.results())) == [f"echo: p{n}" for n in range(3)]
    assert world.creates == 1
