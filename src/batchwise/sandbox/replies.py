"""What the sandbox's model answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Union

import attrs
import orjson

from .cache import NOTHING, Cached
from .errors import ApiError
from .models import answers_as, inference_geo


@attrs.frozen
class Reply:
    """One answer of the model, or one error.

    Build it with the class methods: `Reply.text("hi")`, `Reply.tool_use("get_weather", {"city": "Oslo"})`,
    `Reply.pause_turn()`, `Reply.refusal()`, `Reply.error("overloaded_error")`.

    Attributes:
        content: content blocks as JSON.
        stop_reason: the API's stop reason.
        usage: figures that replace those estimated, such as `{"output_tokens": 300_000}`.
        failure: error type and message; set means that the request fails and is not billed.
        stop_details: the API's `stop_details`.
    """

    content: tuple[Mapping[str, Any], ...] = ()
    stop_reason: str = "end_turn"
    usage: Mapping[str, Any] | None = None
    failure: tuple[str, str] | None = None
    stop_details: Mapping[str, Any] | None = None

    @classmethod
    def text(cls, text: str, *, stop_reason: str = "end_turn") -> Reply:
        """A plain text answer."""
        return cls(({"type": "text", "text": text},), stop_reason)

    @classmethod
    def tool_use(
        cls, name: str, arguments: Mapping[str, Any], *, call_id: str = "toolu_sandbox_1", text: str | None = None
    ) -> Reply:
        """A call of one client tool, after an optional text."""
        return cls.tool_uses((name, arguments), text=text, first_id=call_id)

    @classmethod
    def tool_uses(
        cls, *calls: tuple[str, Mapping[str, Any]], text: str | None = None, first_id: str | None = None
    ) -> Reply:
        """Several parallel calls of client tools: `(name, arguments)` pairs."""
        blocks: list[Mapping[str, Any]] = [] if text is None else [{"type": "text", "text": text}]
        for number, (name, arguments) in enumerate(calls, 1):
            call_id = first_id if first_id and number == 1 else f"toolu_sandbox_{number}"
            blocks.append(_call(call_id, name, arguments))
        return cls(tuple(blocks), "tool_use")

    @classmethod
    def pause_turn(cls, text: str = "", *, tool: str = "web_search", query: str = "sandbox") -> Reply:
        """A long turn of a server tool that the caller must send back to have it continued."""
        blocks: list[Mapping[str, Any]] = [{"type": "text", "text": text}] if text else []
        blocks.append(_call("srvtoolu_sandbox_1", tool, {"query": query}, kind="server_tool_use"))
        return cls(tuple(blocks), "pause_turn")

    @classmethod
    def refusal(cls, explanation: str | None = None, *, category: str | None = None) -> Reply:
        """The model declines: `stop_reason` is `refusal`. Billed as any answer."""
        details = {"type": "refusal", "category": category, "explanation": explanation}
        return cls((), "refusal", stop_details=details)

    @classmethod
    def error(cls, kind: str, message: str = "ordered by the test") -> Reply:
        """An error for this one request: an HTTP error on the sync lane, an errored row in a batch."""
        return cls(failure=(kind, message))

    def with_usage(self, **usage: Any) -> Reply:
        """The same answer with these usage figures instead of the estimated ones."""
        return attrs.evolve(self, usage={**(self.usage or {}), **usage})


Answer = Union[Reply, str, Mapping[str, Any]]
Replier = Callable[[dict[str, Any]], Answer]


def _call(id_: str, name: str, arguments: Mapping[str, Any], *, kind: str = "tool_use") -> dict[str, Any]:
    """A block that calls a tool, as the model itself does."""
    return {"type": kind, "id": id_, "name": name, "input": dict(arguments), "caller": {"type": "direct"}}


def message_text(message: Mapping[str, Any]) -> str:
    """The text of one message, its text blocks joined."""
    content = message.get("content", "")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "".join(str(b.get("text", "")) for b in content if isinstance(b, dict) and b.get("type") == "text")


def first_user_text(params: Mapping[str, Any]) -> str:
    """The text of the first user message: the books' default identity of a caller's prompt."""
    for message in params.get("messages") or ():
        if isinstance(message, dict) and message.get("role") == "user":
            return message_text(message)
    return ""


def last_user_text(params: Mapping[str, Any]) -> str:
    """The text of the last user message."""
    for message in reversed(params.get("messages") or ()):
        if isinstance(message, dict) and message.get("role") == "user":
            return message_text(message)
    return ""


def echo(params: dict[str, Any]) -> Reply:
    """The default reply: `echo: ` and the last user message, plus a call of the tool if one is forced."""
    answer = Reply.text("echo: " + last_user_text(params))
    choice = params.get("tool_choice")
    if not isinstance(choice, dict) or choice.get("type") not in ("tool", "any") or not params.get("tools"):
        return answer
    name = choice.get("name") or params["tools"][0].get("name", "tool")
    call = _call("toolu_sandbox_1", name, {"echo": last_user_text(params)})
    return attrs.evolve(answer, content=(*answer.content, call), stop_reason="tool_use")


def turns(*answers: Answer) -> Replier:
    """A scripted conversation: the n-th answer when n assistant turns are in the messages; the last one repeats."""

    def reply(params: dict[str, Any]) -> Answer:
        done = sum(1 for message in params.get("messages") or () if message.get("role") == "assistant")
        return answers[min(done, len(answers) - 1)]

    return reply


def to_reply(answer: Answer) -> Reply:
    """A `Reply` of whatever a replier returned."""
    if isinstance(answer, Reply):
        return answer
    if isinstance(answer, str):
        return Reply.text(answer)
    if not isinstance(answer, Mapping):
        raise TypeError(f"a reply must be a Reply, a str or a dict, not {type(answer).__name__}")
    if answer.get("type") == "error":
        error = answer.get("error", {})
        return Reply.error(error.get("type", "api_error"), error.get("message", ""))
    content = answer.get("content", ())
    blocks = ({"type": "text", "text": content},) if isinstance(content, str) else tuple(content)
    return Reply(blocks, answer.get("stop_reason", "end_turn"), answer.get("usage"), None, answer.get("stop_details"))


def ask(reply: Replier, params: dict[str, Any]) -> Reply:
    """The reply to params; a replier that breaks is an `api_error` of this request.

    Raises:
        ApiError: the replier raised.
    """
    try:
        return to_reply(reply(params))
    except ApiError:
        raise
    except Exception as error:
        raise ApiError("api_error", f"the sandbox's reply raised {type(error).__name__}: {error}") from error


def input_tokens(params: Mapping[str, Any]) -> int:
    """Input tokens, estimated as a quarter of the bytes of system, tools and messages."""
    size = len(orjson.dumps(params.get("messages")))
    for name in ("system", "tools"):
        if name in params:
            size += len(orjson.dumps(params[name]))
    return max(1, size // 4)


def output_tokens(reply: Reply) -> int:
    """Output tokens, estimated as a quarter of the bytes of the answer."""
    size = 0
    for block in reply.content:
        text = block.get("text")
        size += len(text.encode()) if isinstance(text, str) else len(orjson.dumps(block))
    return max(1, size // 4)


def build_message(
    params: Mapping[str, Any], reply: Reply, *, message_id: str, tier: str, cached: Cached = NOTHING
) -> dict[str, Any]:
    """The API's message object for a reply.

    Raises:
        ApiError: the reply is an error.
    """
    if reply.failure is not None:
        raise ApiError(*reply.failure)
    usage: dict[str, Any] = {
        "input_tokens": max(0, input_tokens(params) - sum(cached)),
        "cache_creation_input_tokens": cached.written_5m + cached.written_1h,
        "cache_read_input_tokens": cached.read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": cached.written_5m,
            "ephemeral_1h_input_tokens": cached.written_1h,
        },
        "output_tokens": output_tokens(reply),
        "service_tier": tier,
        "inference_geo": inference_geo(params["model"], params.get("inference_geo")),
    }
    if reply.usage:
        usage.update(reply.usage)
    message: dict[str, Any] = {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": answers_as(params["model"]),
        "content": reply.content,
        "stop_reason": reply.stop_reason,
        "stop_sequence": None,
        "usage": usage,
    }
    if reply.stop_details is not None:
        message["stop_details"] = reply.stop_details
    return message


def stream_events(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The server-sent events that carry a message."""
    usage = message["usage"]
    opening = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    opening.pop("stop_details", None)
    yield {"type": "message_start", "message": opening}
    yield {"type": "ping"}
    for index, block in enumerate(message["content"]):
        yield from _block_events(index, dict(block))
    delta = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    if "stop_details" in message:
        delta["stop_details"] = message["stop_details"]
    yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": usage["output_tokens"]}}
    yield {"type": "message_stop"}


def _block_events(index: int, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
    kind = block.get("type")
    deltas: list[dict[str, Any]] = []
    if kind == "text":
        text = block["text"]
        block = {**block, "text": ""}
        step = max(1, -(-len(text) // 8))
        deltas = [{"type": "text_delta", "text": text[at : at + step]} for at in range(0, len(text), step)]
    elif kind in ("tool_use", "server_tool_use"):
        encoded = orjson.dumps(block["input"]).decode()
        block = {**block, "input": {}}
        deltas = [{"type": "input_json_delta", "partial_json": part} for part in ("", encoded)]
    yield {"type": "content_block_start", "index": index, "content_block": block}
    for delta in deltas:
        yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "content_block_stop", "index": index}
