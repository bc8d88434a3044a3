"""A request that is dispatched again: whether it is the same, and what then becomes of the one that is there."""

from __future__ import annotations

from datetime import datetime

from batchwise.errors import KeyConflictError
from batchwise.planning.state import Terms

from .books import Books, Moves, cost_to_reserve, place_of
from .database import Connection
from .keys import Found, conflict, differing, same_body
from .records import Records, Row
from .reopening import Reopening
from .rows import LANE_CODES, QUEUED, SETTLED, decode_key, merged
from .values import MaxSpend

__all__ = ["Repeats"]


class Repeats:
    """Joins requests that are dispatched again with those that are there."""

    def __init__(self, records: Records, books: Books, reopening: Reopening) -> None:
        self._records, self._books, self._reopening = records, books, reopening

    def same(self, db: Connection, request: int, terms: int, body: bytes, new: Terms) -> bool:
        """Whether a request has this content: its canonical params, betas and stream."""
        old = self._records.terms(db, terms)
        return (old.betas, old.stream) == (new.betas, new.stream) and same_body(db, request, body)

    def conflict(
        self,
        db: Connection,
        found: Found,
        body: bytes,
        new: Terms,
        *,
        key: bytes,
        job: str | None,
        item: int | None = None,
        earlier: int | None = None,
    ) -> KeyConflictError:
        """Return the error for a key that a request with other content has; `item` and `earlier` as for `conflict`."""
        old, differs = self._records.terms(db, found.terms), list[str]()
        if not old.adopted:
            others = (("betas", old.betas == new.betas), ("stream", old.stream == new.stream))
            differs = [*differing(db, found.id, body), *(name for name, same in others if not same)]
        return conflict(decode_key(key), job, adopted=old.adopted, item=item, earlier=earlier, differs=differs)

    def join(
        self,
        db: Connection,
        moves: Moves,
        row: Row,
        new: Terms,
        *,
        run: int,
        now: datetime,
        max_spend: MaxSpend | None = None,
        flush: bool = False,
    ) -> bool:
        """Tighten a request's deadline, or begin it anew if it was abandoned; returns whether it was begun anew.

        Raises:
            SpendLimitError: Beginning it anew could pass the spend limit.
        """
        if row.status == SETTLED:
            if not row.abandoned:
                return False
            self._books.check_max_spend(db, max_spend, cost_to_reserve(new, 1, row.size))
            self._reopening.renew(db, moves, row, new, now=now, run=run, flush=flush)
            return True
        queued = row.status == QUEUED
        terms = merged(self._records.terms(db, row.terms), new, queued=queued)
        if terms is not None:
            number = self._records.store_terms(db, terms, row.job)
            lane = LANE_CODES[terms.lane] if queued else row.lane
            place = place_of(row)
            # Who waits for its old group waits for it in the new one.
            flush = flush or bool(
                db.execute(
                    "SELECT flush FROM cohort WHERE terms = ? AND lane = ? AND status = ? AND batch = ?", place
                ).fetchone()[0]
            )
            moves.move(place, place._replace(terms=number, lane=lane), 1, row.size, flush=flush)
            db.execute("UPDATE request SET terms = ?, lane = ? WHERE id = ?", (number, lane, row.id))
        if queued and row.run != run:
            # The run that asked last waits for it: the end of an earlier one does not abandon it.
            db.execute("UPDATE request SET run = ? WHERE id = ?", (run, row.id))
        return False
