"""What a spend limit reserves for a request, and what it refuses."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

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
from batchwise.models import Policy, Rates
from batchwise.planning import packing
from batchwise.planning.cost_bound import length_class, media_tokens, most_cost, refuse_unbounded
from batchwise.planning.pricing import PriceBook, Tariff, cost
from batchwise.planning.routing import check_size
from batchwise.request import Request

BOOK = PriceBook()
MODELS = (
    "claude-haiku-5-5",  # dearer above 100,000 tokens
    "claude-opus-5-5",  # with a fast speed
    "claude-sonnet-5",
)
PNG = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
BASH = {"type": "bash_20250124", "name": "bash"}
OWN = {"name": "look", "input_schema": {"type": "object"}}


def content(*blocks: dict[str, object], **more: object) -> Request:
    return Request({**params(**more), "messages": [{"role": "user", "content": list(blocks)}]})


def kept(request: Request, lane: Lane = Lane.SYNC, prices: PriceBook = BOOK) -> int:
    """Return what is reserved for it on a lane, once."""
    each, per_byte = most_cost(
        prices,
        request.traits,
        at=NOW,
        betas=request.betas,
        size=len(request.body),
        media=media_tokens(request),
        where="it",
    )
    call = each + len(request.body) * per_byte
    return call if lane is Lane.SYNC else call // 2


@pytest.mark.parametrize(
    "request_",
    [
        content({"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}}),
        content({"type": "document", "source": {**PNG, "media_type": "application/pdf"}}),
        content({"type": "document", "source": {"type": "file", "file_id": "file_1"}}),
        content({"type": "container_upload", "file_id": "file_1"}),
        content({"type": "container_upload"}),
        content({"type": "document", "source": {"type": "file"}}),
        content({"type": "document", "source": {"type": "new", "file_id": "file_1"}}),
        content({"type": "image", "source": PNG}, {"type": "document", "source": PNG}),
        content({"type": "tool_result", "tool_use_id": "t", "content": [{"type": "document", "source": PNG}]}),
        Request(params(container="container_1")),
        Request(params(thread={"id": "thread_1"})),
        Request(params(previous_thread_event_id="event_1")),
    ],
)
def test_input_that_only_the_window_bounds(request_: Request) -> None:
    assert media_tokens(request_) is None


@given(st.text(), st.booleans())
def test_text_that_speaks_of_media_is_text(text: str, quoted: bool) -> None:
    said = '"type":"url" "file_id": "type":"base64"' + text
    source = {"type": "text", "media_type": "text/plain", "data": said}
    assert media_tokens(content({"type": "document", "source": source} if quoted else text_block(said))) == 0


def text_block(text: str) -> dict[str, object]:
    return {"type": "text", "text": text}


@given(st.integers(1, 100), st.integers(0, 100_000), st.sampled_from(["base64", "url", "file"]))
def test_images_count_by_the_largest_that_there_are(images: int, size: int, kind: str) -> None:
    source = {"base64": {**PNG, "data": "A" * size}, "url": {"type": "url", "url": "u"}, "file": {"file_id": "f"}}[kind]
    request = content(*[{"type": "image", "source": {**source, "type": kind}}] * images)
    tokens = media_tokens(request)
    assert tokens is not None
    shown = len(request.body) - (images * size if kind == "base64" else 0)
    assert images * 4_784 + shown <= tokens <= 2 * (images * 5_000 + shown + 2_000)
    assert tokens & (tokens - 1) == 0, "few different ones"


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Requests of all sizes around the tiers, with all that changes a price."""
    model = draw(st.sampled_from(MODELS))
    size = draw(st.one_of(st.integers(0, 2_000), st.integers(95_000, 105_000)))
    more: dict[str, object] = {"model": model, "max_tokens": draw(st.integers(0, 64_000))}
    fast = BOOK.rates(model, Lane.SYNC, speed="fast", at=NOW)  # unknown to genai-prices 0.1, the last for Python 3.10
    if fast is not None and draw(st.booleans()):
        more["speed"] = "fast"
    if draw(st.booleans()):
        more["inference_geo"] = draw(st.sampled_from(["us", "global"]))
    if draw(st.booleans()):
        more["tools"] = draw(st.lists(st.sampled_from([BASH, OWN]), max_size=3))
    blocks = [text_block("x" * size)]
    blocks += draw(st.lists(st.sampled_from([{"type": "image", "source": PNG}]), max_size=50))
    return content(*blocks, **more)


