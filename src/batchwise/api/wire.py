"""Builds requests and parses answers. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, cast
from urllib.parse import quote

import httpx2

from batchwise.basics.jsontext import UnreadableError, decode
from batchwise.errors import InvalidValueError

from .faults import LaneFault, malformed, server_time
from .types import BatchInfo, BatchStatus, Counts, Listing, Reply

__all__ = [
    "BATCHES",
    "MESSAGES",
    "Body",
    "batch_path",
    "create_options",
    "is_encoded",
    "list_options",
    "message_options",
    "parse_batch",
    "parse_listing",
    "quick_options",
    "reply",
    "results_options",
    "streamed",
]

BATCHES = "/v1/messages/batches"
MESSAGES = "/v1/messages"
WORKSPACE = "anthropic-workspace-id"
UPLOAD_TIMEOUT = 600.0
"""Seconds that one write of a create call may stall, at least: 256 MB pass slow lines and busy proxies."""
QUICK_TIMEOUT = 60.0
"""Seconds that an answer of a few hundred bytes may take, at most: a hung poll must not outlast a deadline."""


# requests


def _options(timeout: object, headers: dict[str, str] | None = None, params: Mapping[str, object] | None = None) -> Any:
    """Return the options of a call: no retries by the SDK, and no redirects, which would carry the key elsewhere."""
    options: dict[str, Any] = {"max_retries": 0, "follow_redirects": False, "timeout": timeout}
    if headers:
        options["headers"] = headers
    if params:
        options["params"] = params
    return options


def _beta_header(betas: tuple[str, ...]) -> dict[str, str]:
    return {"anthropic-beta": ",".join(betas)} if betas else {}


def create_options(client: Any, length: int, betas: tuple[str, ...]) -> Any:
    """Return the options of a create call whose body has `length` bytes."""
    base = httpx2.Timeout(client.timeout)
    write = None if base.write is None else max(base.write, UPLOAD_TIMEOUT)
    timeout = httpx2.Timeout(connect=base.connect, read=base.read, write=write, pool=base.pool)
    return _options(timeout, {"Content-Length": str(length), **_beta_header(betas)})


def quick_options(client: Any, params: Mapping[str, object] | None = None) -> Any:
    """Return the options of a call with a small answer: retrieve, cancel, list."""
    base = httpx2.Timeout(client.timeout)
    read = QUICK_TIMEOUT if base.read is None else min(base.read, QUICK_TIMEOUT)
    timeout = httpx2.Timeout(connect=base.connect, read=read, write=base.write, pool=base.pool)
    return _options(timeout, params=params)


def list_options(client: Any, limit: int, after_id: str | None) -> Any:
    """Return the options of a list call."""
    return quick_options(client, {"limit": limit} if after_id is None else {"limit": limit, "after_id": after_id})


def results_options(client: Any) -> Any:
    """Return the options of a results call. It asks for plain lines: to decompress them costs more than it saves."""
    return _options(client.timeout, {"Accept": "application/x-jsonl", "Accept-Encoding": "identity"})


def message_options(client: Any, betas: tuple[str, ...]) -> Any:
    """Return the options of a Messages call."""
    return _options(client.timeout, _beta_header(betas))


def batch_path(remote_id: str, *tail: str) -> str:
    """Return the path of one batch on the client's own endpoint; what could change the path is quoted.

    Raises:
        InvalidValueError: The id consists of dots, which would change the path all the same.
    """
    if remote_id.strip(".") == "":
        raise InvalidValueError(f"remote_id={remote_id!r} is no batch's id")
    return "/".join((BATCHES, quote(remote_id, safe=""), *tail))


class Body(bytes):
    """A call's body. The SDK logs its repr at DEBUG, which must not show the prompt."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"

    __str__ = __repr__


def streamed(body: bytes) -> Body:
    """Return the body of the same call, streamed: the encoded object with one more field."""
    return Body(body.rstrip()[:-1] + b',"stream":true}')


# answers


def headers_of(response: httpx2.Response) -> dict[str, str]:
    """Return the response's headers, names in lower case."""
    return dict(response.headers.items())  # to look up one header searches all of them


