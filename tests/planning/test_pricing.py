from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, time, timedelta, timezone
from decimal import Decimal
from importlib.metadata import version
from typing import Any

import pytest
from genai_prices import Usage, calc_price
from genai_prices.data_snapshot import DataSnapshot, get_snapshot, set_custom_snapshot
from genai_prices.types import (
    ClauseEquals,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    Provider,
    Tier,
    TieredPrices,
    TimeOfDateConstraint,
)
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import usages

from batchwise.errors import InvalidValueError
from batchwise.models import Lane, Policy, Rates
from batchwise.planning.pricing import (
    PICO,
    PriceBook,
    Tariff,
    book_of,
    cost,
    estimate,
    is_priced_whole,
    to_pico,
    to_usd,
)

UTC = timezone.utc
AT = datetime(2026, 11, 23, 12, tzinfo=UTC)
BOOK = PriceBook()
MICRO = 10**6
PROVIDER = next(provider for provider in get_snapshot().providers if provider.id == "anthropic")
LISTED = {model.id: model for model in PROVIDER.models}
CACHING = sorted(name for name, model in LISTED.items() if model.get_prices(AT).cache_write_1h_mtok is not None)
IN_BATCHES = sorted(name for name in CACHING if LISTED[name].price_variants)

instants = st.datetimes(datetime(2025, 1, 1), datetime(2028, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


def theirs(usage: dict[str, Any], model: str, at: datetime = AT, **context: str) -> Decimal:
    split = usage.get("cache_creation") or {}
    written, read = usage.get("cache_creation_input_tokens") or 0, usage.get("cache_read_input_tokens") or 0
    seen = Usage(
        input_tokens=usage["input_tokens"] + written + read,
        output_tokens=usage["output_tokens"],
        cache_write_tokens=written,
        cache_write_1h_tokens=split.get("ephemeral_1h_input_tokens", 0),
        cache_read_tokens=read,
        web_searches=(usage.get("server_tool_use") or {}).get("web_search_requests", 0),
    )
    return calc_price(
        seen, model, provider_id="anthropic", genai_request_timestamp=at, price_context=context or None
    ).total_price


def rates_of(model: str, lane: Lane, **variant: Any) -> Tariff:
    rates = BOOK.rates(model, lane, **{"at": AT, **variant})
    assert rates is not None
    return rates


@given(st.sampled_from(CACHING), usages(), instants)
def test_the_sync_lane_costs_what_genai_prices_says(model: str, usage: dict[str, Any], at: datetime) -> None:
    assert to_usd(cost(usage, rates_of(model, Lane.SYNC, at=at))) == theirs(usage, model, at)


@given(st.sampled_from(IN_BATCHES), usages())
def test_the_batch_lane_costs_what_the_batch_variant_says(model: str, usage: dict[str, Any]) -> None:
    batch = cost(usage, rates_of(model, Lane.BATCH))
    assert to_usd(batch) == theirs(usage, model, processing="batch")
    assert batch * 2 == cost(usage, rates_of(model, Lane.SYNC))


@pytest.mark.parametrize("model", sorted(set(CACHING) - set(IN_BATCHES)))
def test_a_model_without_batch_variant_costs_half(model: str) -> None:
    assert rates_of(model, Lane.BATCH) == rates_of(model, Lane.SYNC).scaled(Decimal("0.5"))


def test_batch_history_before_the_variant_is_half_too() -> None:
    before = datetime(2026, 10, 13, tzinfo=UTC)
    usage = {"input_tokens": 10**6, "output_tokens": 0}
    assert theirs(usage, "claude-haiku-4-5", before, processing="batch") == 1  # the data start a day later
    assert to_usd(cost(usage, rates_of("claude-haiku-4-5", Lane.BATCH, at=before))) == Decimal("0.5")


@pytest.mark.parametrize("name", sorted(set(LISTED) - {"claude-3-5-haiku-latest", "claude-3-opus-latest"}))
def test_every_listed_id_is_priced(name: str) -> None:
    assert BOOK.rates(name, Lane.SYNC, at=AT) is not None


def test_kinds_without_a_listed_price_cost_the_documented_multiple() -> None:
    assert rates_of("claude-2", Lane.SYNC) == Tariff(8 * MICRO, 24 * MICRO, 10 * MICRO, 16 * MICRO, 800_000)


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("claude-opus-4-5-20251101", "claude-opus-4-5"),
        ("claude-opus-4-1-20250805", "claude-opus-4-1"),
        ("claude-opus-4-20250514", "claude-opus-4-0"),
        ("claude-sonnet-4-20250514", "claude-sonnet-4-0"),
        ("claude-3-5-haiku-20241022", "claude-3-5-haiku-latest"),
        ("claude-opus-5-latest", "claude-opus-5"),
        ("claude-fable-5-1-20261020", "claude-fable-5-1"),
    ],
)
def test_known_aliases_and_date_suffixes_are_priced(name: str, like: str) -> None:
    assert BOOK.rates(name, Lane.SYNC, at=AT) == rates_of(like, Lane.SYNC)


