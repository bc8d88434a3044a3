"""Messages calls out of HTTP requests, and their outcomes as HTTP responses. Knows no HTTP library and no client."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from heapq import heappop, heappush
from typing import Any, NamedTuple
from urllib.parse import quote

from batchwise.basics.jsontext import UnreadableError, decode, encode
from batchwise.errors import (
    AdmissionError,
    BatchwiseError,
    InvalidRequestError,
    InvalidValueError,
    KeyConflictError,
    LaneSuspendedError,
    RequestTooLargeError,
    SpendLimitError,
    UnknownPriceError,
)
from batchwise.models import Latency
from batchwise.planning.outcomes import rule_row
from batchwise.request import Request
from batchwise.results import Result

from .message_events import encoded, events
from .tagging import Tags

__all__ = ["Answer", "Call", "Repeats", "answer_of", "failed", "read_call", "refusal"]

_STATUS: Mapping[str, int] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
    # batchwise's own
    "expired": 504,
    "late": 504,
    "canceled": 409,
    "abandoned": 409,
    "spend_limit": 402,
}
"""The HTTP status of each type of error: the API's (API documentation), and the nearest for batchwise's own types."""
_REFUSALS: tuple[tuple[type[BatchwiseError], int, str], ...] = (
    (RequestTooLargeError, 413, "request_too_large"),
    (KeyConflictError, 409, "conflict_error"),
    (SpendLimitError, 402, "billing_error"),
    (UnknownPriceError, 402, "billing_error"),
    (AdmissionError, 503, "api_error"),
    (LaneSuspendedError, 503, "api_error"),
    (InvalidValueError, 400, "invalid_request_error"),
)
_CARRIED = frozenset({"anthropic-version", "anthropic-beta"})


class Call(NamedTuple):
    """A call of `POST /v1/messages`."""

    request: Request
    job: str | None
    stream: bool
    """Whether the caller asked for a stream."""

    @property
    def blocking(self) -> bool:
        """Whether somebody is waiting for the answer now."""
        return self.request.latency is Latency.BLOCKING


class Answer(NamedTuple):
    """An HTTP response."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def read_call(
    headers: Mapping[str, str], body: bytes, tags: Tags, now: datetime, known: Mapping[str, object] | None = None
) -> Call:
    """Read a call from an HTTP request.

    An absolute deadline that has passed counts as `Latency.BLOCKING`, so that the last turns of a loop, and a script
    that is started again, still get their answers.

    Args:
        headers: The headers of the request, names in lower case.
        body: The body of the request.
        tags: The tags of the call.
        now: The moment of the call.
        known: The headers that each call of the dispatcher's client has, names in lower case.

    Raises:
        InvalidRequestError: It is not a Messages call, or asks for something that batchwise cannot send.
    """
    params = _decoded(body)
    if not isinstance(params, dict):
        raise InvalidRequestError("the body of a Messages call has to be a JSON object")
    for name, value in headers.items():
        if name.startswith("anthropic-") and name not in _CARRIED and value != (known or {}).get(name):
            raise InvalidRequestError(
                f"batchwise cannot send the header {name!r} with a single call; set it on the dispatcher's client: "
                "Anthropic(default_headers=...)"
            )
    stream = params.pop("stream", None)
    betas = [beta.strip() for beta in headers.get("anthropic-beta", "").split(",")]
    latency = tags.latency
    if isinstance(latency, datetime) and latency <= now:
        latency = Latency.BLOCKING
    request = Request(
        params,
        key=tags.key,
        latency=latency,
        tool_use=tags.tool_use,
        betas=[beta for beta in betas if beta],
        labels=tags.labels,
    )
    return Call(request, tags.job, bool(stream))


def _decoded(body: bytes) -> Any:
    try:
        return decode(body)
    except UnreadableError:
        raise InvalidRequestError("the body of the Messages call is not JSON") from None


def answer_of(result: Result, *, stream: bool) -> Answer:
    """Return the response for a settled call: the API's message, the API's error, or batchwise's error."""
    told = decode(result.raw)["result"]
    headers = {
        "request-id": result.custom_id,
        "batchwise-key": quote(result.key),
        "batchwise-lane": result.lane.value,
        "x-should-retry": "false",
    }
    if rule_row(told).billed:  # a refusal, and an answer that was cut off, too: as the API gave it
        message = told["message"]
        if stream:
            return Answer(
                200, {**headers, "content-type": "text/event-stream"}, b"".join(map(encoded, events(message)))
            )
        return Answer(200, {**headers, "content-type": "application/json"}, encode(message))
    error = told.get("error")
    if isinstance(error, Mapping) and isinstance(error.get("error"), Mapping):  # as the API worded it
        return _failure(_STATUS.get(str(error["error"].get("type")), 500), headers, error)
    why = result.error
    kind, words = ("api_error", "no answer") if why is None else (why.type, why.message)
    kept = error if isinstance(error, Mapping) else {}
    status, request_id = kept.get("status"), kept.get("request_id")
    if not (isinstance(status, int) and 400 <= status < 600):
        status = _STATUS.get(kind, 500)
    return _failure(status, headers, {**_body(kind, words), "request_id": request_id})


def _body(kind: str, words: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": words}}


def _failure(status: int, headers: Mapping[str, str], body: Mapping[str, Any]) -> Answer:
    request_id = body.get("request_id") or headers.get("request-id")
    told = {**body, **({"request_id": request_id} if request_id else {})}
    given = {"request-id": str(request_id)} if request_id else {}
    return Answer(status, {**headers, **given, "content-type": "application/json"}, encode(told))


def failed(status: int, kind: str, words: str) -> Answer:
    """Return an error response in the shape of the API's, for a call without an answer from the API."""
    return _failure(status, {"x-should-retry": "false"}, _body(kind, words))


def refusal(error: BatchwiseError) -> Answer:
    """Return the response that says why batchwise refused a call. Nothing of it was sent."""
    found = ((status, kind) for known, status, kind in _REFUSALS if isinstance(error, known))
    status, kind = next(found, (500, "api_error"))
    return failed(status, kind, str(error))


class Repeats:
    """Gives keys to the calls of a job, so that the n-th call with some content has the same key in each run.

    Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: defaultdict[tuple[str, bytes], int] = defaultdict(int)
        self._free: defaultdict[tuple[str, bytes], list[int]] = defaultdict(list)

    @contextmanager
    def named(self, call: Call) -> Iterator[Call]:
        """Give a call its key. If the block raises, the next call with the same content gets the key.

        A call without a job, or with a key of its own, stays as it is.
        """
        if call.job is None or call.request.key is not None:
            yield call
            return
        content = call.request.digest
        number = self._take(call.job, content)
        try:
            yield call._replace(request=call.request.keyed(f"{content.hex()}/{number}"))
        except BaseException:
            self._give_back(call.job, content, number)
            raise

    def _take(self, job: str, content: bytes) -> int:
        """Return the lowest number that no call of this run has."""
        with self._lock:
            free = self._free.get((job, content))
            if free:
                return heappop(free)
            self._last[job, content] += 1
            return self._last[job, content]

    def _give_back(self, job: str, content: bytes, number: int) -> None:
        """Free the number of a call that ended without its outcome."""
        with self._lock:
            heappush(self._free[job, content], number)
