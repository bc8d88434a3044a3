"""`Policy.max_batch_requests`: smaller batches, all of them sent at once."""

from __future__ import annotations

import pytest

from batchwise import InvalidValueError, Latency, Policy

from .world import World, listed, many


async def test_a_bulk_goes_in_batches_of_at_most_so_many(world: World):
    async with world.open(max_batch_requests=10) as d:
        job = await d.dispatch_all(many(35), latency=Latency.FLEXIBLE)
        assert len([r for r in await listed(job.results()) if r.ok]) == 35
    sizes = [len(batch.rows) for batch in world.books.batches]
    assert sum(sizes) == 35
    assert max(sizes) == 10
    assert world.books.bought_twice() == {}


@pytest.mark.parametrize("most", [0, -1, True, "10"])
def test_it_is_a_whole_number_of_at_least_one(most: object) -> None:
    with pytest.raises(InvalidValueError, match="max_batch_requests"):
        Policy(max_batch_requests=most)  # type: ignore[arg-type]
