"""What the endpoints share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .http import Request


@dataclass
class Call:
    """One API call: the request, who makes it, and what was found in its path."""

    request: Request
    workspace: str
    betas: frozenset[str]
    item: str = ""


def page_of(data: list[dict[str, Any]], more: bool) -> dict[str, Any]:
    """The body of a list answer."""
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"data": data, "has_more": more, "first_id": first, "last_id": last}
