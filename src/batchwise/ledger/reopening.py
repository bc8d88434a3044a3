"""How settled requests are begun anew: a job's, or one that was abandoned and is dispatched again."""

# ruff: noqa: S608 (statements are made of constants and question marks)

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime

import attrs

from batchwise.errors import InvalidValueError
from batchwise.models import Outcome
from batchwise.planning.outcomes import was_cut
from batchwise.planning.state import Terms

from .books import Books, Moves, Place, cost_to_reserve
from .database import Connection, Database
from .records import CHUNK, GROUP_RESULTS, Records, Row
from .rows import LANE_CODES, OUTCOME_CODES, QUEUED
from .unnamed import Unnamed
from .values import MaxSpend

__all__ = ["Reopening"]


@attrs.frozen
class _Wanted:
    """Which settled requests are to be begun anew, and on which terms."""

    job: int
    outcomes: object
    """Their codes, as a statement binds them."""
    routed: Mapping[int, Terms] | None
    with_max_cost: Callable[[Terms], Terms]

    def has(self, request: int) -> bool:
        """Whether this request is among them."""
        return self.routed is None or request in self.routed


class Reopening:
    """Queues settled requests as if they were new."""

    def __init__(self, database: Database, records: Records, books: Books, unnamed: Unnamed) -> None:
        self._database, self._records, self._books, self._unnamed = database, records, books, unnamed

    def reopen(
        self,
        *,
        job: int,
        outcomes: Sequence[Outcome],
        now: datetime,
        max_spend: MaxSpend | None = None,
        with_max_cost: Callable[[Terms], Terms] | None = None,
        routed: Mapping[int, Terms] | None = None,
    ) -> int:
        """Queue a job's settled requests of these outcomes anew; attempts, paused turns and refusals are forgotten.

        A deadline that has passed is dropped. What they cost stays in the books. With `routed`, only those in it, on
        these terms. Under a spend limit, and with `routed`, it is one transaction, else one for some at a time.

        Raises:
            SpendLimitError: They could pass the spend limit; none of them is queued.
            InvalidValueError: Some of them were adopted; none is queued.
        """
        codes = self._database.list_of(OUTCOME_CODES[outcome] for outcome in outcomes)
        wanted = _Wanted(job, codes, routed, (lambda terms: terms) if with_max_cost is None else with_max_cost)
        self._check_own(wanted)
        if max_spend is not None or routed is not None:
            return self._renew_at_once(wanted, now, max_spend)
        count = after = 0
        while after != -1:
            with self._database.write("reopen") as db:
                rows, after = self._settled(db, wanted, after)
                self._renew_all(db, wanted, rows, now)
            count += len(rows)
        return count

    def _check_own(self, wanted: _Wanted) -> None:
        """Refuse to begin anew what was adopted."""
        with self._database.read() as db:
            adopted = db.execute("SELECT EXISTS (SELECT 1 FROM batch WHERE job = ? AND adopted = 1)", (wanted.job,))
            if not adopted.fetchone()[0]:
                return
            if any(self._records.terms(db, row.terms).adopted for row in self._all_settled(db, wanted)):
                raise InvalidValueError(
                    "requests of an adopted batch are among these, and the ledger does not have their prompts: nothing "
                    "was queued. Dispatch them anew, under a job of their own"
                )

    def _renew_at_once(self, wanted: _Wanted, now: datetime, max_spend: MaxSpend | None) -> int:
        with self._database.write("reopen") as db:
            rows = list(self._all_settled(db, wanted))
            more = sum(cost_to_reserve(self._terms(db, wanted, row), 1, row.size) for row in rows)
            self._books.check_max_spend(db, max_spend, more)
            self._renew_all(db, wanted, rows, now)
        return len(rows)

    def _renew_all(self, db: Connection, wanted: _Wanted, rows: Sequence[Row], now: datetime) -> None:
        moves = self._books.moves(db, now)
        for row in rows:
            self.renew(db, moves, row, self._terms(db, wanted, row), now=now)
        moves.book()

    def _terms(self, db: Connection, wanted: _Wanted, row: Row) -> Terms:
        """The terms on which a request begins anew."""
        terms = self._records.terms(db, row.terms) if wanted.routed is None else wanted.routed[row.id]
        return wanted.with_max_cost(terms.asking(terms.asked[:1]) if terms.refused_by else terms)

    def _all_settled(self, db: Connection, wanted: _Wanted) -> Iterator[Row]:
        after = 0
        while after != -1:
            rows, after = self._settled(db, wanted, after)
            yield from rows

    def _settled(self, db: Connection, wanted: _Wanted, after: int) -> tuple[list[Row], int]:
        """Return some of the wanted requests after a cursor, and the next cursor; -1: there are no more."""
        which, values = self._unnamed.results_after(db, wanted.job, after)
        found = db.execute(
            f"SELECT r.seq, r.request FROM {GROUP_RESULTS} "
            f"WHERE {which} AND g.outcome {self._database.among} ORDER BY g.last, r.seq LIMIT {CHUNK}",
            (*values, wanted.outcomes),
        ).fetchall()
        rows = self._records.rows(db, [request for _, request in found if wanted.has(request)])
        return list(rows.values()), found[-1][0] if len(found) == CHUNK else -1

    def renew(
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
        """Queue a settled request as if it were new, and delete its result."""
        if not run:
            # Nobody is known to wait for it, so no process's end abandons it.
            terms = attrs.evolve(terms, blocking=False)
        if terms.deadline is not None and terms.deadline <= now:
            terms = attrs.evolve(terms, deadline=None, submit_by=None, rescue_at=None)
        number = (
            row.terms if terms == self._records.terms(db, row.terms) else self._records.store_terms(db, terms, row.job)
        )
        lane = LANE_CODES[terms.lane]
        self._forget_result(db, row)
        size = self._forget_turns(db, row)
        db.execute(
            "UPDATE request SET terms = ?, lane = ?, status = 0, run = ?, attempts = 0, calls = 0, abandoned = 0 "
            "WHERE id = ?",
            (number, lane, run, row.id),
        )
        moves.reopen(Place(number, lane, QUEUED, 0), size, flush=flush)

    def _forget_result(self, db: Connection, row: Row) -> None:
        """Delete the result, and count the request no more. Money, attempts and tokens stay in the books."""
        cost, line = db.execute("SELECT cost, line FROM result WHERE seq = ?", (row.result,)).fetchone()
        how = self._records.result_group(db, row.result or 0)
        db.execute(
            "UPDATE tally SET requests = requests - 1, unpriced = unpriced - ?, met = met - ?, missed = missed - ?, "
            "truncated = truncated - ? WHERE job = ? AND lane = ? AND outcome = ?",
            (cost is None, how.met == 1, how.met == 0, was_cut(line), row.job, how.lane, how.outcome),
        )
        db.execute("DELETE FROM result WHERE seq = ?", (row.result,))

    def _forget_turns(self, db: Connection, row: Row) -> int:
        """Delete paused turns and refusals, and restore the first body; returns its size."""
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
