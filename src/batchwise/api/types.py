"""What the API answers: frozen values, parsed from raw JSON so that unknown fields do no harm."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Literal

import attrs

__all__ = ["BatchInfo", "BatchStatus", "Counts", "Listing", "Reply"]

BatchStatus = Literal["in_progress", "canceling", "ended"]


@attrs.frozen(kw_only=True)
class Counts:
    """A batch's `request_counts`. All are in `processing` until the whole batch has ended."""

    processing: int
    succeeded: int
    errored: int
    canceled: int
    expired: int

    @property
    def total(self) -> int:
        """How many requests the batch was created with."""
        return self.processing + self.succeeded + self.errored + self.canceled + self.expired

    @property
    def by_result(self) -> Mapping[str, int]:
        """The number of finished requests, by the type of their result."""
        return {
            "succeeded": self.succeeded,
            "errored": self.errored,
            "canceled": self.canceled,
            "expired": self.expired,
        }


@attrs.frozen(kw_only=True)
class BatchInfo:
    """What the API says of one batch, and when it said so.

    Attributes:
        id: The API's id of the batch.
        status: `in_progress`, `canceling` or `ended`.
        counts: The requests in it, by state.
        created_at: When the API accepted it, on the server's clock.
        expires_at: When its processing window ends.
        ended_at: When it ended; None while it runs.
        archived_at: When its results were archived; they cannot be read any more.
        server_time: The `Date` of the response that said all this.
        workspace: The workspace that the client's key belongs to, where the API says so.
    """

    id: str
    status: BatchStatus
    counts: Counts
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None = None
    archived_at: datetime | None = None
    server_time: datetime | None = None
    workspace: str | None = None


@attrs.frozen(kw_only=True)
class Listing:
    """One page of the list of batches, newest first.

    Attributes:
        batches: Those that can be read.
        unknown: How many entries could not be read; each may be any batch.
        has_more: Whether older ones follow.
        last_id: The id after which the next page begins.
        server_time: The response's `Date`.
        workspace: The workspace that the client's key belongs to, where the API says so.
    """

    batches: tuple[BatchInfo, ...]
    unknown: int = 0
    has_more: bool
    last_id: str | None
    server_time: datetime | None
    workspace: str | None


@attrs.frozen(kw_only=True)
class Reply:
    """The answer to one Messages call.

    Attributes:
        body: The message as JSON.
        headers: The response's headers, names in lower case.
        latency: From the start of the call to the last byte of its answer.
        workspace: The workspace that the client's key belongs to, where the API says so.
    """

    body: bytes
    headers: Mapping[str, str]
    latency: timedelta
    workspace: str | None
