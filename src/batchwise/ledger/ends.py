"""How requests end: settled once each, their costs booked in the same transaction."""

# ruff: noqa: S608 (statements are made of constants and question marks)

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from operator import itemgetter
from typing import NamedTuple

import attrs
import orjson

from batchwise.errors import LedgerError
from batchwise.models import Lane, Outcome
from batchwise.planning.state import Terms

from .base import Settlement
from .looking import Looking
from .roll import Answer, Kind, Roll
from .rows import (
    BATCH,
    IN_FLIGHT,
    LANE_CODES,
    LANES,
    OUTCOME_CODES,
    QUEUED,
    SETTLED,
    SYNC,
    canceled_line,
    decode_key,
    from_micros,
    micros,
)
from .store import CHUNK, RESULTS_BEHIND, SOME, Moves, Place, Row, insert_rows, place_of, settled_in, some

__all__ = ["Ends"]

_number = itemgetter(0)
_MICROSECOND = timedelta(microseconds=1)
_CANCELED = "it was cancelled before it was sent"
_SUCCEEDED = OUTCOME_CODES[Outcome.SUCCEEDED]
_INSERT_SETTLING = "INSERT INTO settling VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_RESULT = "INSERT OR IGNORE INTO result"
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
    met: bool | None


class _OutOfDateError(Exception):
    """A roll is out of date: the transaction is given up. A savepoint would keep a copy of each changed page."""


