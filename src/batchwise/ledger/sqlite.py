"""The ledger in a SQLite file (or in memory)."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import cast

import attrs
import orjson

from batchwise.errors import LedgerError, WrongWorkspaceError, printable
from batchwise.models import Lane
from batchwise.planning.packing import Sizes
from batchwise.planning.state import Snapshot

from .adoption import Adoption
from .base import Lease, Ledger
from .database import Lock
from .files import path_of
from .rows import from_micros, micros
from .sqlite_database import SqliteDatabase
from .store import CHUNK, FAILURES, UPDATE_MANY, Moves
from .values import Streak

__all__ = ["SqliteLedger", "open_ledger"]

_ABANDONED = "the process that waited for it ended before the answer came; dispatch its key again to run it"
_DEFAULT = Path(".batchwise") / "ledger.db"


class SqliteLedger(Adoption):
    """A `Ledger` in one SQLite file, safe for several threads and several processes on one machine.

    Args:
        where: The file (made if missing, readable by its owner only), `:memory:`, or the open database.

    Raises:
        LedgerError: The file cannot be used; the message says why and what to do.
    """

    def __init__(self, where: str | os.PathLike[str] | SqliteDatabase) -> None:
        super().__init__(where if isinstance(where, SqliteDatabase) else SqliteDatabase(where))

    @property
    def lease(self) -> Lease:
        """The lock of batch actions."""
        return self._lease

    # -- runs -------------------------------------------------------------------------------------------------------

    def start_run(self, *, pid: int, now: datetime) -> int:
        """Register a dispatcher; its liveness lock dies with the process. Returns its number (over 0)."""
        with self.database.write("start_run") as db:
            run = self.database.insert(db, "INSERT INTO run (pid, started) VALUES (?, ?)", (pid, micros(now)))
            # Locked before others can see the run, or they would take it for a dead one.
            lock = self._run_lock(run)
            lock.acquire()
            self._runs[run] = lock
        return run

    def end_run(self, run: int) -> None:
        """The dispatcher is done. What it leaves unfinished is cleared up by the next `recover`."""
        try:
            with self.database.read() as db:
                mine = db.execute("SELECT id FROM intake WHERE run = ?", (run,)).fetchall()
            for (intake,) in mine:
                self._abort(intake)
        finally:  # whatever failed: a run whose lock is held is taken for alive
            lock = self._runs.pop(run, None)
            if lock is not None:
                lock.remove()

    def _run_lock(self, run: int) -> Lock:
        return self.database.process_lock(f"run-{run}")

    def _alive(self, run: int) -> bool:
        if run in self._runs:
            return True
        lock = self._run_lock(run)
        if lock.acquire():
            lock.remove()
            return False
        return True

    def recover(self, *, now: datetime) -> int:
        """Clear up after dead runs; returns how many requests were touched, staged ones (never accepted) aside.

        Staged rows go. Unsettled blocking requests (queued for the sync lane, or running) settle CANCELED with the
        error type `abandoned`. Other sync calls that ran are queued again with an attempt spent, counted as possible
        doubles. Batches in `posting` are not touched: that is the lease holder's work (`doubt_orphans`).
        """
        for lock in self._runs.values():  # what sweeps old files away may have taken it
            lock.acquire()
        with self.database.read() as db:
            runs = [row[0] for row in db.execute("SELECT id FROM run ORDER BY id") if row[0] not in self._runs]
            runs += [row[0] for row in db.execute("SELECT DISTINCT run FROM intake") if row[0] not in self._runs]
        self._set_books_right(now)
        self.database.wipe(again=True)
        touched = 0
        for run in dict.fromkeys(runs):
            lock = self._run_lock(run)
            if not lock.acquire():
                continue
            try:
                touched += self._recover_run(run, now)
            finally:
                lock.remove()
        return touched

    def _recover_run(self, run: int, now: datetime) -> int:
        with self.database.read() as db:
            staged = db.execute("SELECT id FROM intake WHERE run = ?", (run,)).fetchall()
        for (intake,) in staged:
            self._abort(intake)
        touched, found = 0, CHUNK
        while found:
            with self.database.write("recover") as db:
                ids = [
                    row[0]
                    for row in db.execute(
                        "SELECT id FROM request WHERE status = 1 AND lane = 0 AND run = ? UNION ALL "
                        "SELECT id FROM request WHERE status = 0 AND lane = 0 AND run = ? AND terms IN "
                        "(SELECT c.terms FROM cohort c JOIN terms t ON t.id = c.terms "
                        "WHERE c.status = 0 AND c.lane = 0 AND t.blocking) LIMIT ?",
                        (run, run, CHUNK),
                    )
                ]
                rows = self._rows(db, ids).values()
                waited = [row.id for row in rows if self._terms(db, row.terms).blocking]
                others = [row for row in rows if not self._terms(db, row.terms).blocking]
                self._cancel_rows(db, waited, "abandoned", _ABANDONED, now)
                self._requeue(db, others, lane=Lane.SYNC, costs_attempt=True, now=now, doubtful=True)
                found = len(ids)
                touched += found
                if not found:
                    db.execute("DELETE FROM run WHERE id = ?", (run,))
        return touched

    # -- whose, and what is known of the lanes ----------------------------------------------------------------------

    def bind(self, *, endpoint: str, workspace: str | None) -> bool:
        """Remember, or check, whose ledger this is; returns whether its workspace is known.

        A workspace of None is not checked.

        Raises:
            WrongWorkspaceError: It belongs to another endpoint or workspace.
        """
        with self.database.write("bind") as db:
            for name, value in (("endpoint", endpoint), ("workspace", workspace)):
                known = self._meta(db, name)
                if value is None or known == value:
                    continue
                if known is not None:
                    theirs = printable(value)
                    raise WrongWorkspaceError(
                        f"the ledger {self.name} belongs to the {name} {printable(known)}, the client to {theirs}; "
                        "use the client that it was made with, or another ledger. Nothing was polled or sent"
                    )
                self._put(db, name, value)
            return self._meta(db, "workspace") is not None

    def suspend(self, lane: Lane, reason: str, *, now: datetime) -> None:
        """No more work for this lane until `resume`."""
        with self.database.write("suspend") as db:
            self._put(db, f"suspended:{lane.value}", reason)
            self._put(db, f"suspended_at:{lane.value}", str(micros(now)))

    def note_failure(self, name: str, *, now: datetime) -> Streak:
        """Count a failure of the batch lane; returns how often it has been noted since a batch was created."""
        with self.database.write("note_failure") as db:
            times, since = map(int, (self._meta(db, f"{FAILURES}{name}") or f"0 {micros(now)}").split())
            since = min(since, micros(now))
            self._put(db, f"{FAILURES}{name}", f"{times + 1} {since}")
        return Streak(times + 1, from_micros(since))

    def resume(self, lane: Lane | None = None, *, afresh: bool = True) -> None:
        """The lane (None: both) takes work again; `afresh`: its failures are counted anew."""
        with self.database.write("resume") as db:
            if afresh and lane is not Lane.SYNC:
                self._forget_failures(db)
            for each in Lane if lane is None else (lane,):
                self._put(db, f"suspended:{each.value}", None)
                self._put(db, f"suspended_at:{each.value}", None)

    def note_advance(self, *, now: datetime) -> timedelta | None:
        """Remember that a pass began now; returns the time since the one before.

        Where the clock was set back in between, that is the time between the two passes before; None: not known.
        """
        with self.database.write("note_advance", quiet=True) as db:
            before, gap = (int(self._meta(db, name) or -1) for name in ("advanced_at", "advance_gap"))
            if 0 <= before <= micros(now):
                gap = micros(now) - before
            self._put(db, "advanced_at", str(micros(now)))
            self._put(db, "advance_gap", str(gap))
        return None if gap < 0 else timedelta(microseconds=gap)

    def set_right(self, right: Snapshot, *, now: datetime, latest: datetime) -> None:
        """Store what is believed (`planning.moments.believed`) of the lanes and queues, batches aside.

        No request has come to its place after `now`; pauses that end after `latest` are over.
        """
        with self.database.write("set_right") as db:
            for name, moment, last in (
                ("paused_until", right.batch_paused_until, latest),
                ("sync_answered_at", right.sync_answered_at, now),
                ("sync_failed_at", right.sync_failed_at, now),
            ):
                if int(self._meta(db, name) or 0) > micros(last):
                    self._put(db, name, None if moment is None else str(micros(moment)))
            db.execute("UPDATE cohort SET since = ? WHERE since > ?", (micros(now), micros(now)))
            for place, group in self._groups(db, "status = 0 AND not_before > ?", (micros(latest),)):
                moves = Moves(self, db, group.since)
                moves.add(place, -group.requests, -group.size)
                moves.add(place._replace(not_before=0), group.requests, group.size, flush=group.flush)
                moves.book()
                db.execute(
                    f"{UPDATE_MANY} request SET not_before = 0 "
                    "WHERE status = 0 AND terms = ? AND lane = ? AND not_before = ?",
                    (place.terms, place.lane, place.not_before),
                )

    def pause_batches(self, until: datetime | None) -> None:
        """The account's queue is full until then."""
        with self.database.write("pause_batches") as db:
            self._put(db, "paused_until", None if until is None else str(micros(until)))

    def note_sizes(self, sizes: Sizes) -> None:
        """Remember how many requests a batch may have from now on."""
        with self.database.write("note_sizes") as db:
            self._put(db, "sizes", orjson.dumps(attrs.asdict(sizes)).decode())

    def note_clock(self, offset: timedelta) -> None:
        """Remember the server's clock minus ours."""
        with self.database.write("note_clock", quiet=True) as db:
            self._put(db, "clock_offset", str(offset // timedelta(microseconds=1)))

    def note_call(self, *, now: datetime, answered: bool) -> None:
        """The sync lane answered a call, or refused it for good or did not answer."""
        with self.database.write("note_call", quiet=True) as db:
            self._put(db, "sync_answered_at" if answered else "sync_failed_at", str(micros(now)))


def open_ledger(spec: str | os.PathLike[str] | Ledger | None = None, *, must_exist: bool = False) -> Ledger:
    """The ledger that is meant: a `Ledger` as it is, a path or `:memory:`; None: `$BATCHWISE_LEDGER`, else the default.

    The default is `.batchwise/ledger.db` under the current folder, with a `.gitignore` beside it: it holds prompts.

    Args:
        spec: What is meant.
        must_exist: Make no new file.

    Raises:
        InvalidValueError: It is no path.
        LedgerError: The file cannot be used, or does not exist and has to.
    """
    if hasattr(spec, "snapshot"):
        return cast("Ledger", spec)
    spec = spec if spec is not None else os.environ.get("BATCHWISE_LEDGER") or _DEFAULT
    if must_exist:
        _check_exists(path_of(spec))
    ledger = SqliteLedger(path_of(spec))
    ignore = _DEFAULT.with_name(".gitignore")
    if spec is _DEFAULT and not ignore.exists():
        ignore.write_text("*\n")
    return ledger


def _check_exists(path: str) -> None:
    if path != ":memory:" and not Path(path).exists():
        raise LedgerError(
            f"there is no ledger {path}; nothing was made. Name another with --ledger or $BATCHWISE_LEDGER"
        )
