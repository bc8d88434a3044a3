"""API errors as the sandbox answers them."""

from __future__ import annotations

from typing import Any

STATUS_BY_TYPE = {
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
}

_RETRYABLE = frozenset((408, 409, 429))


class ApiError(Exception):
    """An error answer of the API.

    Attributes:
        status: the HTTP status.
        type: the API's error type, such as `rate_limit_error`.
        message: the text for a person.
        headers: headers beside the usual ones, such as `retry-after`.
        details: the `error.details` object, or None.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        status: int | None = None,
        headers: dict[str, str] | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.type = kind
        self.message = message
        self.status = STATUS_BY_TYPE.get(kind, 500) if status is None else status
        retryable = self.status in _RETRYABLE or self.status >= 500
        self.headers = {"x-should-retry": "true" if retryable else "false", **(headers or {})}
        self.details = details

    def body(self, request_id: str | None) -> dict[str, Any]:
        """The JSON body of this error, as in an HTTP answer and in an errored row."""
        error = {"details": self.details, "type": self.type, "message": self.message}
        return {"type": "error", "error": error, "request_id": request_id}


class ConnectionDropError(Exception):
    """The server closes the connection here, without (the rest of) an answer."""


def invalid(message: str) -> ApiError:
    """A 400 `invalid_request_error`."""
    return ApiError("invalid_request_error", message)


def not_found(message: str) -> ApiError:
    """A 404 `not_found_error`."""
    return ApiError("not_found_error", message)
