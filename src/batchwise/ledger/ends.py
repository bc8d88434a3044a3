"""How requests are cancelled, queued again, begun anew, and purged."""

# ruff: noqa: S608 (statements are made of constants and question marks)

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime

import attrs

from batchwise.errors import InvalidValueError
from batchwise.models import Lane, Outcome
from batchwise.planning.state import Terms

from .database import Connection
from .rows import IN_FLIGHT, LANE_CODES, LANES, OUTCOME_CODES, QUEUED, SETTLED, canceled_line, decode_key, micros
from .settlements import Settlements
from .store import CHUNK, RESULTS_BEHIND, SOME, Moves, Place, Row, place_of, reserve, settled_in, some
from .values import Cap, Settlement

__all__ = ["Ends"]

_CANCELED = "it was cancelled before it was sent"


class Ends(Settlements):
    """Cancelling, queueing again, beginning anew, and purging."""

    def _cancel_rows(self, db: Connection, ids: Iterable[int], kind: str, message: str, now: datetime) -> int:
        """Settle these as CANCELED. Those that were sent to the sync lane may have been billed."""
        settlements = []
        for number in ids:
            key, lane, batch, status = db.execute(
                "SELECT key, lane, batch, status FROM request WHERE id = ?", (number,)
            ).fetchone()
            line = canceled_line(decode_key(key), self._nonce(db, batch), number, kind, message)
            settlements.append(
                Settlement(
                    number, Outcome.CANCELED, LANES[lane], line, 0, 0, attempted=False, doubtful=status == IN_FLIGHT
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
            with self.database.write("cancel") as db:
                queued = db.execute(
                    f"SELECT id FROM request WHERE status = 0 AND {what} LIMIT {CHUNK}",
                    values,
                ).fetchall()
                found = len(queued)
                canceled += self._cancel_rows(db, (row[0] for row in queued), "canceled", _CANCELED, now)
        with self.database.read() as db:
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
        with self.database.write("requeue") as db:
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
        db: Connection,
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
                self._book_doubt(db, self._terms(db, row.terms), 1, row.size, now)
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
        self,
        *,
        job: int,
        outcomes: Sequence[Outcome],
        now: datetime,
        requests: Sequence[int] | None = None,
        cap: Cap | None = None,
        reserved: Callable[[Terms], Terms] | None = None,
    ) -> int:
        """Queue a job's settled requests of these outcomes anew, attempts and paused turns forgotten.

        With `requests`, only those of them. A deadline that has passed is dropped. What they cost stays in the books.
        Under a cap it is one transaction, else one for some at a time.

        Raises:
            SpendLimitError: They could pass the cap; none of them is queued.
            InvalidValueError: Some of them were adopted; none is queued.
        """
        wanted = None if requests is None else frozenset(requests)
        terms_of = reserved or _as_they_are

        def settled(db: Connection, after: int) -> tuple[list[Row], int | None]:
            """Some that ended so, behind a cursor, and the cursor behind them; None: there are no more."""
            found = db.execute(
                f"SELECT r.seq, r.request FROM {RESULTS_BEHIND} WHERE {settled_in(job)} AND s.outcome IN {SOME} "
                f"ORDER BY s.last, r.seq LIMIT {CHUNK}",
                (after, after, job, some(OUTCOME_CODES[outcome] for outcome in outcomes)),
            ).fetchall()
            rows = self._rows(db, [each[1] for each in found if wanted is None or each[1] in wanted])
            return list(rows.values()), found[-1][0] if len(found) == CHUNK else None

        def renew(db: Connection, rows: Sequence[Row]) -> None:
            moves = Moves(self, db, now)
            for row in rows:
                self._renew(db, moves, row, terms_of(self._terms(db, row.terms)), now=now)
            moves.book()

        def pages(db: Connection) -> Iterator[list[Row]]:
            after: int | None = 0
            while after is not None:
                rows, after = settled(db, after)
                yield rows

        with self.database.read() as db:
            adopted = db.execute("SELECT EXISTS (SELECT 1 FROM batch WHERE job = ? AND adopted = 1)", (job,))
            mixed = adopted.fetchone()[0]
            if mixed and any(self._terms(db, row.terms).adopted for page in pages(db) for row in page):
                raise InvalidValueError(
                    "requests of an adopted batch are among these, and the ledger does not have their prompts: nothing "
                    "was queued. Dispatch them anew, under a job of their own"
                )
        if cap is not None:
            with self.database.write("reopen") as db:
                rows = [row for page in pages(db) for row in page]
                more = sum(reserve(terms_of(self._terms(db, row.terms)), 1, row.size) for row in rows)
                self._check_cap(db, cap, more)
                renew(db, rows)
            return len(rows)
        reopened = 0
        after: int | None = 0
        while after is not None:
            with self.database.write("reopen") as db:
                rows, after = settled(db, after)
                renew(db, rows)
            reopened += len(rows)
        return reopened

    def _renew(
        self,
        db: Connection,
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

    def _forget_result(self, db: Connection, row: Row) -> None:
        """The result goes, and the request out of the counts; money, attempts and tokens stay in the books."""
        (cost,) = db.execute("SELECT cost FROM result WHERE seq = ?", (row.result,)).fetchone()
        how = self._settling(db, row.result or 0)
        db.execute(
            "UPDATE tally SET requests = requests - 1, unpriced = unpriced - ?, met = met - ?, missed = missed - ? "
            "WHERE job = ? AND lane = ? AND outcome = ?",
            (cost is None, how.met == 1, how.met == 0, row.job, how.lane, how.outcome),
        )
        db.execute("DELETE FROM result WHERE seq = ?", (row.result,))

    def _forget_turns(self, db: Connection, row: Row) -> int:
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
            with self.database.write("purge") as db:
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
            with self.database.write("purge terms") as db:
                db.execute(
                    "DELETE FROM terms WHERE staged = 0 AND id NOT IN (SELECT terms FROM request) "
                    "AND id NOT IN (SELECT terms FROM again)"
                )
            self.database.wipe()
        return purged


def _as_they_are(terms: Terms) -> Terms:
    return terms
