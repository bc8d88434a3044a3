"""`Ticket` and `Job`: what a dispatch gives back, over the thread driver."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from datetime import timedelta
from functools import partial

from .basics.jsonl import JsonLines
from .drivers.threads import ThreadDriver
from .engine.arguments import seconds, to_outcomes
from .engine.handles import JobView, TicketView
from .engine.progress import report
from .ledger.values import RequestRow
from .models import Decision, LatencyLike, Outcome, Progress, Report
from .results import Result

__all__ = ["Job", "Ticket"]


class Ticket(TicketView):
    """One accepted request."""

    def __init__(
        self, driver: ThreadDriver, row: RequestRow, job: str | None, decision: Decision | None = None
    ) -> None:
        super().__init__(driver.engine, row, job, decision)
        self._driver, self._owner = driver, driver.owner

    def result(self, timeout: float | timedelta | None = None) -> Result:
        """Wait for the outcome. If the request is queued for a batch, the wait has it submitted (`Policy.linger`).

        Args:
            timeout: Seconds, or a `timedelta`. None: no limit.

        Raises:
            ResultTimeoutError: The request did not settle in time. Nothing is lost: call it again.
            TicketNotFoundError: The request was purged before this ticket had seen its result.
            LaneSuspendedError: The lane is suspended, so the request cannot settle until the cause is fixed.
        """
        limit = seconds(timeout)
        self._driver.check()
        if not self._called and not self._settled():
            self._driver.wake(self._wanted())
        found = self._driver.wait_for(self._ready, limit, self._row.id, self._held)
        if found is None:
            raise self._late(limit)
        return found

    def refresh(self) -> Ticket:
        """Read the status from the ledger again, and return the ticket itself.

        Raises:
            TicketNotFoundError: The request was purged before this ticket had seen its result.
        """
        self._driver.check()
        self._read()
        return self

    def cancel(self) -> int:
        """Cancel the request. See `Dispatcher.cancel` for what becomes of a request that is in a batch.

        Returns:
            1 if the request settled by this call, else 0.
        """
        self._driver.check()
        return self._driver.cancel(request=self._row.id)


class Job(JobView):
    """A set of requests that were dispatched together."""

    def __init__(self, driver: ThreadDriver, name: str | None, number: int) -> None:
        super().__init__(driver.engine, name, number)
        self._driver, self._owner = driver, driver.owner

    def results(self, timeout: float | timedelta | None = None, *, ordered: bool = False) -> Iterator[Result]:
        """Iterate over the results as they settle, each once, in bounded memory. Ends when all have settled.

        Args:
            timeout: The longest wait for the next result, in seconds or as a `timedelta`. None: no limit.
            ordered: False: in the order in which the requests settle. True: in the order in which they were accepted;
                then an unsettled request holds back the results of those after it.

        Raises:
            ResultTimeoutError: No further result came in time. Nothing is lost: call it again.
            LaneSuspendedError: A lane is suspended, and none of the job's unsettled requests can go on without it.
        """
        limit = seconds(timeout)
        self._driver.check()
        return self._stream(limit, ordered=ordered)

    def to_jsonl(
        self, path: str | os.PathLike[str], timeout: float | timedelta | None = None, *, ordered: bool = False
    ) -> int:
        """Wait for all results and write them to a file, one line of JSON (`Result.to_dict()`) for each.

        The file is complete or absent: a file of this name is replaced when all results are on the disk. Only its
        owner can read it.

        Args:
            path: The file.
            timeout: As for `results`.
            ordered: As for `results`.

        Returns:
            How many results were written.

        Raises:
            OSError: The file cannot be written.
            ResultTimeoutError: As for `results`.
            LaneSuspendedError: As for `results`.
        """
        found = self.results(timeout, ordered=ordered)
        with JsonLines(path) as lines:
            lines.write(map(Result.to_dict, found))
        return lines.lines

    def _stream(self, timeout: float | None, *, ordered: bool) -> Iterator[Result]:
        self._driver.wake(self._wanted())
        page, after = (self._next_in_order if ordered else self._next), 0
        while True:
            found = self._driver.wait_for(partial(page, after), timeout)
            if found is None:
                raise self._late(timeout)
            rows, after = found
            if not rows:
                return
            yield from map(Result, rows)  # one by one, so that memory holds only those that the caller keeps

    def progress(self) -> Progress:
        """Count the requests by status and outcome. See `Dispatcher.progress`."""
        self._driver.check()
        return self._progress()

    def wait(self, timeout: float | timedelta | None = None) -> Progress:
        """Wait until all requests have settled, and return the progress.

        Args:
            timeout: Seconds, or a `timedelta`. None: no limit.

        Raises:
            ResultTimeoutError: They did not settle in time. Nothing is lost: call it again.
            LaneSuspendedError: A lane is suspended, and none of the job's unsettled requests can go on without it.
        """
        limit = seconds(timeout)
        self._driver.check()
        self._driver.wake(self._wanted())
        if self._driver.wait_for(self._all_settled, limit) is None:
            raise self._late(limit)
        return self._progress()

    def report(self) -> Report:
        """Sum up costs, savings and deadlines; of a job without a name, those of all work without a job."""
        self._driver.check()
        return report(self._engine, self._scope)

    def cancel(self) -> int:
        """Cancel its unsettled requests, and return how many settled by this call. See `Dispatcher.cancel`."""
        self._driver.check()
        return self._driver.cancel(job=self._number)

    def retry(
        self,
        outcomes: Outcome | Iterable[Outcome] = (Outcome.FAILED, Outcome.EXPIRED, Outcome.CANCELED),
        *,
        latency: LatencyLike | None = None,
    ) -> int:
        """Queue settled requests again and submit them. Their old results are dropped.

        If an error is raised, no request is queued.

        Args:
            outcomes: An outcome, or several: the requests that ended with one of these.
            latency: How long the requests can take from now on; they are routed anew. None: each keeps its deadline,
                and a deadline that has passed is dropped.

        Returns:
            How many requests were queued.

        Raises:
            AdmissionError: No lane can keep the new deadline.
            SpendLimitError: The requests could bring the cost above `Policy.max_spend`.
            UnknownPriceError: `Policy.max_spend` is set, and the price of a model is unknown.
            InvalidValueError: Some requests come from an adopted batch, so the ledger does not have their prompts.
        """
        self._driver.check()
        count = self._reopen(to_outcomes(outcomes), latency)
        self._driver.wake()
        return count
