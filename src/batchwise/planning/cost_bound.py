"""The most that a request can cost: so much a spend limit reserves for it until it settles.

The bound rests on what the API can bill for one answer: at most one input token a byte of text (a tokenizer over bytes
can do no worse), what it adds of its own, what media take, and `max_tokens` of output; all input as written to the
1-hour cache, for a request of the greatest length that it may have, in the dearest region. A request whose cost may
exceed that is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import ROUND_CEILING
from typing import Any

from batchwise.errors import SpendLimitError, UnknownPriceError, shown
from batchwise.models import Lane
from batchwise.request import BILLED_TO_A_PROFILE, Request, Traits

from .pricing import US_FACTOR, PriceBook, Tariff, named_remedy

__all__ = ["length_class", "media_tokens", "most_cost", "refuse_unbounded"]

_BOUNDED = frozenset(
    {
        *("model", "max_tokens", "messages", "system", "stop_sequences", "temperature", "top_p", "top_k", "metadata"),
        *("thinking", "tools", "tool_choice", "output_config", "output_format", "cache_control", "cache_hint"),
        *("inference_geo", "service_tier", "speed", "billing_policy", BILLED_TO_A_PROFILE, "user_profile_id"),
        *("container", "thread", "previous_thread_event_id", "store", "context_hint", "context_management"),
        *("diagnostics", "fallback_credit_token"),
    }
)
"""Parameters that add nothing to the bill, or nothing beyond what is reserved (SDK 2.14, `MessageCreateParams`)."""
_CLIENT_TOOLS = ("custom", "bash_", "text_editor_", "computer_", "memory_", "browser_toolset_")
"""Prefixes of the types of tools that the caller runs (SDK 2.14, `types/*tool*_param.py`): each turn is one answer."""
_COMPACTS = re.compile(rb'"type"\s*:\s*"compact_')
"""A context edit that lets the model write a summary, which is billed beside the answer."""
_STORED = frozenset({"thread", "previous_thread_event_id", "container"})
"""Parameters that name input which the API keeps."""

_MEDIA = re.compile(rb'"type"\s*:\s*"(?:base64|url|file|container_upload)"|"file_id"\s*:')
"""Content other than text. Inside a string its quotes are escaped, so a prompt that mentions it does not match."""
_IMAGE = 5_000
"""Tokens of one image: 4,784 at most (API documentation, vision, 2026: models with high resolution)."""
_PROMPTS = 2_000
"""Tokens of the API's own prompts for tools, thinking and structured outputs: up to 804 (API documentation, 2026)."""
_DEFINED_TOOL = 5_000
"""Tokens of a tool that the API defines: 735 at most of those it lists (API documentation, 2026)."""
_LONG_CONTEXT, _LONG_WINDOW = "context-1m-", 1_000_000
"""A beta with it takes longer input than the model's own window (API documentation, context windows, 2026)."""


def media_tokens(request: Request) -> int | None:
    """Return the most input tokens of a request's media; 0: it is text alone, which its bytes bound.

    None: only the model's window bounds it (documents, files, threads, containers). Rounded up to a power of two, so
    that a bulk of requests with images has few terms.
    """
    if not _STORED.isdisjoint(request.traits.parameters):
        return None
    if _MEDIA.search(request.body) is None:
        return 0
    text, images = len(request.body), 0
    for image in _images(request.params):
        if image is None:
            return None
        text, images = text - image, images + 1
    return 1 << (text + images * _IMAGE + _added(request.traits)).bit_length()


