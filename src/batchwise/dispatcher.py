"""`Dispatcher`: batchwise over `anthropic.Anthropic`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING

from .api.batches import BatchLane
from .api.clients import base_url, check_client
from .api.deprecations import Deprecations
from .api.messages import MessageLane
from .basics.times import check_aware
from .client.tagging import Tags
from .client.transport import Shared
from .client.transport import client as front
from .drivers.threads import ThreadDriver
from .engine.arguments import formatted, takes_one_dict, to_outcomes, to_request, to_tags
from .engine.core import Engine
from .engine.finding import find_request, job_number
from .engine.ports import SyncPorts
from .engine.progress import progress, progress_of, report_of
from .ledger.ledger import Ledger
from .ledger.opening import open_ledger
from .models import LatencyLike, Outcome, Policy, Progress, Report, Status, ToolUseLike
from .request import Request
from .results import Result, as_settled
from .tickets import Job, Ticket

if TYPE_CHECKING:
    import anthropic
    from typing_extensions import Self

    from .events import Event
    from .params import Params

__all__ = ["Dispatcher"]


class Dispatcher:
    """Sends each request to the lane that meets its deadline for the least money, and hands its result back.

    Everything accepted is durable: a later process goes on from the ledger. Thread-safe; not usable after a fork.

    Args:
        client: An `anthropic.Anthropic`; None makes one from the environment.
        ledger: A path, `":memory:"`, a `postgresql://` URL, or a `Ledger`; None: `$BATCHWISE_LEDGER`, else
            `.batchwise/ledger.db`.
        policy: How time is traded for money; None: the policy that the ledger keeps (the last that work was accepted
            under), else the defaults.
        on_event: Is called with each event (`batchwise.events`); quick, since work waits for it. One that raises harms
            nothing.

    Raises:
        InvalidValueError: The client is an async one, or of a platform without the Message Batches API.
        WrongWorkspaceError: The ledger belongs to another endpoint.
        LedgerError: The ledger cannot be opened.
    """

    def __init__(
        self,
        client: anthropic.Anthropic | None = None,
        *,
        ledger: str | os.PathLike[str] | Ledger | None = None,
        policy: Policy | None = None,
        on_event: Callable[[Event], object] | None = None,
    ) -> None:
        self._own_client = client is None
        if client is None:
            import anthropic

            client = anthropic.Anthropic()
        check_client(client, async_=False)
        self._client = client
        stopping = threading.Event()
        self._deprecations = Deprecations()
        self._own_ledger = not hasattr(ledger, "snapshot")
        self._ledger = open_ledger(ledger)
        try:
            self._engine = Engine(self._ledger, policy, endpoint=base_url(client), on_event=on_event)
        except BaseException:
            if self._own_ledger:
                self._ledger.close()
            raise

        def nap(seconds: float) -> None:
            stopping.wait(seconds)

        ports = SyncPorts(BatchLane(client, sleep=nap), MessageLane(client))
        self._driver = ThreadDriver(
            self._engine,
            ports,
            stopping,
            owns_ledger=self._own_ledger,
            close_client=client.close if self._own_client else None,
        )
        self._fronts = Shared(self._engine.policy, self._engine.now)
        self._driver.serve(self)

    # -- accepting --------------------------------------------------------------------------------------------------

    @takes_one_dict
    def dispatch(
        self,
        request: Request | Params,
        *,
        key: str | None = None,
        latency: LatencyLike | None = None,
        tool_use: ToolUseLike | None = None,
        betas: Sequence[str] = (),
        stream: bool = False,
        expected_output_tokens: int | None = None,
        output_format: object = None,
        labels: Mapping[str, str] | None = None,
        job: str | None = None,
    ) -> Ticket:
        """Accept one request; durable when this returns.

        Args:
            request: The JSON body of a Messages call, or a `Request`.
            key: The caller's name for it, unique within its job. The same key with the same content gives the
                existing ticket, so a script that runs again buys nothing twice.
            latency: How long the caller can wait; left out: somebody is waiting.
            tool_use: What it does with tools; None infers it.
            betas: `anthropic-beta` values.
            stream: The caller wants streaming.
            expected_output_tokens: The usual size of the answer.
            output_format: The answer keeps to this type's JSON schema; see `Request`.
            labels: Who or what it is billed to, such as `{"team": "search"}`; see `Report.by_label`.
            job: The job to append it to.

        Raises:
            InvalidRequestError: It cannot be sent as it is.
            RequestTooLargeError: It exceeds what a lane that it needs may carry.
            KeyConflictError: The key is taken by other content.
            AdmissionError: No lane can keep its deadline.
            SpendLimitError: It could pass `Policy.max_spend`.
            UnknownPriceError: There is a spend limit, and its model's price is unknown.
        """
        tags = {
            "key": key,
            "latency": latency,
            "tool_use": tool_use,
            "betas": betas,
            "stream": stream,
            "expected_output_tokens": expected_output_tokens,
            "output_format": output_format,
            "labels": labels,
        }
        made = to_request(request, tags)
        self._deprecations.for_caller()([made.model])
        return self._accept(made, job)

    def _accept(self, request: Request, job: str | None) -> Ticket:
        self._driver.check_working()
        try:
            accepted, decision = self._engine.accepting.accept(request, job)
        finally:
            served = self._driver.call()
        if accepted.row.status is Status.QUEUED:
            self._driver.wake(self._engine.accepting.due(accepted.row))
        elif not served:
            self._driver.wake()
        return Ticket(self._driver, accepted.row, job, decision)

    def dispatch_all(
        self,
        requests: Iterable[Request],
        *,
        job: str | None = None,
        latency: LatencyLike | None = None,
        tool_use: ToolUseLike | None = None,
        output_format: object = None,
    ) -> Job:
        """Accept many, whole or not at all, in bounded memory, and submit them.

        Args:
            requests: The requests; a generator is read once, in chunks.
            job: A name to find them again by, in this or a later process.
            latency: The default for requests without a latency of their own.
            tool_use: The default for requests without a tool use of their own.
            output_format: The default for requests that ask for no JSON schema of their own.

        Raises:
            BatchwiseError: What was wrong with which request; nothing of the job was accepted.
        """
        self._driver.check_working()
        latency, tool_use = to_tags(latency, tool_use)
        wanted = formatted(requests, output_format)
        number = self._engine.accepting.accept_all(wanted, job, latency, tool_use, self._deprecations.for_caller())
        self._driver.wake()
        return Job(self._driver, job, number)

    # -- in front of the SDK ---------------------------------------------------------------------------------------

    def client(
        self, *, latency: LatencyLike | None = None, job: str | None = None, tool_use: ToolUseLike | None = None
    ) -> anthropic.Anthropic:
        """The dispatcher's client, each Messages call of which is dispatched: for code that talks to the SDK.

        Its answers are the API's own messages, its errors the SDK's. Everything but Messages calls goes to the API as
        it is. A timeout that a call is given ends its wait, not its request. `batchwise.tags` says otherwise for the
        calls in a block.

        Args:
            latency: How long each call can wait, counted from the call; left out: somebody is waiting.
            job: The job that the calls are added to. Started again, a script gets the answers that are stored: the
                n-th call of the same content gets the n-th. Without a job each call is a purchase of its own.
            tool_use: What the calls do with tools; `ToolUse.PATIENT`: each turn of a loop may wait.

        Raises:
            InvalidValueError: A tag is not one.
        """
        self._driver.check()
        tags = Tags(latency=latency, job=job, tool_use=tool_use)
        return front(self._client, accept=self._accept, shared=self._fronts, tags=tags)

    def adopt(self, batch_id: str, *, keys: Mapping[str, str] | None = None, job: str | None = None) -> Job:
        """Take in a batch that was made elsewhere (a loop over the bare SDK), by its id; buys nothing.

        Its results settle in the job as those of a batch of the dispatcher's own, and their cost counts in reports and
        against `Policy.max_spend` when they do. A request gets its key when its row has been read, since the API shows
        custom_ids in results alone. The ledger does not have its prompts: rows without an answer settle as they ended,
        and none is sent again. Again, from whatever process, gives the same job.

        Args:
            batch_id: The batch's id, `msgbatch_...`.
            keys: Keys by custom_id; a row whose custom_id is not in it is found under its custom_id. A row whose key
                the job has already keeps a placeholder, `<batch_id>#<n>`. Those of the first time stand.
            job: The job's name, a new one's or that of one that is there; None: the batch's id.

        Raises:
            InvalidValueError: The batch is one of this ledger's own, or may be; it was adopted into another job; its
                results are archived (29 days after it was made); or an argument cannot be one.
            RequestFailedError: The API does not know the batch (`not_found_error`), or did not answer.
            WrongWorkspaceError: The ledger belongs to another workspace.
        """
        self._driver.check_working()
        return self.job(self._driver.adopt(batch_id, keys, job))

    # -- finding again ----------------------------------------------------------------------------------------------

    def job(self, name: str) -> Job:
        """A job by its name, from whatever process.

        Raises:
            JobNotFoundError: The ledger has none of this name.
        """
        self._driver.check()
        return Job(self._driver, name, job_number(self._ledger, name))

    def jobs(self) -> list[Job]:
        """All jobs that have a name, in the order of their beginning."""
        self._driver.check()
        return [Job(self._driver, row.name, row.number) for row in self._ledger.jobs.all() if row.name is not None]

    def ticket(self, key: str, *, job: str | None = None) -> Ticket:
        """A request by its key.

        Raises:
            TicketNotFoundError: The ledger has none.
        """
        self._driver.check()
        return Ticket(self._driver, find_request(self._ledger, key, job), job)

    def results(
        self, *, job: str | None = None, after: int | None = None, outcomes: Outcome | Iterable[Outcome] | None = None
    ) -> Iterator[Result]:
        """What has settled so far, in the order of settling; does not wait.

        Args:
            job: Of this job only.
            after: Only those behind this cursor (`Result.cursor` of the last one seen).
            outcomes: Only those that ended so; a single one, too.

        Raises:
            JobNotFoundError: The ledger has no such job.
            InvalidValueError: An outcome is none.
        """
        self._driver.check()
        wanted = to_outcomes(Outcome if outcomes is None else outcomes)
        number = None if job is None else job_number(self._ledger, job)
        return (result for result in as_settled(self._ledger, number, after or 0) if result.outcome in wanted)

    # -- acting -----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Submit what is queued for a batch now, without waiting for the cadence."""
        self._driver.check_working()
        self._engine.flush()
        self._driver.wake()

    def advance(self) -> Progress:
        """Do all that is due, and return: for cron and scripts. `Progress.next_due` says when to come again.

        It waits for uploads, readings and calls that are due, and does meanwhile what falls due.
        """
        self._driver.check_working()
        gap = self._engine.wake_gap()
        self._driver.advance(gap)
        self._driver.raise_fatal()
        return progress(self._engine, None, gap)

    def progress(self, job: str | None = None) -> Progress:
        """Where the work stands.

        Raises:
            JobNotFoundError: The ledger has no such job.
        """
        self._driver.check()
        return progress_of(self._engine, job)

    def report(self, job: str | None = None) -> Report:
        """Money and deadlines of what has settled.

        Raises:
            JobNotFoundError: The ledger has no such job.
        """
        self._driver.check()
        return report_of(self._engine, job)

    def cancel(self, key: str | None = None, *, job: str | None = None) -> int:
        """Cancel one request (`key`, in `job`), a whole job, or all that is unsettled; returns how many settled now.

        What is queued settles CANCELED at once. A batch that holds nothing else is cancelled: what it finished is
        delivered, since it is paid for. Requests in a batch with others, or in one that the API has not named yet,
        settle CANCELED at once, and what they cost is in `Report.wasted`. Sync calls that are running end by
        themselves.

        Raises:
            TicketNotFoundError: There is no such request.
            JobNotFoundError: There is no such job.
        """
        self._driver.check()
        if key is not None:
            return self.ticket(key, job=job).cancel()
        return self._driver.cancel(job=None if job is None else job_number(self._ledger, job))

    def resume(self) -> None:
        """Go on after a suspended lane's cause was mended."""
        self._driver.check()
        self._engine.suspensions.resume()
        self._driver.wake()

    def purge(self, *, before: datetime) -> int:
        """Delete what settled before then, prompts and results included; returns how many requests.

        Raises:
            InvalidValueError: `before` is no aware datetime.
        """
        self._driver.check()
        return self._ledger.purge(before=check_aware(before, "before"))

    # -- life -------------------------------------------------------------------------------------------------------

    def close(self, *, finish: bool = True) -> None:
        """End it. Does not wait for batches; harmless if it has ended.

        Args:
            finish: Send what is queued for a batch, and let sync calls end. False: end at once; what is queued stays
                queued for a later process, and calls that run are cut off.

        Raises:
            LedgerError: What is left could not be stored; a later process clears it up.
        """
        self._driver.close(finish=finish)

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._driver.closed

    def __enter__(self) -> Self:
        self._driver.check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._driver.close(finish=kind is None, spare_calls=kind is not None and issubclass(kind, Exception))
