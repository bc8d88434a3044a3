"""What the requests of a workload are like: their lengths with shares, and what one of them costs on average.

Prices may depend on a request's length, so a price is asked for each length and the mean is taken of the prices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Context, Decimal
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING

import attrs

from batchwise.errors import InvalidValueError, shown
from batchwise.figures import Number, to_number
from batchwise.models import Lane

from .custom_ids import MAX_LENGTH
from .packing import entry_size
from .state import BYTES_PER_TOKEN

if TYPE_CHECKING:
    from batchwise.request import Request

    from .pricing import PriceBook

__all__ = ["Kind", "Mix", "mix_of", "sampled", "to_dollars"]

_MONEY = Context(prec=40)


@attrs.frozen(kw_only=True)
class Kind:
    """Requests that are alike.

    Attributes:
        weight: How many of them there are, against the other kinds.
        model: Their model.
        input_tokens: Uncached input tokens of one.
        cached_tokens: Input tokens of one that are read from the cache.
        output_tokens: Output tokens of one.
    """

    weight: Fraction
    model: str
    input_tokens: Fraction
    cached_tokens: Fraction = Fraction(0)
    output_tokens: Fraction

    def price(self, prices: PriceBook, lane: Lane, at: datetime | None) -> Fraction | None:
        """Pico-USD of one; None: unknown."""
        tariff = prices.rates(self.model, lane, at=at)
        if tariff is None:
            return None
        rates = tariff.at_length(self.input_tokens + self.cached_tokens)
        cached = self.cached_tokens * rates.cache_read if self.cached_tokens else 0
        return self.input_tokens * rates.input + cached + self.output_tokens * rates.output


@attrs.frozen(kw_only=True)
class Mix:
    """Kinds of requests with their shares.

    Attributes:
        kinds: At least one; their weights are above zero.
        request_bytes: Mean encoded size of one in a create call.
    """

    kinds: tuple[Kind, ...]
    request_bytes: int

    @property
    def input_tokens(self) -> Fraction:
        """Mean uncached input tokens of one."""
        return self._mean([kind.input_tokens for kind in self.kinds])

    @property
    def output_tokens(self) -> Fraction:
        """Mean output tokens of one."""
        return self._mean([kind.output_tokens for kind in self.kinds])

    def price(self, prices: PriceBook, lane: Lane, at: datetime | None) -> Fraction | None:
        """Mean pico-USD of one; None where the price of some is unknown."""
        found = [kind.price(prices, lane, at) for kind in self.kinds]
        known = [price for price in found if price is not None]
        return self._mean(known) if len(known) == len(found) else None

    def _mean(self, figures: Iterable[Fraction]) -> Fraction:
        weights = [kind.weight for kind in self.kinds]
        return sum((weight * figure for weight, figure in zip(weights, figures, strict=True)), Fraction(0)) / sum(
            weights
        )


def mix_of(
    model: str,
    *,
    input_tokens: Number | Mapping[int, Number],
    output_tokens: Number,
    cached_tokens: Number,
    request_bytes: int,
) -> Mix:
    """The mix that figures describe; `input_tokens` may map lengths to shares.

    Raises:
        InvalidValueError: A figure is no number, or no share is above zero.
    """
    output, cached = to_number(output_tokens, "output_tokens"), to_number(cached_tokens, "cached_tokens")
    shares = input_tokens if isinstance(input_tokens, Mapping) else {input_tokens: 1}
    kinds = tuple(
        Kind(
            weight=weight,
            model=model,
            input_tokens=to_number(length, "input_tokens"),
            cached_tokens=cached,
            output_tokens=output,
        )
        for length, share in shares.items()
        if (weight := to_number(share, f"input_tokens[{shown(length)}]"))
    )
    if not kinds:
        raise InvalidValueError(f"input_tokens={shown(input_tokens)} has no length with a share above zero")
    return Mix(kinds=kinds, request_bytes=request_bytes)


def sampled(requests: Iterable[Request]) -> Mix:
    """The mix that a sample of requests stands for.

    Tokens are estimated as the router does: four bytes of the body for an input token, and what is expected of the
    output, else all of max_tokens.

    Raises:
        InvalidValueError: The sample is empty, or has something else than requests.
    """
    from batchwise.request import Request

    sample = list(requests)
    if not sample or not all(isinstance(request, Request) for request in sample):
        raise InvalidValueError("sample has to be requests, at least one: sample=[Request(...), ...]")
    kinds = tuple(
        Kind(
            weight=Fraction(1),
            model=request.model,
            input_tokens=Fraction(len(request.body) // BYTES_PER_TOKEN),
            output_tokens=Fraction(request.expected_output_tokens or request.max_tokens),
        )
        for request in sample
    )
    size = sum(entry_size(MAX_LENGTH, len(request.body)) for request in sample)
    return Mix(kinds=kinds, request_bytes=ceil(Fraction(size, len(sample))))


def to_dollars(pico: Fraction) -> Decimal:
    """Pico-USD as USD, to 40 digits."""
    usd = pico / 10**12
    return _MONEY.divide(Decimal(usd.numerator), Decimal(usd.denominator))
