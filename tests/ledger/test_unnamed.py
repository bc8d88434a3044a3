"""Bulk dispatches without a name keep their order, whatever was there before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from batchwise.ledger.sqlite import SqliteLedger
from batchwise.ledger.values import Which

from .model import NOW, World, entry, settlement


@given(order=st.lists(st.integers(0, 12), max_size=30), size=st.integers(1, 5))
def test_a_bulk_without_a_name_keeps_its_order(order: list[int], size: int) -> None:
    """Whatever was there before, whatever comes twice, page by page."""
    world = World(SqliteLedger(":memory:"))
    for key in order[::3]:
        world.accept(str(key))
    job = world.unnamed([entry(str(key)) for key in order])
    distinct = list(dict.fromkeys(order))
    seen: list[int] = []
    while page := world.ledger.numbers(Which(job=job), after=seen[-1] if seen else 0, limit=size):
        seen += page
    assert seen == [world.number(str(key)) for key in distinct]
    world.ledger.settle([settlement(number) for number in seen], now=NOW)
    found = world.ledger.results(job=job, after=0, limit=99)
    assert {each.key: each.ordinal for each in found} == {str(key): order.index(key) for key in distinct}
    world.ledger.close()
