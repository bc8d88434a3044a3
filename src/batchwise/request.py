"""`Request`: the JSON body of one Messages call with its tags, encoded and checked once, at construction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs

from .basics.encoding import bare, canonical, encode, is_omitted
from .basics.figures import check_whole
from .basics.jsontext import decode
from .basics.output_format import asking_for, is_structured
from .errors import InvalidRequestError, InvalidValueError, shown
from .models import Labels, Latency, LatencyLike, LatencyTag, ToolUse, ToolUseLike, to_enum, to_labels, to_latency

if TYPE_CHECKING:
    from typing_extensions import Never

    from .params import Params

__all__ = ["BILLED_TO_A_PROFILE", "MAX_KEY_LENGTH", "Request", "Traits", "check_job", "check_key", "check_one_dict"]

MAX_KEY_LENGTH = 1_024
BILLED_TO_A_PROFILE = "billing_policy.bill_to"
"""Added to the parameter names of a request that is billed to a user profile."""
_MOST_TOKENS = 1_000_000_000
"""Far more than any model writes for one request (300,000, API documentation, 2026)."""

_NO_PARAMS: Any = object()
_EXAMPLE = "{'model': 'claude-...', 'max_tokens': 1024, 'messages': [{'role': 'user', 'content': '...'}]}"

_CALL_OPTIONS: Mapping[str, str] = {
    "stream": "say Request(..., stream=True)",
    "betas": "say Request(..., betas=[...])",
    "timeout": "set it on the client: Anthropic(timeout=...)",
    "extra_headers": "set them on the client: Anthropic(default_headers=...)",
    "extra_query": "set it on the client: Anthropic(default_query=...)",
    "extra_body": "put its fields into params",
    "workspace_id": "use a client of that workspace, with a ledger of its own",
    "user_profile_id": "set it on the client: Anthropic(default_headers=...)",
}
_OPTION_NAMES = frozenset(_CALL_OPTIONS)


class Traits(NamedTuple):
    """What routing needs to know of the params. Requests with the same traits and the same tags share a decision."""

    model: str
    max_tokens: int
    parameters: tuple[str, ...]
    tool_types: tuple[str, ...]
    tool_choice: str
    speed: str
    structured: bool = False
    """Whether the answer has to keep to a JSON schema."""


def check_one_dict(call: str, given: Iterable[str]) -> None:
    """Refuse a call with `model=`, `max_tokens=` or `messages=`, as the SDK's `messages.create` takes them.

    Raises:
        InvalidRequestError: One of `given` is such a parameter.
    """
    for name in ("model", "max_tokens", "messages"):
        if name in given:
            raise InvalidRequestError(
                f"{call} was given {name}= by itself; give the call's parameters as one dict: "
                f"{call}({{'model': ..., 'max_tokens': ..., 'messages': [...]}}, key=..., latency=...)"
            )


def check_key(key: object) -> str:
    """Return a key, checked.

    Raises:
        InvalidRequestError: It is not a string, is empty, or has over 1,024 characters.
    """
    if not isinstance(key, str):
        raise InvalidRequestError(f"key={shown(key)} is not a string; use e.g. key=str(path)")
    if not 1 <= len(key) <= MAX_KEY_LENGTH:
        raise InvalidRequestError(
            f"key={shown(key)} has {len(key)} characters; a key has 1 to {MAX_KEY_LENGTH} "
            "(for longer names use a digest of them)"
        )
    return key


def check_job(job: object) -> str:
    """Return the name of a job, checked.

    Raises:
        InvalidValueError: It is not a string, or is empty.
    """
    if not isinstance(job, str) or not job:
        raise InvalidValueError(f"job={shown(job)} is not a name; give a str of one character or more, or leave it out")
    return job


def _to_params(params: object) -> Mapping[str, Any]:
    """Return the params without options of the SDK's call that are given but left empty."""
    if not isinstance(params, (dict, Mapping)):  # dict first: the look at an abstract class takes 0.2 us
        raise InvalidRequestError(
            f"params is a {type(params).__name__}; give the call's body as a dict, e.g. {_EXAMPLE}"
        )
    if _OPTION_NAMES.isdisjoint(params):
        return params
    body = dict(params)
    for option in _OPTION_NAMES.intersection(body):
        value = body.pop(option)
        if not (is_omitted(value) or (option == "stream" and value is False)):
            raise InvalidRequestError(f"params hold {option!r}, which is no body field; {_CALL_OPTIONS[option]}")
    return body


def _to_model(model: object) -> str:
    model = bare(model)
    if not isinstance(model, str) or not model or not model.isprintable():
        raise InvalidRequestError(f"params['model'] is {shown(model)}; give a model's id")
    return model


