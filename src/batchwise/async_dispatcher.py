"""`AsyncDispatcher`: batchwise over `anthropic.AsyncAnthropic`, on asyncio and trio."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .api.clients import base_url, check_client
from .api.deprecations import Deprecations
from .async_tickets import AsyncJob, AsyncTicket
from .basics.times import check_aware
from .client.tagging import Tags
from .client.transport import Shared, async_client, async_transport
from .drivers.tasks import TaskDriver, on_asyncio
from .engine.arguments import formatted, takes_one_dict, to_outcomes, to_request, to_tags
from .engine.core import Engine
from .engine.finding import find_request, job_number
from .engine.ports import AsyncPorts
from .engine.progress import progress, progress_of, report_of
from .engine.worker_threads import Threads
from .errors import ClosedDispatcherError, WrongLoopError
from .ledger.keys import StagedError
from .ledger.ledger import Ledger
from .ledger.opening import open_ledger
from .models import LatencyLike, Outcome, Policy, Progress, Report, Status, ToolUseLike
from .request import Request
from .results import Result

if TYPE_CHECKING:
    import anthropic
    import httpx2
    from typing_extensions import Self

    from .events import Event
    from .params import Params

__all__ = ["AsyncDispatcher"]


class AsyncDispatcher:
    """A `Dispatcher` whose methods are awaited, on the event loop that opened it.

    Write `async with AsyncDispatcher(...) as d:`. On asyncio, where one task opens it and another one closes it (cells
    of a notebook, fixtures), write `d = await AsyncDispatcher.open(...)` and `await d.aclose()`.

    Before it is opened and after it is closed, its methods raise `ClosedDispatcherError`. They raise `WrongLoopError`
    on another event loop, `ForkedDispatcherError` in a forked child process, and `LedgerError` if the ledger cannot be
    read or written.

    Args:
        client: An `anthropic.AsyncAnthropic`. None: one is made from the environment (`ANTHROPIC_API_KEY` and so on).
        ledger: As for `Dispatcher`. It is opened by `async with`, or by `open`.
        policy: As for `Dispatcher`.
        on_event: As for `Dispatcher`; a plain function, not a coroutine function.

    Raises:
        InvalidValueError: The client is a synchronous one, or it belongs to a platform without the Message Batches API.
    """

    def __init__(
        self,
        client: anthropic.AsyncAnthropic | None = None,
        *,
        ledger: str | os.PathLike[str] | Ledger | None = None,
        policy: Policy | None = None,
        on_event: Callable[[Event], object] | None = None,
    ) -> None:
        self._own_client = client is None
        if client is None:
            import anthropic

            client = anthropic.AsyncAnthropic()
        check_client(client, async_=True)
        self._client, self._spec, self._policy, self._on_event = client, ledger, policy, on_event
        self._own_ledger = not hasattr(ledger, "snapshot")
        self._entered: TaskDriver | None = None
        self._deprecations = Deprecations()

    # -- life -------------------------------------------------------------------------------------------------------

    @classmethod
    async def open(
        cls,
        client: anthropic.AsyncAnthropic | None = None,
        *,
        ledger: str | os.PathLike[str] | Ledger | None = None,
        policy: Policy | None = None,
        on_event: Callable[[Event], object] | None = None,
    ) -> Self:
        """Open a dispatcher without `async with`, so that another task can close it. Works on asyncio only.

        Any task of the same event loop may use it, and may close it with `aclose`.

        Args:
            client: As for `AsyncDispatcher`.
            ledger: As for `AsyncDispatcher`.
            policy: As for `AsyncDispatcher`.
            on_event: As for `AsyncDispatcher`.

        Raises:
            WrongLoopError: The event loop is trio's; use `async with` there.
            InvalidValueError: As for `AsyncDispatcher`.
            WrongWorkspaceError: The ledger belongs to another endpoint.
            LedgerError: The ledger cannot be opened.
        """
        if not on_asyncio():
            raise WrongLoopError(
                "AsyncDispatcher.open() is for asyncio; on trio, where tasks belong to the task that starts them, use "
                "`async with AsyncDispatcher(...) as d:`"
            )
        return await cls(client, ledger=ledger, policy=policy, on_event=on_event).__aenter__()

    async def aclose(self, *, finish: bool = True) -> None:
        """Close the dispatcher. It does not wait for batches. If it is closed, or was never opened, this does nothing.

        Args:
            finish: As for `Dispatcher.close`.

        Raises:
            WrongLoopError: It was opened on another event loop.
            LedgerError: The last changes could not be stored. A later process repairs that.
        """
        if self._entered is not None:
            await self._entered.close(finish=finish)

    async def __aenter__(self) -> Self:
        if self._entered is not None:
            raise ClosedDispatcherError("an AsyncDispatcher is entered once; make a new one")
        threads = Threads()
        self._ledger = await threads.run(open_ledger, self._spec)
        try:
            self._engine = await threads.run(
                Engine, self._ledger, self._policy, endpoint=base_url(self._client), on_event=self._on_event
            )
        except BaseException:
            if self._own_ledger:
                self._ledger.close()
            raise
        self._entered = TaskDriver(
            self._engine,
            AsyncPorts(self._client),
            threads,
            owns_ledger=self._own_ledger,
            close_client=self._client.close if self._own_client else None,
        )
        self._fronts = Shared(self._engine.policy, self._engine.now)
        self._entered.serve(self)
        await self._entered.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._driver.leave(finish=kind is None, spare_calls=kind is not None and issubclass(kind, Exception))

    @property
    def _driver(self) -> TaskDriver:
        if self._entered is None:
            raise ClosedDispatcherError(
                "use it under `async with AsyncDispatcher(...) as d:`, or after `d = await AsyncDispatcher.open(...)`"
            )
        return self._entered

    # -- accepting --------------------------------------------------------------------------------------------------

    @takes_one_dict
    async def dispatch(
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
    ) -> AsyncTicket:
        """Accept one request. It is durable when this method returns. See `Dispatcher.dispatch`."""
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
        return await self._accept(made, job)

    async def _accept(self, request: Request, job: str | None) -> AsyncTicket:
        self._driver.check_working()
        try:
            try:
                accepted, decision = await self._driver.together(partial(self._engine.accepting.begin, request, job))
            except StagedError:  # a bulk dispatch holds its key: let it wait in a thread, so that no other call waits
                accepted, decision = await self._driver.in_thread(self._engine.accepting.accept, request, job)
        finally:
            self._driver.call()
        if accepted.row.status is Status.QUEUED:
            self._driver.wake(self._engine.accepting.due(accepted.row))
        return AsyncTicket(self._driver, accepted.row, job, decision)

    async def dispatch_all(
        self,
        requests: Iterable[Request],
        *,
        job: str | None = None,
        latency: LatencyLike | None = None,
        tool_use: ToolUseLike | None = None,
        output_format: object = None,
    ) -> AsyncJob:
        """Accept many requests, all or none. The iterable is read in a worker thread. See `Dispatcher.dispatch_all`."""
        self._driver.check_working()
        latency, tool_use = to_tags(latency, tool_use)
        warn = self._deprecations.for_caller()
        wanted = formatted(requests, output_format)
        number = await self._driver.in_thread(self._engine.accepting.accept_all, wanted, job, latency, tool_use, warn)
        self._driver.wake()
        return AsyncJob(self._driver, job, number)

    # -- in front of the SDK ---------------------------------------------------------------------------------------

    def client(
        self, *, latency: LatencyLike | None = None, job: str | None = None, tool_use: ToolUseLike | None = None
    ) -> anthropic.AsyncAnthropic:
        """Return an SDK client whose Messages calls are dispatched. See `Dispatcher.client`."""
        self._driver.check()
        return async_client(self._client, **self._front(latency, job, tool_use))

    def transport(
        self, *, latency: LatencyLike | None = None, job: str | None = None, tool_use: ToolUseLike | None = None
    ) -> httpx2.AsyncBaseTransport:
        """Return the HTTP transport behind `client`, for programs that have HTTP requests and do not use the SDK.

        It dispatches `POST /v1/messages` under the client's base URL, and sends all other requests to the API
        unchanged.

        Args:
            latency: As for `client`.
            job: As for `client`.
            tool_use: As for `client`.

        Raises:
            InvalidValueError: An argument has a value that it cannot have.
        """
        self._driver.check()
        return async_transport(self._client, **self._front(latency, job, tool_use))

    def _front(self, latency: LatencyLike | None, job: str | None, tool_use: ToolUseLike | None) -> dict[str, Any]:
        tags = Tags(latency=latency, job=job, tool_use=tool_use)
        return {"accept": self._accept, "shared": self._fronts, "tags": tags}

    async def adopt(self, batch_id: str, *, keys: Mapping[str, str] | None = None, job: str | None = None) -> AsyncJob:
        """Collect a batch that was made without batchwise. See `Dispatcher.adopt`."""
        self._driver.check_working()
        return await self.job(await self._driver.adopt(batch_id, keys, job))

    # -- finding again ----------------------------------------------------------------------------------------------

    async def job(self, name: str) -> AsyncJob:
        """Find a job by its name. See `Dispatcher.job`."""
        self._driver.check()
        return AsyncJob(self._driver, name, await self._driver.in_thread(job_number, self._ledger, name))

    async def jobs(self) -> list[AsyncJob]:
        """List the jobs that have a name, the oldest first."""
        self._driver.check()
        found = await self._driver.in_thread(self._ledger.jobs.all)
        return [AsyncJob(self._driver, row.name, row.number) for row in found if row.name is not None]

    async def ticket(self, key: str, *, job: str | None = None) -> AsyncTicket:
        """Find a request by its key. See `Dispatcher.ticket`."""
        self._driver.check()
        return AsyncTicket(self._driver, await self._driver.in_thread(find_request, self._ledger, key, job), job)

    async def results(
        self, *, job: str | None = None, after: int | None = None, outcomes: Outcome | Iterable[Outcome] | None = None
    ) -> AsyncIterator[Result]:
        """Iterate over the results so far. See `Dispatcher.results`."""
        self._driver.check()
        wanted = to_outcomes(Outcome if outcomes is None else outcomes)
        number = None if job is None else await self._driver.in_thread(job_number, self._ledger, job)
        cursor = after or 0
        while rows := await self._driver.in_thread(self._ledger.results, job=number, after=cursor, limit=1_000):
            for result in map(Result, rows):
                if result.outcome in wanted:
                    yield result
            cursor = rows[-1].cursor

    # -- acting -----------------------------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Submit all requests that are queued for a batch now. See `Dispatcher.flush`."""
        self._driver.check_working()
        await self._driver.in_thread(self._engine.flush)
        self._driver.wake()

    async def advance(self) -> Progress:
        """Do all work that is due, then return. See `Dispatcher.advance`."""
        self._driver.check_working()
        gap = await self._driver.in_thread(self._engine.wake_gap)
        await self._driver.advance(gap)
        self._driver.raise_fatal()
        return await self._driver.in_thread(progress, self._engine, None, gap)

    async def progress(self, job: str | None = None) -> Progress:
        """Count the requests, and list the running batches. See `Dispatcher.progress`."""
        self._driver.check()
        return await self._driver.in_thread(progress_of, self._engine, job)

    async def report(self, job: str | None = None) -> Report:
        """Sum up costs, savings and deadlines of settled requests. See `Dispatcher.report`."""
        self._driver.check()
        return await self._driver.in_thread(report_of, self._engine, job)

    async def cancel(self, key: str | None = None, *, job: str | None = None) -> int:
        """Cancel one request, a job, or all unsettled requests. See `Dispatcher.cancel`."""
        self._driver.check()
        if key is not None:
            return await (await self.ticket(key, job=job)).cancel()
        number = None if job is None else await self._driver.in_thread(job_number, self._ledger, job)
        return await self._driver.cancel(job=number)

    async def resume(self) -> None:
        """Let suspended lanes take work again. See `Dispatcher.resume`."""
        self._driver.check()
        await self._driver.in_thread(self._engine.suspensions.resume)
        self._driver.wake()

    async def purge(self, *, before: datetime) -> int:
        """Delete the requests that settled before a moment. See `Dispatcher.purge`."""
        self._driver.check()
        return await self._driver.in_thread(self._ledger.purge, before=check_aware(before, "before"))