def _images(node: Any) -> Iterator[int | None]:
    """Yield the bytes of each image's data in the body; None for other media."""
    if isinstance(node, Mapping):
        source = node.get("source")
        kind = source.get("type") if isinstance(source, Mapping) else None
        if node.get("type") == "image" and kind in {"base64", "url", "file"}:
            data = source.get("data") if isinstance(source, Mapping) else None
            yield len(data) if isinstance(data, str) and data.isascii() else 0
            return
        if kind in {"base64", "url", "file"} or node.get("type") == "container_upload" or "file_id" in node:
            yield None
        for value in node.values():
            yield from _images(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _images(value)


def refuse_unbounded(request: Request, where: str) -> None:
    """Refuse a request whose cost has no known bound.

    Each use of a server tool is read again as input, and some have fees of their own; a compaction is billed beside
    the answer.

    Raises:
        SpendLimitError: The request has such a parameter, tool or context edit.
    """
    traits = request.traits
    names = [name for name in traits.parameters if name not in _BOUNDED]
    names += [kind for kind in traits.tool_types if not kind.startswith(_CLIENT_TOOLS)]
    if not names and "context_management" in traits.parameters and _COMPACTS.search(request.body):
        names.append("context_management (a compaction)")
    if names:
        raise SpendLimitError(
            f"{where}: nothing bounds what {shown(names[0])} can cost, as far as batchwise knows, so Policy.max_spend "
            "cannot be kept; leave it out, or dispatch it with a ledger whose policy has no max_spend. Nothing was "
            "stored or sent"
        )


def length_class(prices: PriceBook, request: Request, models: Iterable[str], *, at: datetime) -> tuple[int | None, ...]:
    """Return what decides a request's bound besides its traits: its media, and the price class of its length.

    `models`: all models to which it may go.
    """
    media = media_tokens(request)
    if media is None:
        return (media,)
    tokens = media or len(request.body) + _added(request.traits)
    known = (prices.rates(model, Lane.SYNC, at=at) for model in models)
    return media, *(0 if rates is None else rates.at_length(tokens).input for rates in known)


def most_cost(
    prices: PriceBook,
    traits: Traits,
    *,
    at: datetime,
    betas: Sequence[str] = (),
    size: int = 0,
    media: int | None,
    where: str,
) -> tuple[int, int]:
    """Return the most that one sync call of a request can cost; a batch costs at most half. Both figures are even.

    Args:
        prices: The price book.
        traits: Its model, output limit and tools.
        at: When it is accepted; dearer prices that are announced for later count.
        betas: Its betas.
        size: Bytes of its body.
        media: As `media_tokens` has it: 0 for text alone, None for all that the model takes.
        where: Its name in an error.

    Returns:
        pico-USD for the request, and for each byte of its body.

    Raises:
        UnknownPriceError: The model's price is unknown, or how much it takes, where that is needed.
    """
    model, added = traits.model, _added(traits)
    tokens = _window(prices, model, betas, where) if media is None else media or added
    by_byte = media == 0  # of text each byte may be a token, and its length is reserved by the byte
    each = per_byte = 0
    for rates, halves in _possible(prices, traits, at, where):
        dearest = rates.at_length(tokens + size if by_byte else tokens)
        most = tokens * dearest.cache_write_1h + traits.max_tokens * dearest.output
        each = max(each, most * halves)
        per_byte = max(per_byte, dearest.cache_write_1h * halves if by_byte else 0)
    return _dearest_region(each), _dearest_region(per_byte)


def _dearest_region(pico: int) -> int:
    """Return the cost in the dearest region, rounded up to an even number: a workspace may have it by default."""
    most = int((pico * US_FACTOR).to_integral_value(ROUND_CEILING))
    return most + most % 2


def _added(traits: Traits) -> int:
    """Return the most tokens that the API adds to the input."""
    prompts = _PROMPTS if len(traits.parameters) > 3 else 0
    return prompts + _DEFINED_TOOL * sum(kind != "custom" for kind in traits.tool_types)


def _window(prices: PriceBook, model: str, betas: Sequence[str], where: str) -> int:
    """Return the most input that a model takes."""
    window = prices.context_window(model)
    if window is None:
        raise UnknownPriceError(
            f"{where} has input that its body does not show (a document, a file, a thread or a container), and how "
            f"much {shown(model)} takes is unknown, so Policy.max_spend cannot be kept; put the content into the "
            "body as text, or drop max_spend"
        )
    long = any(beta.startswith(_LONG_CONTEXT) for beta in betas)
    return max(window, _LONG_WINDOW) if long else window


def _possible(prices: PriceBook, traits: Traits, at: datetime, where: str) -> Iterator[tuple[Tariff, int]]:
    """Yield the rates by which a request may be billed, each with a factor: 2 for the batch lane, as half is reserved.

    The speed is the one asked for, or the usual one.
    """
    for moment in (at, None):
        for lane, speed in ((Lane.SYNC, traits.speed or None), (Lane.SYNC, None), (Lane.BATCH, None)):
            rates = prices.rates(traits.model, lane, speed=speed, at=moment)
            if rates is None:
                at_speed = f" at speed {shown(speed)}" if speed else ""
                raise UnknownPriceError(
                    f"{where}: the price of {shown(traits.model)}{at_speed} is unknown, so Policy.max_spend cannot be "
                    f"kept; {named_remedy(traits.model)}, or drop max_spend"
                )
            yield rates, 2 if lane is Lane.BATCH else 1
