"""`AsyncTicket` and `AsyncJob`: what a dispatch gives back, over the task driver."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from datetime import timedelta
from functools import partial

from .basics.jsonl import JsonLines
from .drivers.tasks import TaskDriver
from .engine.arguments import seconds, to_outcomes
from .engine.handles import JobView, TicketView
from .engine.progress import report
from .ledger.values import RequestRow, ResultRow
from .models import Decision, LatencyLike, Outcome, Progress, Report
from .results import Result

__all__ = ["AsyncJob", "AsyncTicket"]


class AsyncTicket(TicketView):
    """One accepted request."""

    def __init__(self, driver: TaskDriver, row: RequestRow, job: str | None, decision: Decision | None = None) -> None:
        super().__init__(driver.engine, row, job, decision)
        self._driver, self._owner = driver, driver.owner

    async def result(self, timeout: float | timedelta | None = None) -> Result:
        """Wait for the outcome. See `Ticket.result`."""
        limit = seconds(timeout)
        self._driver.check()
        if not self._called and not await self._driver.in_thread(self._settled):
            self._driver.wake(self._wanted())
        found = await self._driver.wait_for(self._ready, limit, self._row.id, self._held)
        if found is None:
            raise self._late(limit)
        return found

    async def refresh(self) -> AsyncTicket:
        """Read the status from the ledger again, and return the ticket itself. See `Ticket.refresh`."""
        self._driver.check()
        await self._driver.in_thread(self._read)
        return self

    async def cancel(self) -> int:
        """Cancel the request. See `Ticket.cancel`."""
        self._driver.check()
        return await self._driver.cancel(request=self._row.id)


class AsyncJob(JobView):
    """A set of requests that were dispatched together."""

    def __init__(self, driver: TaskDriver, name: str | None, number: int) -> None:
        super().__init__(driver.engine, name, number)
        self._driver, self._owner = driver, driver.owner

    async def to_jsonl(
        self, path: str | os.PathLike[str], timeout: float | timedelta | None = None, *, ordered: bool = False
    ) -> int:
        """Wait for all results and write them to a file of JSON lines. See `Job.to_jsonl`."""
        async with aclosing(self._pages(timeout, ordered=ordered)) as pages:
            with await self._driver.in_thread(JsonLines, path) as lines:
                async for rows in pages:
                    await self._driver.in_thread(lines.write, [Result(row).to_dict() for row in rows])
        return lines.lines

    async def results(
        self, timeout: float | timedelta | None = None, *, ordered: bool = False
    ) -> AsyncIterator[Result]:
        """Iterate over the results as they settle. See `Job.results`."""
        async with aclosing(self._pages(timeout, ordered=ordered)) as pages:
            async for rows in pages:
                for row in rows:
                    yield Result(row)

    async def _pages(
        self, timeout: float | timedelta | None, *, ordered: bool
    ) -> AsyncGenerator[list[ResultRow], None]:
        limit = seconds(timeout)
        self._driver.check()
        self._driver.wake(self._wanted())
        page, after = (self._next_in_order if ordered else self._next), 0
        while True:
            found = await self._driver.wait_for(partial(page, after), limit)
            if found is None:
                raise self._late(limit)
            rows, after = found
            if not rows:
                return
            yield rows

    async def progress(self) -> Progress:
        """Count the requests by status and outcome. See `Dispatcher.progress`."""
        self._driver.check()
        return await self._driver.in_thread(self._progress)

    async def wait(self, timeout: float | timedelta | None = None) -> Progress:
        """Wait until all requests have settled, and return the progress. See `Job.wait`."""
        limit = seconds(timeout)
        self._driver.check()
        self._driver.wake(self._wanted())
        if await self._driver.wait_for(self._all_settled, limit) is None:
            raise self._late(limit)
        return await self._driver.in_thread(self._progress)

    async def report(self) -> Report:
        """Sum up costs, savings and deadlines. See `Job.report`."""
        self._driver.check()
        return await self._driver.in_thread(report, self._engine, self._scope)

    async def cancel(self) -> int:
        """Cancel its unsettled requests, and return how many settled by this call. See `Dispatcher.cancel`."""
        self._driver.check()
        return await self._driver.cancel(job=self._number)

    async def retry(
        self,
        outcomes: Outcome | Iterable[Outcome] = (Outcome.FAILED, Outcome.EXPIRED, Outcome.CANCELED),
        *,
        latency: LatencyLike | None = None,
    ) -> int:
        """Queue settled requests again and submit them. See `Job.retry`."""
        self._driver.check()
        count = await self._driver.in_thread(self._reopen, to_outcomes(outcomes), latency)
        self._driver.wake()
        return count
