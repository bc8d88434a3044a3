"""What a spend limit keeps for a request, and what it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import HOUR, NOW, params

from batchwise import (
    InvalidRequestError,
    Lane,
    Latency,
    RequestTooLargeError,
    SpendLimitError,
    UnknownPriceError,
    choose_lane,
)
from batchwise.models import Policy
from batchwise.planning import packing
from batchwise.planning.pricing import PriceBook, Rates
from batchwise.planning.reservation import has_unseen_input, most_cost, refuse_unbounded
from batchwise.planning.routing import check_size
from batchwise.request import Request

MODEL = "claude-haiku-5-5"
BOOK = PriceBook()


def content(*blocks: dict[str, object]) -> bytes:
    return Request({**params(), "messages": [{"role": "user", "content": list(blocks)}]}).body


@pytest.mark.parametrize(
    "block",
    [
        {"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}},
        {"type": "image", "source": {"type": "file", "file_id": "file_1"}},
        {"type": "container_upload", "file_id": "file_1"},
    ],
)
def test_input_that_the_body_does_not_show(block: dict[str, object]) -> None:
    assert has_unseen_input(content(block))


def test_a_container_is_input_that_the_body_does_not_show() -> None:
    assert has_unseen_input(Request(params(container="container_1")).body)


@given(st.text())
def test_a_prompt_that_only_speaks_of_it_shows_all_of_itself(text: str) -> None:
    said = '"type":"url" "file_id": ' + text
    assert not has_unseen_input(content({"type": "text", "text": said}))


@pytest.mark.parametrize("lane", Lane)
def test_unseen_input_is_kept_for_by_all_that_the_model_takes(lane: Lane) -> None:
    each, per_byte = most_cost(BOOK, MODEL, 1_000, lane, at=NOW, unseen=True, where="it")
    full = 1_000_000 * 1 + 1_000 * 2.5  # USD per million tokens, above the model's threshold
    assert (each, per_byte) == (round(full * (1.5 if lane is Lane.BATCH else 1) * 10**6), 0)


def test_a_model_of_which_it_is_unknown_how_much_it_takes_is_refused() -> None:
    own = PriceBook({"mine": Rates.per_mtok(input="1", output="2")})
    assert most_cost(own, "mine", 10, Lane.SYNC, at=NOW, unseen=False, where="it")[0] > 0
    with pytest.raises(UnknownPriceError, match="it has input that its body does not show"):
        most_cost(own, "mine", 10, Lane.SYNC, at=NOW, unseen=True, where="it")


def test_what_nothing_bounds_is_refused() -> None:
    refuse_unbounded(["model", "tools"], ["custom", "bash_20250124"], "it")
    for parameters, tools in (((), ["web_search_20260101"]), (["mcp_servers"], ()), (["fallbacks"], ())):
        with pytest.raises(SpendLimitError, match="it: nothing bounds"):
            refuse_unbounded(parameters, tools, "it")


@given(size=st.integers(0, 300_000_000), lane=st.sampled_from(Lane), rescue=st.booleans())
def test_a_size_is_refused_exactly_where_a_lane_that_is_needed_cannot_carry_it(
    size: int, lane: Lane, rescue: bool
) -> None:
    rescue = rescue and lane is Lane.BATCH
    needs_call = lane is Lane.SYNC or rescue
    frame = packing.body_length(1, packing.entry_size(64, 0))
    fits = size <= 32_000_000 if needs_call else size + frame <= 256_000_000
    if fits:
        check_size(size, lane, rescue=rescue, where="request 'k'")
        return
    with pytest.raises(RequestTooLargeError, match="request 'k'"):
        check_size(size, lane, rescue=rescue, where="request 'k'")


def test_choose_lane_refuses_what_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MAX_CALL_BYTES", 1_000)
    large = params("x" * 1_000)
    for latency in (Latency.BLOCKING, 30 * HOUR, 2 * HOUR):
        with pytest.raises(RequestTooLargeError, match="'k' has 1,"):
            choose_lane(Request(large, key="k", latency=latency), now=NOW)
    assert choose_lane(Request(large, latency=Latency.FLEXIBLE), now=NOW).lane is Lane.BATCH
    monkeypatch.setattr(packing, "MAX_BYTES", 1_000)
    with pytest.raises(InvalidRequestError, match="alone in a batch"):
        choose_lane(Request(large, latency=Latency.FLEXIBLE), now=NOW, policy=Policy())
