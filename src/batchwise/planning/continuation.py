"""Continues a request after a message: a paused turn in another part, and a refusal with another model.

A turn that the API paused is sent back, and the next message belongs to the same answer. After a refusal the request is
sent anew to the next fallback model; the refusal is billed, and is no part of the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from batchwise.basics.jsontext import decode, encode, kept
from batchwise.models import Outcome, ResultError

from .outcomes import REFUSAL, Ruling, Verdict
from .state import Terms

__all__ = ["MAX_TURNS", "continued", "failed", "is_refusal", "merged", "next_call", "received", "usage_of"]

MAX_TURNS = 20
"""How often a paused turn is continued."""
_THINKING = ("thinking", "redacted_thinking")
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""The errors that a malformed body or line raises."""
_KINDS = {Outcome.FAILED: "errored", Outcome.EXPIRED: "expired", Outcome.CANCELED: "canceled"}


def _is_continued(turns: Sequence[bytes], terms: Terms) -> bool:
    """Whether a turn that paused again after these is continued. A spend limit reserves the cost of one answer only."""
    return len(turns) < MAX_TURNS and not terms.max_cost_each


def _wrapped(custom_id: str, kind: str, name: str, value: bytes) -> bytes:
    """Return a result line in the shape of a batch's; `name` is `message` or `error`, `value` is JSON."""
    head = b'{"custom_id":"%b","result":{"type":"%b","%b":' % (custom_id.encode(), kind.encode(), name.encode())
    return head + value + b"}}"


def failed(
    custom_id: str, outcome: Outcome, error: ResultError, *, status: int | None = None, request_id: str | None = None
) -> bytes:
    """Return the result line of a request without an answer of the API.

    `status` and `request_id` are the HTTP status and the API's id of the call that said so, if there was one.
    """
    value: dict[str, Any] = {"type": error.type, "message": error.message, "retryable": error.retryable}
    if status is not None:
        value["status"] = status
    if request_id is not None:
        value["request_id"] = request_id
    return _wrapped(custom_id, _KINDS[outcome], "error", encode(value))


def received(custom_id: str, body: bytes) -> tuple[bytes, Any]:
    """Return the result line of a message as it came, valid or not, and the decoded message."""
    text, message = kept(body)
    return _wrapped(custom_id, "succeeded", "message", text), message


def is_refusal(message: object) -> bool:
    """Whether the message is a refusal of the model."""
    return isinstance(message, Mapping) and message.get("stop_reason") == REFUSAL


def next_call(
    ruling: Ruling, body: bytes, turns: Sequence[bytes], line: bytes, *, terms: Terms, fallback_models: Sequence[str]
) -> tuple[bytes, Terms] | None:
    """Return the body and the terms with which a request goes on after a message; None: it settles.

    The message answers `body` and came as the result `line`. `turns` are the lines before it: of paused turns, and of
    refusals. After a refusal the `fallback_models` are asked, one after the other.
    """
    if ruling.verdict is Verdict.CONTINUE:
        more = continued(body, line) if _is_continued(turns, terms) else None
        return None if more is None else (more, terms)
    if ruling.outcome is not Outcome.REFUSED:
        return None
    models = [model for model in fallback_models if model != terms.asked[0]]
    if len(terms.refused_by) >= len(models):
        return None
    model = models[len(terms.refused_by)]
    try:
        anew = _sent_anew(body, _parts(turns), model)
    except _UNREADABLE:
        return None
    # A spend limit reserves by the byte, also for the refusal's cost: no byte may go before that is booked.
    anew = anew.ljust(len(body)) if terms.max_cost_each else anew
    return anew, terms.asking((*terms.asked, model))


def _parts(turns: Sequence[bytes]) -> list[Any]:
    """Return the messages that belong to the answer: those after the last refusal."""
    parts: list[Any] = []
    for turn in turns:
        message = decode(turn)["result"]["message"]
        parts = [] if is_refusal(message) else [*parts, message]
    return parts


def _sent_anew(body: bytes, parts: Sequence[Any], model: str) -> bytes:
    """Return the body as its caller made it, for another model.

    Thinking blocks are signed for the refusing model alone, so they are dropped from each message, as the API
    documentation says (2026, refusals); a message with no other block is dropped, too.
    """
    params = decode(body)
    messages = params["messages"]
    added = sum(len(part["content"]) for part in parts)
    if added:  # what `continued` has added
        messages[-1]["content"] = messages[-1]["content"][:-added]
    kept = (_without_thinking(message) for message in messages)
    params["messages"] = [message for message in kept if message["content"] != []]
    if not params["messages"]:
        raise ValueError("nothing is left to send")
    thinking = params.get("thinking")
    if isinstance(thinking, Mapping) and thinking.get("type") == "between_tools":
        # A fallback model may not take it (SDK 2.14, `lib/middleware/_fallbacks.py`).
        params["thinking"] = {"type": "disabled"}
    params["model"] = model
    return encode(params)


def _without_thinking(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    if message.get("role") != "assistant" or not isinstance(content, list):
        return message
    return {**message, "content": [block for block in content if block.get("type") not in _THINKING]}


def continued(body: bytes, line: bytes) -> bytes | None:
    """Return the body that continues the turn which paused with `line` (a result line); None if it cannot go on."""
    try:
        return _continued(body, line)
    except _UNREADABLE:
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
    """Return the answer's `usage`; empty if it is no object."""
    usage = message.get("usage")
    return usage if isinstance(usage, dict) else {}


def _sum(first: Any, second: Any) -> Any:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return {name: _sum(first.get(name), second.get(name)) for name in {**first, **second}}
    if isinstance(first, int) and isinstance(second, int) and not isinstance(first, bool):
        return first + second
    return first if second is None else second


def merged(turns: Sequence[bytes], line: bytes) -> bytes:
    """Return the last line, with the content of all earlier parts before its own, and their usage added up."""
    parts = _parts(turns)
    if not parts:
        return line
    row = decode(line)
    message = row["result"]["message"]
    content: list[Any] = []
    usage: Any = {}
    for part in parts:
        content += part["content"]
        usage = _sum(usage, usage_of(part))
    message["content"] = [*content, *message["content"]]
    message["usage"] = _sum(usage, usage_of(message))
    return encode(row)
