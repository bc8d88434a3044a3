"""How requests are queued again, taken back out of a batch, and moved to the other lane."""

# ruff: noqa: S608 (statements are made of constants and question marks)

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from batchwise.models import Lane
from batchwise.planning.cache_priming import Caching
from batchwise.planning.state import BatchState, Group, Terms

from .batches import Batches
from .books import Books, Place, cost_to_reserve, place_of, unreserved_cost
from .database import Connection, Database
from .records import IN_BATCH, Records, Row
from .requests import Requests
from .rows import BATCH, IN_FLIGHT, LANE_CODES, QUEUED, SYNC
from .values import EVERYTHING, MaxSpend, Turn, Which

__all__ = ["Requeuing"]

_RESERVED_AT_ONCE = 500
"""Requests whose bodies one transaction looks at: other writers get their turn in between."""


class Requeuing:
    """Queues requests again that are not settled: another attempt, or the other lane."""

    def __init__(
        self, database: Database, records: Records, books: Books, requests: Requests, *, batches: Batches
    ) -> None:
        self._database, self._records, self._books = database, records, books
        self._requests, self._batches = requests, batches

    def flush(self, which: Which = EVERYTHING) -> None:
        """Mark the queued groups that hold any of these (by numbers, a job, or terms): somebody waits for them."""
        with self._database.write("flush") as db:
            cohorts, values = self._requests.cohorts(db, which)
            db.execute(f"UPDATE cohort SET flush = 1 WHERE status = 0 AND flush = 0 AND {cohorts}", values)

    def requeue(
        self,
        which: Which,
        *,
        lane: Lane,
        now: datetime,
        costs_attempt: bool = False,
        maybe_billed: bool = False,
        max_spend: MaxSpend | None = None,
        keep: bool = False,
        turn: Turn | None = None,
    ) -> int:
        """Queue requests that are not settled for a lane; returns how many.

        Args:
            which: With numbers: those of these requests that are in flight, and in the batch, if one is given. With a
                batch alone: all its requests, of these terms. With terms alone: what is queued for the other lane.
            lane: For which lane.
            now: The time.
            costs_attempt: Whether they have used up an attempt; only with numbers.
            maybe_billed: They may have been billed, and count as possible doubles.
            max_spend: The spend limit, which those that may have been billed must not pass.
            keep: With a batch alone: the batch keeps its state. A row that it still delivers is used if it is the first
                answer, and else is booked as wasted. Without `keep` the batch becomes `void` once it is empty.
            turn: The message after which they go on; only with numbers.

        Raises:
            SpendLimitError: Billing them again could pass the spend limit. None is queued.
        """
        code = LANE_CODES[lane]
        if which.requests is not None:
            with self._database.write("requeue") as db:
                rows = self._in_flight(db, which.requests, which.batch)
                if maybe_billed:
                    self.book_doubles(db, rows, lane=code, now=now, max_spend=max_spend)
                changed = {} if turn is None else {row.id: self._records.keep_turn(db, row, turn) for row in rows}
                self.queue(db, rows, lane=code, costs_attempt=costs_attempt, now=now, changed=changed)
                return len(rows)
        if which.batch is not None:
            with self._database.write("unseal") as db:
                if maybe_billed:
                    self._book_batch_doubles(db, which, which.batch, lane=code, now=now, max_spend=max_spend)
                moved, left = self._unseal(db, which, lane=code, now=now, sent=maybe_billed)
                if not keep and not left:
                    self._batches.move(db, which.batch, BatchState.VOID)
                return moved
        with self._database.write("move") as db:
            return sum(self._move(db, terms, lane=code) for terms in dict.fromkeys(which.terms or ()))

    def _in_flight(self, db: Connection, requests: Sequence[int], batch: int | None) -> list[Row]:
        """Return the rows of those requests that are in flight; with a batch: in that batch."""
        rows = self._records.rows(db, list(dict.fromkeys(requests))).values()
        return [row for row in rows if row.status == IN_FLIGHT and batch in {None, row.inside}]

    def book_doubles(
        self, db: Connection, rows: Sequence[Row], *, lane: int, now: datetime, max_spend: MaxSpend | None
    ) -> None:
        """Book rows as possible doubles: they may have been billed, and will be bought on this lane.

        Raises:
            SpendLimitError: Billing them again could pass the spend limit.
        """
        known = [(self._records.terms(db, row.terms), row) for row in rows]
        more = sum(unreserved_cost(terms, 1, row.size, before=row.lane, lane=lane) for terms, row in known)
        self._books.check_double(db, max_spend, more)
        for terms, row in known:
            most = self._books.most_unseen(db, terms, row)
            self._books.waste(db, row.job, now, possible_doubles=1, unseen=most)

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
            queue = Place(terms, lane, QUEUED, 0)
            # It has waited for its interval already.
            moves.move(place_of(row), queue, 1, row.size, grown=size - row.size, flush=True)
        db.executemany(
            "UPDATE request SET status = 0, lane = ?, attempts = attempts + ?, calls = calls + ? WHERE id = ?",
            [(lane, costs_attempt, costs_attempt and row.lane == SYNC, row.id) for row in rows],
        )
        moves.book()

    def _groups(self, db: Connection, which: Which) -> list[tuple[Place, Group]]:
        """Return the groups of a batch that are on these terms, with their places."""
        groups = self._books.groups(db, "batch = ?", (which.batch,))
        return [each for each in groups if which.terms is None or each[0].terms in which.terms]

    def _book_batch_doubles(
        self, db: Connection, which: Which, batch: int, *, lane: int, now: datetime, max_spend: MaxSpend | None
    ) -> None:
        """As `book_doubles`, for the requests of a batch."""
        first, last = db.execute("SELECT first, last FROM batch WHERE id = ?", (batch,)).fetchone()
        groups = [group for _, group in self._groups(db, which)]
        sizes = ((group.terms, group.requests, group.size) for group in groups)
        self._books.check_double(db, max_spend, sum(unreserved_cost(*each, before=BATCH, lane=lane) for each in sizes))
        for group in groups:
            most = self._books.most_unseen_of(db, group, (first, last, batch))
            self._books.waste(db, group.terms.job, now, possible_doubles=group.requests, unseen=most)

    def _unseal(self, db: Connection, which: Which, *, lane: int, now: datetime, sent: bool) -> tuple[int, int]:
        """Queue the requests of a batch; returns how many, and how many are left in it."""
        first, last, caching = db.execute(
            "SELECT first, last, caching FROM batch WHERE id = ?", (which.batch,)
        ).fetchone()
        everything = sum(group.requests for _, group in self._books.groups(db, "batch = ?", (which.batch,)))
        moved = 0
        moves = self._books.moves(db, now)
        for place, group in self._groups(db, which):
            moved += group.requests
            # It has waited for its interval already.
            moves.move(place, Place(place.terms, lane, QUEUED, 0), group.requests, group.size, flush=True)
            if caching == Caching.PRIMER.value and not sent:
                self._books.forget_primer(db, group.terms.prefix)
        only = "" if which.terms is None else f" AND terms {self._database.among}"
        values = () if which.terms is None else (self._database.list_of(which.terms),)
        db.execute(
            f"{self._database.update_many} request SET status = 0, lane = ? WHERE {IN_BATCH}{only}",
            (lane, first, last, which.batch, *values),
        )
        moves.book()
        return moved, everything - moved

    def _move(self, db: Connection, terms: int, *, lane: int) -> int:
        """Move what is queued on these terms from the other lane's queue."""
        moved = 0
        for place, group in self._books.groups(db, "terms = ? AND status = 0 AND lane = ?", (terms, 1 - lane)):
            moves = self._books.moves(db, group.since)
            moves.move(place, place._replace(lane=lane), group.requests, group.size, flush=group.flush)
            moves.book()
            moved += group.requests
            db.execute(
                f"{self._database.update_many} request SET lane = ? WHERE status = 0 AND terms = ? AND lane = ?",
                (lane, terms, 1 - lane),
            )
        return moved

    def reserve_cost(
        self, terms: int, with_max_cost: Callable[[Terms, bytes], Terms | None], *, max_spend: MaxSpend
    ) -> int:
        """Reserve under a spend limit what queued requests of these terms may cost; returns for how many.

        The first ones, as many as the limit has room for. `with_max_cost` gives their new terms for their old ones and
        a body; if it gives None, the request waits on.
        """
        with self._database.write("reserve_cost") as db:
            found = db.execute(
                "SELECT q.id, b.params FROM request q JOIN body b ON b.id = q.id "
                "WHERE q.status = 0 AND q.terms = ? ORDER BY q.id LIMIT ?",
                (terms, _RESERVED_AT_ONCE),
            ).fetchall()
            rows = self._records.rows(db, [number for number, _ in found])
            room, chosen = self._books.room(db, max_spend), dict[Place, list[tuple[Row, Terms]]]()
            for number, body in found:
                row, limited = rows[number], with_max_cost(self._records.terms(db, terms), body)
                if limited is None or row.status != QUEUED:
                    continue
                room -= cost_to_reserve(limited, 1, row.size, lane=row.lane)
                if room < 0:
                    break
                chosen.setdefault(place_of(row), []).append((row, limited))
            for place, group in self._books.groups(db, "terms = ? AND status = 0", (terms,)):
                moves = self._books.moves(db, group.since)
                for row, limited in chosen.get(place, ()):
                    onto = self._records.store_terms(db, limited, row.job)
                    moves.move(place, place._replace(terms=onto), 1, row.size, flush=group.flush)
                    db.execute("UPDATE request SET terms = ? WHERE id = ?", (onto, row.id))
                moves.book()
            return sum(map(len, chosen.values()))
