"""Prices: what a request will cost, and what it did cost, by genai-prices' data, with exact integers.

Prices per token are whole numbers of pico-USD (1e-12 USD), so that sums over 100,000 rows are exact and cheap. An
unknown model, variant or price kind gives None, never the price of a similar model: `genai_prices.calc_price` matches
prefixes, and would price `claude-opus-4-12` as 4.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timezone
from decimal import ROUND_CEILING, Context, Decimal
from fractions import Fraction
from functools import cache, lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import attrs

from batchwise.basics.times import check_aware
from batchwise.errors import InvalidValueError, shown
from batchwise.models import GRAIN, Lane, Rates

from .packing import BYTES_PER_TOKEN

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, PriceCalculation

    from batchwise.request import Request

__all__ = [
    "PICO",
    "US_FACTOR",
    "PriceBook",
    "Tariff",
    "book_of",
    "cost",
    "estimate",
    "estimated_tokens",
    "is_priced_whole",
    "named_remedy",
    "to_pico",
    "to_usd",
]

PICO = 10**12
"""Pico-USD in one USD."""

_MTOK = 10**6
_EXACT = Context(prec=60)
_NEWEST = datetime(9999, 1, 1).toordinal()  # noqa: DTZ001
_REMEMBERED = 4_096

# Anthropic's pricing page (2026), where the data have no figure: a web search costs 0.01 USD on either lane, a batch
# half of every token kind, US-only inference (`inference_geo: "us"`) 1.1x of every token kind.
_WEB_SEARCH = Decimal("0.01")
_BATCH = Decimal("0.5")
US_FACTOR = Decimal("1.1")
"""The factor on the usual price for US-only inference."""
_GEOS = frozenset({None, "", "global", "not_available", "us"})
_TIERS = frozenset({None, "", "auto", "standard", "standard_only", "batch"})
_SPEEDS = frozenset({None, "", "standard", "fast"})
_WRITES = ("cache_write_mtok", "cache_write_5m_mtok", "cache_write_1h_mtok")
_KINDS = frozenset({"input_mtok", "output_mtok", "cache_read_mtok", "web_searches_kcount", *_WRITES})
_DATED = re.compile(r"(.+)-20[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])")


@attrs.frozen
class Tariff:
    """The rates of one model on one lane and variant, in whole pico-USD a token.

    Attributes:
        input: An uncached input token.
        output: An output token (thinking included).
        cache_write_5m: An input token written to the 5-minute cache.
        cache_write_1h: An input token written to the 1-hour cache.
        cache_read: An input token read from the cache.
        web_search: One web search.
        threshold: Input tokens (cached ones included) above which `above` holds for every token of the request;
            None where length does not matter.
        above: The rates above `threshold`.
    """

    input: int
    output: int
    cache_write_5m: int
    cache_write_1h: int
    cache_read: int
    web_search: int = 10**10
    threshold: int | None = None
    above: Tariff | None = None

    def __attrs_post_init__(self) -> None:
        if (self.threshold is None) != (self.above is None):
            raise InvalidValueError("Tariff: give threshold and above together, or neither")

    def at_length(self, tokens: int | Fraction) -> Tariff:
        """Return the tariff of a request with so many input tokens, cached ones included."""
        tariff = self
        while tariff.threshold is not None and tariff.above is not None and tokens > tariff.threshold:
            tariff = tariff.above
        return tariff

    def scaled(self, factor: Decimal) -> Tariff:
        """Return the tariff with every token kind times `factor`; a web search keeps its price.

        Raises:
            InvalidValueError: A product is no whole number of pico-USD.
        """
        kinds = ("input", "output", "cache_write_5m", "cache_write_1h", "cache_read")
        tokens = {kind: _whole(getattr(self, kind) * factor) for kind in kinds}
        return attrs.evolve(self, **tokens, above=None if self.above is None else self.above.scaled(factor))


@cache  # each look reads a file, which takes 0.4 ms, and each answer that is stored asks
def _release() -> str:
    return version("genai-prices")


class PriceBook:
    """The price of each model, resolved once per model, lane, variant and day.

    Args:
        own: The caller's prices by exact model id (`Policy.prices`); the batch discount and the factor of US inference
            are applied to them. They go before the data.
    """

    def __init__(self, own: Mapping[str, Rates] | None = None) -> None:
        self._own = dict(own or {})
        self._known = lru_cache(_REMEMBERED)(self._resolve)

    @property
    def source(self) -> str:
        """The source of the prices in words: the release of genai-prices, or the day on which its data were fetched."""
        from genai_prices.data_snapshot import get_snapshot

        snapshot = get_snapshot()
        data = f"fetched on {snapshot.timestamp:%Y-%m-%d}" if snapshot.from_auto_update else _release()
        return f"Policy.prices before genai-prices {data}" if self._own else f"genai-prices {data}"

    def rates(
        self,
        model: str,
        lane: Lane,
        *,
        geo: str | None = None,
        speed: str | None = None,
        service_tier: str | None = None,
        at: datetime | None = None,
    ) -> Tariff | None:
        """Return the tariff of `model` on `lane`, or None where that is not known for certain.

        Args:
            model: An exact model id, or one with a date suffix (`-YYYYMMDD`) of a model that the data know.
            lane: The lane; the batch lane charges half of every token kind.
            geo: `inference_geo` of the request or of the usage; "us" costs 1.1x.
            speed: `speed` of the request or of the usage; "fast" has a price of its own on some models.
            service_tier: `service_tier` of the usage; "priority" is paid by commitment, so None.
            at: When the request runs (aware); None: the newest prices that the data hold.

        Raises:
            InvalidValueError: `at` is naive.
        """
        day = _NEWEST if at is None else check_aware(at, "at").toordinal()
        return self._known(model, lane, geo, speed, service_tier, day)

    def context_window(self, model: str) -> int | None:
        """Return the most input and output tokens that a model takes; None where the data do not say."""
        found = _found(model)
        return None if found is None else found.model.context_window

    def _resolve(
        self, model: str, lane: Lane, geo: str | None, speed: str | None, service_tier: str | None, day: int
    ) -> Tariff | None:
        if service_tier not in _TIERS or speed not in _SPEEDS or geo not in _GEOS:
            return None
        at = datetime.fromordinal(day).replace(tzinfo=timezone.utc)
        own, batch, fast = self._own.get(model), Lane(lane) is Lane.BATCH, speed == "fast"
        if fast and (own is not None or batch):
            return None
        try:
            if own is None:
                tariff = _listed(model, at, batch=batch, fast=fast)
            else:
                tariff = _own_tariff(own, _listed(model, at, batch=False, fast=False))
                tariff = tariff.scaled(_BATCH) if batch else tariff
            return tariff.scaled(US_FACTOR) if tariff is not None and geo == "us" else tariff
        except InvalidValueError:  # no whole number of pico-USD: no exact price
            return None


def book_of(prices: Mapping[str, Rates] | PriceBook | None) -> PriceBook:
    """Return the price book of a caller's prices; equal ones share it."""
    return prices if isinstance(prices, PriceBook) else _book(frozenset((prices or {}).items()))