@given(requests(), st.data())
def test_no_answer_costs_more_than_what_is_kept_for_it(request_: Request, data: st.DataObject) -> None:
    """Whatever the API may bill: the kinds of input, the region, the speed, what it adds of its own."""
    traits = request_.traits
    images = request_.body.count(b'"type":"image"')
    most = len(request_.body) + 4_784 * images + 735 * traits.tool_types.count("bash_20250124")
    if traits.tool_types:
        most += 804
    tokens = data.draw(st.one_of(st.just(most), st.integers(0, most)))
    cuts = st.lists(st.integers(0, tokens), min_size=3, max_size=3)
    cut = sorted(data.draw(st.one_of(st.just([tokens] * 3), cuts)))
    hour, five, read = cut[0], cut[1] - cut[0], cut[2] - cut[1]
    usage = {
        "input_tokens": tokens - cut[2],
        "cache_creation_input_tokens": hour + five,
        "cache_creation": {"ephemeral_1h_input_tokens": hour, "ephemeral_5m_input_tokens": five},
        "cache_read_input_tokens": read,
        "output_tokens": data.draw(st.one_of(st.just(traits.max_tokens), st.integers(0, traits.max_tokens))),
    }
    lane = data.draw(st.sampled_from(Lane)) if not traits.speed else Lane.SYNC
    speed = data.draw(st.sampled_from(["standard", traits.speed])) or None
    geo = data.draw(st.sampled_from(["us", "global", "not_available"]))
    rates = BOOK.rates(traits.model, lane, geo=geo, speed=speed, at=NOW)
    assert rates is not None
    assert cost(usage, rates) <= kept(request_, lane)


@given(st.lists(requests(), min_size=2, max_size=6))
def test_requests_that_are_routed_alike_are_kept_for_alike(found: list[Request]) -> None:
    known: dict[object, tuple[int, int]] = {}
    for each in found:
        terms = most_cost(BOOK, each.traits, at=NOW, size=len(each.body), media=media_tokens(each), where="it")
        assert known.setdefault((each.traits, length_class(BOOK, each, [each.model], at=NOW)), terms) == terms


@pytest.mark.parametrize("lane", Lane)
def test_what_nothing_else_bounds_is_kept_for_by_all_that_the_model_takes(lane: Lane) -> None:
    stored = Request(params(model="claude-haiku-5-5", max_tokens=1_000, container="container_1"))
    full = 1_000_000 * 1 + 1_000 * 2.5  # USD per million tokens, above the threshold: 1-hour cache writes, and output
    assert kept(stored, lane) == round(full * 1.1 * 10**6) // (2 if lane is Lane.BATCH else 1)
    small = Request(params(model="claude-haiku-4-5", max_tokens=1_000, container="container_1"))
    assert kept(small) == round((200_000 * 2 + 1_000 * 5) * 1.1 * 10**6)
    long = Request(small.params, betas=["context-1m-2025-08-07"])
    assert kept(long) == round((1_000_000 * 2 + 1_000 * 5) * 1.1 * 10**6)


def test_a_model_of_which_it_is_unknown_how_much_it_takes_is_refused() -> None:
    own = PriceBook({"mine": Rates(input=1, output=2)})
    assert kept(Request(params(model="mine", max_tokens=10)), prices=own) > 0
    with pytest.raises(UnknownPriceError, match="it has input that its body does not show"):
        kept(Request(params(model="mine", container="c")), prices=own)


def test_a_batch_that_costs_more_than_half_is_kept_for_too(monkeypatch: pytest.MonkeyPatch) -> None:
    prices, request = PriceBook(), Request(params())
    usual = kept(request, Lane.BATCH)
    rates = prices.rates

    def dear(model: str, lane: Lane, **more: Any) -> Tariff | None:
        found = rates(model, lane, **more)
        return found if found is None or lane is Lane.SYNC else found.scaled(Decimal("1.5"))

    monkeypatch.setattr(prices, "rates", dear)
    assert kept(request, Lane.BATCH, prices) == usual * 3 / 2


def test_a_speed_without_a_price_is_refused() -> None:
    with pytest.raises(UnknownPriceError, match="the price of 'claude-sonnet-5' at speed 'fast' is unknown"):
        kept(Request(params(model="claude-sonnet-5", speed="fast")))


def test_what_nothing_bounds_is_refused() -> None:
    refuse_unbounded(Request(params(tools=[OWN, BASH], thinking={"type": "adaptive"}, metadata={})), "it")
    edits = {"edits": [{"type": "clear_tool_uses_20250919"}]}
    refuse_unbounded(Request(params(context_management=edits)), "it")
    for more in (
        {"tools": [OWN, {"type": "web_search_20260101", "name": "web_search"}]},
        {"tools": [{"type": "unheard_of_20270101"}]},
        {"mcp_servers": []},
        {"fallbacks": []},
        {"compaction": {}},
        {"unheard_of": 1},
        {"context_management": {"edits": [{"type": "compact_20260112"}]}},
    ):
        with pytest.raises(SpendLimitError, match="it: nothing bounds"):
            refuse_unbounded(Request(params(**more)), "it")


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


