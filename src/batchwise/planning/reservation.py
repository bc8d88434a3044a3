"""What a request can cost at most: what a spend limit keeps for it until it settles."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime

from batchwise.errors import SpendLimitError, UnknownPriceError, shown
from batchwise.models import Lane

from .pricing import PriceBook, Rates, estimate
from .routing import SERVER_TOOLS

__all__ = ["has_unseen_input", "most_cost", "refuse_unbounded"]

_UNSEEN = re.compile(rb'"type"\s*:\s*"(?:url|file|container_upload)"|"(?:file_id|container)"\s*:')
"""What the API fetches itself. Inside a string its quotes are escaped, so a prompt that speaks of it does not match."""
_UNBOUNDED = ("mcp_servers", "fallbacks")


def has_unseen_input(body: bytes) -> bool:
    """Whether the body names input whose tokens it does not show: by URL, by a file's id, or in a container."""
    return _UNSEEN.search(body) is not None


def refuse_unbounded(parameters: Iterable[str], tool_types: Iterable[str], where: str) -> None:
    """Refuse what has no bound: each use of a server tool is read again as input, and some have fees of their own.

    Raises:
        SpendLimitError: The request has such a parameter or tool.
    """
    names = [name for name in parameters if name in _UNBOUNDED]
    names += [kind for kind in tool_types if kind.startswith(SERVER_TOOLS)]
    if names:
        raise SpendLimitError(
            f"{where}: nothing bounds what {shown(names[0])} can cost, so Policy.max_spend cannot be kept; leave it "
            "out, or dispatch it with a ledger whose policy has no max_spend. Nothing was stored or sent"
        )


def most_cost(
    prices: PriceBook, model: str, max_tokens: int, lane: Lane, *, at: datetime, unseen: bool, where: str
) -> tuple[int, int]:
    """The most that a request can cost: the sync lane's price, and the batch lane's too where both may come.

    Args:
        prices: The price book.
        model: Its model.
        max_tokens: The most output tokens.
        lane: The lane that it goes to.
        at: When it runs.
        unseen: Whether there is input that its body does not show: then all that the model takes.
        where: What to call it in an error.

    Returns:
        pico-USD for the request, and for each byte of its body.

    Raises:
        UnknownPriceError: The model's price is unknown, or how much it takes, where that is needed.
    """
    each = per_byte = 0
    for part in (Lane.SYNC, Lane.BATCH) if lane is Lane.BATCH else (Lane.SYNC,):
        rates = prices.rates(model, part, at=at)
        if rates is None:
            raise UnknownPriceError(
                f"{where}: the price of {shown(model)} is unknown, so Policy.max_spend cannot be kept; "
                "use a model with a known price, or drop max_spend"
            )
        if unseen:
            window = prices.context_window(model)
            if window is None:
                raise UnknownPriceError(
                    f"{where} has input that its body does not show (by URL, file or container), and how much "
                    f"{shown(model)} takes is unknown, so Policy.max_spend cannot be kept; put the content into the "
                    "body, or drop max_spend"
                )
            dearest = _longest(rates)
            each += window * dearest.cache_write_1h + estimate(0, max_tokens, dearest)
        else:
            each += estimate(0, max_tokens, rates)
            per_byte += -(-rates.cache_write_1h // 2)  # two bytes a token, the dearest kind of input
    return each, per_byte


def _longest(rates: Rates) -> Rates:
    """The rates of the longest requests."""
    while rates.above is not None:
        rates = rates.above
    return rates
