"""What callers of both colours give to a dispatcher, checked and made into what the engine takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from batchwise.basics.times import LONGEST, check_duration, from_numpy
from batchwise.errors import InvalidRequestError, InvalidValueError, shown
from batchwise.models import LatencyTag, Outcome, ToolUse, to_enum, to_latency
from batchwise.request import Request, check_one_dict

if TYPE_CHECKING:
    from batchwise.params import Params

__all__ = ["formatted", "retagged", "seconds", "takes_one_dict", "to_outcomes", "to_request", "to_tags"]

_Given = ParamSpec("_Given")
_Returned = TypeVar("_Returned")


def seconds(timeout: float | timedelta | None) -> float | None:
    """Return a timeout in seconds; None: it never ends, or not within a hundred years.

    Raises:
        InvalidValueError: The timeout is negative, or no duration.
    """
    if timeout is None:
        return None
    value: object = from_numpy(timeout)
    if isinstance(value, timedelta):
        value = check_duration(value, "timeout").total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise InvalidValueError(f"timeout={shown(timeout)} is neither seconds nor a timedelta of zero or more")
    return None if value > LONGEST.total_seconds() else float(value)


def to_request(request: Request | Params, tags: Mapping[str, Any]) -> Request:
    """Return a request made from the arguments of `dispatch`.

    Raises:
        InvalidRequestError: They make no request, or content is given beside a finished `Request`.
    """
    given = {name: value for name, value in tags.items() if value not in (None, (), False, {})}
    if isinstance(request, Request):
        if not given:
            return request
        if {"betas", "stream"} & given.keys():
            raise InvalidRequestError(
                f"request {shown(request.key)}: betas and stream belong to its content; give them to Request(...)"
            )
        return retagged(request, given)
    if isinstance(request, (list, tuple, Iterator)):
        raise InvalidRequestError(
            f"dispatch takes params (a dict) or a Request, not a {type(request).__name__}; use dispatch_all for several"
        )
    return Request(request, **given)


def takes_one_dict(method: Callable[_Given, _Returned]) -> Callable[_Given, _Returned]:
    """Have `dispatch` explain its arguments when it is called as the SDK's `messages.create` is."""

    @wraps(method)
    def called(*args: _Given.args, **kwargs: _Given.kwargs) -> _Returned:
        check_one_dict("dispatch", kwargs)
        return method(*args, **kwargs)

    return called


def retagged(request: Request, tags: Mapping[str, Any]) -> Request:
    """Return a request with the same content and other tags."""
    merged = {
        "key": request.key,
        "latency": request.latency_tag,
        "tool_use": request.tool_use,
        "expected_output_tokens": request.expected_output_tokens,
        "labels": request.labels,
        **tags,
    }
    return Request(request.params, betas=request.betas, stream=request.stream, **merged)


def formatted(requests: Any, output_format: object) -> Iterable[Request]:
    """Return the requests of `dispatch_all`; those without a JSON schema of their own get the schema of this type.

    Raises:
        InvalidRequestError: What was given is not several requests.
    """
    several = isinstance(requests, Iterable) or hasattr(requests, "__getitem__")  # as `for` takes them
    if isinstance(requests, (Request, Mapping, str)) or not several:
        raise InvalidRequestError(
            f"dispatch_all takes several requests, such as a list of them, not a {type(requests).__name__}; "
            "use dispatch for a single one"
        )
    return requests if output_format is None else _formatted(requests, output_format)


def _formatted(requests: Iterable[Request], output_format: object) -> Iterator[Request]:
    for request in requests:
        plain = isinstance(request, Request) and not request.traits.structured
        yield retagged(request, {"output_format": output_format}) if plain else request


def to_tags(latency: object, tool_use: object) -> tuple[LatencyTag | None, ToolUse | None]:
    """Return the defaults given to `dispatch_all`, checked."""
    return (
        None if latency is None else to_latency(latency),
        None if tool_use is None else to_enum(ToolUse, tool_use, "tool_use"),
    )


def to_outcomes(value: object) -> tuple[Outcome, ...]:
    """Return the outcomes that `retry` is given, as a tuple.

    Raises:
        InvalidValueError: One of them is no `Outcome`.
    """
    several = isinstance(value, Iterable) and not isinstance(value, str)
    found = tuple(value) if isinstance(value, Iterable) and several else (value,)
    return tuple(to_enum(Outcome, each, "outcomes") for each in found)