@pytest.mark.parametrize(
    "name",
    [
        "claude-opus-4-12", "claude-opus-4-1x", "claude-opus-4", "claude-haiku-4-5-preview", "claude-haiku-4-5-2025",
        "claude-haiku-4-5-20251301", "claude-haiku-4-5-20251001-v1", "claude-haiku-4-5-2025-10-01",
        "claude-haiku-4-5@20251001", "anthropic.claude-haiku-4-5-20251001-v1:0", "us.anthropic.claude-haiku-4-5",
        "anthropic/claude-haiku-4-5", "claude-haiku-4.5", "claude-4-5-haiku", "CLAUDE-HAIKU-4-5", " claude-haiku-4-5",
        "claude-haiku-6", "claude-mythos-5", "gpt-5", "no such model", "", "claude-haiku-4-5-\u0662\u0660251001",
        "claude-opus-4-20250514-20250514", "claude-opus-5-latest-20261020",
    ],
)  # fmt: skip
@pytest.mark.parametrize("lane", Lane)
def test_other_names_have_no_price(name: str, lane: Lane) -> None:
    expected = rates_of("claude-opus-4-0", lane) if name == "claude-opus-4" else None  # named in the data
    assert BOOK.rates(name, lane, at=AT) == expected


@given(st.sampled_from(sorted(LISTED)), st.text("-.@:/_ vabx0129", min_size=1, max_size=9))
def test_a_suffix_that_is_no_date_is_never_priced_by_its_prefix(name: str, suffix: str) -> None:
    named = name + suffix
    if named not in LISTED and not (suffix[0] == "-" and len(suffix) == 9 and suffix[1:].isdigit()):
        assert BOOK.rates(named, Lane.SYNC, at=AT) is None


@pytest.mark.parametrize("lane", Lane)
@given(st.sampled_from(IN_BATCHES), usages())
def test_us_inference_costs_a_tenth_more_of_every_token(lane: Lane, model: str, usage: dict[str, Any]) -> None:
    plain, us = rates_of(model, lane), rates_of(model, lane, geo="us")
    assert cost(usage, us) * 10 == cost(usage, plain) * 11
    assert us.web_search == plain.web_search == PICO // 100


@pytest.mark.parametrize("geo", [None, "", "global", "not_available"])
def test_other_geographies_known_cost_nothing_more(geo: str | None) -> None:
    assert rates_of("claude-sonnet-5", Lane.SYNC, geo=geo) == rates_of("claude-sonnet-5", Lane.SYNC)


@pytest.mark.parametrize(
    "variant",
    [
        {"geo": "eu"},
        {"service_tier": "priority"},
        {"service_tier": "flex"},
        {"speed": "ludicrous"},
        {"speed": "fast"},
        {"speed": "fast", "model": "claude-opus-5", "lane": Lane.BATCH},
    ],
)
def test_unknown_variants_have_no_price(variant: dict[str, Any]) -> None:
    assert BOOK.rates(**{"model": "claude-haiku-4-5", "lane": Lane.SYNC, "at": AT, **variant}) is None