def _to_max_tokens(tokens: object) -> int:
    tokens = bare(tokens)
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
        raise InvalidRequestError(f"params['max_tokens'] is {shown(tokens)}; give a whole number")
    _check_possible(tokens, "params['max_tokens']")
    return tokens


def _tool_type(tool: Any) -> str:
    kind = bare(tool.get("type")) if isinstance(tool, dict) else None
    return kind if isinstance(kind, str) else "custom"


def _to_stream(stream: object) -> bool:
    if stream and stream is not True:
        raise InvalidRequestError(f"stream={shown(stream)} is neither True nor False")
    return bool(stream)


def _to_expected(tokens: object) -> int | None:
    if tokens is None:
        return None
    number = check_whole(tokens, "expected_output_tokens", 1)
    _check_possible(number, "expected_output_tokens")
    return number


def _traits(params: Mapping[str, Any], betas: tuple[str, ...]) -> Traits:
    """Return the traits of params as `encode` returns them, where every mapping is a dict."""
    try:
        model, max_tokens, messages = params["model"], params["max_tokens"], params["messages"]
    except KeyError as error:
        raise InvalidRequestError(f"params lack {error}; a Messages call needs it") from None
    if not isinstance(messages, (list, tuple)) or not messages:
        raise InvalidRequestError("params['messages'] has to be a list of at least one message")
    names = tuple(params)
    if len(names) == 3 and not betas and type(model) is str and type(max_tokens) is int:
        return _plain_traits(model, max_tokens, names)
    tools, choice, policy = params.get("tools") or (), params.get("tool_choice"), params.get("billing_policy")
    if not isinstance(tools, (list, tuple)):
        raise InvalidRequestError(f"params['tools'] is a {type(tools).__name__}; give a list")
    types = tuple(map(_tool_type, tools))
    if betas:
        types += tuple(_added_tools(messages))
    chosen = str(bare(choice.get("type", "auto"))) if isinstance(choice, dict) else "auto"
    speed = str(bare(params.get("speed")) or "")
    if isinstance(policy, dict) and bare(policy.get("bill_to")) == "user_profile":
        names = (*names, BILLED_TO_A_PROFILE)
    return Traits(_to_model(model), _to_max_tokens(max_tokens), names, types, chosen, speed, is_structured(params))


@lru_cache  # the requests of a bulk mostly share them
def _plain_traits(model: str, max_tokens: int, names: tuple[str, ...]) -> Traits:
    """Return the traits of params that hold only the three that each call needs."""
    return Traits(_to_model(model), _to_max_tokens(max_tokens), names, (), "auto", "")


def _added_tools(messages: Iterable[Any]) -> Iterator[str]:
    """Yield the types of tools that messages define (SDK 2.14, beta `tool_addition`), not of those they refer to."""
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        for block in content if isinstance(content, (list, tuple)) else ():
            if isinstance(block, dict) and block.get("type") == "tool_addition":
                tool = block.get("tool")
                if isinstance(tool, dict) and "definition" in tool:
                    yield _tool_type(tool["definition"])


