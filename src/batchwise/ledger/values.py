"""The values that the ledger takes and returns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple, Union

import attrs

from batchwise.models import Labels, Lane, Outcome, Status
from batchwise.planning.state import Terms

from .open_rows import Cached

__all__ = [
    "EVERYTHING",
    "Accepted",
    "Claim",
    "Counts",
    "Entry",
    "JobRow",
    "MaxSpend",
    "Offer",
    "Page",
    "RequestRow",
    "ResultGroup",
    "ResultRow",
    "Settlement",
    "Streak",
    "Suspension",
    "Turn",
    "Which",
]


class Entry(NamedTuple):
    """One request to accept. `key` None: a generated one. `terms` need not be stored yet (id 0)."""

    key: str | None
    body: bytes
    terms: Terms


@attrs.frozen(kw_only=True)
class MaxSpend:
    """`Policy.max_spend`: what was spent since `since`, and what is reserved for unsettled work, may not pass `limit`.

    Attributes:
        limit: Pico-USD.
        since: None: from the first request on.
    """

    limit: int
    since: datetime | None = None


class RequestRow(NamedTuple):
    """One accepted request."""

    id: int
    key: str
    job: int
    terms: Terms
    lane: Lane
    status: Status
    attempts: int
    nonce: str | None
    """The nonce of the batch that it is in or was last in; None: never sealed."""
    result: int | None
    """The cursor of its result."""
    turns: tuple[bytes, ...] = ()
    """Result lines of the messages after which it went on, in their order: paused turns and refusals."""


@attrs.frozen(kw_only=True)
class Which:
    """A selection of requests: those that meet all given conditions."""

    requests: Sequence[int] | None = None
    """Their numbers."""
    key: str | None = None
    job: int | None = None
    """The number of their job; 0: the shared scope."""
    batch: int | None = None
    """The batch that they are in, not settled."""
    terms: Sequence[int] | None = None
    unsettled: bool = False


EVERYTHING = Which()
"""All requests."""


class Turn(NamedTuple):
    """A message after which a request goes on: a paused turn, or a refusal."""

    line: bytes
    """As a result line."""
    body: bytes | None = None
    """The body with which the request goes on; None: the same body."""
    asked: Sequence[str] = ()
    """The models asked, the next one included; none: as before."""


class Offer(NamedTuple):
    """One request to accept alone, for one run."""

    entry: Entry
    job: str | None
    """The name of its job; None: the shared scope."""
    run: int
    now: datetime
    claims: list[Claim] | None = None
    """If it is a list, a new request starts on the run's sync lane at once, and its claim is added to the list."""
    max_spend: MaxSpend | None = None


class Accepted(NamedTuple):
    """The outcome of one entry."""

    row: RequestRow
    created: bool


class Claim(NamedTuple):
    """One request handed to the sync lane of a run."""

    id: int
    key: str
    terms: Terms
    body: bytes
    attempts: int
    turns: tuple[bytes, ...]
    """Result lines of the messages after which the request went on, in their order: paused turns and refusals."""
    calls: int = 0
    """How many of its attempts were calls."""


class Settlement(NamedTuple):
    """One request's outcome."""

    id: int
    outcome: Outcome
    lane: Lane
    line: bytes
    """The result as a JSON line in the shape of a batch result, whatever the lane."""
    cost: int | None
    """pico-USD, all its attempts together; None: the model's price is unknown."""
    saved: int | None
    input_tokens: int = 0
    cached: Cached | None = None
    """Its use of the prompt cache."""
    attempted: bool = True
    """Whether this outcome came from one more attempt (False: unsent, abandoned, cancelled in the queue)."""
    maybe_billed: bool = False
    """Its last attempt brought no answer, and may have been billed: a possible double."""
    unseen: bool = False
    """It may still be billed: the most that it can cost counts against a spend limit."""


class Sum(NamedTuple):
    """The sum of requests that settled together in one transaction of this process."""

    job: str | None
    lane: Lane
    outcome: Outcome
    requests: int
    cost: int
    """pico-USD, those of unknown price left out."""
    saved: int
    unpriced: int
    deadline: datetime | None
    met: bool | None
    lateness: timedelta


class ResultGroup(NamedTuple):
    """The common fields of requests that settled together."""

    job: str | None
    outcome: Outcome
    lane: Lane
    attempts: int
    nonce: str | None
    """The nonce of the batch that it was in last; None: never sealed."""
    deadline: datetime | None
    settled_at: datetime
    met: bool | None
    """The result of `punctuality` when they settled."""
    betas: tuple[str, ...]
    labels: Labels = ()
    adopted: bool = False
    """Whether its batch was made elsewhere."""


class ResultRow(NamedTuple):
    """One settled request with its outcome."""

    cursor: int
    request: int
    key: str
    line: bytes
    cost: int | None
    saved: int | None
    cache_saved: int
    """pico-USD that the prompt cache saved; negative: it cost more."""
    how: ResultGroup
    ordinal: int | None = None
    """How many requests of its job were accepted before it; None: it is in the shared scope."""


class Page(list[ResultRow]):
    """Results in the order of settling.

    Args:
        rows: The results.
        cursor: The cursor after the last of them; if there are no more yet, after all settled results.
    """

    def __init__(self, rows: Iterable[ResultRow], cursor: int) -> None:
        super().__init__(rows)
        self.cursor = cursor


class Streak(NamedTuple):
    """Failures in a row."""

    times: int
    since: datetime


class Suspension(NamedTuple):
    """The outcome of an order to suspend a lane."""

    done: bool
    news: bool
    """Whether this reason is new."""
    resumes: int
    """How often lanes were resumed so far."""


Counts = Counter[tuple[Lane, Status, Union[Outcome, None]]]
"""Counts of requests by lane, status and outcome (None: not settled)."""


class JobRow(NamedTuple):
    """A job with the counts of its requests."""

    number: int
    name: str | None
    """None: the shared scope of requests without a job."""
    counts: Counts