@lru_cache(maxsize=16)
def _book(own: frozenset[tuple[str, Rates]]) -> PriceBook:
    return PriceBook(dict(own))


def named_remedy(model: str) -> str:
    """Return what an error recommends where the price of a model is unknown."""
    return f"give it, in USD per million tokens: Policy(prices={{{shown(model)}: Rates(input=3, output=15)}})"


def cost(usage: Mapping[str, Any], rates: Tariff) -> int:
    """Return what one answer cost, in pico-USD, from the API's `usage` object.

    Do not add up the usage of several answers before: each answer's length decides its own rates. Tokens of other
    models (`is_priced_whole`) are not in the figure.
    """
    get = usage.get
    fresh = get("input_tokens") or 0
    written = get("cache_creation_input_tokens") or 0
    read = get("cache_read_input_tokens") or 0
    rates = rates.at_length(fresh + written + read)
    total: int = fresh * rates.input + (get("output_tokens") or 0) * rates.output + read * rates.cache_read
    if written:
        split = get("cache_creation")
        hour = min((split.get("ephemeral_1h_input_tokens") or 0) if split else 0, written)
        total += hour * rates.cache_write_1h + (written - hour) * rates.cache_write_5m
    tools = get("server_tool_use")
    if tools:
        total += (tools.get("web_search_requests") or 0) * rates.web_search
    return total


def is_priced_whole(usage: Mapping[str, Any]) -> bool:
    """Whether `cost` covers all that was billed.

    Beta answers may list `iterations` beside the model's own turns (a compaction, an advisor or fallback model), whose
    tokens are not in the top-level figures or are another model's, or redeem a fallback credit. Usage without its two
    token counts says nothing.
    """
    turns = usage.get("iterations") or ()
    told = {"input_tokens", "output_tokens"} <= usage.keys()
    return told and not usage.get("fallback_credit") and all(turn.get("type") == "message" for turn in turns)


def estimate(input_tokens: int, output_tokens: int, rates: Tariff) -> int:
    """Return what so many uncached input tokens and output tokens would cost, in pico-USD."""
    return cost({"input_tokens": input_tokens, "output_tokens": output_tokens}, rates)


def estimated_tokens(request: Request) -> tuple[int, int]:
    """Return about how many input and output tokens a request has: its expected output, or else all of max_tokens."""
    return len(request.body) // BYTES_PER_TOKEN, request.expected_output_tokens or request.max_tokens


def to_usd(pico: int | Fraction) -> Decimal:
    """Return pico-USD as USD: whole ones exactly, a mean to 60 digits."""
    return _EXACT.divide(pico.numerator, pico.denominator * PICO)


def to_pico(usd: Decimal | int) -> int:
    """Return USD as pico-USD.

    Raises:
        InvalidValueError: The amount is no whole number of pico-USD.
    """
    return _whole(_EXACT.multiply(Decimal(usd), PICO))


