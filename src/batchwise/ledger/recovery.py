"""Recovers the work of runs that have ended or died."""

from __future__ import annotations

from datetime import datetime

from batchwise.errors import SpendLimitError

from .books import Books
from .bulk import Intakes
from .cancelling import Cancelling
from .database import Database
from .records import CHUNK, Records, Row
from .requeuing import Requeuing
from .rows import SYNC
from .runs import Runs
from .values import MaxSpend

__all__ = ["Recovery"]

_UNFINISHED = """
SELECT id FROM request WHERE status = 1 AND lane = 0 AND run = ?
UNION ALL
SELECT id FROM request WHERE status = 0 AND lane = 0 AND run = ? AND terms IN (
    SELECT c.terms FROM cohort c JOIN terms t ON t.id = c.terms WHERE c.status = 0 AND c.lane = 0 AND t.blocking = 1
) LIMIT ?
"""
"""Calls of a run that were running, and its blocking requests that wait for theirs."""

_ABANDONED = "the process that waited for it ended before the answer came; dispatch its key again to run it"


class Recovery:
    """Recovers the work of runs."""

    def __init__(
        self,
        database: Database,
        records: Records,
        books: Books,
        *,
        runs: Runs,
        intakes: Intakes,
        cancelling: Cancelling,
        requeuing: Requeuing,
    ) -> None:
        self._database, self._records, self._books = database, records, books
        self._runs, self._intakes, self._cancelling, self._requeuing = runs, intakes, cancelling, requeuing
        self._others: dict[int, bool] = {}
        """The runs of other processes at the last look, and whether each had recorded its end."""
        self._looked: tuple[int, datetime] | None = None
        """The ledger's version at the last look, and its time."""

    def end_run(self, run: int) -> None:
        """Mark this run as ended. The next `recover` takes over its unfinished work."""
        try:
            self._intakes.abort_of(run)
        finally:  # whatever failed: a run whose lock is held counts as alive
            self._runs.end(run)

    def recover(self, *, now: datetime, max_spend: MaxSpend | None = None) -> int:
        """Recover the work of dead runs; returns how many requests were touched, without staged ones.

        Staged rows are deleted. Unsettled blocking requests (queued for the sync lane, or running) settle CANCELED with
        the error type `abandoned`. Other sync calls that were running have spent an attempt, and are queued again;
        those that could pass the spend limit if they were billed again fail. All calls that were running count as
        possible doubles. Batches in `posting` are left to the holder of the lease.
        """
        mine = self._runs.hold()
        for intake in list(self._intakes.left):
            self._intakes.abort(intake)
        self._look(mine, now)
        self._database.wipe(retry=True)
        touched = 0
        for run in self._runs.ended(self._others):
            lock = self._runs.lock(run, others=True)
            if not lock.acquire():
                continue
            try:
                touched += self._recover_run(run, now, max_spend)
            finally:
                lock.remove()
        return touched

    def _look(self, mine: set[int], now: datetime) -> None:
        """Read the runs, and correct the books: only if the ledger has changed, or our clock was set.

        So a process that is idle asks for nothing but the locks of others.
        """
        version = self._database.version()  # first: later changes count for the next look
        if self._looked is not None and self._looked[0] == version and self._looked[1] <= now:
            return
        with self._database.read() as db:
            known = {run: bool(ended) for run, ended in db.execute("SELECT id, ended FROM run ORDER BY id")}
            staging = [run for (run,) in db.execute("SELECT DISTINCT run FROM intake")]
        if gone := mine.difference(known):
            self._runs.write_again(gone, now)
        self._books.set_right(now)
        runs = {**dict.fromkeys(staging, False), **known}
        self._others = {run: ended for run, ended in runs.items() if run not in self._runs.held}
        self._looked = version, now

    def _recover_run(self, run: int, now: datetime, max_spend: MaxSpend | None) -> int:
        self._intakes.abort_of(run)
        touched = 0
        while True:
            with self._database.write("recover") as db:
                ids = [number for (number,) in db.execute(_UNFINISHED, (run, run, CHUNK))]
                blocking, others = list[Row](), list[Row]()
                for row in self._records.rows(db, ids).values():
                    (blocking if self._records.terms(db, row.terms).blocking else others).append(row)
                self._cancelling.cancel_rows(db, [row.id for row in blocking], "abandoned", _ABANDONED, now)
                for row in others:  # one by one: each takes of the room that the spend limit leaves
                    try:
                        self._requeuing.book_doubles(db, [row], lane=SYNC, now=now, max_spend=max_spend)
                    except SpendLimitError:
                        self._cancelling.fail_unaffordable(db, row, now)
                    else:
                        self._requeuing.queue(db, [row], lane=SYNC, costs_attempt=True, now=now, changed={})
                touched += len(ids)
                if not ids:
                    db.execute("DELETE FROM run WHERE id = ?", (run,))
                    self._database.clear_marks(db)
                    return touched
