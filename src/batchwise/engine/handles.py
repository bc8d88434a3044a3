"""The common part of tickets and jobs in both colours: what they know, and what they ask of the ledger."""

from __future__ import annotations

from datetime import datetime, timedelta
from html import escape
from itertools import takewhile

import attrs

from batchwise.basics.wording import exact
from batchwise.errors import (
    BatchwiseError,
    LaneSuspendedError,
    LedgerError,
    ResultTimeoutError,
    TicketNotFoundError,
    request_named,
    shown,
)
from batchwise.ledger.values import RequestRow, ResultRow, Which
from batchwise.models import Decision, Lane, Outcome, Progress, Status, to_latency
from batchwise.planning.custom_ids import UNSEALED, custom_id
from batchwise.results import Result

from .core import Engine
from .progress import progress, tallies
from .routes import decision_of

__all__ = ["JobView", "TicketView", "suspended"]

_PAGE = 250
"""The most results read from the ledger, and held in memory, at once."""


def suspended(engine: Engine, lane: Lane, name: str) -> LaneSuspendedError | None:
    """Return the error for callers who wait for work on this lane, if the lane is suspended; else None."""
    reason = engine.suspensions.lanes.get(lane)
    if reason is None:
        return None
    return LaneSuspendedError(f"{name}: the {lane.value} lane is suspended ({reason}). Queued work stays queued.")


def _late(engine: Engine, what: str, timeout: float | None) -> ResultTimeoutError:
    """Return the error for a caller whose timeout is over; it says what failed last, if anything did."""
    last = engine.setbacks.last
    return ResultTimeoutError(
        f"{what} not settled within {exact(timedelta(seconds=timeout or 0))}; nothing is lost, ask again"
        + ("" if last is None else f". What failed last: {last}")
    )


class TicketView:
    """One accepted request, as last known."""

    def __init__(self, engine: Engine, row: RequestRow, job: str | None, decision: Decision | None = None) -> None:
        self._engine, self._row, self._job = engine, row, job
        self._decision = decision
        self._found: Result | None = None

    @property
    def key(self) -> str:
        """The caller's key, or a generated one."""
        return self._row.key

    @property
    def job(self) -> str | None:
        """The job's name; None in the shared scope."""
        return self._job

    @property
    def custom_id(self) -> str:
        """The id of its latest attempt; each batch gives it a new one."""
        if self._found is not None:
            return self._found.custom_id
        return custom_id(self._row.key, self._row.nonce or UNSEALED, self._row.id)

    @property
    def decision(self) -> Decision:
        """The lane decided on at the dispatch, and why."""
        return self._decision if self._decision is not None else decision_of(self._row.terms)

    @property
    def status(self) -> Status:
        """The status, as last known."""
        return Status.SETTLED if self._found is not None else self._row.status

    @property
    def _called(self) -> bool:
        """Whether it was being called at the last look, so that there is nothing to submit."""
        return self._row.status is Status.IN_FLIGHT and self._row.lane is Lane.SYNC

    def _wanted(self) -> datetime:
        """Note that a caller waits for it; returns the moment at which it is submitted."""
        return self._engine.waits.add(self._engine.now(), requests=[self._row.id])

    def _settled(self) -> bool:
        """Whether it is settled, as far as can be seen now: a caller who waits looks again."""
        try:
            return self._look() is not None
        except LedgerError:
            return False

    def _look(self) -> Result | None:
        """Return its result, if it is settled; else None."""
        if self._found is None:
            for row in self._engine.ledger.results_of([self._row.id]):
                self._found = Result(row)
        return self._found

    def _read(self) -> None:
        if self._look() is None:
            self._row = self._known()
            self._look()

    def _known(self) -> RequestRow:
        ledger = self._engine.ledger
        row = ledger.rows(Which(requests=[self._row.id])).get(self._row.id)
        if row is None:
            raise TicketNotFoundError(
                f"{self._named()} is not in the ledger {ledger.name} any more: it was purged with its result"
            )
        return row

    def _held(self) -> bool:
        """Whether it certainly has not settled: this process holds its call, and it settles when that ends."""
        return self._row.terms.blocking and self._engine.queue.holds(self._row.id)

    def _ready(self) -> Result | None:
        """Return its result, or None; raises if it cannot come: the request was purged, or its lane is suspended."""
        result = self._look()
        if result is not None:
            return result
        row = self._known()
        if self._engine.suspensions.lanes:
            stuck = row.status is Status.QUEUED or (
                row.lane is Lane.BATCH and row.job in self._engine.situation.stalled
            )
            error = suspended(self._engine, row.lane, self._named()) if stuck else None
            if error is not None:
                raise error
        return result

    def _late(self, timeout: float | None) -> ResultTimeoutError:
        return _late(self._engine, f"{self._named()} was", timeout)

    def _named(self) -> str:
        return request_named(self.key, self._row.terms.model)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} key={shown(self.key)} status={self.status.value}>"