def test_a_length_class_tells_media_and_what_the_input_costs_apart() -> None:
    document = content({"type": "document", "source": {"type": "file", "file_id": "f"}})
    assert length_class(BOOK, document, MODELS, at=NOW) == (None,)
    short, long = content(text_block("x")), content(text_block("x" * 200_000))
    one, other = (length_class(BOOK, each, MODELS, at=NOW) for each in (short, long))
    assert (one[0], other[0]) == (0, 0)
    assert one[1] is not None
    assert other[1] is not None
    assert one[1] < other[1]  # dearer above 100,000 tokens
    assert one[2:] == other[2:]
    image = content({"type": "image", "source": PNG})
    assert length_class(BOOK, image, [*MODELS, "unknown"], at=NOW) == (media_tokens(image), *one[1:], 0)


def test_a_tool_of_the_caller_adds_a_prompt_and_one_that_the_api_defines_its_own_tokens() -> None:
    rates = BOOK.rates("claude-sonnet-5", Lane.SYNC, at=NOW)
    assert rates is not None
    token = rates.cache_write_1h * Decimal("1.1")
    plain, own, bash = (content(text_block("x"), model="claude-sonnet-5", **more) for more in (
        {}, {"tools": [OWN]}, {"tools": [BASH, OWN]}
    ))  # fmt: skip
    each = [kept(request) - len(request.body) * token for request in (plain, own, bash)]
    assert each[1] - each[0] == pytest.approx(2_000 * token, abs=10)
    assert each[2] - each[1] == pytest.approx(5_000 * token, abs=10)


def test_what_nothing_bounds_is_refused_with_what_to_do() -> None:
    with pytest.raises(SpendLimitError) as raised:
        refuse_unbounded(Request(params(mcp_servers=[])), "it")
    assert str(raised.value) == (
        "it: nothing bounds what 'mcp_servers' can cost, as far as batchwise knows, so Policy.max_spend cannot be "
        "kept; leave it out, or dispatch it with a ledger whose policy has no max_spend. Nothing was stored or sent"
    )


def test_a_compaction_is_refused_by_its_name() -> None:
    request = Request(params(context_management={"edits": [{"type": "compact_20260112"}]}))
    with pytest.raises(
        SpendLimitError, match=r"^it: nothing bounds what 'context_management \(a compaction\)' can cost"
    ):
        refuse_unbounded(request, "it")


def test_what_the_api_adds_counts_for_the_length_class() -> None:
    """Without media a request is as long as its bytes and what the API adds: a class begins above the threshold."""
    rates = BOOK.rates("claude-haiku-5-5", Lane.SYNC, at=NOW)
    assert rates is not None
    assert rates.threshold is not None
    empty = len(content(text_block(""), tools=[OWN]).body)
    for more, dear in ((0, False), (1, True)):
        request = content(text_block("x" * (rates.threshold - empty - 2_000 + more)), tools=[OWN])
        expected = rates.above.input if dear and rates.above is not None else rates.input
        assert length_class(BOOK, request, ["claude-haiku-5-5"], at=NOW) == (0, expected)


def test_the_tokens_of_media_are_all_its_input() -> None:
    """Its bytes count already: 65,536 tokens are under the 100,000 from which on input is dearer."""
    traits = Request(params(model="claude-haiku-5-5", max_tokens=10)).traits
    for media in (65_536, None):
        small, large = (most_cost(BOOK, traits, at=NOW, size=size, media=media, where="it") for size in (0, 90_000))
        assert small == large
        assert small[1] == 0
    by_byte = [most_cost(BOOK, traits, at=NOW, size=size, media=0, where="it")[1] for size in (100_000, 100_001)]
    assert by_byte[0] < by_byte[1]


def test_an_unknown_price_is_said_with_what_to_write() -> None:
    with pytest.raises(UnknownPriceError) as raised:
        kept(Request(params(model="nobody-knows-1")))
    assert str(raised.value) == (
        "it: the price of 'nobody-knows-1' is unknown, so Policy.max_spend cannot be kept; give it, in USD per million "
        "tokens: Policy(prices={'nobody-knows-1': Rates(input=3, output=15)}), or drop max_spend"
    )
