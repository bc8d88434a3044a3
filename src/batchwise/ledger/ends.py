"""How requests end: settled once each, their costs booked in the same transaction."""

# ruff: noqa: S608 (statements are made of constants and question marks)

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from itertools import repeat
from operator import itemgetter

import attrs
import orjson

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
from .store import CHUNK, Moves, Place, Row, insert_rows, place_of

__all__ = ["Ends"]

_number = itemgetter(0)
_MICROSECOND = timedelta(microseconds=1)
_CANCELED = "it was cancelled before it was sent"
_INSERT_RESULT = "INSERT INTO result VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_ANSWER = "INSERT OR IGNORE INTO result"
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


class Ends(Looking):
    """Settling, cancelling, and beginning anew."""

    def settle(
        self, settlements: Sequence[Settlement], *, now: datetime, batch: int | None = None, run: int | None = None
    ) -> int:
        """Settle, each once; one already settled is left, and its cost booked as wasted once per batch row.

        A success settles its request wherever that is by now: it is paid. Anything else settles it only while the
        request is where the news comes from: with `batch` still in that batch, with `run` not in flight elsewhere.
        Returns how many settled. Those of one call settle in the order of their numbers.
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
        parts = _by_kind(roll, rows)
        if parts is None:
            return False
        with self._transaction("settle") as db:
            left = db.execute("SELECT terms, sum(requests) FROM cohort WHERE batch = ? GROUP BY terms", (roll.batch,))
            if dict(left) != roll.left:
                return False
            db.execute("SAVEPOINT answers")
            first = self._take(db, "result", len(rows))
            if not all(self._settle_kind(db, roll, first, *part, met, now) for part in parts):
                db.execute("ROLLBACK TO answers")
                db.execute("RELEASE answers")
                return False
            db.execute("RELEASE answers")
        roll.tick(map(_number, rows))
        return True

    def _settle_kind(
        self,
        db: sqlite3.Connection,
        roll: Roll,
        first: int,
        kind: Kind,
        places: Sequence[int],
        answers: Sequence[Answer],
        met: Callable[[Terms], tuple[bool | None, timedelta]],
        now: datetime,
    ) -> bool:
        (terms, attempts), count, at = kind, len(answers), micros(now)
        job = terms.job
        numbers, lines, costs, savings, tokens, cached = zip(*answers, strict=True)
        in_time, lateness = met(terms)
        rows = zip(
            [first + place for place in places],
            numbers,
            repeat(job),
            repeat(OUTCOME_CODES[Outcome.SUCCEEDED]),
            repeat(BATCH),
            repeat(roll.batch),
            repeat(attempts + 1),
            repeat(at),
            costs,
            savings,
            repeat(in_time),
            lines,
        )
        if insert_rows(db, _INSERT_ANSWER, 12, rows) != count:
            return False
        paid = sum(filter(None, costs))
        tally = (
            count,
            paid,
            sum(filter(None, savings)),
            costs.count(None),
            count if in_time else 0,
            count if in_time is False else 0,
            lateness // _MICROSECOND,
            count * (attempts + 1),
            sum(tokens),
            sum(cached),
        )
        db.execute(_TALLY, (job, BATCH, OUTCOME_CODES[Outcome.SUCCEEDED], *tally))
        moves = Moves(self, db, now)
        moves.add(Place(terms.id, BATCH, IN_FLIGHT, roll.batch, 0), -count, -roll.size(numbers))
        moves.book()
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
        left: dict[Place, list[int]] = {}
        tally: dict[tuple[int, Lane, Outcome], list[int]] = {}
        results: list[tuple[object, ...]] = []
        updates: list[tuple[object, ...]] = []
        late: list[tuple[Row, Settlement]] = []
        fresh: dict[int, Settlement] = {}
        seq = first = self._take(db, "result", 0)
        at, came_with, spent = micros(now), batch or 0, 0
        get_row, succeeded = rows.get, Outcome.SUCCEEDED
        # By number: neighbours share pages of the requests and of the indices.
        for each in sorted(settlements, key=_number):
            number, outcome, lane, line, cost, saved, met, lateness, tokens, cached, attempted = each
            row = get_row(number)
            if row is None:
                continue
            # Unpacked, here alone: named access would cost as much as all the rest.
            _, job, size, _, _, status, inside, _, _, _, attempts, _, _ = row
            if status == SETTLED:
                late.append((row, each))
                continue
            if number in fresh:
                if batch is None and fresh[number].line != line:
                    late.append((row, each))
                continue
            if outcome is not succeeded and _elsewhere(row, batch, run):
                continue
            fresh[number] = each
            attempts += attempted
            code, lane_code = OUTCOME_CODES[outcome], LANE_CODES[lane]
            results.append((seq, number, job, code, lane_code, came_with, attempts, at, cost, saved, met, line))
            seq += 1
            abandoned = outcome is Outcome.CANCELED and _is_abandoned(line)
            if abandoned or not inside:
                updates.append((abandoned, number))
            place = place_of(row)
            moved = left.get(place)
            if moved is None:
                moved = left[place] = [0, 0]
            moved[0] += 1
            moved[1] += size
            sums = tally.get((job, lane, outcome))
            if sums is None:
                sums = tally[job, lane, outcome] = [0] * 10
            sums[0] += 1
            if cost is None:
                sums[3] += 1
            else:
                sums[1] += cost
                spent += cost
            if saved:
                sums[2] += saved
            if met is not None:
                sums[4 if met else 5] += 1
                if not met:
                    sums[6] = max(sums[6], lateness // _MICROSECOND)
            sums[7] += attempts
            sums[8] += tokens
            sums[9] += cached
        if results:
            self._take(db, "result", seq - first)
            db.executemany(_INSERT_RESULT, results)
            db.executemany(_SETTLE_REQUEST, updates)
            db.executemany(
                _TALLY,
                [
                    (job, LANE_CODES[lane], OUTCOME_CODES[outcome], *sums)
                    for (job, lane, outcome), sums in tally.items()
                ],
            )
            for place, (requests, size) in left.items():
                moves.add(place, -requests, -size)
            moves.book()
        self._book(db, spent + sum(self._waste_of(db, *each, came_with) for each in late), now)
        return len(results)

    def _waste_of(self, db: sqlite3.Connection, row: Row, again: Settlement, batch: int) -> int:
        """What a second delivery for a settled request cost; 0 for the same delivery read again. Books it."""
        if not again.cost:
            return 0
        if row.result is not None:
            settled_by, line = db.execute("SELECT batch, line FROM result WHERE seq = ?", (row.result,)).fetchone()
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
            if row is not None and row.result is not None:
                settled_by = db.execute("SELECT batch FROM result WHERE seq = ?", (row.result,)).fetchone()[0]
                if settled_by == batch:
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
                before = "NULL" if body is None else "(SELECT params FROM body WHERE id = ?1)"
                db.execute(
                    f"INSERT INTO turn (request, n, line, body) SELECT ?1, count(*), ?2, {before} FROM turn "
                    "WHERE request = ?1",
                    (row.id, turn),
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
        marks = ", ".join("?" * len(outcomes))
        while True:
            with self._transaction("reopen") as db:
                found = db.execute(
                    f"SELECT seq, request FROM result WHERE job = ? AND seq > ? AND outcome IN ({marks}) "
                    f"ORDER BY seq LIMIT {CHUNK}",
                    (job, after, *(OUTCOME_CODES[outcome] for outcome in outcomes)),
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
        lane, outcome, cost, met = db.execute(
            "SELECT lane, outcome, cost, met FROM result WHERE seq = ?", (row.result,)
        ).fetchone()
        db.execute(
            "UPDATE tally SET requests = requests - 1, unpriced = unpriced - ?, met = met - ?, missed = missed - ? "
            "WHERE job = ? AND lane = ? AND outcome = ?",
            (cost is None, met == 1, met == 0, row.job, lane, outcome),
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
        purged, after = 0, 0
        while True:
            with self._transaction("purge") as db:
                found = db.execute(
                    "SELECT seq, request, job, lane, outcome FROM result WHERE seq > ? AND settled_at < ? "
                    f"ORDER BY seq LIMIT {CHUNK}",
                    (after, micros(before)),
                ).fetchall()
                gone = [(each[1],) for each in found]
                db.executemany("DELETE FROM result WHERE seq = ?", [(each[0],) for each in found])
                db.executemany("DELETE FROM late WHERE request = ?", gone)
                db.executemany("DELETE FROM request WHERE id = ?", gone)
                db.executemany(
                    "UPDATE tally SET purged = purged + 1 WHERE job = ? AND lane = ? AND outcome = ?",
                    [each[2:] for each in found],
                )
            purged += len(found)
            if len(found) < CHUNK:
                break
            after = found[-1][0]
        if purged:
            with self._transaction("purge terms") as db:
                db.execute(
                    "DELETE FROM terms WHERE staged = 0 AND id NOT IN (SELECT terms FROM request) "
                    "AND id NOT IN (SELECT terms FROM again)"
                )
        return purged


def _by_kind(roll: Roll, answers: Sequence[Answer]) -> Sequence[tuple[Kind, Sequence[int], Sequence[Answer]]] | None:
    """The answers by kinds of requests, with their places among all; None: one's request is not on the roll."""
    codes = roll.kinds_of([answer[0] for answer in answers])
    if codes is None:
        return None
    if len(roll.kinds) == 1:
        return [(roll.kinds[0], range(len(answers)), answers)]
    parts: dict[int, tuple[list[int], list[Answer]]] = {}
    for place, (code, answer) in enumerate(zip(codes, answers, strict=True)):
        places, part = parts.setdefault(code, ([], []))
        places.append(place)
        part.append(answer)
    return [(roll.kinds[code], *parts[code]) for code in range(len(roll.kinds)) if code in parts]


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
