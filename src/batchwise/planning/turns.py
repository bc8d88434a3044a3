"""A turn in several parts: a `pause_turn` answer is sent back, and what follows belongs to the same answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from batchwise.models import Outcome, ResultError

__all__ = ["MAX_TURNS", "continued", "failed", "merged", "usage_of", "wrapped"]

MAX_TURNS = 20
"""How often a paused turn is continued."""
_KINDS = {Outcome.FAILED: "errored", Outcome.EXPIRED: "expired", Outcome.CANCELED: "canceled"}


def wrapped(custom_id: str, kind: str, name: str, value: bytes) -> bytes:
    """A result line in the shape of a batch's, whatever the lane: `name` is `message` or `error`, `value` JSON."""
    head = b'{"custom_id":"%b","result":{"type":"%b","%b":' % (custom_id.encode(), kind.encode(), name.encode())
    return head + value + b"}}"


def failed(custom_id: str, outcome: Outcome, error: ResultError) -> bytes:
    """The result line of a request that has no answer of the API's."""
    value = {"type": error.type, "message": error.message, "retryable": error.retryable}
    return wrapped(custom_id, _KINDS[outcome], "error", orjson.dumps(value))


def continued(body: bytes, line: bytes) -> bytes:
    """The body that lets the turn go on which `line` (a result line) paused."""
    params, message = orjson.loads(body), orjson.loads(line)["result"]["message"]
    messages = params["messages"]
    if messages and messages[-1].get("role") == "assistant" and isinstance(messages[-1].get("content"), list):
        messages[-1] = {**messages[-1], "content": [*messages[-1]["content"], *message["content"]]}
    else:
        messages.append({"role": "assistant", "content": message["content"]})
    container = message.get("container")
    if isinstance(container, Mapping) and "id" in container and not isinstance(params.get("container"), Mapping):
        params["container"] = container["id"]
    return orjson.dumps(params)


def usage_of(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The answer's `usage`; empty where it is no object."""
    usage = message.get("usage")
    return usage if isinstance(usage, dict) else {}


def _sum(first: Any, second: Any) -> Any:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return {name: _sum(first.get(name), second.get(name)) for name in {**first, **second}}
    if isinstance(first, int) and isinstance(second, int) and not isinstance(first, bool):
        return first + second
    return first if second is None else second


def merged(turns: Sequence[bytes], line: bytes) -> bytes:
    """The last line with the content of all parts before its own and the usage of all added up."""
    if not turns:
        return line
    row = orjson.loads(line)
    message = row["result"].get("message")
    if not isinstance(message, dict):
        return line
    content: list[Any] = []
    usage: Any = {}
    for turn in turns:
        part = orjson.loads(turn)["result"]["message"]
        content += part["content"]
        usage = _sum(usage, usage_of(part))
    message["content"] = [*content, *message["content"]]
    message["usage"] = _sum(usage, usage_of(message))
    return orjson.dumps(row)