class JobView:
    """A set of requests: a named job, or those of one bulk dispatch without a name."""

    def __init__(self, engine: Engine, name: str | None, number: int) -> None:
        self._engine, self._name, self._number = engine, name, number
        self._scope = 0 if name is None else number
        """The job that the keys and costs of its requests belong to; without a name the shared scope, 0."""
        self._first = 0
        """Of a bulk without a name: the first request that was not settled at the last look; 0: not known."""

    @property
    def name(self) -> str | None:
        """The job's name; None for a bulk dispatch without one."""
        return self._name

    def __len__(self) -> int:
        """Return how many requests it has; purged ones do not count."""
        return sum(self._engine.ledger.statistics.counts(job=self._number).values())

    def __bool__(self) -> bool:
        """A job is true even if it has no requests."""
        return True

    def _page(self, after: int) -> tuple[list[ResultRow], int]:
        """Return its next settled rows after a cursor, and the cursor after them."""
        page = self._engine.ledger.results(job=self._number, after=after, limit=_PAGE)
        return page, page.cursor

    def _next_in_order(self, after: int) -> tuple[list[ResultRow], int] | None:
        """As `_next`, in the order of acceptance: up to the first request that is not settled."""
        done = False
        while numbers := self._engine.ledger.numbers(Which(job=self._number), after=after, limit=_PAGE):
            found = {row.request: row for row in self._engine.ledger.results_of(numbers, job=self._number)}
            ready = list(takewhile(found.__contains__, numbers))
            if ready:
                return [found[number] for number in ready], ready[-1]
            if done:  # it was purged
                after = numbers[0]
            elif self._waits():
                return None
            done = not done  # once more: some may have settled meanwhile
        return [], after

    def _unsettled(self) -> dict[Lane, int]:
        """Return how many of its requests are not settled, by lane; raises if a suspended lane holds all of them up."""
        counts = self._engine.ledger.statistics.counts(job=self._number)
        left: dict[Lane, int] = {}
        moving = False
        for (lane, status, _), number in counts.items():
            if status is Status.SETTLED or not number:
                continue
            left[lane] = left.get(lane, 0) + number
            sent = status is Status.IN_FLIGHT
            moving = moving or (sent and not (lane is Lane.BATCH and self._scope in self._engine.situation.stalled))
        for lane in () if moving else left:  # none of it is in flight any more
            error = suspended(self._engine, lane, f"job {shown(self._name)}")
            if error is not None:
                raise error
        return left

    def _waits(self) -> bool:
        """Whether any of its requests is not settled; raises as `_unsettled` does. Cheap, however many there are."""
        if self._name is not None or self._engine.suspensions.lanes:
            return bool(self._unsettled())
        ledger = self._engine.ledger
        if self._first and ledger.rows(Which(requests=[self._first], unsettled=True)):
            return True
        for after in dict.fromkeys((self._first, 0)):  # at last from the start: some may have been queued anew
            found = ledger.numbers(Which(job=self._number, unsettled=True), after=after, limit=1)
            if found:
                (self._first,) = found
                return True
        return False

    def _next(self, after: int) -> tuple[list[ResultRow], int] | None:
        """Return the next page; an empty one at the end; None if there are results to wait for."""
        done = False
        while True:
            rows, last = self._page(after)
            if rows or (last == after and done):
                return rows, last
            if last == after:
                if self._waits():
                    return None
                done = True  # once more: some may have settled meanwhile
            after = last

    def _wanted(self) -> datetime:
        """Note that a caller waits for it; returns when it is submitted: an unnamed bulk already is."""
        engine = self._engine
        if self._name is None:
            return engine.now()
        return engine.waits.add(engine.now(), jobs=[self._number])

    def _all_settled(self) -> bool | None:
        return None if self._waits() else True

    def _reopen(self, outcomes: tuple[Outcome, ...], latency: object) -> int:
        """Queue settled requests anew and have them sent, as after a bulk dispatch; returns how many."""
        tag = None if latency is None else to_latency(latency)
        return self._engine.accepting.reopen(self._number, outcomes, tag)

    def _progress(self) -> Progress:
        found = progress(self._engine, self._scope)
        if self._name is not None:
            return found
        counts = self._engine.ledger.statistics.counts(job=self._number)
        return attrs.evolve(found, **tallies(counts.items()))

    def _late(self, timeout: float | None) -> ResultTimeoutError:
        try:
            left = f"{sum(self._unsettled().values())} "
        except LedgerError:
            left = ""  # they cannot be counted now
        return _late(self._engine, f"{left}requests of job {shown(self._name)} were", timeout)

    def _stands(self) -> Progress | None:
        """Return its progress; None if that cannot be read, mostly because its dispatcher has ended."""
        try:
            return self._progress()
        except BatchwiseError:
            return None

    def _title(self) -> str:
        return "job without a name" if self._name is None else f"job {shown(self._name)}"

    def __str__(self) -> str:
        found = self._stands()
        return self._title() if found is None else f"{self._title()}: {found}"

    def _repr_html_(self) -> str:
        """Return its progress as HTML tables, for notebooks."""
        found = self._stands()
        return f"<p>{escape(self._title())}</p>" + ("" if found is None else found._repr_html_())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={shown(self._name)}>"
