"""`Progress`: how many requests are in which state, and which batches run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta

import attrs

from batchwise.basics.rendering import moment, to_html
from batchwise.basics.wording import human, in_requests
from batchwise.errors import printable

from .tags import Lane, Outcome, Status

__all__ = ["Progress", "RunningBatch", "warnings_of"]


@attrs.frozen(kw_only=True)
class RunningBatch:
    """One batch whose results have not been collected yet.

    Attributes:
        remote_id: The API's id. None: it is not known yet whether the API has the batch.
        requests: How many requests it has.
        elapsed: Time since it was created.
        expected_end: The earliest and the latest plausible end (UTC): the 10 % and 90 % points of the forecast.
        rescue_at: When a rescue would start (UTC). None: no deadline needs one.
        status: `sealed` (to be sent), `in_doubt` (its create was not answered), `in_progress`, `canceling` or `ended`.
    """

    remote_id: str | None
    requests: int
    elapsed: timedelta
    expected_end: tuple[datetime, datetime]
    rescue_at: datetime | None
    status: str


@attrs.frozen(kw_only=True)
class Progress:
    """How far a job, or all work in a ledger, has come. Counts are requests.

    Attributes:
        total: Accepted requests.
        by_status: Requests by status.
        by_outcome: Settled requests by outcome.
        by_lane: Unsettled requests by the lane that they are on now.
        batches: The batches whose results have not been collected yet.
        at_risk: Unsettled requests whose deadline is still ahead and may be missed: their rescue should have begun and
            has not, or the lanes can no longer serve them in time.
        overdue: Unsettled requests whose deadline has passed.
        suspended: The suspended lanes, each with the reason.
        next_due: When a process has to run next (UTC), so that every deadline is kept. None: nothing waits. A moment
            in the past: a process should have run then, and none did.
        last_error: The last step that failed in this process and has not worked since, how often, and when it is tried
            again (a busy database, a full disk, an API that does not answer). If there is none, the one that another
            process noted in the ledger. None: nothing has failed. It never holds content.
        last_advance: When any process last called `advance` on this ledger (UTC). None: never.
    """

    total: int
    by_status: Mapping[Status, int]
    by_outcome: Mapping[Outcome, int]
    by_lane: Mapping[Lane, int]
    batches: tuple[RunningBatch, ...] = ()
    at_risk: int = 0
    overdue: int = 0
    suspended: Mapping[Lane, str] = attrs.field(factory=dict)
    next_due: datetime | None = None
    last_error: str | None = None
    last_advance: datetime | None = None

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        by_status = ", ".join(f"{number:,} {status.value}" for status, number in self.by_status.items() if number)
        by_outcome = ", ".join(f"{number:,} {outcome.value}" for outcome, number in self.by_outcome.items() if number)
        yield f"{in_requests(self.total)}: {by_status or 'none'}"
        if by_outcome:
            yield f"outcomes: {by_outcome}"
        for batch in self.batches:
            first, last = map(moment, batch.expected_end)
            rescue = "" if batch.rescue_at is None else f", rescue at {moment(batch.rescue_at)}"
            yield (
                f"batch {printable(batch.remote_id or '(id unknown)')}: {in_requests(batch.requests)}, {batch.status} "
                f"for {human(batch.elapsed)}, expected to end between {first} and {last}{rescue}"
            )
        yield from warnings_of(self)
        if self.next_due is not None:
            yield f"next due: {moment(self.next_due)}"

    def _repr_html_(self) -> str:
        """Tables, for notebooks."""
        counts = [(status.value, f"{self.by_status.get(status, 0):,}") for status in Status]
        counts += [(outcome.value, f"{number:,}") for outcome, number in self.by_outcome.items() if number]
        counts += [
            ("at risk", f"{self.at_risk:,}"),
            ("overdue", f"{self.overdue:,}"),
            ("next due", moment(self.next_due)),
        ]
        counts += [(f"the {lane.value} lane is suspended", reason) for lane, reason in self.suspended.items()]
        if self.last_error is not None:
            counts.append(("failed last", self.last_error))
        rows = [
            (
                batch.remote_id or "-",
                f"{batch.requests:,}",
                batch.status,
                human(batch.elapsed),
                moment(batch.expected_end[0]),
                moment(batch.expected_end[1]),
                moment(batch.rescue_at),
            )
            for batch in self.batches
        ]
        head = "batch", "requests", "status", "runs for", "ends from", "ends by", "rescue at"
        return to_html(counts, in_requests(self.total)) + (to_html(rows, head=head) if rows else "")

    @property
    def settled(self) -> int:
        """How many requests have settled."""
        return self.by_status.get(Status.SETTLED, 0)

    @property
    def done(self) -> bool:
        """Whether every accepted request has settled."""
        return self.settled == self.total


def warnings_of(progress: Progress) -> Iterator[str]:
    """Yield a line for each thing that somebody should look at."""
    for lane, reason in progress.suspended.items():
        yield f"suspended: the {lane.value} lane: {printable(reason)}"
    if progress.at_risk:
        yield f"at risk: {in_requests(progress.at_risk)} may miss their deadline"
    if progress.overdue:
        yield f"overdue: {in_requests(progress.overdue)} not settled after the deadline"
    if progress.last_error is not None:
        yield f"failed last: {printable(progress.last_error)}"