@given(usages())
def test_fast_mode_costs_what_the_data_say(usage: dict[str, Any]) -> None:
    fast, usual = BOOK.rates("claude-opus-5", Lane.SYNC, speed="fast", at=AT), rates_of("claude-opus-5", Lane.SYNC)
    if fast is None:  # genai-prices 0.1, the last for Python 3.10
        assert theirs(usage, "claude-opus-5", speed="fast") == theirs(usage, "claude-opus-5")
        return
    assert to_usd(cost(usage, fast)) == theirs(usage, "claude-opus-5", speed="fast")
    assert fast != usual


@pytest.mark.parametrize(("tokens", "usd"), [(99_999, "0.0099999"), (100_000, "0.01"), (100_001, "0.0500005")])
@pytest.mark.parametrize("kind", ["input_tokens", "cache_read_input_tokens"])
def test_length_decides_for_every_token(tokens: int, usd: str, kind: str) -> None:
    rates = rates_of("claude-haiku-5-5", Lane.SYNC)
    assert rates.threshold == 100_000
    price = Decimal(usd) * (Decimal("0.1") if kind == "cache_read_input_tokens" else 1)
    assert to_usd(cost({kind: tokens}, rates)) == price
    if kind == "input_tokens":
        assert to_usd(estimate(tokens, 0, rates)) == price


def test_prices_follow_the_date_in_utc_and_are_kept_by_the_day() -> None:
    book, change = PriceBook(), datetime(2026, 3, 13, tzinfo=UTC)
    before = book.rates("claude-sonnet-4-6", Lane.SYNC, at=change - timedelta(seconds=1))
    after = book.rates("claude-sonnet-4-6", Lane.SYNC, at=change)
    assert before is not None
    assert before.threshold == 200_000
    assert after is not None
    assert after.threshold is None
    late_evening = datetime(2026, 3, 12, 20, tzinfo=timezone(timedelta(hours=-5)))
    assert book.rates("claude-sonnet-4-6", Lane.SYNC, at=late_evening) is after
    assert book.rates("claude-sonnet-4-6", Lane.SYNC) == after


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="naive"):
        BOOK.rates("claude-haiku-4-5", Lane.SYNC, at=datetime(2026, 1, 1))  # noqa: DTZ001


def test_rates_are_resolved_once() -> None:
    assert rates_of("claude-haiku-4-5", Lane.BATCH) is rates_of("claude-haiku-4-5", Lane.BATCH)


def test_the_memo_is_bounded() -> None:
    book = PriceBook()
    for number in range(5_000):
        assert book.rates(f"no-model-{number}", Lane.SYNC, speed="ludicrous") is None
    assert book._known.cache_info().currsize < 4_100


def test_web_searches_are_paid_in_full_on_both_lanes() -> None:
    usage = {"input_tokens": 0, "output_tokens": 0, "server_tool_use": {"web_search_requests": 3}}
    for lane in Lane:
        assert to_usd(cost(usage, rates_of("claude-sonnet-5", lane))) == Decimal("0.03")
    assert theirs(usage, "claude-sonnet-5") == Decimal("0.03")


def test_cache_writes_without_a_split_are_five_minute_ones() -> None:
    rates = rates_of("claude-sonnet-5", Lane.SYNC)
    assert cost({"cache_creation_input_tokens": 7}, rates) == 7 * rates.cache_write_5m
    assert cost({"cache_creation_input_tokens": 7, "cache_creation": None}, rates) == 7 * rates.cache_write_5m


def test_the_models_own_turns_are_priced() -> None:
    counted = {"input_tokens": 0, "output_tokens": 0}
    assert is_priced_whole({**counted, "iterations": [{"type": "message"}]})
    assert is_priced_whole({**counted, "iterations": None})
    for lacking in ({}, {"input_tokens": 0}, {"output_tokens": 0}):
        assert not is_priced_whole(lacking)


