"""Makes the ledger's entries of a bulk dispatch; requests that are alike are routed once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import NoReturn

from batchwise.errors import InvalidRequestError
from batchwise.ledger.values import Entry
from batchwise.models import LatencyTag, ToolUse
from batchwise.planning.packing import MAX_CALL_BYTES
from batchwise.planning.state import Terms
from batchwise.request import Request

from .routes import Router, check_size

__all__ = ["entries"]


def entries(
    router: Router, requests: Iterable[Request], now: datetime, latency: LatencyTag | None, tool_use: ToolUse | None
) -> Iterator[Entry]:
    """Yield the entry to store for each request, one at a time; requests that are alike are routed once.

    Raises:
        InvalidRequestError: An item cannot be sent as it is, or is no `Request`; the message says which.
    """
    routes: dict[object, Terms] = {}
    position = -1
    try:
        for position, request in enumerate(requests):
            if not isinstance(request, Request):
                _refuse_item(request, position)
            signature = router.signature(request, now)
            terms = routes.get(signature)
            if terms is None:
                with _named(position):
                    terms = routes[signature] = router.route(request, now, latency, tool_use)[1]
            if len(request.body) > MAX_CALL_BYTES:
                with _named(position):
                    check_size(request, terms)
            yield Entry(request.key, request.body, terms)
    except Exception as error:
        # Most errors come out of the caller's own iterable, which does not know what became of the items before.
        if add_note := getattr(error, "add_note", None):  # Python 3.11
            add_note(f"dispatch_all had taken {position + 1} items; nothing of it was accepted")
        raise


@contextmanager
def _named(position: int) -> Iterator[None]:
    """Say in an error which item of the bulk dispatch it is about."""
    try:
        yield
    except InvalidRequestError as error:
        raise type(error)(f"item #{position} of dispatch_all: {error}") from None


def _refuse_item(item: object, position: int) -> NoReturn:
    raise InvalidRequestError(
        f"item #{position} of dispatch_all is a {type(item).__name__}; wrap params in Request(...)"
    )
