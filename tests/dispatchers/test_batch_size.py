"""`Policy.max_batch_requests`: smaller batches, all of them sent at once."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime, timedelta, timezone

import pytest

from batchwise import InvalidValueError, Latency, Policy
from batchwise.ledger.sqlite import SqliteLedger
from tests.strategies import params

from .world import World, listed, many


async def test_a_bulk_goes_in_batches_of_at_most_so_many(world: World):
    async with world.open(max_batch_requests=10) as d:
        job = await d.dispatch_all(many(35), latency=Latency.FLEXIBLE)
        assert len([r for r in await listed(job.results()) if r.ok]) == 35
    sizes = [len(batch.rows) for batch in world.books.batches]
    assert sum(sizes) == 35
    assert max(sizes) == 10
    assert world.books.bought_twice() == {}


@pytest.mark.parametrize("most", [0, -1, True, "10", "AUTO", 1.5])
def test_it_is_a_whole_number_of_at_least_one(most: object) -> None:
    with pytest.raises(InvalidValueError, match="max_batch_requests"):
        Policy(max_batch_requests=most)  # type: ignore[arg-type]


def remember(world: World, requests: int, took: timedelta, times: int = 24) -> None:
    """Batches of so many requests that took so long: in the ledger's record."""
    made = datetime.now(timezone.utc) - timedelta(days=2)
    start, stop = (round(moment.timestamp() * 10**6) for moment in (made, made + took))
    with closing(SqliteLedger(world.path)) as ledger, ledger.database.write("remember") as db:
        for number in range(times):
            db.execute(
                "INSERT INTO batch (live, nonce, state, requests, size, betas, sealed_at, created_at, ended_at, job, "
                "model, first, last) VALUES (0, ?, 'closed', ?, 0, '[]', ?, ?, ?, 0, ?, 0, 0)",
                (f"{requests} {number}", requests, start, start, stop, params()["model"]),
            )


async def test_the_size_goes_by_how_long_batches_of_each_size_took(world: World):
    remember(world, 1_000, timedelta(hours=3))
    remember(world, 100, timedelta(minutes=5))
    async with world.open(max_batch_requests="auto") as d:
        job = await d.dispatch_all(many(1_100), latency=Latency.FLEXIBLE)
        assert (await job.wait()).done
    sizes = [len(batch.rows) for batch in world.books.batches]
    assert sum(sizes) == 1_100
    assert max(sizes) < 1_000, "none is of those that take hours"
    assert world.books.bought_twice() == {}


async def test_without_a_record_a_bulk_goes_in_one_batch(world: World):
    async with world.open(max_batch_requests="auto") as d:
        job = await d.dispatch_all(many(1_100), latency=Latency.FLEXIBLE)
        assert (await job.wait()).done
    assert [len(batch.rows) for batch in world.books.batches] == [1_100]
