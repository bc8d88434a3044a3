"""How requests settle: once each, their costs booked in the same transaction."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from operator import itemgetter
from typing import NamedTuple

import attrs

from batchwise.basics.jsontext import decode
from batchwise.errors import LedgerError
from batchwise.models import Outcome
from batchwise.planning.deadline_risk import punctuality
from batchwise.planning.outcomes import was_cut
from batchwise.planning.state import Terms

from .books import Books, Place, most_of, place_of
from .database import Connection, Database
from .open_rows import Answer, Cached, Kind, OpenRows
from .records import Records, Row
from .rows import BATCH, IN_FLIGHT, LANE_CODES, LANES, OUTCOME_CODES, OUTCOMES, SETTLED, SYNC, micros
from .sharing import Call, SharedCommit
from .values import Settlement, Sum

__all__ = ["Settlements"]

_number = itemgetter(0)
_SUMS = 10_000
"""The most sums that wait for `take_sums`; older ones are dropped."""
_MICROSECOND = timedelta(microseconds=1)
_SUCCEEDED = OUTCOME_CODES[Outcome.SUCCEEDED]
_INSERT_GROUP = "INSERT INTO result_group VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_RESULT = "result (seq, request, cost, saved, cache_saved, line)"
_SETTLE_REQUEST = "UPDATE request SET status = 2, abandoned = ? WHERE id = ?"
_TALLY = """
INSERT INTO tally (job, lane, outcome, requests, cost, saved, unpriced, met, missed, lateness, attempts, input_tokens,
    cache_tokens, truncated, cache_written, cache_saved)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (job, lane, outcome) DO UPDATE SET
    requests = tally.requests + excluded.requests,
    cost = plus(tally.cost, excluded.cost), saved = plus(tally.saved, excluded.saved),
    unpriced = tally.unpriced + excluded.unpriced,
    met = tally.met + excluded.met, missed = tally.missed + excluded.missed,
    lateness = CASE WHEN excluded.lateness > tally.lateness THEN excluded.lateness ELSE tally.lateness END,
    attempts = tally.attempts + excluded.attempts,
    input_tokens = tally.input_tokens + excluded.input_tokens,
    cache_tokens = tally.cache_tokens + excluded.cache_tokens,
    truncated = tally.truncated + excluded.truncated,
    cache_written = tally.cache_written + excluded.cache_written,
    cache_saved = plus(tally.cache_saved, excluded.cache_saved)
