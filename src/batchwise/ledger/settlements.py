"""How requests settle: once each, their costs booked in the same transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from operator import itemgetter
from typing import NamedTuple

from batchwise.errors import LedgerError
from batchwise.jsontext import decode
from batchwise.models import Outcome
from batchwise.planning.outcomes import met_deadline

from .database import Connection
from .looking import Looking
from .roll import Answer, Kind, Roll
from .rows import BATCH, IN_FLIGHT, LANE_CODES, OUTCOME_CODES, OUTCOMES, SETTLED, SYNC, from_micros, micros
from .store import Moves, Place, Row
from .values import Settlement

__all__ = ["Settlements"]

_number = itemgetter(0)
_MICROSECOND = timedelta(microseconds=1)
_SUCCEEDED = OUTCOME_CODES[Outcome.SUCCEEDED]
_INSERT_SETTLING = "INSERT INTO settling VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_RESULT = "result (seq, request, cost, saved, line)"
_SETTLE_REQUEST = "UPDATE request SET status = 2, abandoned = ? WHERE id = ?"
_TALLY = """
INSERT INTO tally (job, lane, outcome, requests, cost, saved, unpriced, met, missed, lateness, attempts, input_tokens,
    cache_tokens)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET
    requests = requests + excluded.requests, cost = cost + excluded.cost, saved = saved + excluded.saved,
    unpriced = unpriced + excluded.unpriced, met = met + excluded.met, missed = missed + excluded.missed,
    lateness = max(lateness, excluded.lateness), attempts = attempts + excluded.attempts,
    input_tokens = input_tokens + excluded.input_tokens, cache_tokens = cache_tokens + excluded.cache_tokens