def test_own_prices_go_first_and_are_halved_in_batches() -> None:
    book = book_of({"claude-haiku-4-5": Rates(input=6, output="30"), "in-house": Rates(input=6.0, output=Decimal(30))})
    own = Tariff(6 * MICRO, 30 * MICRO, 7_500_000, 12 * MICRO, 600_000)
    for model in ("claude-haiku-4-5", "in-house"):
        assert book.rates(model, Lane.SYNC, at=AT) == own
        batch = book.rates(model, Lane.BATCH, geo="us", at=AT)
        assert batch is not None
        assert batch.input == 3_300_000
        assert batch.web_search == own.web_search
        assert book.rates(model, Lane.SYNC, speed="fast", at=AT) is None
    assert book.rates("claude-haiku-4-5-20251001", Lane.SYNC, at=AT) == rates_of("claude-haiku-4-5", Lane.SYNC)


@given(st.sampled_from(CACHING))
def test_own_prices_of_a_listed_model_have_its_multiples_for_the_cache(model: str) -> None:
    own = book_of({model: Rates(input=6, output=30)}).rates(model, Lane.SYNC, at=AT)
    listed = rates_of(model, Lane.SYNC)
    assert own is not None
    for kind in ("cache_write_5m", "cache_write_1h", "cache_read"):
        assert getattr(own, kind) * listed.input == getattr(listed, kind) * own.input


amounts = st.integers(0, 10**7).map(lambda units: Decimal(units) / 10_000)


