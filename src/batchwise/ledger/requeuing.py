"""How requests are queued again, taken back out of a batch, and moved to the other lane."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from batchwise.models import Lane
from batchwise.planning.priming import Caching
from batchwise.planning.state import BatchState, Terms

from .batches import Batches
from .books import Books, Place, most_again, place_of, reserve
from .database import Connection, Database
from .records import IN_BATCH, Records, Row
from .rows import BATCH, IN_FLIGHT, LANE_CODES, QUEUED, SYNC
from .values import Cap

__all__ = ["Requeuing"]

_KEPT_AT_ONCE = 500
"""Requests whose bodies one transaction looks at: other writers get their turn in between."""


class Requeuing:
    """Queues requests again that are not settled: another attempt, or the other lane."""

    def __init__(self, database: Database, records: Records, books: Books, batches: Batches) -> None:
        self._database, self._records, self._books, self._batches = database, records, books, batches

    def requeue(
        self,
        requests: Sequence[int],
        *,
        lane: Lane,
        costs_attempt: bool,
        now: datetime,
        doubtful: bool = False,
        turn: bytes | None = None,
        body: bytes | None = None,
        asked: Sequence[str] = (),
        batch: int | None = None,
        cap: Cap | None = None,
    ) -> int:
        """Queue in-flight requests again. `turn`: a message's result line, with the body that goes on after it.

        `asked`: the models asked, the next one included. With `batch`, only those that are still in that batch.
        Returns how many.

        Raises:
            SpendLimitError: They may have been billed, and billing them again could pass the cap. None is queued.
        """
        with self._database.write("requeue") as db:
            rows = [
                row
                for row in self._records.rows(db, list(dict.fromkeys(requests))).values()
                if row.status == IN_FLIGHT and batch in {None, row.inside}
            ]
            code = LANE_CODES[lane]
            if doubtful:
                self.book_doubles(db, rows, lane=code, now=now, cap=cap)
            changed = {}
            if turn is not None:
                changed = {row.id: self._records.keep_turn(db, row, turn, body, asked) for row in rows}
            self.queue(db, rows, lane=code, costs_attempt=costs_attempt, now=now, changed=changed)
            return len(rows)

    def book_doubles(self, db: Connection, rows: Sequence[Row], *, lane: int, now: datetime, cap: Cap | None) -> None:
        """Book rows that go on on this lane as possible doubles: they may have been billed. A refusal changes nothing.

        Raises:
            SpendLimitError: Billing them again could pass the cap.
        """
        known = [(self._records.terms(db, row.terms), row) for row in rows]
        more = sum(most_again(terms, 1, row.size, before=row.lane, lane=lane) for terms, row in known)
        self._books.check_again(db, cap, more)
        for terms, row in known:
            self._books.doubt(db, row.job, 1, self._books.most_unseen(db, terms, row), now)

    def queue(
        self,
        db: Connection,
        rows: Sequence[Row],
        *,
        lane: int,
        costs_attempt: bool,
        now: datetime,
        changed: Mapping[int, tuple[int, int]],
    ) -> None:
        """Queue rows in flight again; `changed`: terms and size, by number, of those that go on after a turn."""
        moves = self._books.moves(db, now)
        for row in rows:
            terms, size = changed.get(row.id, (row.terms, row.size))
            moves.add(place_of(row), -1, -row.size)
            moves.add(Place(terms, lane, QUEUED, 0), 1, size, flush=True)  # it has waited its interval
        db.executemany(
            "UPDATE request SET status = 0, lane = ?, attempts = attempts + ?, calls = calls + ? WHERE id = ?",
            [(lane, costs_attempt, costs_attempt and row.lane == SYNC, row.id) for row in rows],
        )
        moves.book()

    def unseal(
        self,
        batch: int,
        *,
        lane: Lane = Lane.BATCH,
        now: datetime,
        keep: bool = False,
        doubtful: bool = False,
        terms: Sequence[int] | None = None,
        cap: Cap | None = None,
    ) -> int:
        """Queue the batch's unsettled requests (of these terms) again; returns how many.

        The batch becomes `void` unless `keep`, or unless other requests are still in it. Kept, it stays as it is, and
        what it may still deliver is used if it comes first, otherwise booked as wasted. `doubtful` counts them as
        possible doubles.

        Raises:
            SpendLimitError: They may have been billed, and billing them again could pass the cap. None is queued.
        """
        code = LANE_CODES[lane]
        with self._database.write("unseal") as db:
            first, last, caching = db.execute(
                "SELECT first, last, caching FROM batch WHERE id = ?", (batch,)
            ).fetchone()
            groups = self._books.groups(db, "batch = ?", (batch,))
            wanted = None if terms is None else frozenset(terms)
            chosen = [each for each in groups if wanted is None or each[0].terms in wanted]
            if doubtful:
                sizes = ((group.terms, group.requests, group.size) for _, group in chosen)
                self._books.check_again(db, cap, sum(most_again(*each, before=BATCH, lane=code) for each in sizes))
            moves = self._books.moves(db, now)
            for place, group in chosen:
                moves.add(place, -group.requests, -group.size)
                # It has waited its interval already.
                moves.add(Place(place.terms, code, QUEUED, 0), group.requests, group.size, flush=True)
                if caching == Caching.PRIMER.value and not doubtful:
                    self._books.forget_primer(db, group.terms.prefix)
                if doubtful:
                    most = self._books.most_unseen_of(db, group, (first, last, batch))
                    self._books.doubt(db, group.terms.job, group.requests, most, now)
            which = "" if wanted is None else f" AND terms {self._database.among}"
            values = () if wanted is None else (self._database.list_of(wanted),)
            db.execute(
                f"{self._database.update_many} request SET status = 0, lane = ? WHERE {IN_BATCH}{which}",
                (code, first, last, batch, *values),
            )
            moves.book()
            if not keep and len(chosen) == len(groups):
                self._batches.move(db, batch, BatchState.VOID)
            return sum(group.requests for _, group in chosen)

    def move(self, terms: Sequence[int], *, lane: Lane) -> int:
        """Move queued requests of these terms to the other lane's queue."""
        code = LANE_CODES[lane]
        moved = 0
        with self._database.write("move") as db:
            for number in dict.fromkeys(terms):
                for place, group in self._books.groups(db, "terms = ? AND status = 0 AND lane = ?", (number, 1 - code)):
                    moves = self._books.moves(db, group.since)
                    moves.add(place, -group.requests, -group.size)
                    moves.add(place._replace(lane=code), group.requests, group.size, flush=group.flush)
                    moves.book()
                    moved += group.requests
                    db.execute(
                        f"{self._database.update_many} request SET lane = ? "
                        "WHERE status = 0 AND terms = ? AND lane = ?",
                        (code, number, 1 - code),
                    )
        return moved

    def reserve(self, terms: int, reserved: Callable[[Terms, bytes], Terms | None], *, cap: Cap) -> int:
        """Keep of a spend limit what queued requests of these terms may cost: as many, the first ones, as have room.

        They go on on the terms that `reserved` gives for theirs and a body: those, and what is kept. None: it waits on.
        Returns how many.
        """
        with self._database.write("reserve") as db:
            found = db.execute(
                "SELECT q.id, b.params FROM request q JOIN body b ON b.id = q.id "
                "WHERE q.status = 0 AND q.terms = ? ORDER BY q.id LIMIT ?",
                (terms, _KEPT_AT_ONCE),
            ).fetchall()
            rows = self._records.rows(db, [number for number, _ in found])
            room, chosen = self._books.room(db, cap), dict[Place, list[tuple[Row, Terms]]]()
            for number, body in found:
                row, kept = rows[number], reserved(self._records.terms(db, terms), body)
                if kept is None or row.status != QUEUED:
                    continue
                room -= reserve(kept, 1, row.size, lane=row.lane)
                if room < 0:
                    break
                chosen.setdefault(place_of(row), []).append((row, kept))
            for place, group in self._books.groups(db, "terms = ? AND status = 0", (terms,)):
                moves = self._books.moves(db, group.since)
                for row, kept in chosen.get(place, ()):
                    onto = self._records.store_terms(db, kept, row.job)
                    moves.add(place, -1, -row.size)
                    moves.add(place._replace(terms=onto), 1, row.size, flush=group.flush)
                    db.execute("UPDATE request SET terms = ? WHERE id = ?", (onto, row.id))
                moves.book()
            return sum(map(len, chosen.values()))