@attrs.frozen(init=False, eq=False, repr=False, slots=False)
class Request:
    """One Messages call, and what its caller says about it.

    The body is encoded when the request is made; changing `params` afterwards changes nothing. Two requests are equal
    if their content and their tags are.

    Args:
        params: The JSON body of a Messages call. It may hold all that the SDK takes, which is encoded in the same way:
            content blocks and other pydantic models, `omit` and `NOT_GIVEN`, dates, sets, generators, and
            `pathlib.Path` and open files as the data of base64 sources. Files and generators are read now, once.
        key: Your name for the request, unique within its job: 1 to 1,024 characters. None: one is generated.
        latency: How long you can wait for the answer. None: the latency that `dispatch_all` is given, else
            `Latency.BLOCKING`.
        tool_use: What the request does with tools. None: it is inferred from the params, and never as PATIENT.
        betas: Values for the header `anthropic-beta`.
        stream: Whether you want the answer as a stream. Only the sync lane can stream.
        expected_output_tokens: The usual length of the answer in tokens, for forecasts of cost and time.
        output_format: A type; the answer has to keep to its JSON schema. A pydantic model, or any type that pydantic's
            `TypeAdapter` takes. The schema becomes a part of the params, as in the SDK's `messages.parse`, and
            `Result.parse` reads the answer. An answer that is cut off settles FAILED, with the error `truncated`.
        labels: Who or what the request is billed to, such as `{"team": "search"}`. See `Report.by_label`. Labels are
            not sent, and not a part of the content: for a key that exists already, the first labels stay. Use few
            values for each name, not one for each request.

    Raises:
        InvalidRequestError: A field is missing or malformed, or does not belong there; the message says which one.
    """

    key: str | None
    betas: tuple[str, ...]
    stream: bool
    tool_use: ToolUse | None
    expected_output_tokens: int | None
    body: bytes
    traits: Traits
    latency_tag: LatencyTag | None
    label_pairs: Labels

    def __init__(
        self,
        params: Params = _NO_PARAMS,
        *,
        key: str | None = None,
        latency: LatencyLike | None = None,
        tool_use: ToolUseLike | None = None,
        betas: Iterable[str] = (),
        stream: bool = False,
        expected_output_tokens: int | None = None,
        output_format: object = None,
        labels: Mapping[str, str] | None = None,
        **others: Never,
    ) -> None:
        if others or params is _NO_PARAMS:
            check_one_dict("Request", others)
            wrong = f"got an unexpected keyword argument {min(others)!r}" if others else "lacks its params"
            raise TypeError(f"Request() {wrong}")
        if key is not None:
            check_key(key)
        try:
            given = _to_params(params)
            body, plain = encode(given if output_format is None else asking_for(output_format, given))
            wanted = _to_betas(betas) if betas else ()
            traits = _traits(plain, wanted)
            self.__attrs_init__(
                key=key,
                betas=wanted,
                stream=_to_stream(stream),
                tool_use=None if tool_use is None else to_enum(ToolUse, tool_use, "tool_use"),
                expected_output_tokens=_to_expected(expected_output_tokens),
                body=body,
                traits=traits,
                latency_tag=None if latency is None else to_latency(latency),
                label_pairs=to_labels(labels) if labels else (),
            )
            if traits.max_tokens == 0 and self.latency is not Latency.BLOCKING:
                raise InvalidRequestError(
                    "max_tokens is 0 (a cache warm-up), which a batch refuses; leave latency out or raise it"
                )
        except InvalidValueError as error:
            where = "request" if key is None else f"request {shown(key)}"
            raise InvalidRequestError(f"{where}: {error}") from None

    def keyed(self, key: str) -> Request:
        """Return the same request with another key.

        Raises:
            InvalidRequestError: The key is not a string of 1 to 1,024 characters.
        """
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, key=check_key(key))
        return made

    @cached_property
    def digest(self) -> bytes:
        """The first 16 bytes of a SHA-256 over the content: the sorted params, the betas and the stream flag."""
        content = canonical(self.body)
        if self.betas:
            content += b"\0" + ",".join(self.betas).encode()
        return sha256(content + b"\0stream" if self.stream else content).digest()[:16]

    @property
    def latency(self) -> LatencyTag:
        """How long the caller can wait for the answer."""
        return Latency.BLOCKING if self.latency_tag is None else self.latency_tag

    @property
    def labels(self) -> dict[str, str]:
        """Who or what the request is billed to."""
        return dict(self.label_pairs)

    @property
    def params(self) -> dict[str, Any]:
        """The body, decoded anew on each access."""
        decoded: dict[str, Any] = decode(self.body)
        return decoded

    @property
    def model(self) -> str:
        """The id of the model."""
        return self.traits.model

    @property
    def max_tokens(self) -> int:
        """The most output tokens that the answer may have."""
        return self.traits.max_tokens

    def _identity(self) -> tuple[object, ...]:
        tags = self.latency, self.tool_use, self.expected_output_tokens, self.label_pairs
        return self.digest, self.key, *tags

    def __eq__(self, other: object) -> bool:
        return self._identity() == other._identity() if isinstance(other, Request) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._identity())

    def __repr__(self) -> str:
        return f"Request(key={shown(self.key)}, model={shown(self.model)}, {len(self.body)} bytes)"


def _check_possible(tokens: int, field: str) -> None:
    if tokens > _MOST_TOKENS:
        raise InvalidRequestError(f"{field} is over {_MOST_TOKENS:,}, which no model puts out; give a smaller number")


def _to_betas(betas: object) -> tuple[str, ...]:
    if isinstance(betas, str) or not isinstance(betas, Iterable):
        raise InvalidRequestError(f"betas={shown(betas)} is not a list of strings; write betas=[{shown(betas)}]")
    values = tuple(sorted(set(betas)))
    for beta in values:
        if not isinstance(beta, str) or not beta or not beta.isascii() or set(beta) & set(", \r\n\0"):
            raise InvalidRequestError(f"beta {shown(beta)} cannot be an anthropic-beta value")
    return values