@given(amounts, amounts, st.none() | amounts, st.none() | amounts)
def test_own_prices_are_exact_on_both_lanes_and_in_the_us(
    fresh: Decimal, output: Decimal, write: Decimal | None, read: Decimal | None
) -> None:
    book = PriceBook({"my-model": Rates(input=fresh, output=output, cache_write=write, cache_read=read)})
    for lane in Lane:
        assert book.rates("my-model", lane, geo="us", at=AT) is not None
    told = book.rates("my-model", Lane.SYNC, at=AT)
    assert told is not None
    assert (told.input, told.output) == (fresh * MICRO, output * MICRO)
    assert write is None or (told.cache_write_5m == write * MICRO and told.cache_write_1h >= told.cache_write_5m)
    assert told.cache_read == (read * MICRO if read is not None else -(-told.input // 200) * 20)


def test_equal_prices_share_a_book() -> None:
    assert book_of(None) is book_of({})
    assert book_of({"m": Rates(input=1, output=2)}) is book_of({"m": Rates(input="1.0", output=2)})


@pytest.mark.parametrize("amount", ["0.00001", -1, "much", float("nan"), None])
def test_a_rate_that_is_no_amount_or_too_fine_is_refused(amount: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"round it to 4 decimals|not an amount of US dollars"):
        Rates(input=amount, output=1)


@pytest.mark.parametrize("prices", [{"m": 3}, {"": Rates(input=1, output=1)}, [("m", Rates(input=1, output=1))], 3])
def test_prices_that_are_no_mapping_of_rates_are_refused(prices: Any) -> None:
    with pytest.raises(InvalidValueError, match=r'give e.g. prices=\{"my-model": Rates\(input=3, output=15\)\}'):
        Policy(prices=prices)


def test_the_source_of_prices_names_the_data_and_whose_go_before() -> None:
    assert BOOK.source == f"genai-prices {version('genai-prices')}"
    assert PriceBook({"m": Rates(input=1, output=1)}).source == f"Policy.prices before {BOOK.source}"
    fetched = datetime(2026, 11, 20)  # noqa: DTZ001  # as genai-prices has it
    set_custom_snapshot(DataSnapshot(providers=[PROVIDER], from_auto_update=True, timestamp=fetched))
    try:
        assert BOOK.source == "genai-prices fetched on 2026-11-20"
    finally:
        set_custom_snapshot(None)


def test_a_price_that_is_no_whole_number_is_none_rather_than_rounded(own_data: list[ModelInfo]) -> None:
    odd = {"input_mtok": Decimal("0.000001"), "cache_write_mtok": Decimal(1), "cache_write_1h_mtok": Decimal(1)}
    own_data.append(listed("odd", **odd, cache_read_mtok=Decimal(1), output_mtok=Decimal(1)))
    book = PriceBook()
    assert book.rates("odd", Lane.SYNC) is not None
    assert book.rates("odd", Lane.BATCH) is None


def test_threshold_and_above_belong_together() -> None:
    for half in ({"threshold": 5}, {"above": Tariff(1, 1, 1, 1, 1)}):
        with pytest.raises(InvalidValueError, match=r"^Tariff: give threshold and above together, or neither$"):
            Tariff(1, 1, 1, 1, 1, **half)


def test_tiers_of_the_rates_are_scaled_and_chained() -> None:
    top = Tariff(40, 40, 40, 40, 40)
    middle = Tariff(20, 20, 20, 20, 20, threshold=100, above=top)
    rates = Tariff(10, 10, 10, 10, 10, threshold=10, above=middle)
    assert [cost({"input_tokens": tokens}, rates) for tokens in (10, 11, 100, 101)] == [100, 220, 2_000, 4_040]
    assert cost({"input_tokens": 101}, rates.scaled(Decimal("0.5"))) == 2_020


@given(st.integers(0, 10**24))
def test_money_is_exact(pico: int) -> None:
    assert to_usd(pico) * PICO == pico or to_usd(pico).as_tuple().exponent < 0
    assert to_pico(to_usd(pico)) == pico
    assert str(to_usd(0)) == "0"
    assert str(to_usd(PICO // 10)) == "0.1"


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_an_estimate_is_the_cost_of_uncached_usage(tokens_in: int, tokens_out: int) -> None:
    for model in ("claude-haiku-5-5", "claude-sonnet-5"):
        rates = rates_of(model, Lane.BATCH)
        used = cost({"input_tokens": tokens_in, "output_tokens": tokens_out}, rates)
        assert estimate(tokens_in, tokens_out, rates) == used


def listed(name: str, **prices: Any) -> ModelInfo:
    return ModelInfo(id=name, match=ClauseEquals(equals=name), prices=ModelPrice(**prices))


@pytest.fixture
def own_data() -> Iterator[list[ModelInfo]]:
    models: list[ModelInfo] = []
    provider = Provider(id="anthropic", name="", api_pattern="", models=models)
    set_custom_snapshot(DataSnapshot(providers=[provider], from_auto_update=False))
    yield models
    set_custom_snapshot(None)


def test_data_with_several_tiers_are_read_as_genai_prices_reads_them(own_data: list[ModelInfo]) -> None:
    tiers = [Tier(start=10, price=Decimal(2)), Tier(start=100, price=Decimal(3))]
    late = TieredPrices(base=Decimal(5), tiers=[Tier(start=50, price=Decimal(7))])
    own_data.append(listed("m", input_mtok=TieredPrices(base=Decimal(1), tiers=tiers), output_mtok=late))
    rates = PriceBook().rates("m", Lane.SYNC, at=AT)
    assert rates is not None
    for tokens in (0, 10, 11, 50, 51, 100, 101):
        usage = {"input_tokens": tokens, "output_tokens": 9}
        assert to_usd(cost(usage, rates)) == theirs(usage, "m")


def test_data_that_are_not_understood_give_no_price(own_data: list[ModelInfo]) -> None:
    plain = {"input_mtok": Decimal(1), "output_mtok": Decimal(5)}
    by_the_hour = listed("hourly")
    night = TimeOfDateConstraint(start_time=time(0), end_time=time(6))
    by_the_hour.prices = [ConditionalPrice(prices=ModelPrice(**plain)), ConditionalPrice(night, prices=ModelPrice())]
    own_data += [
        listed("plain", **plain),
        by_the_hour,
        listed("by the call", **plain, requests_kcount=Decimal(1)),
        listed("no output", input_mtok=Decimal(1)),
        listed("too fine", input_mtok=Decimal("0.0000001"), output_mtok=Decimal(5)),
    ]
    book = PriceBook()
    assert [model.id for model in own_data if book.rates(model.id, Lane.SYNC, at=AT) is not None] == ["plain"]


def test_negative_prices_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="zero or more"):
        to_pico(-1)


def test_importing_the_module_costs_nothing() -> None:
    code = (
        "import sys, batchwise.planning.pricing as p; p.PriceBook({}); "
        "print([n for n in ('genai_prices', 'anthropic', 'pydantic', 'httpx2', 'sqlite3') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_was_not_used_costs_nothing() -> None:
    rates = BOOK.rates("claude-haiku-4-5", Lane.SYNC, at=AT)
    assert rates is not None
    counted = {"input_tokens": 0, "output_tokens": 0}
    assert cost({**counted, "server_tool_use": {"web_search_requests": 0}}, rates) == 0
    written = {"ephemeral_1h_input_tokens": 0, "ephemeral_5m_input_tokens": 10}
    assert cost({**counted, "cache_creation_input_tokens": 10, "cache_creation": written}, rates) == (
        10 * rates.cache_write_5m
    )


def test_each_kind_has_the_price_that_the_data_list_for_it(own_data: list[ModelInfo]) -> None:
    plain = {"input_mtok": Decimal(1), "output_mtok": Decimal(5)}
    every = {
        "cache_write_mtok": Decimal(3),
        "cache_write_5m_mtok": Decimal(4),
        "cache_write_1h_mtok": Decimal(6),
        "cache_read_mtok": Decimal(7),
        "web_searches_kcount": Decimal(8),
    }
    own_data += [listed("usual", **plain), listed("all", **plain, **every)]
    own_data.append(listed("one write", **plain, cache_write_mtok=Decimal(3)))
    found = {name: PriceBook().rates(name, Lane.SYNC, at=AT) for name in ("usual", "all", "one write")}
    micro, search = 10**6, 10**10
    assert found["usual"] == Tariff(micro, 5 * micro, 1_250_000, 2 * micro, 100_000, search)
    assert found["all"] == Tariff(micro, 5 * micro, 4 * micro, 6 * micro, 7 * micro, 8 * 10**9)
    assert found["one write"] == Tariff(micro, 5 * micro, 3 * micro, 2 * micro, 100_000, search)


@pytest.mark.parametrize(
    ("split", "hour"), [(None, 0), ({}, 0), ({"ephemeral_1h_input_tokens": None}, 0),
                        ({"ephemeral_1h_input_tokens": 4}, 4), ({"ephemeral_1h_input_tokens": 99}, 10)]
)  # fmt: skip
def test_what_is_written_for_an_hour_is_at_most_all_that_is_written(split: Any, hour: int) -> None:
    rates = Tariff(1, 10, 100, 1_000, 10_000)
    usage = {"input_tokens": 0, "output_tokens": 0, "cache_creation_input_tokens": 10, "cache_creation": split}
    assert cost(usage, rates) == hour * 1_000 + (10 - hour) * 100


def test_own_prices_of_a_listed_model_have_its_own_multiples(own_data: list[ModelInfo]) -> None:
    dear = {"cache_write_mtok": Decimal(3), "cache_write_1h_mtok": Decimal(5), "cache_read_mtok": Decimal("0.5")}
    own_data.append(listed("m", input_mtok=Decimal(1), output_mtok=Decimal(1), **dear))
    found = PriceBook({"m": Rates(input=2, output=4)}).rates("m", Lane.SYNC, at=AT)
    assert found == Tariff(2 * MICRO, 4 * MICRO, 6 * MICRO, 10 * MICRO, MICRO)


def test_searches_come_on_top_of_tokens() -> None:
    rates = Tariff(1, 10, 100, 1_000, 10_000, web_search=100_000)
    usage = {
        "input_tokens": 2, "output_tokens": 3, "cache_creation_input_tokens": 4, "cache_read_input_tokens": 5,
        "server_tool_use": {"web_search_requests": 6},
    }  # fmt: skip
    assert cost(usage, rates) == 2 + 30 + 400 + 50_000 + 600_000
