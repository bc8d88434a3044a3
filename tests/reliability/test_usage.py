"""An answer is kept whatever its `usage` says; what it cost is then unknown, not wrong."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import batchwise as bw
from batchwise.engine.money import Bill, Biller
from batchwise.models import Lane
from batchwise.planning.pricing import PriceBook, cost
from tests.reliability import simulation
from tests.reliability.simulation import HOUR, MINUTE, START, World
from tests.strategies import usages

BOOK = PriceBook()
ODD: list[Any] = [
    [],
    "many",
    7,
    {"input_tokens": "5", "output_tokens": 7},
    {"input_tokens": 1.5, "output_tokens": 7},
    {"input_tokens": 10**18, "output_tokens": 7},
    {"input_tokens": -5, "output_tokens": 7},
    {"input_tokens": 5, "output_tokens": 7, "service_tier": []},
    {"input_tokens": 5, "output_tokens": 7, "iterations": 3},
    {"input_tokens": 5, "output_tokens": 7, "server_tool_use": [1]},
    {"input_tokens": 5, "output_tokens": 7, "server_tool_use": {"web_search_requests": 10**18}},
    {"input_tokens": 5, "output_tokens": 7, "cache_creation_input_tokens": 9, "cache_creation": "x"},
]


def billed(model: str, lane: Lane, usage: Any) -> Bill:
    return Biller(BOOK, START).bill((model,), lane, {"usage": usage})


@pytest.mark.parametrize("lane", Lane)
@pytest.mark.parametrize("usage", ODD, ids=str)
def test_an_answer_with_an_odd_usage_settles_once_and_has_no_price(
    usage: Any, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = simulation.message_of
    monkeypatch.setattr(simulation, "message_of", lambda text: {**real(text), "usage": usage})
    world = World()
    world.dispatch_all(["one", "two"], bw.Latency.FLEXIBLE if lane is Lane.BATCH else HOUR)
    for _ in range(60):
        world.pass_time(10 * MINUTE)
        report = world.ledger.statistics.report(job=None)
        if report.requests == 2:
            break
    assert (report.requests, report.unpriced, report.cost) == (2, 2, 0)
    rows = world.ledger.results(job=None, after=0, limit=9)
    assert [(row.how.outcome, row.how.lane) for row in rows] == [(bw.Outcome.SUCCEEDED, lane)] * 2
    assert len(world.api.batches) == (lane is Lane.BATCH)
    assert world.api.sync.total() == (0 if lane is Lane.BATCH else 2)
    world.close()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
names = st.sampled_from(
    [
        "input_tokens",
        "output_tokens",
        "cache_read_input_tokens",
        "cache_creation_input_tokens",
        "cache_creation",
        "server_tool_use",
        "service_tier",
        "inference_geo",
        "speed",
        "iterations",
        "fallback_credit",
    ]
)


@given(usage=st.dictionaries(names, values, max_size=6) | values, lane=st.sampled_from(Lane))
@example(usage={"input_tokens": 1, "output_tokens": 1, "cache_creation_input_tokens": True}, lane=Lane.SYNC)
def test_whatever_a_usage_says_its_bill_fits_into_the_books(usage: Any, lane: Lane) -> None:
    bill = billed("claude-sonnet-5", lane, usage)
    for figure in bill:
        assert figure is None or (isinstance(figure, int) and abs(figure) < 2**63)
    assert (bill.cost is None) is (bill.saved is None)


@pytest.mark.parametrize("lane", Lane)
@given(usages(), st.sampled_from(["us", "global", None]))
def test_the_books_read_the_variant_from_the_usage(lane: Lane, usage: dict[str, Any], geo: str | None) -> None:
    rates = BOOK.rates("claude-sonnet-5", lane, geo=geo, at=START)
    assert rates is not None
    assert billed("claude-sonnet-5", lane, {**usage, "inference_geo": geo}).cost == cost(usage, rates)


@pytest.mark.parametrize(
    "usage",
    [
        {"service_tier": "priority"},
        {"speed": "fast"},
        {"inference_geo": "mars"},
        {"inference_geo": ["us"]},
        {"input_tokens": "many"},
        {"cache_creation_input_tokens": 1, "cache_creation": "none"},
        {"iterations": ["?"]},
        {"iterations": [{"type": "message"}, {"type": "advisor_message", "model": "claude-opus-5"}]},
        {"iterations": [{"type": "compaction"}]},
        {"fallback_credit": {"status": {"type": "redeemed"}}},
    ],
)
def test_usage_that_is_not_understood_has_no_cost(usage: dict[str, Any]) -> None:
    assert billed("claude-haiku-4-5", Lane.SYNC, {"input_tokens": 1, "output_tokens": 1, **usage}).cost is None
    assert billed("no such model", Lane.SYNC, {"input_tokens": 1, "output_tokens": 1}).cost is None


@pytest.mark.parametrize("usage", [{}, {"input_tokens": 3}, {"output_tokens": 3}])
def test_usage_without_its_counts_is_unknown_rather_than_free(usage: dict[str, Any]) -> None:
    assert billed("claude-haiku-4-5", Lane.SYNC, usage).cost is None
