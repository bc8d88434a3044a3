"""`Dispatcher`: batchwise over `anthropic.Anthropic`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING

from .api.clients import base_url, check_client
from .api.deprecations import Deprecations
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

    Accepted requests are durable: after a crash, a later process continues from the ledger. A dispatcher is
    thread-safe. After a fork, the child process has to make its own.

    After `close`, all other methods raise `ClosedDispatcherError`. Every method raises `ForkedDispatcherError` in a
    forked child process, and `LedgerError` if the ledger cannot be read or written.

    Args:
        client: An `anthropic.Anthropic`. None: one is made from the environment (`ANTHROPIC_API_KEY` and so on).
        ledger: A path, `":memory:"`, a `postgresql://` URL, or a `Ledger`. None: `$BATCHWISE_LEDGER`, else
            `.batchwise/ledger.db`.
        policy: How time is traded for money. None: the policy that the ledger keeps, which is the last one that work
            was accepted under; in a new ledger, the defaults.
        on_event: A function that is called with each event (`batchwise.events`). It should return at once, because
            work waits for it. If it raises, the error is logged and work goes on.

    Raises:
        InvalidValueError: The client is an async one, or it belongs to a platform without the Message Batches API.
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
        own_client = client is None
        if client is None:
            import anthropic

            client = anthropic.Anthropic()
        check_client(client, async_=False)
        self._client = client
        stopping = threading.Event()
        self._deprecations = Deprecations()
        own_ledger = not hasattr(ledger, "snapshot")
        self._ledger = open_ledger(ledger)
        try:
            self._engine = Engine(self._ledger, policy, endpoint=base_url(client), on_event=on_event)
        except BaseException:
            if own_ledger:
                self._ledger.close()
            raise
        self._driver = ThreadDriver(
            self._engine,
            SyncPorts(client, sleep=stopping.wait),
            stopping,
            owns_ledger=own_ledger,
            close_client=client.close if own_client else None,
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
        """Accept one request. It is durable when this method returns.

        Args:
            request: The JSON body of a Messages call, or a `Request`.
            key: Your name for the request, unique within its job. A second dispatch with the same key and the same
                content returns the existing ticket, so a script that runs again buys nothing twice.
            latency: How long you can wait for the answer. None: somebody is waiting for it now (`Latency.BLOCKING`).
            tool_use: What the request does with tools. None: it is inferred from the params, and never as PATIENT.
            betas: Values for the header `anthropic-beta`.
            stream: Whether you want the answer as a stream. Only the sync lane can stream.
            expected_output_tokens: The usual length of the answer in tokens, for forecasts of cost and time.
            output_format: A type; the answer has to keep to its JSON schema. See `Request`.
            labels: Who or what the request is billed to, such as `{"team": "search"}`. See `Report.by_label`.
            job: The name of the job that the request is added to. None: it belongs to no job.

        Raises:
            InvalidRequestError: The request cannot be sent as it is; the message says why.
            RequestTooLargeError: The request is larger than a lane that it needs can take.
            KeyConflictError: The key belongs to a request with other content.
            AdmissionError: No lane can keep the deadline.
            SpendLimitError: The request could bring the cost above `Policy.max_spend`.
            UnknownPriceError: `Policy.max_spend` is set, and the price of the model is unknown.
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
        """Accept many requests, all or none of them, in bounded memory, and submit them.

        Args:
            requests: The requests. A generator is read once, in chunks.
            job: A name by which this process, or a later one, finds the requests again. A name that exists already
                gets the new requests added.
            latency: The latency of requests that have none of their own.
            tool_use: The tool use of requests that have none of their own.
            output_format: The type whose JSON schema answers have to keep to, for requests without a schema of their
                own.

        Raises:
            BatchwiseError: One of the requests cannot be accepted, for the reasons that `dispatch` lists. The message
                names the request. None was accepted.
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
        """Return an SDK client whose Messages calls are dispatched: for code that uses the SDK already.

        It is a copy of the dispatcher's client. Its answers are the API's own messages, and its errors are the SDK's.
        All other calls go to the API unchanged. The timeout of a call ends the wait, not the request: that stays in
        the ledger. Inside a block of `batchwise.tags`, the tags of that block replace the arguments given here.

        Args:
            latency: How long each call can wait, counted from the call. None: somebody is waiting.
            job: The job that the calls are added to. When the script runs again, its calls get the stored answers:
                the n-th call with the same content gets the n-th answer. Without a job, each call is bought anew.
            tool_use: What the calls do with tools. With `ToolUse.PATIENT`, each turn of a loop may wait for a batch.

        Raises:
            InvalidValueError: An argument has a value that it cannot have.
        """
        self._driver.check()
        tags = Tags(latency=latency, job=job, tool_use=tool_use)
        return front(self._client, accept=self._accept, shared=self._fronts, tags=tags)

    def adopt(self, batch_id: str, *, keys: Mapping[str, str] | None = None, job: str | None = None) -> Job:
        """Collect a batch that was made without batchwise (by a loop over the bare SDK, say). This buys nothing.

        The results settle in the job like those of any batch. When they settle, their cost counts in reports and
        towards `Policy.max_spend`. A request gets its key when its result has been read, because the API shows
        custom_ids only in results. The ledger does not have the prompts, so a row without an answer settles as it
        ended, and is never sent again. A second call with the same id, from any process, returns the same job.

        Args:
            batch_id: The id of the batch, `msgbatch_...`.
            keys: The key for each custom_id. A row whose custom_id is not in it has its custom_id as its key. A row
                whose key the job has already keeps a placeholder as its key, `<batch_id>#<n>`. Only the keys of the
                first call count.
            job: The name of a new or an existing job. None: the id of the batch.

        Raises:
            InvalidValueError: The batch was made by this ledger, or may have been; it was adopted into another job;
                its results are archived (29 days after it was made); or an argument has an impossible value.
            RequestFailedError: The API does not know the batch (`not_found_error`), or did not answer.
            WrongWorkspaceError: The ledger belongs to another workspace.
        """
        self._driver.check_working()
        return self.job(self._driver.adopt(batch_id, keys, job))

    # -- finding again ----------------------------------------------------------------------------------------------

    def job(self, name: str) -> Job:
        """Find a job by its name, whichever process made it.

        Raises:
            JobNotFoundError: The ledger has no job of this name.
        """
        self._driver.check()
        return Job(self._driver, name, job_number(self._ledger, name))

    def jobs(self) -> list[Job]:
        """List the jobs that have a name, the oldest first."""
        self._driver.check()
        return [Job(self._driver, row.name, row.number) for row in self._ledger.jobs.all() if row.name is not None]

    def ticket(self, key: str, *, job: str | None = None) -> Ticket:
        """Find a request by its key.

        Args:
            key: The key that the request was dispatched with.
            job: The name of its job. None: the request belongs to no job.

        Raises:
            TicketNotFoundError: There is no request with this key in this job, or no such job.
        """
        self._driver.check()
        return Ticket(self._driver, find_request(self._ledger, key, job), job)

    def results(
        self, *, job: str | None = None, after: int | None = None, outcomes: Outcome | Iterable[Outcome] | None = None
    ) -> Iterator[Result]:
        """Iterate over the results so far, in the order in which they settled. Does not wait for more.

        Args:
            job: The name of a job; only its results are returned. None: all results.
            after: A cursor (`Result.cursor` of the last result seen); only later results are returned.
            outcomes: An outcome, or several; only results with one of these are returned.

        Raises:
            JobNotFoundError: The ledger has no such job.
            InvalidValueError: One of `outcomes` is not an `Outcome`.
        """
        self._driver.check()
        wanted = to_outcomes(Outcome if outcomes is None else outcomes)
        number = None if job is None else job_number(self._ledger, job)
        return (result for result in as_settled(self._ledger, number, after or 0) if result.outcome in wanted)

    # -- acting -----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Submit all requests that are queued for a batch now, before their cadence would."""
        self._driver.check_working()
        self._engine.flush()
        self._driver.wake()

    def advance(self) -> Progress:
        """Do all work that is due, then return: for cron and scripts. `Progress.next_due` says when to call it again.

        It submits, polls, collects and rescues what is due. It returns when the uploads, the downloads and the calls
        have ended, and does what becomes due in the meantime. It does not wait for batches to end.

        Raises:
            WrongWorkspaceError: The ledger belongs to another workspace.
        """
        self._driver.check_working()
        gap = self._engine.wake_gap()
        self._driver.advance(gap)
        self._driver.raise_fatal()
        return progress(self._engine, None, gap)

    def progress(self, job: str | None = None) -> Progress:
        """Count the requests by status and outcome, list the running batches, and say when work is due next.

        Sends nothing and changes nothing.

        Args:
            job: The name of a job. None: all work in the ledger.

        Raises:
            JobNotFoundError: The ledger has no such job.
        """
        self._driver.check()
        return progress_of(self._engine, job)

    def report(self, job: str | None = None) -> Report:
        """Sum up what settled requests cost and saved, and how many deadlines they met.

        Args:
            job: The name of a job. None: all work in the ledger.

        Raises:
            JobNotFoundError: The ledger has no such job.
        """
        self._driver.check()
        return report_of(self._engine, job)

    def cancel(self, key: str | None = None, *, job: str | None = None) -> int:
        """Cancel one request, a whole job, or all unsettled requests.

        Queued requests settle CANCELED at once. A batch whose requests are all to be cancelled is cancelled at the
        API; what it has finished by then is delivered, because it is paid for. Requests that share a batch with
        others, or whose batch has no id yet, settle CANCELED at once, and their cost is in `Report.wasted`. Running
        sync calls are not interrupted.

        Args:
            key: The key of one request, in `job` or in no job. None: the whole job.
            job: The name of a job. With `key=None`, None means all unsettled requests.

        Returns:
            How many requests settled by this call.

        Raises:
            TicketNotFoundError: There is no such request.
            JobNotFoundError: There is no such job.
        """
        self._driver.check()
        if key is not None:
            return self.ticket(key, job=job).cancel()
        return self._driver.cancel(job=None if job is None else job_number(self._ledger, job))

    def resume(self) -> None:
        """Let suspended lanes take work again. Call it when the cause, such as a wrong API key, is fixed."""
        self._driver.check()
        self._engine.suspensions.resume()
        self._driver.wake()

    def purge(self, *, before: datetime) -> int:
        """Delete the requests that settled before a moment, with their prompts and results.

        Args:
            before: The moment, as an aware datetime.

        Returns:
            How many requests were deleted.

        Raises:
            InvalidValueError: `before` is not an aware datetime.
        """
        self._driver.check()
        return self._ledger.purge(before=check_aware(before, "before"))

    # -- life -------------------------------------------------------------------------------------------------------

    def close(self, *, finish: bool = True) -> None:
        """Close the dispatcher. It does not wait for batches. A second call does nothing.

        Args:
            finish: True: first submit what is queued for a batch, and let running sync calls end. False: close at
                once; queued requests stay queued for a later process, and running calls are cut off.

        Raises:
            LedgerError: The last changes could not be stored. A later process repairs that.
        """
        self._driver.close(finish=finish)

    @property
    def closed(self) -> bool:
        """Whether the dispatcher is closed."""
        return self._driver.closed

    def __enter__(self) -> Self:
        self._driver.check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._driver.close(finish=kind is None, spare_calls=kind is not None and issubclass(kind, Exception))