def _object(response: httpx2.Response) -> dict[str, Any]:
    try:
        value = decode(response.content)
    except UnreadableError:
        value = None
    if not isinstance(value, dict):
        raise malformed("the answer is no JSON object", status=response.status_code, headers=headers_of(response))
    return value


def _malformed_batch(response: httpx2.Response) -> LaneFault:
    return malformed("the answer describes no batch", status=response.status_code, headers=headers_of(response))


_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)")


def moment(text: str) -> datetime:
    """Return an RFC 3339 time in UTC; digits after the microsecond are dropped.

    Raises:
        ValueError: The text is no such time.
    """
    match = _MOMENT.fullmatch(text)
    if match is None:
        raise ValueError("not an RFC 3339 time")
    day, clock, fraction, zone = match.groups()
    zone = "+00:00" if zone in "Zz" else zone
    micros = ((fraction or "") + "000000")[:6]
    return datetime.fromisoformat(f"{day}T{clock}.{micros}{zone}").astimezone(timezone.utc)


def _maybe_moment(text: str | None) -> datetime | None:
    return None if text is None else moment(text)


def _batch(value: Any, time: datetime | None, workspace: str | None) -> BatchInfo:
    status = value["processing_status"]
    name = value["id"]
    named = isinstance(name, str) and name and name.isprintable()  # with a NUL, no database would take it
    if not named or status not in {"in_progress", "canceling", "ended"}:
        raise ValueError("not a batch")
    counts = value["request_counts"]
    return BatchInfo(
        id=name,
        status=cast("BatchStatus", status),
        counts=Counts(
            processing=int(counts["processing"]),
            succeeded=int(counts["succeeded"]),
            errored=int(counts["errored"]),
            canceled=int(counts["canceled"]),
            expired=int(counts["expired"]),
        ),
        created_at=moment(value["created_at"]),
        expires_at=moment(value["expires_at"]),
        ended_at=_maybe_moment(value.get("ended_at")),
        archived_at=_maybe_moment(value.get("archived_at")),
        server_time=time,
        workspace=workspace,
    )


_WRONG = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


def _maybe_batch(value: Any, time: datetime | None, workspace: str | None) -> BatchInfo | None:
    """Return the batch that an entry of a listing describes; None if the entry cannot be read."""
    try:
        return _batch(value, time, workspace)
    except _WRONG:
        return None


def parse_batch(response: httpx2.Response) -> BatchInfo:
    """Return the batch that a response describes.

    Raises:
        LaneFault: It describes none.
    """
    value = _object(response)
    try:
        return _batch(value, server_time(response.headers), response.headers.get(WORKSPACE))
    except _WRONG:
        pass
    raise _malformed_batch(response)


def parse_listing(response: httpx2.Response) -> Listing:
    """Return a page of the list.

    Raises:
        LaneFault: The response is no such page.
    """
    value = _object(response)
    time, workspace = server_time(response.headers), response.headers.get(WORKSPACE)
    try:
        found = [_maybe_batch(item, time, workspace) for item in value["data"]]
        has_more, last_id = bool(value["has_more"]), value.get("last_id")
    except _WRONG:
        pass
    else:
        batches = tuple(info for info in found if info is not None)
        return Listing(
            batches=batches,
            unknown=len(found) - len(batches),
            has_more=has_more,
            last_id=last_id if isinstance(last_id, str) else None,
            server_time=time,
            workspace=workspace,
        )
    raise malformed("the answer is no list of batches", status=response.status_code, headers=headers_of(response))


def reply(response: httpx2.Response, body: bytes, seconds: float) -> Reply:
    """Return a message together with what the response's headers say."""
    headers = headers_of(response)
    return Reply(
        body=body,
        headers=headers,
        latency=timedelta(seconds=seconds),
        workspace=headers.get(WORKSPACE),
    )


def is_encoded(response: httpx2.Response) -> bool:
    """Whether the body is compressed, although `results_options` asks for plain lines."""
    return response.headers.get("content-encoding", "identity").strip().lower() not in {"", "identity"}
