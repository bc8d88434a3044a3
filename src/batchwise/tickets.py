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
        """Wait for its outcome; what it waits for is submitted.

        Args:
            timeout: Seconds or a `timedelta`; None waits as long as it takes.

        Raises:
            ResultTimeoutError: It was not settled in time. Nothing is lost.
            TicketNotFoundError: It was purged, unless its result was seen.
            LaneSuspendedError: Its lane is suspended, so it cannot be settled before that is mended.
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
        """Look at the ledger again; returns itself. A result that it has seen stays.

        Raises:
            TicketNotFoundError: It was purged, unless its result was seen.
        """
        self._driver.check()
        self._read()
        return self

    def cancel(self) -> int:
        """Cancel it; returns 1 if it settled now.

        What is queued, or in a batch with others, settles CANCELED at once; what it cost there is in `Report.wasted`.
        If it is alone in its batch, the batch is cancelled, and delivers what it finished. A sync call that is running
        ends by itself.
        """
        self._driver.check()
        return self._driver.cancel(request=self._row.id)


class Job(JobView):
    """A set of requests that were dispatched together."""

    def __init__(self, driver: ThreadDriver, name: str | None, number: int) -> None:
        super().__init__(driver.engine, name, number)
        self._driver, self._owner = driver, driver.owner

    def results(self, timeout: float | timedelta | None = None, *, ordered: bool = False) -> Iterator[Result]:
        """Its results as they settle, each once, in bounded memory; ends when all are settled.

        Args:
            timeout: Seconds or a `timedelta` to wait for the next result; None waits as long as it takes.
            ordered: In the order in which the requests were accepted: one that is not settled holds back those behind.

        Raises:
            ResultTimeoutError: No further result came in time. Nothing is lost.
            LaneSuspendedError: A lane is suspended, and nothing of the job is on its way any more.
        """
        limit = seconds(timeout)
        self._driver.check()
        return self._stream(limit, ordered=ordered)

    def to_jsonl(
        self, path: str | os.PathLike[str], timeout: float | timedelta | None = None, *, ordered: bool = False
    ) -> int:
        """Write its results to a file of JSON lines, each a `Result.to_dict()`; returns how many.

        The file is there whole or not at all: what was under its name is replaced when all results are on the disk.
        Only its owner can read it.

        Args:
            path: The file.
            timeout: As for `results`.
            ordered: As for `results`.

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
        page, after = self._paged(ordered=ordered)
        while True:
            found = self._driver.wait_for(partial(page, after), timeout)
            if found is None:
                raise self._late(timeout)
            rows, after = found
            if not rows:
                return
            yield from map(Result, rows)  # made one by one: what the caller has let go is gone

    def progress(self) -> Progress:
        """Where it stands."""
        self._driver.check()
        return self._progress()

    def wait(self, timeout: float | timedelta | None = None) -> Progress:
        """Wait until all of it is settled.

        Raises:
            ResultTimeoutError: It was not in time. Nothing is lost.
            LaneSuspendedError: A lane is suspended, and nothing of the job is on its way any more.
        """
        limit = seconds(timeout)
        self._driver.check()
        self._driver.wake(self._wanted())
        if self._driver.wait_for(self._all_settled, limit) is None:
            raise self._late(limit)
        return self._progress()

    def report(self) -> Report:
        """Money and deadlines of what has settled of it; without a name, of all work without a job."""
        self._driver.check()
        return report(self._engine, self._scope)

    def cancel(self) -> int:
        """Cancel what is unsettled of it; returns how many settled now."""
        self._driver.check()
        return self._driver.cancel(job=self._number)

    def retry(
        self,
        outcomes: Outcome | Iterable[Outcome] = (Outcome.FAILED, Outcome.EXPIRED, Outcome.CANCELED),
        *,
        latency: LatencyLike | None = None,
    ) -> int:
        """Queue its settled requests of these outcomes anew; returns how many. Their old results are dropped.

        Args:
            outcomes: Those that ended so; a single one, too.
            latency: How long they can take from now on, by which they are routed anew; None: their deadlines stand, and
                one that has passed is dropped.

        Raises:
            AdmissionError: No lane can keep the new deadline; none of them is queued.
            SpendLimitError: They could pass `Policy.max_spend`; none of them is queued.
            UnknownPriceError: There is a spend limit, and the price of one's model is unknown.
            InvalidValueError: Some are of an adopted batch, whose prompts the ledger does not have; none is queued.
        """
        self._driver.check()
        count = self._reopen(to_outcomes(outcomes), latency)
        self._driver.wake()
        return count
