"""A whole message as the events of a stream, out of which the SDK makes the same message again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from batchwise.basics.jsontext import encode

__all__ = ["encoded", "events"]

Event = Mapping[str, Any]
_DELTA_USAGE = frozenset(
    {
        "input_tokens",
        "output_tokens",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
        "server_tool_use",
        "output_tokens_details",
        "iterations",
        "fallback_credit",
    }
)
"""The parts of `usage` that the API repeats in `message_delta` (SDK 2.14, `beta_message_delta_usage.py`)."""


def _parts(block: Any) -> tuple[Any, list[Event]]:
    """Return how a block starts, and the deltas that complete it. A type without deltas starts complete."""
    match block:
        case {"type": "text", "text": str(text)}:
            citations = block.get("citations") or []
            deltas: list[Event] = [{"type": "citations_delta", "citation": each} for each in citations]
            start = {**block, "text": "", **({"citations": []} if citations else {})}
            return start, [*deltas, {"type": "text_delta", "text": text}]
        case {"type": "thinking", "thinking": str(thinking)}:
            return {**block, "thinking": "", "signature": ""}, [
                {"type": "thinking_delta", "thinking": thinking},
                {"type": "signature_delta", "signature": block.get("signature") or ""},
            ]
        # The API streams the input as pieces of JSON (SDK 1.4 and 2.14, `TRACKS_TOOL_INPUT`).
        case {"type": "tool_use" | "server_tool_use" | "mcp_tool_use", "input": dict(given)}:
            return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": encode(given).decode()}]
    return block, []


def events(message: Mapping[str, Any]) -> Iterator[Event]:
    """Yield the events of a stream that brings this message, each block in one piece.

    Args:
        message: A message as the API gave it. Blocks of unknown types are sent whole.

    Yields:
        Events, each with its `type`.
    """
    usage = message.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    start = {**message, "content": [], "stop_reason": None, "stop_sequence": None}
    yield {"type": "message_start", "message": start}
    content = message.get("content")
    for index, block in enumerate(content if isinstance(content, list) else ()):
        begun, deltas = _parts(block)
        yield {"type": "content_block_start", "index": index, "content_block": begun}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    delta = {name: message.get(name) for name in ("stop_reason", "stop_sequence")}
    delta |= {name: message[name] for name in ("stop_details", "container") if name in message}
    yield {
        "type": "message_delta",
        "delta": delta,
        "usage": {"output_tokens": 0, **{name: value for name, value in usage.items() if name in _DELTA_USAGE}},
    }
    yield {"type": "message_stop"}


def encoded(event: Event) -> bytes:
    """Return an event in the format of server-sent events."""
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), encode(event))
