"""A turn in several parts: a `pause_turn` answer is sent back, and what follows belongs to the same answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from batchwise.jsontext import decode, encode, kept
from batchwise.models import Outcome, ResultError

from .state import Terms

__all__ = ["MAX_TURNS", "continued", "failed", "goes_on", "merged", "received", "usage_of"]

MAX_TURNS = 20
"""How often a paused turn is continued."""
_KINDS = {Outcome.FAILED: "errored", Outcome.EXPIRED: "expired", Outcome.CANCELED: "canceled"}


def goes_on(turns: Sequence[bytes], terms: Terms) -> bool:
    """Whether a turn that was paused again after these is continued. A spend limit keeps for one answer alone."""
    return len(turns) < MAX_TURNS and not terms.reserve_each


def _wrapped(custom_id: str, kind: str, name: str, value: bytes) -> bytes:
    """A result line in the shape of a batch's, whatever the lane: `name` is `message` or `error`, `value` JSON."""
    head = b'{"custom_id":"%b","result":{"type":"%b","%b":' % (custom_id.encode(), kind.encode(), name.encode())
    return head + value + b"}}"


def failed(custom_id: str, outcome: Outcome, error: ResultError) -> bytes:
    """The result line of a request that has no answer of the API's."""
    value = {"type": error.type, "message": error.message, "retryable": error.retryable}
    return _wrapped(custom_id, _KINDS[outcome], "error", encode(value))


def received(custom_id: str, body: bytes) -> tuple[bytes, Any]:
    """The result line of a message as it came, whatever it is, and what it decodes to."""
    text, message = kept(body)
    return _wrapped(custom_id, "succeeded", "message", text), message


def continued(body: bytes, line: bytes) -> bytes | None:
    """The body that lets the turn go on which `line` (a result line) paused; None if it cannot go on."""
    try:
        return _continued(body, line)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _continued(body: bytes, line: bytes) -> bytes:
    params, message = decode(body), decode(line)["result"]["message"]
    messages = params["messages"]
    if messages and messages[-1].get("role") == "assistant" and isinstance(messages[-1].get("content"), list):
        messages[-1] = {**messages[-1], "content": [*messages[-1]["content"], *message["content"]]}
    else:
        messages.append({"role": "assistant", "content": message["content"]})
    container = message.get("container")
    if isinstance(container, Mapping) and "id" in container and not isinstance(params.get("container"), Mapping):
        params["container"] = container["id"]
    return encode(params)


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
    row = decode(line)
    message = row["result"]["message"]
    content: list[Any] = []
    usage: Any = {}
    for turn in turns:
        part = decode(turn)["result"]["message"]
        content += part["content"]
        usage = _sum(usage, usage_of(part))
    message["content"] = [*content, *message["content"]]
    message["usage"] = _sum(usage, usage_of(message))
    return encode(row)
