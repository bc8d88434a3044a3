"""The queues of the two lanes: requests handed to a run for the sync lane, or moved to the other queue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from batchwise.models import Lane

from .database import Connection
from .ends import Ends
from .rows import BATCH, IN_FLIGHT, LANE_CODES, SYNC, decode_key, micros
from .store import UPDATE_MANY, Moves, Place, Row
from .values import Claim

__all__ = ["Claims"]


class Claims(Ends):
    """The sync lane's hand-out, and moves between the queues."""

    def claim(self, terms: int, count: int, *, run: int, now: datetime, any_lane: bool = False) -> list[Claim]:
        """Hand up to `count` requests of these terms, queued for the sync lane (or any), to the run."""
        with self.database.write("claim") as db:
            found = db.execute(
                "SELECT id FROM request WHERE status = 0 AND terms = ? AND lane <= ? AND not_before <= ? "
                "AND (SELECT staged FROM terms WHERE id = request.terms) = 0 ORDER BY id LIMIT ?",
                (terms, BATCH if any_lane else SYNC, micros(now), count),
            ).fetchall()
            rows = self._rows(db, [row[0] for row in found])
            return self._hand_over(db, sorted(rows.values()), run, now)

    def note_attempt(self, request: int, *, run: int, costs_attempt: bool, doubtful: bool, now: datetime) -> bool:
        """Book a failed try of a request that the run goes on with; False: it is the run's no more."""
        with self.database.write("note_attempt") as db:
            row = self._rows(db, [request]).get(request)
            if row is None or row.status != IN_FLIGHT or row.lane != SYNC or row.run != run:
                return False
            if costs_attempt:
                db.execute("UPDATE request SET attempts = attempts + 1 WHERE id = ?", (request,))
            if doubtful:
                self._book_doubt(db, self._terms(db, row.terms), 1, row.size, now)
            return True

    def _hand_over(self, db: Connection, rows: list[Row], run: int, now: datetime) -> list[Claim]:
        moves = Moves(self, db, now)
        for row in rows:
            moves.row(row, Place(row.terms, SYNC, IN_FLIGHT, 0, 0))
        db.executemany(
            "UPDATE request SET status = 1, lane = 0, run = ?, not_before = 0 WHERE id = ?",
            [(run, row.id) for row in rows],
        )
        moves.book()
        return self._claims(db, rows)

    def _claims(self, db: Connection, rows: Iterable[Row]) -> list[Claim]:
        claims = []
        for row in rows:
            key, body = db.execute(
                "SELECT q.key, b.params FROM request q JOIN body b ON b.id = q.id WHERE q.id = ?", (row.id,)
            ).fetchone()
            claims.append(
                Claim(
                    row.id,
                    decode_key(key),
                    self._terms(db, row.terms),
                    body,
                    row.attempts,
                    self._turns(db, row),
                )
            )
        return claims

    def _turns(self, db: Connection, row: Row) -> tuple[bytes, ...]:
        return tuple(
            line for (line,) in db.execute("SELECT line FROM turn WHERE request = ? ORDER BY n", (row.id,)).fetchall()
        )

    def move(self, terms: Sequence[int], *, lane: Lane) -> int:
        """Move queued requests of these terms to the other lane's queue."""
        code = LANE_CODES[lane]
        moved = 0
        with self.database.write("move") as db:
            for number in dict.fromkeys(terms):
                for place, group in self._groups(db, "terms = ? AND status = 0 AND lane = ?", (number, 1 - code)):
                    moves = Moves(self, db, group.since)
                    moves.add(place, -group.requests, -group.size)
                    moves.add(place._replace(lane=code), group.requests, group.size, flush=group.flush)
                    moves.book()
                    moved += group.requests
                    db.execute(
                        f"{UPDATE_MANY} request SET lane = ? "
                        "WHERE status = 0 AND terms = ? AND lane = ? AND not_before = ?",
                        (code, number, 1 - code, place.not_before),
                    )
        return moved