def _whole(pico: Decimal) -> int:
    if pico < 0 or pico != pico.to_integral_value():
        raise InvalidValueError(f"{pico} is not a whole number of pico-USD (1e-12 USD) of zero or more")
    return int(pico)


def _found(model: str, **asked: Any) -> PriceCalculation | None:
    """Return what genai-prices' data say of exactly this model."""
    from genai_prices import Usage, calc_price

    try:
        found = calc_price(Usage(), model, provider_id="anthropic", **asked)
    except LookupError:
        return None
    return found if _is_id_of(model, found.model) else None


def _listed(model: str, at: datetime, *, batch: bool, fast: bool) -> Tariff | None:
    """Return the rates by genai-prices' data."""
    found = _found(model, genai_request_timestamp=at)
    if found is None:
        return None
    variants = getattr(found.model, "price_variants", None) or ()
    dated = (*variants, *(found.model.prices if isinstance(found.model.prices, list) else ()))
    if any(hasattr(entry.constraint, "start_time") for entry in dated):
        return None  # a price is resolved for a day; none of Anthropic's prices changes by the hour
    context = {"processing": "batch"} if batch else {"speed": "fast"} if fast else {}
    listed = any(v.when == context and (v.constraint is None or v.constraint.active(at)) for v in variants)
    if context and listed and (variant := _found(model, genai_request_timestamp=at, price_context=context)):
        return _table(variant.model_price.__dict__)
    rates = None if fast else _table(found.model_price.__dict__)
    return rates.scaled(_BATCH) if rates is not None and batch else rates


def _own_tariff(given: Rates, known: Tariff | None) -> Tariff:
    """Return a caller's tariff; missing rates are the model's multiples, rounded up so that their parts are whole."""
    like = known if known is not None and known.input else _USUAL
    write = given.input * like.cache_write_5m / like.input if given.cache_write is None else given.cache_write
    hour = write * like.cache_write_1h / like.cache_write_5m
    read = given.input * like.cache_read / like.input if given.cache_read is None else given.cache_read
    grain = GRAIN / 5  # a half of it, and that times 1.1, is whole

    def token(rate: Decimal) -> int:
        return to_pico((rate / grain).to_integral_value(ROUND_CEILING) * grain / _MTOK)

    return Tariff(token(given.input), token(given.output), token(write), token(hour), token(read))


_USUAL = Tariff(input=100, output=500, cache_write_5m=125, cache_write_1h=200, cache_read=10)
"""How cache tokens cost against input tokens where the data do not say (Anthropic's pricing page, 2026)."""


def _is_id_of(name: str, model: ModelInfo) -> bool:
    """Whether the data name `name` itself, or name the model whose dated snapshot (`-YYYYMMDD`) it is."""
    named = {
        model.id,
        *(clause.equals for clause in (model.match, *getattr(model.match, "or_", ())) if hasattr(clause, "equals")),
    }
    if name in named:
        return True
    dated = _DATED.fullmatch(name)
    return dated is not None and dated[1] in {known.removesuffix("-latest") for known in named}


def _table(prices: Mapping[str, Any]) -> Tariff | None:
    """Return the data's prices (USD per million tokens or per 1,000 searches, perhaps by length) as a tariff."""
    known = {kind: price for kind, price in prices.items() if price is not None}
    if not known.keys() <= _KINDS or not {"input_mtok", "output_mtok"} <= known.keys():
        return None
    starts = {tier.start for price in known.values() for tier in getattr(price, "tiers", ())}
    above: Tariff | None = None
    threshold: int | None = None
    for start in sorted(starts, reverse=True):
        above = attrs.evolve(_at_length(known, start + 1), threshold=threshold, above=above)
        threshold = start
    return attrs.evolve(_at_length(known, 0), threshold=threshold, above=above)


def _at_length(known: Mapping[str, Any], tokens: int) -> Tariff:
    """Return the tariff of a request with so many input tokens: the highest tier that it passes holds for all."""

    def price(kind: str, otherwise: Decimal) -> Decimal:
        listed = known.get(kind)
        if listed is None:
            return otherwise
        if isinstance(listed, Decimal):
            return listed
        passed = [tier for tier in listed.tiers if tokens > tier.start]
        return Decimal(max(passed, key=lambda tier: int(tier.start)).price if passed else listed.base)

    fresh = price("input_mtok", Decimal(0))
    write = price("cache_write_5m_mtok", price("cache_write_mtok", fresh * _USUAL.cache_write_5m / _USUAL.input))
    return Tariff(
        input=to_pico(fresh / _MTOK),
        output=to_pico(price("output_mtok", Decimal(0)) / _MTOK),
        cache_write_5m=to_pico(write / _MTOK),
        cache_write_1h=to_pico(price("cache_write_1h_mtok", fresh * _USUAL.cache_write_1h / _USUAL.input) / _MTOK),
        cache_read=to_pico(price("cache_read_mtok", fresh * _USUAL.cache_read / _USUAL.input) / _MTOK),
        web_search=to_pico(price("web_searches_kcount", _WEB_SEARCH * 1_000) / 1_000),
    )
