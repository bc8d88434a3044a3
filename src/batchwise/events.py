"""What happens, as frozen values, for `Dispatcher(on_event=...)`: counts, names and times, never content.

A hook takes one event. It is called outside of transactions and locks, from whatever thread or task the thing happened
in, so it should be quick. One that raises harms nothing: its first failure is logged. Each event's `str` is the line
that the log gets; the log is `logging.getLogger("batchwise")`.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import ClassVar, Union

import attrs

from .basics.rendering import moment
from .basics.wording import human, in_requests
from .errors import printable, shown
from .models import Lane, Outcome

__all__ = [
    "Accepted",
    "AtRisk",
    "Called",
    "Collected",
    "Ended",
    "Event",
    "Hedged",
    "Missed",
    "Paced",
    "Rescued",
    "Resumed",
    "Settled",
    "Submitted",
    "Suspended",
]


def _of(job: str | None) -> str:
    return "" if job is None else f" of job {shown(job)}"


@attrs.frozen(kw_only=True)
class _Event:
    at: datetime
    """When it happened (UTC)."""
    level: ClassVar[str] = "info"
    """At which level it is logged."""


@attrs.frozen(kw_only=True)
class Accepted(_Event):
    """Requests were accepted and are durable. One that was there already is not accepted again.

    Attributes:
        job: The job's name; None: none.
        batch: How many of them go to a batch.
        sync: How many go to the sync lane.
        request: The ledger's number of a request that was dispatched by itself; None: of a bulk.
    """

    level: ClassVar[str] = "debug"
    job: str | None
    batch: int
    sync: int
    request: int | None = None

    def __str__(self) -> str:
        return (
            f"accepted {in_requests(self.batch + self.sync)}{_of(self.job)}: {self.batch:,} batch, {self.sync:,} sync"
        )


@attrs.frozen(kw_only=True)
class Submitted(_Event):
    """A batch was created.

    Attributes:
        batch: The API's id.
        requests: How many requests went with it.
        model: The model of the first of them.
        jobs: The names of their jobs; None stands for those without one.
        size: Bytes of the create call.
        sealed_at: When its requests were put together (UTC).
        expires_at: When its window ends (UTC).
    """

    batch: str
    requests: int
    model: str
    jobs: tuple[str | None, ...]
    size: int
    sealed_at: datetime
    expires_at: datetime

    def __str__(self) -> str:
        return (
            f"submitted batch {printable(self.batch)}: {in_requests(self.requests)}, {self.size:,} bytes; its window "
            f"ends at {moment(self.expires_at)}"
        )


@attrs.frozen(kw_only=True)
class Hedged(_Event):
    """A batch was created although less than its window is left to the deadline of some requests in it.

    Attributes:
        batch: The API's id.
        requests: How many requests are hedged.
    """

    batch: str
    requests: int

    def __str__(self) -> str:
        return (
            f"hedged {in_requests(self.requests)} with batch {printable(self.batch)}; a rescue before its end is "
            "planned"
        )


@attrs.frozen(kw_only=True)
class Ended(_Event):
    """The API is done with a batch; its results are collected next.

    Attributes:
        batch: The API's id.
        requests: How many requests went with it.
        model: The model of the first of its unsettled requests; empty: all are settled.
        duration: Time from its creation to its end, by the API's clock.
    """

    batch: str
    requests: int
    model: str
    duration: timedelta

    def __str__(self) -> str:
        return f"batch {printable(self.batch)} ended after {human(self.duration)}"


@attrs.frozen(kw_only=True)
class Collected(_Event):
    """A batch's results were read.

    Attributes:
        batch: The API's id.
        requests: How many requests went with it.
        settled: How many of them settled by this reading.
        missing: How many rows are still missing; the results are read again.
        model: The model of the first of its requests that were unsettled before; empty: none was.
        created_at: When it was created (UTC).
    """

    batch: str
    requests: int
    settled: int
    missing: int
    model: str
    created_at: datetime

    def __str__(self) -> str:
        missing = f"; {in_requests(self.missing)} missing, read again" if self.missing else ""
        return (
            f"collected batch {printable(self.batch)}: {self.settled:,} of {in_requests(self.requests)} "
            f"settled{missing}"
        )


@attrs.frozen(kw_only=True)
class Rescued(_Event):
    """Requests leave a batch, or the queue for one, for the sync lane, so that their deadlines are kept.

    Attributes:
        batch: The API's id; None: they were in no batch yet, or the API has not named it.
        requests: How many.
        canceled: Whether their batch is cancelled first: what it finished is used, the rest follows when it has ended.
    """

    batch: str | None
    requests: int
    canceled: bool

    def __str__(self) -> str:
        if self.canceled:
            return f"rescue: batch {printable(self.batch or '')} is cancelled for {in_requests(self.requests)} in it"
        where = "" if self.batch is None else f" of batch {printable(self.batch)}"
        return f"rescue: {in_requests(self.requests)}{where} go to the sync lane"


@attrs.frozen(kw_only=True)
class Suspended(_Event):
    """A lane is suspended: its work stays queued until the cause is mended.

    Attributes:
        lane: The lane.
        reason: Why, and what to do.
    """

    level: ClassVar[str] = "warning"
    lane: Lane
    reason: str

    def __str__(self) -> str:
        return f"the {self.lane.value} lane is suspended: {self.reason}"


@attrs.frozen(kw_only=True)
class Resumed(_Event):
    """Suspended lanes take work again.

    Attributes:
        lanes: Which.
    """

    lanes: tuple[Lane, ...]

    def __str__(self) -> str:
        return f"resumed: {', '.join(lane.value for lane in self.lanes)}"


@attrs.frozen(kw_only=True)
class Paced(_Event):
    """Calls of the sync lane wait for their turn. Told once a minute at most for each class of models.

    Attributes:
        models: The class of models.
        limit: What holds them back: `requests_per_minute`, `input_tokens_per_minute`, `output_tokens_per_minute`,
            `concurrency`, or `refusals`, after which the API asked for a pause.
        waiting: How many calls wait in this process; more may wait in the ledger.
    """

    models: str
    limit: str
    waiting: int

    def __str__(self) -> str:
        return f"the sync lane of {printable(self.models)} is paced by {self.limit}; {self.waiting:,} calls wait"


@attrs.frozen(kw_only=True)
class AtRisk(_Event):
    """Deadlines are in danger, or have passed, for more requests than before.

    Attributes:
        at_risk: As `Progress.at_risk`.
        overdue: As `Progress.overdue`.
    """

    level: ClassVar[str] = "warning"
    at_risk: int
    overdue: int

    def __str__(self) -> str:
        return (
            f"{in_requests(self.at_risk)} at risk of missing the deadline, {self.overdue:,} overdue; see that a "
            "process runs and that no lane is suspended"
        )


@attrs.frozen(kw_only=True)
class Settled(_Event):
    """Requests settled: those alike that were stored together.

    Attributes:
        job: The job's name; None: none.
        lane: The lane on which they ended.
        outcome: How they ended.
        requests: How many.
        cost: USD; what has no known price is not in it.
        saved: USD that the sync lane would have cost beyond that.
        unpriced: How many have a model whose price is unknown.
        slack: Time from now to their deadline, negative where it has passed; None: no deadline, or cancelled.
    """

    level: ClassVar[str] = "debug"
    job: str | None
    lane: Lane
    outcome: Outcome
    requests: int
    cost: Decimal
    saved: Decimal
    unpriced: int
    slack: timedelta | None

    def __str__(self) -> str:
        return f"{in_requests(self.requests)}{_of(self.job)} {self.outcome.value} on the {self.lane.value} lane"


@attrs.frozen(kw_only=True)
class Missed(_Event):
    """Requests settled without an answer in time.

    Attributes:
        job: The job's name; None: none.
        requests: How many.
        lateness: By how much; zero where they failed before their deadline.
    """

    job: str | None
    requests: int
    lateness: timedelta

    def __str__(self) -> str:
        late = f" by {human(self.lateness)}" if self.lateness else ", without an answer"
        return f"{in_requests(self.requests)}{_of(self.job)} missed the deadline{late}"


@attrs.frozen(kw_only=True)
class Called(_Event):
    """A call of the sync lane came back.

    Attributes:
        request: The ledger's number of the request.
        model: The model that was asked.
        outcome: How its request ended; None: it is tried again, or goes on.
        latency: From the call to its answer.
        error: The API's error type, or the lane's; None: an answer came.
        input_tokens: All input tokens, cached ones included; None: not told.
        output_tokens: None: not told.
    """

    level: ClassVar[str] = "debug"
    request: int
    model: str
    outcome: Outcome | None
    latency: timedelta
    error: str | None
    input_tokens: int | None
    output_tokens: int | None

    def __str__(self) -> str:
        what = "answered" if self.error is None else f"failed with {printable(self.error)}"
        return f"a call of {printable(self.model)} {what} after {self.latency / timedelta(seconds=1):.2f} s"


Event = Union[
    Accepted,
    AtRisk,
    Called,
    Collected,
    Ended,
    Hedged,
    Missed,
    Paced,
    Rescued,
    Resumed,
    Settled,
    Submitted,
    Suspended,
]
"""Every event."""