"""


class _Kind(NamedTuple):
    """What results that settle together have in common."""

    job: int
    terms: int
    outcome: int
    lane: int
    attempts: int


class _OutOfDateError(Exception):
    """A roll is out of date: the transaction is given up. A savepoint would keep a copy of each changed page."""


class Settlements(Looking):
    """What has ended is settled; what comes again for it is booked as wasted."""

    def settle(
        self, settlements: Sequence[Settlement], *, now: datetime, batch: int | None = None, run: int | None = None
    ) -> int:
        """Settle, each once; see `base.Ledger.settle`.

        A success settles its request wherever that is by now: it is paid. Anything else settles it only while the
        request is where the news comes from: with `batch` still in that batch, with `run` not in flight elsewhere.
        """
        with self.database.write("settle") as db:
            return self._settle(db, settlements, now=now, batch=batch, run=run)

    def settle_answers(
        self,
        roll: Roll,
        answers: list[Answer],
        *,
        now: datetime,
        committing: Callable[[], None] | None = None,
    ) -> bool:
        """Settle answers to requests on a batch's roll; see `base.Ledger.settle_answers`."""
        rows = sorted(answers)
        if not rows:
            return True
        numbers = list(map(_number, rows))
        parts = roll.parts(rows)
        if parts is None:
            return False
        try:
            with self.database.write("settle") as db:
                self._settle_parts(db, roll, parts, now)
                for held in (parts, rows, answers):
                    held.clear()
                if committing is not None:
                    committing()
        except _OutOfDateError:
            return False
        roll.tick(numbers)
        return True

    def _settle_parts(
        self,
        db: Connection,
        roll: Roll,
        parts: Iterable[tuple[Kind, Sequence[Answer]]],
        now: datetime,
    ) -> None:
        left = db.execute("SELECT terms, sum(requests) FROM cohort WHERE batch = ? GROUP BY terms", (roll.batch,))
        if dict(left) != roll.left:
            raise _OutOfDateError
        moves = Moves(self, db, now)
        for (terms, attempts), part in parts:
            kind = _Kind(terms.job, terms.id, _SUCCEEDED, BATCH, attempts + 1)
            if not self._settle_kind(db, kind, part, batch=roll.batch, now=now):
                raise _OutOfDateError
            moves.add(Place(terms.id, BATCH, IN_FLIGHT, roll.batch, 0), -len(part), -roll.size(map(_number, part)))
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
        count = len(answers)
        first = self._last_result(db) + 1
        numbers, lines, costs, savings, tokens, cached = zip(*answers, strict=True)
        columns = range(first, first + count), numbers, costs, savings, lines
        if self.database.insert_rows(db, _RESULT, columns) != count:
            return False
        job, terms, outcome, lane, attempts = kind
        met, lateness = met_deadline(OUTCOMES[outcome], self._terms(db, terms).deadline, now)
        last = first + count - 1
        db.execute(_INSERT_SETTLING, (last, first, job, terms, outcome, lane, batch, attempts, micros(now), met))
        paid = sum(filter(None, costs))
        tally = (
            count,
            paid,
            sum(filter(None, savings)),
            costs.count(None),
            count if met else 0,
            count if met is False else 0,
            lateness // _MICROSECOND,
            count * attempts,
            sum(tokens),
            sum(cached),
        )
        db.execute(_TALLY, (job, lane, outcome, *tally))
        self._book(db, paid, now)
        return True

    def _settle(
        self,
        db: Connection,
        settlements: Sequence[Settlement],
        *,
        now: datetime,
        batch: int | None = None,
        run: int | None = None,
    ) -> int:
        rows = self._rows(db, [each.id for each in settlements])
        moves = Moves(self, db, now)
        kinds: dict[_Kind, list[Answer]] = {}
        updates: list[tuple[object, ...]] = []
        late: list[tuple[Row, Settlement]] = []
        fresh: dict[int, Settlement] = {}
        for each in sorted(settlements, key=_number):
            row = rows.get(each.id)
            if row is None:
                continue
            if row.status == SETTLED:
                late.append((row, each))
                continue
            if row.id in fresh:
                if batch is None and fresh[row.id].line != each.line:
                    late.append((row, each))
                continue
            if each.outcome is not Outcome.SUCCEEDED and _elsewhere(row, batch, run):
                continue
            fresh[row.id] = each
            outcome, lane, attempts = OUTCOME_CODES[each.outcome], LANE_CODES[each.lane], row.attempts + each.attempted
            kind = _Kind(row.job, row.terms, outcome, lane, attempts)
            answer = (each.id, each.line, each.cost, each.saved, each.input_tokens, each.cache_read_tokens)
            kinds.setdefault(kind, []).append(answer)
            if each.doubtful:
                self._book_doubt(db, self._terms(db, row.terms), 1, row.size, now)
            elif each.unseen:
                self._book_unseen(db, self._terms(db, row.terms), 1, row.size, now)
            abandoned = each.outcome is Outcome.CANCELED and _is_abandoned(each.line)
            if abandoned or not row.inside:
                updates.append((abandoned, row.id))
            moves.row(row, None)
        for kind, answers in kinds.items():
            if not self._settle_kind(db, kind, answers, batch=batch or 0, now=now):
                raise LedgerError(f"the ledger {self.name} has results of requests that are not settled")
        db.executemany(_SETTLE_REQUEST, updates)
        moves.book()
        self._book(db, sum(self._waste_of(db, *each, batch or 0) for each in late), now)
        return len(fresh)

    def _waste_of(self, db: Connection, row: Row, again: Settlement, batch: int) -> int:
        """What a second delivery for a settled request cost; 0 for the same delivery read again. Books it."""
        if not again.cost:
            return 0
        if row.result is not None:
            (line,) = db.execute("SELECT line FROM result WHERE seq = ?", (row.result,)).fetchone()
            settled_by = self._settling(db, row.result).batch
            if line == again.line or (batch and settled_by == batch):
                return 0
        if not db.execute("INSERT OR IGNORE INTO late VALUES (?, ?)", (row.id, batch)).rowcount:
            return 0
        self._book_waste(db, row.job, wasted=again.cost)
        return again.cost

    def book_stray(self, batch: int, request: int, cost: int) -> None:
        """Book a paid row of a request that had left the batch or was settled otherwise: once for each."""
        with self.database.write("book_stray") as db:
            row = self._rows(db, [request]).get(request)
            if row is not None and row.result is not None and self._settling(db, row.result).batch == batch:
                return  # the row that settled it, read again
            seen, first, last = db.execute(
                "SELECT coalesce(polled_at, sealed_at), first, last FROM batch WHERE id = ?", (batch,)
            ).fetchone()
            if row is None and not first <= request <= last:
                return  # it was never in the batch: no row of ours
            if db.execute("INSERT OR IGNORE INTO late VALUES (?, ?)", (request, batch)).rowcount:
                self._book_waste(db, 0 if row is None else row.job, wasted=cost)
                # As of the last look at the batch: there is no clock here.
                self._book(db, cost, from_micros(seen))


def _elsewhere(row: Row, batch: int | None, run: int | None) -> bool:
    """Whether the request has left the place from which this news comes."""
    if batch is not None:
        return row.status != IN_FLIGHT or row.inside != batch
    return run is not None and row.status == IN_FLIGHT and (row.lane != SYNC or row.run != run)


def _is_abandoned(line: bytes) -> bool:
    if b"abandoned" not in line:
        return False
    try:
        return bool(decode(line)["result"]["error"]["type"] == "abandoned")
    except (ValueError, KeyError, TypeError):
        return False
