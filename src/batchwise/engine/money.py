"""Bills answers: what each cost and saved, by the lane on which each part of it ran."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache, partial
from typing import Any, NamedTuple, Union

from batchwise.basics.jsontext import decode
from batchwise.ledger.open_rows import Cached
from batchwise.models import Lane
from batchwise.planning.continuation import is_refusal, usage_of
from batchwise.planning.custom_ids import UNSEALED, parse
from batchwise.planning.pricing import PriceBook, Tariff, cost, is_priced_whole

__all__ = ["UNKNOWN", "Bill", "Biller", "Meter", "tokens_of"]

_MOST = 10**9
"""More tokens than any answer can have."""
_DEAREST = 10**17
"""More pico-USD than any answer can cost: 100,000 USD."""


class Bill(NamedTuple):
    """pico-USD and tokens of one request's attempts together."""

    cost: int | None
    saved: int | None
    input_tokens: int
    cached: Cached | None


UNKNOWN = Bill(None, None, 0, None)
"""The bill of an answer whose price or usage is unknown."""
Meter = Callable[[Mapping[str, Any]], tuple[Union[int, None], Union[int, None], int, Union[Cached, None]]]
"""Returns the fields of a `Bill` as a plain tuple: to make a `Bill` costs as much as the whole calculation."""


class Biller:
    """Bills answers at the prices of one moment; looks rates up once for each model, lane and variant.

    Args:
        prices: The price book.
        at: The moment whose prices hold.
    """

    def __init__(self, prices: PriceBook, at: datetime) -> None:
        self._prices, self._at = prices, at
        self._meters: dict[tuple[str, Lane], Meter] = {}

    def bill(self, asked: Sequence[str], lane: Lane, message: Mapping[str, Any], turns: Sequence[bytes] = ()) -> Bill:
        """Return the bill of a message on this lane, with the paused turns and refusals before it.

        `asked`: the models in their order; each refusal leads to the next one.
        """
        bill = Bill(0, 0, 0, None)
        model, *later = asked
        for turn in turns:
            row = decode(turn)
            ours, part = parse(row["custom_id"]), row["result"]["message"]
            ran_on = Lane.SYNC if ours is None or ours.nonce == UNSEALED else Lane.BATCH
            bill = _sum(bill, Bill(*self.meter(model, ran_on)(usage_of(part))))
            if is_refusal(part):
                model, *later = later
        return _sum(bill, Bill(*self.meter(model, lane)(usage_of(message))))

    def meter(self, model: str, lane: Lane) -> Meter:
        """Return a function that bills the usage of single answers of this model on this lane."""
        known = self._meters.get((model, lane))
        if known is None:
            known = self._meters[model, lane] = _meter(partial(self._look_up, model, lane))
        return known

    def _look_up(
        self, model: str, lane: Lane, geo: str | None, speed: str | None, tier: str | None
    ) -> tuple[Tariff, Tariff] | None:
        full, here = (
            self._prices.rates(model, each, geo=geo, speed=speed, service_tier=tier, at=self._at)
            for each in (Lane.SYNC, lane)
        )
        return None if full is None or here is None else (here, full)


def tokens_of(usage: Mapping[str, Any]) -> tuple[int, int, int, int] | None:
    """Return the tokens of uncached input, cache reads, cache writes and output; None if they are malformed."""
    get: Callable[[str], Any] = usage.get
    fresh, written = get("input_tokens"), get("output_tokens")
    read, cached = get("cache_read_input_tokens") or 0, get("cache_creation_input_tokens") or 0
    if type(fresh) is type(read) is type(cached) is type(written) is int:
        sound = fresh >= 0 <= read and cached >= 0 <= written and fresh + read + cached + written <= _MOST
        return (fresh, read, cached, written) if sound else None
    return None


def _meter(look_up: Callable[[Any, Any, Any], tuple[Tariff, Tariff] | None]) -> Meter:
    rates_of = cache(look_up)

    def meter(usage: Mapping[str, Any]) -> tuple[int | None, int | None, int, Cached | None]:
        counts = tokens_of(usage)
        if counts is None:
            return None, None, 0, None
        fresh, read, cached, written = counts
        tokens, get = fresh + read + cached, usage.get
        unpriced = (read, cached, 0) if tokens != fresh else None
        try:
            rates = rates_of(get("inference_geo"), get("speed"), get("service_tier"))
            if rates is None or (("iterations" in usage or "fallback_credit" in usage) and not is_priced_whole(usage)):
                return None, None, tokens, unpriced
            here, full = rates
            if tokens == fresh and here.threshold is None and not get("server_tool_use"):  # the usual answer
                paid = tokens * here.input + written * here.output
                return paid, tokens * full.input + written * full.output - paid, tokens, None
            paid = cost(usage, here)
            whole = paid if here is full else cost(usage, full)
            if type(paid) is type(whole) is int and paid >= 0 <= whole and paid + whole <= _DEAREST:
                if tokens == fresh:
                    return paid, whole - paid, tokens, None
                plain = cost({"input_tokens": tokens, "output_tokens": written}, here)
                own = cost({**usage, "server_tool_use": None}, here)
                return paid, whole - paid, tokens, (read, cached, plain - own)
        except (TypeError, AttributeError):  # the usage is malformed
            pass
        return None, None, tokens, unpriced

    return meter


def _sum(one: Bill, other: Bill) -> Bill:
    known = one.cost is not None and other.cost is not None
    return Bill(
        (one.cost or 0) + (other.cost or 0) if known else None,
        (one.saved or 0) + (other.saved or 0) if known else None,
        one.input_tokens + other.input_tokens,
        _sum_cached(one.cached, other.cached),
    )


def _sum_cached(one: Cached | None, other: Cached | None) -> Cached | None:
    if one is None or other is None:
        return one or other
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]
