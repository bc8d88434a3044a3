"""What happens, as frozen values, for `Dispatcher(on_event=...)`: counts, names and times, never content.

The function given as `on_event` is called with one event at a time, outside of transactions and locks, in the thread
or task in which the event happened. Work waits for it, so it should return at once. If it raises, work goes on, and
the first error is logged. The `str` of an event is the line that is written to `logging.getLogger("batchwise")`.
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
    """The level of its line in the log."""


@attrs.frozen(kw_only=True)
class Accepted(_Event):
    """New requests were accepted and are durable. Requests that the ledger had already are not among them.

    Attributes:
        job: The name of their job. None: they are in no job.
        batch: How many of them go to a batch.
        sync: How many of them go to the sync lane.
        request: The ledger's number of the request, if it was dispatched by itself. None: a bulk dispatch.
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
        requests: How many requests it has.
        model: The model of the first of them.
        jobs: The names of their jobs; None stands for requests in no job.
        size: The size of the create call in bytes.
        sealed_at: When its requests were chosen (UTC).
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
    """A batch was created although some of its requests are due before its window ends.

    Attributes:
        batch: The API's id.
        requests: How many of its requests these are.
    """

    batch: str
    requests: int

    def __str__(self) -> str:
        return (
            f"hedged {in_requests(self.requests)} with batch {printable(self.batch)}: they are due before its window "
            "ends, so a rescue is planned"
        )


@attrs.frozen(kw_only=True)
class Ended(_Event):
    """A batch ended at the API. Its results are collected next.

    Attributes:
        batch: The API's id.
        requests: How many requests it has.
        model: The model of the first of its unsettled requests. Empty: all are settled.
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
    """The results of a batch were read.

    Attributes:
        batch: The API's id.
        requests: How many requests it has.
        settled: How many of them settled by this reading.
        missing: How many results are still missing. If there are any, the results are read again.
        model: The model of the first of its requests that were unsettled before. Empty: none was.
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
    """Requests are moved to the sync lane from a batch, or from the queue for one, so that their deadlines are kept.

    Attributes:
        batch: The API's id. None: they were in no batch yet, or its id is unknown.
        requests: How many requests.
        canceled: Whether their batch is cancelled first. Then the rows that it has finished are used, and only the
            rest is moved, when the batch has ended.
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
    """A lane was suspended. Its work stays queued until somebody fixes the cause.

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
    """Calls of the sync lane wait, so that a limit is kept. At most one event a minute for each class of models.

    Attributes:
        models: The class of models that share the limit.
        limit: The limit: `requests_per_minute`, `input_tokens_per_minute`, `output_tokens_per_minute`, `concurrency`,
            or `refusals` (the API refused calls and asked for a pause).
        waiting: How many calls wait in this process. More may wait in the ledger.
    """

    models: str
    limit: str
    waiting: int

    def __str__(self) -> str:
        return f"the sync lane of {printable(self.models)} is paced by {self.limit}; {self.waiting:,} calls wait"


@attrs.frozen(kw_only=True)
class AtRisk(_Event):
    """More requests than before may miss their deadlines, or have missed them.

    Attributes:
        at_risk: As in `Progress`.
        overdue: As in `Progress`.
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
    """Requests settled. One event stands for all that settled together with the same job, lane, outcome and deadline.

    Attributes:
        job: The name of their job. None: they are in no job.
        lane: The lane on which they ended.
        outcome: How they ended.
        requests: How many requests.
        cost: What they cost, in USD, without those whose price is unknown.
        saved: How much more the sync lane would have cost, in USD.
        unpriced: How many have a model whose price is unknown.
        slack: Time from their settling to their deadline; negative: they are late. None: they have no deadline, or
            were cancelled.
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
    """Requests missed their deadline: they settled late, or without an answer.

    Attributes:
        job: The name of their job. None: they are in no job.
        requests: How many requests.
        lateness: By how much they are late; zero: they settled before their deadline, but without an answer.
    """

    job: str | None
    requests: int
    lateness: timedelta

    def __str__(self) -> str:
        late = f" by {human(self.lateness)}" if self.lateness else ", without an answer"
        return f"{in_requests(self.requests)}{_of(self.job)} missed the deadline{late}"


@attrs.frozen(kw_only=True)
class Called(_Event):
    """A call of the sync lane was answered, or failed.

    Attributes:
        request: The ledger's number of the request.
        model: The model that was called.
        outcome: How the request ended. None: it has not ended; it is called again.
        latency: Time from the call to its answer or its error.
        error: The type of the error, as the API or batchwise words it. None: an answer came.
        input_tokens: All input tokens, cached ones included. None: unknown.
        output_tokens: Output tokens. None: unknown.
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