"""
_LABEL = """
INSERT INTO label (job, name, value, cost) VALUES (?, ?, ?, ?)
ON CONFLICT (job, name, value) DO UPDATE SET cost = plus(label.cost, excluded.cost)
"""


class _Kind(NamedTuple):
    """What results that settle together have in common."""

    job: int
    terms: int
    outcome: int
    lane: int
    attempts: int


class _OutOfDateError(Exception):
    """Open rows are out of date: the transaction is rolled back. A savepoint would keep a copy of each changed page."""


@attrs.define(eq=False)
class _Ended(Call):
    """The end of a call on the sync lane."""

    settlement: Settlement
    now: datetime
    run: int
    shared: bool = False
    """Whether other calls were in its transaction."""


class Settlements:
    """Settles requests, and books as wasted what is paid for a request a second time."""

    def __init__(self, database: Database, records: Records, books: Books) -> None:
        self._database, self._records, self._books = database, records, books
        self._shared: SharedCommit[_Ended] = SharedCommit(database, "settle", self._settle_calls)
        self._unannounced: list[Sum] = []
        """The sums of the open transaction, which is not durable yet."""
        self._sums: deque[Sum] = deque(maxlen=_SUMS)
        database.done.append(self._announce_sums)
        database.undone.append(self._unannounced.clear)

    def _announce_sums(self) -> None:
        self._sums.extend(self._unannounced)
        self._unannounced.clear()

    def take_sums(self) -> list[Sum]:
        """Return what this process has settled since the last call, so that it can be announced."""
        found: list[Sum] = []
        with suppress(IndexError):  # another thread may take the last one
            while True:
                found.append(self._sums.popleft())
        return found

    def settle(
        self, settlements: Sequence[Settlement], *, now: datetime, batch: int | None = None, run: int | None = None
    ) -> int:
        """Settle each request once. Another answer, later, changes nothing; its cost is booked as wasted, once a batch.

        With `batch`, these are rows of that batch. Books in the same transaction what they cost and whether they met
        their deadlines (`punctuality`). Returns how many settled. Those of one call settle by groups (`ResultGroup`),
        each in the order of their numbers.

        A success settles its request wherever that is by now: it is paid. Any other outcome settles the request only
        if that is still where the outcome comes from: with `batch` in that batch, with `run` not in flight elsewhere.
        If it is not, the cost of the outcome is booked as wasted.
        """
        with self._database.write("settle") as db:
            return self.settle_within(db, settlements, now=now, batch=batch, run=run)

    def begin_settle(self, settlement: Settlement, *, now: datetime, run: int) -> Callable[[], None]:
        """Begin to settle the end of one of the run's calls, as `settle` does. Calls that end together share a commit.

        Returns a function that waits for the commit; it has to be called.
        """
        call = _Ended(settlement, now, run)
        self._shared.ask(call)
        return partial(self._call_settled, call)

    def _call_settled(self, call: _Ended) -> None:
        self._shared.carry_out(call)
        if call.error is not None:
            if not call.shared:
                raise call.error
            self.settle([call.settlement], now=call.now, run=call.run)  # the fault may be another's

    def _settle_calls(self, db: Connection, calls: list[_Ended]) -> None:
        for call in calls:
            call.shared = len(calls) > 1
        for call in calls:
            self.settle_within(db, [call.settlement], now=call.now, run=call.run)

    def settle_answers(
        self,
        open_rows: OpenRows,
        answers: Sequence[Answer],
        *,
        now: datetime,
    ) -> bool:
        """Settle answers to requests among a batch's open rows, and tick them off; returns whether it did.

        The usual end of a bulk, at a fraction of what `settle` costs: no request is read again. If any has left the
        batch since the open rows were read, or has other terms, nothing is done: use `settle`.
        """
        rows = sorted(answers)
        if not rows:
            return True
        parts = open_rows.parts(rows)
        if parts is None:
            return False
        try:
            with self._database.write("settle") as db:
                self._settle_parts(db, open_rows, parts, now)
        except _OutOfDateError:
            return False
        open_rows.tick(map(_number, rows))
        return True

    def _settle_parts(
        self,
        db: Connection,
        open_rows: OpenRows,
        parts: Iterable[tuple[Kind, Sequence[Answer]]],
        now: datetime,
    ) -> None:
        left = db.execute("SELECT terms, sum(requests) FROM cohort WHERE batch = ? GROUP BY terms", (open_rows.batch,))
        if dict(left) != open_rows.left:
            raise _OutOfDateError
        moves = self._books.moves(db, now)
        for (terms, attempts), part in parts:
            kind = _Kind(terms.job, terms.id, _SUCCEEDED, BATCH, attempts + 1)
            if not self._settle_kind(db, kind, part, batch=open_rows.batch, now=now):
                raise _OutOfDateError
            place = Place(terms.id, BATCH, IN_FLIGHT, open_rows.batch)
            moves.settle(place, len(part), open_rows.size(map(_number, part)))
        moves.book()

    def _settle_kind(
        self,
        db: Connection,
        kind: _Kind,
        answers: Sequence[Answer],
        *,
        batch: int,
        now: datetime,
    ) -> bool:
        """Store results of one kind, in order, and book them; False: one of the requests has a result."""
        numbers, lines, costs, savings, tokens, cached = zip(*answers, strict=True)
        used = [each for each in cached if each is not None]  # hardly ever any
        gained = [0 if each is None else each[2] for each in cached] if used else 0
        count, first = len(answers), self._records.last_result(db) + 1
        columns = range(first, first + count), numbers, costs, savings, gained, lines
        if not self._database.insert_rows(db, _RESULT, columns):
            return False
        job, terms, outcome, lane, attempts = kind
        about = self._records.terms(db, terms)
        met, lateness = punctuality(OUTCOMES[outcome], about.deadline, now)
        last = first + count - 1
        db.execute(_INSERT_GROUP, (last, first, job, terms, outcome, lane, batch, attempts, micros(now), met))
        summed = Sum(
            job=self._records.job_name(db, job),
            lane=LANES[lane],
            outcome=OUTCOMES[outcome],
            requests=count,
            cost=sum(filter(None, costs)),
            saved=sum(filter(None, savings)),
            unpriced=costs.count(None),
            deadline=about.deadline,
            met=met,
            lateness=lateness,
        )
        self._unannounced.append(summed)
        _count(db, kind, summed, tokens=sum(tokens), used=used, cut=sum(map(was_cut, lines)))
        for label in about.labels:
            db.execute(_LABEL, (job, *label, str(summed.cost)))
        if about.prefix and batch and used:
            self._books.note_hits(db, about, batch, used, now)
        self._books.spend(db, summed.cost, now)
        self._books.note_prices(db, now)
        if summed.unpriced:
            without = [number for number, cost in zip(numbers, costs, strict=True) if cost is None]
            self._book_unpriced(db, about, without, lane=lane, now=now)
        return True

    def _book_unpriced(
        self, db: Connection, about: Terms, requests: Sequence[int], *, lane: int, now: datetime
    ) -> None:
        """Count against the spend limit the most that answers without a price cost, if there is a limit."""
        if about.max_cost_each or about.max_cost_per_byte:
            size = sum(row.size for row in self._records.rows(db, requests).values())
            self._books.waste(db, about.job, now, unseen=most_of(about, len(requests), size, lane=lane))

    def settle_within(
        self,
        db: Connection,
        settlements: Sequence[Settlement],
        *,
        now: datetime,
        batch: int | None = None,
        run: int | None = None,
    ) -> int:
        """The same as `settle`, within a transaction."""
        rows = self._records.rows(db, [each.id for each in settlements])
        known = [(row, each) for each in sorted(settlements, key=_number) if (row := rows.get(each.id)) is not None]
        fresh, late = _sorted_out(known, batch, run)
        moves = self._books.moves(db, now)
        kinds: dict[_Kind, list[Answer]] = {}
        updates: list[tuple[object, ...]] = []
        for row, each in fresh:
            outcome, lane, attempts = OUTCOME_CODES[each.outcome], LANE_CODES[each.lane], row.attempts + each.attempted
            kind = _Kind(row.job, row.terms, outcome, lane, attempts)
            answer = (each.id, each.line, each.cost, each.saved, each.input_tokens, each.cached)
            kinds.setdefault(kind, []).append(answer)
            self._book_doubt(db, row, each, now)
            abandoned = each.outcome is Outcome.CANCELED and _is_abandoned(each.line)
            if abandoned or not row.inside:
                updates.append((abandoned, row.id))
            moves.settle(place_of(row), 1, row.size)
        for kind, answers in kinds.items():
            if not self._settle_kind(db, kind, answers, batch=batch or 0, now=now):
                raise LedgerError(f"the ledger {self._database.name} has results of requests that are not settled")
        db.executemany(_SETTLE_REQUEST, updates)
        moves.book()
        for row, each in late:
            self._book_repeat(db, each.id, row, each.line, each.cost or 0, batch=batch or 0, now=now)
        return len(fresh)

    def _book_doubt(self, db: Connection, row: Row, end: Settlement, now: datetime) -> None:
        """Book what a request may have cost that ended without an answer; see also `_book_unpriced`."""
        most = 0
        if (end.maybe_billed or end.unseen) and end.cost is not None:
            most = self._books.most_unseen(db, self._records.terms(db, row.terms), row)
        self._books.waste(db, row.job, now, possible_doubles=int(end.maybe_billed), unseen=most)

    def book_stray(self, batch: int, request: int, line: bytes, cost: int, *, now: datetime) -> None:
        """Book a paid row of a request that had left the batch or was settled otherwise: once for each batch.

        The request itself may have been purged.
        """
        with self._database.write("book_stray") as db:
            first, last = db.execute("SELECT first, last FROM batch WHERE id = ?", (batch,)).fetchone()
            row = self._records.rows(db, [request]).get(request)
            if row is not None or first <= request <= last:  # else it was never in the batch
                self._book_repeat(db, request, row, line, cost, batch=batch, now=now)

    def _book_repeat(
        self, db: Connection, request: int, row: Row | None, line: bytes, cost: int, *, batch: int, now: datetime
    ) -> None:
        """Book as wasted what an answer cost that does not settle its request, unless that answer is on record.

        On record is the answer that settled the request, and each one after which it went on.
        """
        if not cost or _is_turn(db, request, line):
            return
        if row is not None and row.result is not None:
            (stored,) = db.execute("SELECT line FROM result WHERE seq = ?", (row.result,)).fetchone()
            settled_by = self._records.result_group(db, row.result).batch
            if stored == line or (batch and settled_by == batch):
                return
        if db.execute("INSERT INTO late VALUES (?, ?) ON CONFLICT DO NOTHING", (request, batch)).rowcount:
            self._books.waste(db, 0 if row is None else row.job, now, wasted=cost)


def _count(db: Connection, kind: _Kind, summed: Sum, *, tokens: int, used: Sequence[Cached], cut: int) -> None:
    """Add what settled together to the sums of its job, lane and outcome.

    Args:
        db: The open transaction.
        kind: What it has in common.
        summed: Its sums.
        tokens: Tokens sent.
        used: What used the prompt cache.
        cut: How many answers were cut off.
    """
    reads, writes, gains = zip(*used, strict=True) if used else ((), (), ())
    tally = (
        summed.requests,
        str(summed.cost),
        str(summed.saved),
        summed.unpriced,
        summed.requests if summed.met else 0,
        summed.requests if summed.met is False else 0,
        summed.lateness // _MICROSECOND,
        summed.requests * kind.attempts,
        tokens,
        sum(reads),
        cut,
        sum(writes),
        str(sum(gains)),
    )
    db.execute(_TALLY, (kind.job, kind.lane, kind.outcome, *tally))


_Ends = list[tuple[Row, Settlement]]


def _sorted_out(known: Iterable[tuple[Row, Settlement]], batch: int | None, run: int | None) -> tuple[_Ends, _Ends]:
    """The ends that settle their requests, and those that come again or too late, whose cost is wasted.

    A success settles its request wherever that is by now. Anything else does where it comes from there.
    """
    fresh: dict[int, tuple[Row, Settlement]] = {}
    late: _Ends = []
    for row, each in known:
        if row.status == SETTLED:
            late.append((row, each))
        elif row.id in fresh:  # a batch's row that stands twice in what was read of it is one row
            if batch is None and fresh[row.id][1].line != each.line:
                late.append((row, each))
        elif each.outcome is Outcome.SUCCEEDED or not _elsewhere(row, batch, run):
            fresh[row.id] = row, each
        else:
            late.append((row, each))
    return list(fresh.values()), late


def _elsewhere(row: Row, batch: int | None, run: int | None) -> bool:
    """Whether the request has left the place from which this outcome comes."""
    if batch is not None:
        return row.status != IN_FLIGHT or row.inside != batch
    return run is not None and row.status == IN_FLIGHT and (row.lane != SYNC or row.run != run)


def _is_turn(db: Connection, request: int, line: bytes) -> bool:
    """Whether this is the turn after which the request went on, read again."""
    found = db.execute("SELECT EXISTS (SELECT 1 FROM turn WHERE request = ? AND line = ?)", (request, line))
    return bool(found.fetchone()[0])


def _is_abandoned(line: bytes) -> bool:
    if b"abandoned" not in line:
        return False
    try:
        return bool(decode(line)["result"]["error"]["type"] == "abandoned")
    except (ValueError, KeyError, TypeError):
        return False
