"""What can go wrong on the wire, translated to one exception that holds a pure `Fault`.

Nothing of a request or of an answer gets into a fault: its message is the API's own error message, or the name and
the text of the transport's error.
"""

from __future__ import annotations

import email.utils
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import anthropic
import httpx2
import tenacity

from batchwise.planning.outcomes import MALFORMED, Fault, Verdict, rule_call

__all__ = ["LaneFault", "is_transient", "malformed", "retry_after", "retry_options", "server_time", "translate"]

MESSAGE_LIMIT = 500
TRIES = 4
TRY_SECONDS = 10.0

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_NO_KEY = "the client has no credentials: set ANTHROPIC_API_KEY, or give Dispatcher(client=Anthropic(api_key=...))"
_NEVER_CONNECTED = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.ProxyError,
    httpx2.UnsupportedProtocol,
)


class LaneFault(Exception):  # noqa: N818  (it reports a Fault; callers never see it)
    """A call that gave no value.

    Attributes:
        fault: What happened, as a pure value for the planning floor.
        headers: The response's headers, names in lower case; empty without a response.
    """

    def __init__(self, fault: Fault, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(fault, headers)
        self.fault = fault
        self.headers: Mapping[str, str] = headers or {}

    def __str__(self) -> str:
        status = "" if self.fault.status is None else f"{self.fault.status} "
        return f"{status}{self.fault.type}: {self.fault.message}"


def server_time(headers: Mapping[str, str]) -> datetime | None:
    """Return the `Date` header in UTC; None if it is missing or no date."""
    return _http_date(headers.get("date"))


def _http_date(text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (ValueError, IndexError, OverflowError):
        return None
    return moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment.astimezone(timezone.utc)


def retry_after(headers: Mapping[str, str]) -> timedelta | None:
    """Return how long the API asks us to wait; a date is measured against the server's own clock."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if 0 <= seconds <= 10**9:  # neither nan nor inf
            return timedelta(seconds=seconds)
    until, now = _http_date(headers.get("retry-after")), server_time(headers)
    return None if until is None or now is None else max(until - now, timedelta(0))


def malformed(what: str, *, status: int | None, headers: Mapping[str, str]) -> LaneFault:
    """Return the fault of an answer that is not what the API documents. `what` must not quote the answer."""
    return LaneFault(Fault(status=status, type=MALFORMED, message=what), headers)


def translate(error: Exception, *, sent_whole: bool = True) -> LaneFault:
    """Return the fault that an exception of the SDK or of its transport stands for.

    Args:
        error: What the call raised.
        sent_whole: False if the body is known not to have been given to the transport whole.

    Raises:
        Exception: `error` itself, if it is neither the SDK's nor the transport's: a bug, or the caller's own.
    """
    if isinstance(error, anthropic.APIStatusError):
        return _of_status(error, sent_whole=sent_whole)
    if isinstance(error, anthropic.APIResponseValidationError):
        return malformed(
            "the answer is not what the API documents",
            status=error.status_code,
            headers=_lower(error.response.headers),
        )
    if isinstance(error, anthropic.APIConnectionError):
        cause = error.__cause__
        return _of_transport(cause if isinstance(cause, Exception) else error, sent_whole=sent_whole)
    if isinstance(error, (httpx2.RequestError, httpx2.StreamError, httpx2.InvalidURL)):
        return _of_transport(error, sent_whole=sent_whole)
    if isinstance(error, TypeError) and "authentication method" in str(error):
        return LaneFault(Fault(status=None, type="authentication_error", message=_NO_KEY, request_sent=False))
    if isinstance(error, anthropic.AnthropicError):
        # The SDK could not even build the request: no credentials, or they cannot be read.
        return LaneFault(
            Fault(status=None, type="authentication_error", message=_shorten(str(error)), request_sent=False)
        )
    raise error


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _shorten(text: str) -> str:
    return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 3] + "..."


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _of_status(error: anthropic.APIStatusError, *, sent_whole: bool) -> LaneFault:
    headers = _lower(error.response.headers)
    body: Any = error.body
    inner = body.get("error") if isinstance(body, Mapping) else None
    if not isinstance(inner, Mapping):
        inner = {}
    details = inner.get("details")
    status = error.status_code  # of an error event inside a stream it is the stream's own
    return LaneFault(
        Fault(
            status=status,
            type=_text(inner.get("type")) or _type_of(status),
            message=_shorten(_text(inner.get("message")) or f"HTTP {error.status_code} without an error message"),
            retry_after=retry_after(headers),
            error_code=_text(details.get("error_code")) if isinstance(details, Mapping) else None,
            request_sent=sent_whole,
        ),
        headers,
    )


def _type_of(status: int) -> str:
    if status < 400:
        return "redirect" if status >= 300 else "unknown_error"
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


def _of_transport(error: Exception, *, sent_whole: bool) -> LaneFault:
    never = isinstance(error, _NEVER_CONNECTED)
    kind = "timeout" if isinstance(error, (httpx2.TimeoutException, anthropic.APITimeoutError)) else "connection_error"
    text = _shorten(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    return LaneFault(Fault(status=None, type=kind, message=text, request_sent=sent_whole and not never))


def is_transient(error: BaseException) -> bool:
    """Whether a quick second try of an idempotent call makes sense."""
    if not isinstance(error, LaneFault):
        return False
    retryable = error.fault.type == MALFORMED or rule_call(error.fault).verdict is Verdict.RETRY
    return retryable and error.fault.type != "redirect"


_backoff = tenacity.wait_exponential(multiplier=0.5, max=4.0) + tenacity.wait_random(0, 0.5)


def _pause(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.fault.retry_after if isinstance(error, LaneFault) else None
    return _backoff(state) if asked is None else max(asked.total_seconds(), 0.1)


def retry_options() -> dict[str, Any]:
    """Return how idempotent calls are retried: up to 4 tries within 10 s; a longer `retry-after` ends it at once."""
    return {
        "retry": tenacity.retry_if_exception(is_transient),
        "stop": tenacity.stop_after_attempt(TRIES) | tenacity.stop_before_delay(TRY_SECONDS),
        "wait": _pause,
        "reraise": True,
    }