class Ends(Looking):
    """Settling, cancelling, and beginning anew."""

    def settle(
        self, settlements: Sequence[Settlement], *, now: datetime, batch: int | None = None, run: int | None = None
    ) -> int:
        """Settle, each once; see `base.Ledger.settle`.

        A success settles its request wherever that is by now: it is paid. Anything else settles it only while the
        request is where the news comes from: with `batch` still in that batch, with `run` not in flight elsewhere.
        """
        with self._transaction("settle") as db:
            return self._settle(db, settlements, now=now, batch=batch, run=run)

    def settle_answers(
        self,
        roll: Roll,
        answers: Iterable[Answer],
        *,
        met: Callable[[Terms], tuple[bool | None, timedelta]],
        now: datetime,
    ) -> bool:
        """Settle answers to requests on a batch's roll; see `base.Ledger.settle_answers`."""
        rows = sorted(answers)
        if not rows:
            return True
        parts = roll.parts(rows)
        if parts is None:
            return False
        try:
            with self._transaction("settle") as db:
                self._settle_parts(db, roll, parts, met, now)
        except _OutOfDateError:
            return False
        roll.tick(map(_number, rows))
        return True

    def _settle_parts(
        self,
        db: sqlite3.Connection,
        roll: Roll,
        parts: Iterable[tuple[Kind, Sequence[Answer]]],
        met: Callable[[Terms], tuple[bool | None, timedelta]],
        now: datetime,
    ) -> None:
        left = db.execute("SELECT terms, sum(requests) FROM cohort WHERE batch = ? GROUP BY terms", (roll.batch,))
        if dict(left) != roll.left:
            raise _OutOfDateError
        moves = Moves(self, db, now)
        for (terms, attempts), part in parts:
            in_time, lateness = met(terms)
            kind = _Kind(terms.job, terms.id, _SUCCEEDED, BATCH, attempts + 1, in_time)
            if not self._settle_kind(db, kind, part, lateness, batch=roll.batch, now=now):
                raise _OutOfDateError
            moves.add(Place(terms.id, BATCH, IN_FLIGHT, roll.batch, 0), -len(part), -roll.size(map(_number, part)))
        moves.book()

    def _settle_kind(
        self,
        db: sqlite3.Connection,
        kind: _Kind,
        answers: Sequence[Answer],
        lateness: timedelta,
        *,
        batch: int,
        now: datetime,
    ) -> bool:
        """Store results of one kind, in order, and book them; False: one of the requests has a result."""
        count = len(answers)
        first = self._last_result(db) + 1
        numbers, lines, costs, savings, tokens, cached = zip(*answers, strict=True)
        columns = range(first, first + count), numbers, costs, savings, lines
        if insert_rows(db, _INSERT_RESULT, columns) != count:
            return False
        job, terms, outcome, lane, attempts, met = kind
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
            0 if met else lateness // _MICROSECOND,
            count * attempts,
            sum(tokens),
            sum(cached),
        )
        db.execute(_TALLY, (job, lane, outcome, *tally))
        self._book(db, paid, now)
        return True

    def _settle(
        self,
        db: sqlite3.Connection,
        settlements: Sequence[Settlement],
        *,
        now: datetime,
        batch: int | None = None,
        run: int | None = None,
    ) -> int:
        rows = self._rows(db, [each.id for each in settlements])
        moves = Moves(self, db, now)
        kinds: dict[_Kind, list[Answer]] = {}
        lateness: dict[_Kind, timedelta] = {}
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
            kind = _Kind(row.job, row.terms, outcome, lane, attempts, each.met)
            answer = (each.id, each.line, each.cost, each.saved, each.input_tokens, each.cache_read_tokens)
            kinds.setdefault(kind, []).append(answer)
            lateness[kind] = max(each.lateness, lateness.get(kind, each.lateness))
            abandoned = each.outcome is Outcome.CANCELED and _is_abandoned(each.line)
            if abandoned or not row.inside:
                updates.append((abandoned, row.id))
            moves.row(row, None)
        for kind, answers in kinds.items():
            if not self._settle_kind(db, kind, answers, lateness[kind], batch=batch or 0, now=now):
                raise LedgerError(f"the ledger {self._name} has results of requests that are not settled")
        db.executemany(_SETTLE_REQUEST, updates)
        moves.book()
        self._book(db, sum(self._waste_of(db, *each, batch or 0) for each in late), now)
        return len(fresh)

    def _waste_of(self, db: sqlite3.Connection, row: Row, again: Settlement, batch: int) -> int:
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
        with self._transaction("book_stray") as db:
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

    def _cancel_rows(self, db: sqlite3.Connection, ids: Iterable[int], kind: str, message: str, now: datetime) -> int:
        settlements = []
        for number in ids:
            key, lane, batch, terms = db.execute(
                "SELECT key, lane, batch, terms FROM request WHERE id = ?", (number,)
            ).fetchone()
            line = canceled_line(decode_key(key), self._nonce(db, batch), number, kind, message)
            deadline = self._terms(db, terms).deadline
            # One that ends before its deadline has neither met nor missed it.
            late = now - deadline if deadline is not None and now > deadline else None
            settlements.append(
                Settlement(
                    number,
                    Outcome.CANCELED,
                    LANES[lane],
                    line,
                    0,
                    0,
                    None if late is None else False,
                    late or timedelta(0),
                    attempted=False,
                )
            )
        return self._settle(db, settlements, now=now)

    def cancel(
        self, *, request: int | None = None, job: int | None = None, now: datetime
    ) -> tuple[int, tuple[int, ...]]:
        """Settle what is queued (one request, a job, or all) as CANCELED.

        Returns how many, and the batches in which other rows of it still are.
        """
        values: tuple[int, ...]
        if request is not None:
            what, values = "id = ?", (request,)
        elif job is not None:
            what, values = (
                "terms IN (SELECT c.terms FROM cohort c JOIN terms t ON t.id = c.terms WHERE t.job = ?)",
                (job,),
            )
        else:
            what, values = "terms IN (SELECT terms FROM cohort)", ()
        canceled, found = 0, CHUNK
        while found == CHUNK:
            with self._transaction("cancel") as db:
                queued = db.execute(
                    f"SELECT id FROM request WHERE status = 0 AND {what} LIMIT {CHUNK}",
                    values,
                ).fetchall()
                found = len(queued)
                canceled += self._cancel_rows(db, (row[0] for row in queued), "canceled", _CANCELED, now)
        with self._reading() as db:
            if request is not None:
                row = self._rows(db, [request]).get(request)
                inside = [(row.inside,)] if row is not None and row.status != SETTLED and row.inside else []
            else:
                which = "" if job is None else " AND terms IN (SELECT id FROM terms WHERE job = ?)"
                inside = db.execute(
                    f"SELECT DISTINCT batch FROM cohort WHERE batch > 0{which} ORDER BY batch",
                    values,
                ).fetchall()
        return canceled, tuple(row[0] for row in inside)

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

        With `batch`, only those that are still in that batch. Returns how many.
        """
        with self._transaction("requeue") as db:
            rows = [
                row
                for row in self._rows(db, list(dict.fromkeys(requests))).values()
                if row.status == IN_FLIGHT and batch in {None, row.inside}
            ]
            return self._requeue(
                db,
                rows,
                lane=lane,
                costs_attempt=costs_attempt,
                now=now,
                not_before=not_before,
                doubtful=doubtful,
                turn=turn,
                body=body,
            )

    def _requeue(
        self,
        db: sqlite3.Connection,
        rows: Sequence[Row],
        *,
        lane: Lane,
        costs_attempt: bool,
        now: datetime,
        not_before: datetime | None = None,
        doubtful: bool = False,
        turn: bytes | None = None,
        body: bytes | None = None,
    ) -> int:
        earliest = 0 if not_before is None else micros(not_before)
        code = LANE_CODES[lane]
        moves = Moves(self, db, now)
        for row in rows:
            size = row.size if body is None else len(body)
            moves.add(place_of(row), -1, -row.size)
            moves.add(Place(row.terms, code, QUEUED, 0, earliest), 1, size, flush=True)  # it has waited its interval
            if doubtful:
                self._book_waste(db, row.job, doubles=1)
            if turn is not None:
                before = "NULL" if body is None else "(SELECT params FROM body WHERE id = q.id)"
                db.execute(
                    "INSERT INTO turn (request, n, line, body) "
                    f"SELECT q.id, (SELECT count(*) FROM turn WHERE request = q.id), ?, {before} FROM request q "
                    "WHERE q.id = ?",
                    (turn, row.id),
                )
            if body is not None:
                db.execute("UPDATE body SET params = ? WHERE id = ?", (body, row.id))
                db.execute("UPDATE request SET size = ? WHERE id = ?", (size, row.id))
        db.executemany(
            "UPDATE request SET status = 0, lane = ?, attempts = attempts + ?, not_before = ? WHERE id = ?",
            [(code, costs_attempt, earliest, row.id) for row in rows],
        )
        moves.book()
        return len(rows)

    def reopen(
        self, *, job: int, outcomes: Sequence[Outcome], now: datetime, requests: Sequence[int] | None = None
    ) -> int:
        """Queue a job's settled requests of these outcomes anew, attempts and paused turns forgotten.

        With `requests`, only those of them. A deadline that has passed is dropped. What they cost stays in the books.
        """
        reopened, after = 0, 0
        wanted = None if requests is None else frozenset(requests)
        codes = some(OUTCOME_CODES[outcome] for outcome in outcomes)
        while True:
            with self._transaction("reopen") as db:
                found = db.execute(
                    f"SELECT r.seq, r.request FROM {RESULTS_BEHIND} WHERE {settled_in(job)} AND s.outcome IN {SOME} "
                    f"ORDER BY s.last, r.seq LIMIT {CHUNK}",
                    (after, after, job, codes),
                ).fetchall()
                rows = self._rows(db, [each[1] for each in found if wanted is None or each[1] in wanted])
                moves = Moves(self, db, now)
                for row in rows.values():
                    self._renew(db, moves, row, self._terms(db, row.terms), now=now)
                moves.book()
            reopened += len(rows)
            if len(found) < CHUNK:
                return reopened
            after = found[-1][0]

    def _renew(
        self,
        db: sqlite3.Connection,
        moves: Moves,
        row: Row,
        terms: Terms,
        *,
        now: datetime,
        run: int = 0,
        flush: bool = False,
    ) -> None:
        """A settled request is queued as if it were new; its result goes."""
        if not run:
            # Nobody is known to wait for it, so no process's end abandons it.
            terms = attrs.evolve(terms, blocking=False)
        if terms.deadline is not None and terms.deadline <= now:
            terms = attrs.evolve(terms, deadline=None, submit_by=None, rescue_at=None)
        number = row.terms if terms == self._terms(db, row.terms) else self._store_terms(db, terms, row.job)
        lane = LANE_CODES[terms.lane]
        self._forget_result(db, row)
        size = self._forget_turns(db, row)
        db.execute(
            "UPDATE request SET terms = ?, lane = ?, status = 0, run = ?, attempts = 0, not_before = 0, "
            "abandoned = 0 WHERE id = ?",
            (number, lane, run, row.id),
        )
        moves.add(Place(number, lane, QUEUED, 0, 0), 1, size, flush=flush)

    def _forget_result(self, db: sqlite3.Connection, row: Row) -> None:
        """The result goes, and the request out of the counts; money, attempts and tokens stay in the books."""
        (cost,) = db.execute("SELECT cost FROM result WHERE seq = ?", (row.result,)).fetchone()
        how = self._settling(db, row.result or 0)
        db.execute(
            "UPDATE tally SET requests = requests - 1, unpriced = unpriced - ?, met = met - ?, missed = missed - ? "
            "WHERE job = ? AND lane = ? AND outcome = ?",
            (cost is None, how.met == 1, how.met == 0, row.job, how.lane, how.outcome),
        )
        db.execute("DELETE FROM result WHERE seq = ?", (row.result,))

    def _forget_turns(self, db: sqlite3.Connection, row: Row) -> int:
        """Paused turns go, and the body is the first one again; returns its size."""
        first = db.execute(
            "SELECT body FROM turn WHERE request = ? AND body IS NOT NULL ORDER BY n LIMIT 1", (row.id,)
        ).fetchone()
        db.execute("DELETE FROM turn WHERE request = ?", (row.id,))
        if first is None:
            return row.size
        size = len(first[0])
        db.execute("UPDATE body SET params = ? WHERE id = ?", (first[0], row.id))
        db.execute("UPDATE request SET size = ? WHERE id = ?", (size, row.id))
        return size

    def purge(self, *, before: datetime) -> int:
        """Delete what settled before then, results included; returns how many requests. The books keep their sums."""
        purged, after, found = 0, 0, CHUNK
        while found == CHUNK:
            with self._transaction("purge") as db:
                settled = db.execute(
                    f"SELECT r.seq, r.request, s.job, s.lane, s.outcome FROM {RESULTS_BEHIND} "
                    f"WHERE s.settled_at < ? ORDER BY s.last, r.seq LIMIT {CHUNK}",
                    (after, after, micros(before)),
                ).fetchall()
                found = len(settled)
                gone = [(each[1],) for each in settled]
                db.executemany("DELETE FROM result WHERE seq = ?", [(each[0],) for each in settled])
                db.executemany("DELETE FROM late WHERE request = ?", gone)
                db.executemany("DELETE FROM request WHERE id = ?", gone)
                db.executemany(
                    "UPDATE tally SET purged = purged + 1 WHERE job = ? AND lane = ? AND outcome = ?",
                    [each[2:] for each in settled],
                )
                if found < CHUNK:
                    db.execute("DELETE FROM settling WHERE settled_at < ?", (micros(before),))
            purged += found
            after = settled[-1][0] if settled else after
        if purged:
            with self._transaction("purge terms") as db:
                db.execute(
                    "DELETE FROM terms WHERE staged = 0 AND id NOT IN (SELECT terms FROM request) "
                    "AND id NOT IN (SELECT terms FROM again)"
                )
        return purged


def _elsewhere(row: Row, batch: int | None, run: int | None) -> bool:
    """Whether the request has left the place from which this news comes."""
    if batch is not None:
        return row.status != IN_FLIGHT or row.inside != batch
    return run is not None and row.status == IN_FLIGHT and (row.lane != SYNC or row.run != run)


def _is_abandoned(line: bytes) -> bool:
    if b"abandoned" not in line:
        return False
    try:
        return bool(orjson.loads(line)["result"]["error"]["type"] == "abandoned")
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return False
