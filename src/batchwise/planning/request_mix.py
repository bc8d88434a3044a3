"""The mix of requests in a workload: their lengths with shares, and the mean cost of one.

Prices may depend on a request's length, so a price is asked for each length and the mean is taken of the prices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from fractions import Fraction
from math import ceil
from operator import mul

import attrs

from batchwise.basics.figures import Number, check_whole, to_number
from batchwise.errors import InvalidValueError, shown
from batchwise.models import Lane
from batchwise.request import Request

from .custom_ids import MAX_LENGTH
from .packing import entry_size
from .pricing import PriceBook, cost, estimated_tokens

__all__ = ["Kind", "Mix", "mix_of"]


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
        """Return the pico-USD of one request; None: unknown."""
        tariff = prices.rates(self.model, lane, at=at)
        if tariff is None:
            return None
        names = "input_tokens", "cache_read_input_tokens", "output_tokens"
        tokens = self.input_tokens, self.cached_tokens, self.output_tokens
        return Fraction(cost(dict(zip(names, tokens, strict=True)), tariff))


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
    def mean_input_tokens(self) -> Fraction:
        """Mean uncached input tokens of one."""
        return self._mean([kind.input_tokens for kind in self.kinds])

    @property
    def mean_output_tokens(self) -> Fraction:
        """Mean output tokens of one."""
        return self._mean([kind.output_tokens for kind in self.kinds])

    def price(self, prices: PriceBook, lane: Lane, at: datetime | None) -> Fraction | None:
        """Return the mean pico-USD of one request; None if the price of some is unknown."""
        found = [kind.price(prices, lane, at) for kind in self.kinds]
        known = [price for price in found if price is not None]
        return self._mean(known) if len(known) == len(found) else None

    def _mean(self, figures: Iterable[Fraction]) -> Fraction:
        weights = [kind.weight for kind in self.kinds]
        return sum(map(mul, weights, figures), Fraction(0)) / sum(weights)


def mix_of(
    sample: Iterable[Request] | None,
    *,
    model: str | None,
    mean_input_tokens: Number | None,
    input_lengths: Mapping[int, Number] | None,
    mean_output_tokens: Number | None,
    mean_cached_tokens: Number,
    request_bytes: int | None,
) -> Mix:
    """Return the mix of a sample, or of figures: the mean length, or lengths with their shares.

    Raises:
        InvalidValueError: Arguments are missing or contradict each other, a figure is no number, or no share is above
            zero.
    """
    lengths = "mean_input_tokens" if input_lengths is None else "input_lengths"
    figures = {
        "model": model,
        lengths: mean_input_tokens if input_lengths is None else input_lengths,
        "mean_output_tokens": mean_output_tokens,
        "request_bytes": request_bytes,
    }
    if sample is not None:
        known = {**figures, "mean_cached_tokens": mean_cached_tokens or None}
        doubled = next((name for name, figure in known.items() if figure is not None), None)
        if doubled is not None:
            raise InvalidValueError(f"sample says what requests are like, and so does {doubled}; leave one of them out")
        return _sampled(sample)
    if mean_input_tokens is not None and input_lengths is not None:
        raise InvalidValueError("mean_input_tokens and input_lengths both say how long requests are; leave one out")
    lacks = next((name for name, figure in figures.items() if figure is None), None)
    if model is None or lacks:
        raise InvalidValueError(f"{lacks} is missing; give it, or sample=[Request(...), ...]")
    if not model:
        raise InvalidValueError(f"model={model!r} is not a model's id; give one, e.g. 'claude-sonnet-5'")
    size = check_whole(request_bytes, "request_bytes", 1)
    output = to_number(mean_output_tokens, "mean_output_tokens")
    cached = to_number(mean_cached_tokens, "mean_cached_tokens")
    kinds = tuple(
        Kind(weight=share, model=model, input_tokens=length, cached_tokens=cached, output_tokens=output)
        for length, share in _shares(mean_input_tokens, input_lengths)
        if share
    )
    if not kinds:
        raise InvalidValueError(f"input_lengths={shown(input_lengths)} has no length with a share above zero")
    return Mix(kinds=kinds, request_bytes=size)


def _shares(mean: Number | None, lengths: Mapping[int, Number] | None) -> Iterator[tuple[Fraction, Fraction]]:
    """Yield lengths with their shares."""
    if lengths is None:
        yield to_number(mean, "mean_input_tokens"), Fraction(1)
        return
    for length, share in lengths.items():
        yield to_number(length, "input_lengths"), to_number(share, f"input_lengths[{shown(length)}]")


def _sampled(requests: Iterable[Request]) -> Mix:
    """Return the mix of a sample of requests, with estimated tokens.

    Raises:
        InvalidValueError: The sample is empty, or has items that are no requests.
    """
    sample = list(requests)
    if not sample or not all(isinstance(request, Request) for request in sample):
        raise InvalidValueError("sample has to be requests, at least one: sample=[Request(...), ...]")
    tokens = [map(Fraction, estimated_tokens(request)) for request in sample]
    kinds = tuple(
        Kind(weight=Fraction(1), model=request.model, input_tokens=tokens_in, output_tokens=tokens_out)
        for request, (tokens_in, tokens_out) in zip(sample, tokens, strict=True)
    )
    size = sum(entry_size(MAX_LENGTH, len(request.body)) for request in sample)
    return Mix(kinds=kinds, request_bytes=ceil(Fraction(size, len(sample))))
