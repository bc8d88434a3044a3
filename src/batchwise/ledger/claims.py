"""How the sync lane gets its work: queued requests are handed to a run."""

from __future__ import annotations

from datetime import datetime

from .books import Books, Place, place_of
from .database import Connection, Database
from .records import Records, Row
from .rows import BATCH, IN_FLIGHT, SYNC, decode_key
from .values import Claim, MaxSpend, Turn

__all__ = ["Claims"]


class Claims:
    """Hands queued requests to runs, which call the sync lane."""

    def __init__(self, database: Database, records: Records, books: Books) -> None:
        self._database, self._records, self._books = database, records, books

    def claim(self, terms: int, count: int, *, run: int, now: datetime, any_lane: bool = False) -> list[Claim]:
        """Hand up to `count` requests of these terms, queued for the sync lane (or any), to the run."""
        with self._database.write("claim") as db:
            found = db.execute(
                "SELECT id FROM request WHERE status = 0 AND terms = ? AND lane <= ? "
                "AND (SELECT staged FROM terms WHERE id = request.terms) = 0 ORDER BY id LIMIT ?",
                (terms, BATCH if any_lane else SYNC, count),
            ).fetchall()
            rows = self._records.rows(db, [row[0] for row in found])
            return self.hand_over(db, sorted(rows.values()), run, now)

    def note_attempt(
        self,
        request: int,
        *,
        run: int,
        costs_attempt: bool,
        maybe_billed: bool,
        now: datetime,
        max_spend: MaxSpend | None = None,
        turn: Turn | None = None,
    ) -> bool:
        """Book an attempt after which the run goes on with the request; False: the run does not have it any more.

        `turn`: the message that came, after which the request goes on; None: no message came.

        Raises:
            SpendLimitError: Billing it a second time could pass the spend limit. Nothing is booked.
        """
        with self._database.write("note_attempt") as db:
            row = self._records.rows(db, [request]).get(request)
            if row is None or row.status != IN_FLIGHT or row.lane != SYNC or row.run != run:
                return False
            if costs_attempt:
                db.execute("UPDATE request SET attempts = attempts + 1, calls = calls + 1 WHERE id = ?", (request,))
            if maybe_billed:
                terms = self._records.terms(db, row.terms)
                most = self._books.most_unseen(db, terms, row)
                self._books.check_double(db, max_spend, most)
                self._books.waste(db, row.job, now, possible_doubles=1, unseen=most)
            if turn is not None:
                moves = self._books.moves(db, now)
                number, size = self._records.keep_turn(db, row, turn)
                place = place_of(row)
                moves.move(place, place._replace(terms=number), 1, row.size, grown=size - row.size)
                moves.book()
            return True

    def hand_over(self, db: Connection, rows: list[Row], run: int, now: datetime) -> list[Claim]:
        """Hand these rows to the run."""
        moves = self._books.moves(db, now)
        for row in rows:
            moves.move(place_of(row), Place(row.terms, SYNC, IN_FLIGHT, 0), 1, row.size)
        db.executemany(
            "UPDATE request SET status = 1, lane = 0, run = ? WHERE id = ?",
            [(run, row.id) for row in rows],
        )
        moves.book()
        claims = []
        for row in rows:
            key, body = db.execute(
                "SELECT q.key, b.params FROM request q JOIN body b ON b.id = q.id WHERE q.id = ?", (row.id,)
            ).fetchone()
            claims.append(
                Claim(
                    row.id,
                    decode_key(key),
                    self._records.terms(db, row.terms),
                    body,
                    row.attempts,
                    self._records.turns(db, row.id),
                    calls=row.calls,
                )
            )
        return claims
