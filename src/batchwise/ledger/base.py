"""The ledger's protocol: what is durable, in one colour (synchronous; async drivers reach it through a thread).

Every method is one transaction and safe to call from several threads and processes. A method that changes
something returns after it is durable. Times are aware UTC datetimes, money whole pico-USD (1e-12 USD).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from batchwise.models import Lane, Outcome, Report
from batchwise.planning.forecast import Sample
from batchwise.planning.packing import Sizes
from batchwise.planning.state import BatchView, Snapshot, Terms

from .roll import Answer, Roll
from .values import Accepted, Cap, Claim, Counts, Entry, Member, RequestRow, ResultRow, Settlement, Streak

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Intake", "Lease", "Ledger"]


class Intake(Protocol):
    """A bulk dispatch: staged in chunks, visible and durable as a whole by one `accept`, or not at all.

    As a context manager it aborts what was not accepted. Staged rows of a process that died are removed by
    `Ledger.recover`.
    """

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def stage(self, entries: Iterable[Entry]) -> int:
        """Stage some more, as many in each transaction as it should hold; returns how many.

        Raises:
            KeyConflictError: A key is taken by other content (in the ledger or earlier in this intake).
        """

    @property
    def fresh(self) -> list[tuple[Terms, int, int]]:
        """What has been staged and was not there before: terms, requests, bytes of bodies."""

    def accept(
        self,
        *,
        now: datetime,
        cap: Cap | None = None,
        flush: bool = True,
        sync: Mapping[Terms, tuple[int, Terms]] | None = None,
    ) -> Sequence[int]:
        """Accept all of it in one transaction; returns the numbers of its requests (existing ones included), in order.

        `sync`: of these terms (as staged) the last so many are queued for the sync lane instead, on other terms.

        Raises:
            SpendLimitError: It could pass the cap; all of it stays out.
        """


class Lease(Protocol):
    """A lock that dies with its process. The one who holds it does the batch actions."""

    @property
    def held(self) -> bool:
        """Whether this object holds it."""

    def acquire(self) -> bool:
        """Try, without waiting."""

    def release(self) -> None:
        """Give it up."""


class Ledger(Protocol):
    """See the module's docstring."""

    # -- life -------------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Its absolute path, or `:memory:`; for messages."""

    @property
    def lease(self) -> Lease:
        """The lock of batch actions."""

    def start_run(self, *, pid: int, now: datetime) -> int:
        """Register a dispatcher; its liveness lock dies with the process. Returns its number (over 0)."""

    def end_run(self, run: int) -> None:
        """The dispatcher is done; what it leaves unfinished is cleared up by the next `recover`."""

    def recover(self, *, now: datetime) -> int:
        """Clear up after dead runs; returns how many requests were touched.

        Staged rows go. Unsettled blocking requests (queued for the sync lane, or running) settle CANCELED with the
        error type `abandoned`. Other sync calls that ran are queued again. All that ran are counted as possible
        doubles: they may have been billed. What a clock that was ahead booked as spent or settled later than now counts
        as of now. Batches in `posting` are not touched: that is the lease holder's work (`doubt_orphans`).
        """

    def bind(self, *, endpoint: str, workspace: str | None) -> bool:
        """Remember, or check, whose ledger this is; returns whether its workspace is known.

        A workspace of None is not checked.

        Raises:
            WrongWorkspaceError: It belongs to another endpoint or workspace.
        """

    def version(self) -> int:
        """A number that changes when anything in the ledger changed, by whomever."""

    def close(self) -> None:
        """Close it and give up its locks; again is harmless."""

    # -- intake -----------------------------------------------------------------------------------------------------

    def accept(
        self,
        entry: Entry,
        *,
        job: str | None,
        run: int,
        now: datetime,
        claim: Callable[[Claim], None] | None = None,
        cap: Cap | None = None,
    ) -> Accepted:
        """Accept one request.

        With `claim` the run starts a new one on the sync lane at once, without a queue in between. It is given the
        claim just before that is durable, so that the call is prepared meanwhile, and must not use the ledger.

        The same key with the same content gives the existing row; an earlier deadline tightens it (new terms;
        where it is still queued, also their lane). An abandoned row is accepted anew. In a named job an entry
        without a key gets the first free or equal `#<position>`.

        Raises:
            KeyConflictError: The key is taken by other content.
            SpendLimitError: It could pass the cap.
        """

    def intake(self, *, job: str | None, run: int, now: datetime) -> Intake:
        """Begin a bulk dispatch. One at a time for each job; a second waits for the first to end."""

    def job_id(self, name: str) -> int | None:
        """The number of a job."""

    def job_name(self, job: int) -> str | None:
        """The name of a job."""

    # -- looking ----------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The unsettled work. Its cost does not grow with what has settled."""

    def batch(self, batch: int) -> BatchView | None:
        """A batch that is not over, as the snapshot shows it."""

    def find(self, key: str, *, job: str | None) -> RequestRow | None:
        """A request by its key."""

    def row(self, request: int) -> RequestRow | None:
        """A request by its number."""

    def results(self, *, job: int | None, after: int, limit: int) -> list[ResultRow]:
        """Settled results in the order of settling, from behind the cursor `after`; job None: of all jobs."""

    def result(self, request: int) -> ResultRow | None:
        """How a request ended; None: it has not."""

    def counts(self, *, job: int | None) -> Counts:
        """How many requests are where; job None: of all jobs."""

    def counts_of(self, requests: Sequence[int]) -> Counts:
        """The same over these requests."""

    def marks(self) -> tuple[int, int]:
        """The last request's number and the last result's cursor; 0 where there is none."""

    def report(self, *, job: int | None) -> Report:
        """Money and deadlines of what has settled; job None: of all jobs."""

    def history(self, *, limit: int = 1_000) -> Sequence[Sample]:
        """How long the last batches and cancels took."""

    # -- the sync lane ----------------------------------------------------------------------------------------------

    def claim(self, terms: int, count: int, *, run: int, now: datetime, any_lane: bool = False) -> list[Claim]:
        """Hand up to `count` requests of these terms, queued for the sync lane (or any), to the run."""

    def note_attempt(self, request: int, *, run: int, costs_attempt: bool, doubtful: bool, now: datetime) -> bool:
        """Book a failed try of a request that the run goes on with; False: it is the run's no more."""

    # -- the batch lane (lease holder only) -------------------------------------------------------------------------

    def flush(
        self,
        terms: Iterable[int] | None = None,
        *,
        requests: Iterable[int] | None = None,
        job: int | None = None,
    ) -> None:
        """Mark queued groups as waited for (all; those of these terms; those of requests; those of a job)."""

    def seal(
        self,
        terms: Sequence[int],
        *,
        nonce: str,
        taken: frozenset[int],
        now: datetime,
        max_requests: int,
        max_bytes: int,
    ) -> BatchView | None:
        """Seal queued requests of these terms, in order, into one batch of a telling count; None: nothing to seal."""

    def posting(self, batch: int, *, watermark: str | None, server: datetime | None, now: datetime) -> None:
        """Make durable that the POST may be on its way from now on."""

    def still_posting(self, batch: int) -> bool:
        """Whether the batch is in `posting` and still has all its rows: the fence before the last chunk."""

    def entries(self, batch: int) -> Iterator[tuple[int, str, bytes]]:
        """The number, key and body of each row of the batch, in order, in bounded memory; no lock is kept."""

    def created(
        self,
        batch: int,
        *,
        remote_id: str,
        created_at: datetime | None,
        expires_at: datetime | None,
        now: datetime,
    ) -> None:
        """Record that it is this one: state `open`. What `note_failure` counted is over."""

    def update_batch(self, view: BatchView, *, was: BatchView | None = None) -> bool:
        """Store the fields of a view (its groups aside); with `was`, what was read, only those that differ from it.

        With `was`, nothing is stored if the batch has another state by now and this would change it. Returns whether
        it was stored.
        """

    def known_remotes(self, remote_ids: Sequence[str]) -> frozenset[str]:
        """Which of these the ledger knows as batches of its own."""

    def adopt(
        self,
        remote_id: str,
        *,
        job: str | None,
        keys: Mapping[str, str],
        requests: int,
        terms: Terms,
        nonce: str,
        created_at: datetime,
        expires_at: datetime,
        now: datetime,
    ) -> str:
        """Take in a batch that others have made, in state `open`; returns its job's name. Again is harmless.

        Its rows are requests at once, without bodies. Each has a placeholder for a key (`<remote id>#<position>`)
        until `name_adopted` has seen its row. `keys` gives keys by custom_ids; job None: named after the batch.

        Raises:
            InvalidValueError: The batch is one of the ledger's own, or was adopted into another job.
            KeyConflictError: The placeholders are taken.
        """

    def adopted(self, remote_id: str, *, job: str | None) -> str | None:
        """The name of the job that a batch was adopted into; None: the ledger does not know the batch.

        Raises:
            InvalidValueError: The batch is one of the ledger's own, or was adopted into another job than this.
        """

    def name_adopted(self, batch: int, custom_ids: Sequence[str]) -> dict[str, int]:
        """The requests of rows of an adopted batch, by their custom_ids.

        One that has not been seen before takes the next of the batch's requests, and gives it its key: the one that
        was given for it, else its custom_id. Ids beyond the number of the batch's requests are left out.
        """

    def roll(self, batch: int) -> Roll | None:
        """The requests of a batch that are not ticked off; None for one that a roll does not suit.

        That is one of very many kinds of requests, or of requests far apart, or with paused turns in the ledger.
        """

    def members(self, batch: int, requests: Sequence[int]) -> dict[int, Member]:
        """Which of these requests are still in the batch, unsettled."""

    def unsettled(self, requests: Sequence[int]) -> dict[int, Member]:
        """Which of these requests are unsettled, wherever they are."""

    def has_turn(self, request: int, line: bytes) -> bool:
        """Whether this is one of the request's paused turns."""

    def doubt_orphans(self) -> int:
        """Put every batch in `posting` into `doubt`: for a process that has just got the lease."""

    def unseal(
        self,
        batch: int,
        *,
        lane: Lane = Lane.BATCH,
        costs_attempt: bool = False,
        not_before: datetime | None = None,
        now: datetime,
        keep: bool = False,
        doubtful: bool = False,
        terms: Sequence[int] | None = None,
    ) -> int:
        """Queue the batch's unsettled requests (of these terms) again; returns how many.

        The batch becomes `void` unless `keep`: then it stays as it is and what it may still deliver is used if it
        comes first, otherwise booked as wasted. `doubtful` counts them as possible doubles.
        """

    def move(self, terms: Sequence[int], *, lane: Lane) -> int:
        """Move queued requests of these terms to the other lane's queue."""

    # -- ends -------------------------------------------------------------------------------------------------------

    def settle(
        self,
        settlements: Sequence[Settlement],
        *,
        now: datetime,
        batch: int | None = None,
        run: int | None = None,
    ) -> int:
        """Settle, each once; one already settled is left, and its cost booked as wasted once per batch row.

        With `batch`, rows count as that batch's. Books in the same transaction what they cost and whether they met
        their deadlines (`met_deadline`). Returns how many settled. Those of one call settle kind by kind (`Settled`),
        each in the order of their numbers.
        """

    def settle_answers(
        self,
        roll: Roll,
        answers: list[Answer],
        *,
        now: datetime,
        committing: Callable[[], None] | None = None,
    ) -> bool:
        """Settle answers to requests on a batch's roll, and tick them off.

        The list is emptied, and `committing` called, just before the commit: what is left waits for the disk alone.
        They are not durable yet, and a commit that fails does not fill the list again.

        The usual end of a bulk, at a fraction of what `settle` costs: rows are not looked at again, for the roll holds
        them. False, and nothing done, if any has left the batch since the roll was read, or changed its terms: then
        `settle` looks.
        """

    def requeue(
        self,
        requests: Sequence[int],
        *,
        lane: Lane,
        costs_attempt: bool,
        now: datetime,
        not_before: datetime | None = None,
        doubtful: bool = False,
        turn: bytes | None = None,
        body: bytes | None = None,
        batch: int | None = None,
    ) -> int:
        """Queue in-flight requests again. `turn`: one paused turn's result line, with the body that continues it.

        With `batch`, only those that are still in that batch.
        """

    def missing(self, batch: int) -> list[int]:
        """The batch's rows that are not ticked off."""

    def bodies(self, requests: Sequence[int]) -> list[bytes]:
        """The encoded params of these requests, in order."""

    def book_stray(self, batch: int, request: int, cost: int) -> None:
        """Book a paid row of a request that had left the batch or was settled otherwise: once for each."""

    def cancel(
        self, *, request: int | None = None, job: int | None = None, now: datetime
    ) -> tuple[int, tuple[int, ...]]:
        """Settle what is queued (one request, a job, or all) as CANCELED.

        Returns how many, and the batches in which other rows of it still are.
        """

    def reopen(
        self,
        *,
        job: int,
        outcomes: Sequence[Outcome],
        now: datetime,
        requests: Sequence[int] | None = None,
        cap: Cap | None = None,
        reserved: Callable[[Terms], Terms] | None = None,
    ) -> int:
        """Queue a job's settled requests of these outcomes anew, on their first terms without a deadline's past.

        With `requests`, only those of them. `reserved` gives terms what a spend limit keeps for them.

        Raises:
            SpendLimitError: They could pass the cap; none of them is queued.
        """

    def suspend(self, lane: Lane, reason: str, *, now: datetime) -> None:
        """Nothing goes to this lane until `resume`."""

    def resume(self, lane: Lane | None = None, *, afresh: bool = True) -> None:
        """Let work go to this lane (None: to both) again; `afresh`: its failures are counted anew."""

    def note_failure(self, name: str, *, now: datetime) -> Streak:
        """Count a failure of the batch lane; returns how often it has been noted since a batch was created."""

    def note_advance(self, *, now: datetime) -> timedelta | None:
        """Remember that a pass began now; returns the time since the one before.

        Where the clock was set back in between, that is the time between the two passes before; None: not known.
        """

    def pause_batches(self, until: datetime | None) -> None:
        """The account's queue is full until then."""

    def note_sizes(self, sizes: Sizes) -> None:
        """Remember how many requests a batch may have from now on."""

    def set_right(self, right: Snapshot, *, now: datetime, latest: datetime) -> None:
        """Store what is believed (`planning.moments.believed`) of the lanes and queues, batches aside.

        No request has come to its place after `now`; pauses that end after `latest` are over.
        """

    def note_clock(self, offset: timedelta) -> None:
        """Remember the server's clock minus ours."""

    def note_call(self, *, now: datetime, answered: bool) -> None:
        """Remember that the sync lane answered a call, or refused it for good or did not answer."""

    def purge(self, *, before: datetime) -> int:
        """Delete what settled before then, results included; returns how many requests."""
