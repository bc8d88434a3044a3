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
_TOOL_USES = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})
"""Types of blocks whose input the API streams as pieces of JSON (SDK 1.4 and 2.14, `TRACKS_TOOL_INPUT`)."""


def _text(block: Mapping[str, Any]) -> tuple[Event, list[Event]]:
    citations = block.get("citations") or []
    start = {**block, "text": "", **({"citations": []} if citations else {})}
    deltas: list[Event] = [{"type": "citations_delta", "citation": citation} for citation in citations]
    return start, [*deltas, {"type": "text_delta", "text": block["text"]}]


def _thinking(block: Mapping[str, Any]) -> tuple[Event, list[Event]]:
    start = {**block, "thinking": "", "signature": ""}
    signature = {"type": "signature_delta", "signature": block.get("signature") or ""}
    return start, [{"type": "thinking_delta", "thinking": block["thinking"]}, signature]


def _tool_use(block: Mapping[str, Any]) -> tuple[Event, list[Event]]:
    return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": encode(block["input"]).decode()}]


def _parts(block: Any) -> tuple[Any, list[Event]]:
    """Return how a block starts, and the deltas that complete it. A type without deltas starts complete."""
    if not isinstance(block, Mapping):
        return block, []
    kind = block.get("type")
    if kind == "text" and isinstance(block.get("text"), str):
        return _text(block)
    if kind == "thinking" and isinstance(block.get("thinking"), str):
        return _thinking(block)
    if kind in _TOOL_USES and isinstance(block.get("input"), Mapping):
        return _tool_use(block)
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
