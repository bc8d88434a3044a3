"""Runs: the dispatchers that use the ledger, and whether their processes live."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime

from batchwise.errors import LedgerError

from .database import Database, Lock
from .rows import micros

__all__ = ["Runs"]


def _name(run: int) -> str:
    return f"run-{run}"


class Runs:
    """Registers dispatchers, and tells whether their processes live."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.held: dict[int, Lock] = {}
        """The locks of this ledger's own runs."""

    def start(self, *, pid: int, now: datetime) -> int:
        """Register a dispatcher; its liveness lock dies with the process. Returns its number (over 0)."""
        with self._database.write("start_run") as db:
            run = self._database.insert(db, "INSERT INTO run (pid, started) VALUES (?, ?)", (pid, micros(now)))
            # Locked before others can see the run, or they would take it for a dead one.
            lock = self.lock(run)
            lock.acquire()
            self.held[run] = lock
        return run

    def lock(self, run: int, *, others: bool = False) -> Lock:
        """Return the lock that a run holds while it lives; `others`: the run is another process's."""
        return self._database.process_lock(_name(run), retake=not others)

    def ended(self, runs: Mapping[int, bool]) -> list[int]:
        """Return which of these runs of other processes have ended; `runs`: whether each has recorded that itself."""
        names = {_name(run): run for run, said in runs.items() if not said}
        free = [names[name] for name in self._database.free(list(names))]
        return sorted([*free, *(run for run, said in runs.items() if said)])

    def end(self, run: int) -> None:
        """Release the lock of a run of our own.

        If a free lock proves nothing for a while (`Database.grace`), the run's end is recorded as well. So nobody has
        to wait before taking over its work.
        """
        lock = self.held.pop(run, None)
        if lock is None:
            return
        lock.remove()
        if self._database.grace:
            with suppress(LedgerError), self._database.write("end_run") as db:
                db.execute("UPDATE run SET ended = 1 WHERE id = ?", (run,))

    def hold(self) -> set[int]:
        """Take again the locks of our own runs that were lost; returns the runs whose locks are held.

        A lock is lost when something deletes its file as an old one, or when its connection breaks.
        """
        return {run for run, lock in list(self.held.items()) if lock.acquire()}

    def write_again(self, runs: Iterable[int], now: datetime) -> None:
        """Record runs of our own again that another process took for dead, and deleted, while their locks were lost."""
        with self._database.write("start_run") as db:
            for run in runs:
                db.execute(
                    "INSERT INTO run (id, pid, started) VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING",
                    (run, os.getpid(), micros(now)),
                )

    def alive(self, run: int) -> bool:
        """Whether the process of a run lives."""
        if run in self.held or not self.ended({run: False}):
            return True
        lock = self.lock(run, others=True)
        if lock.acquire():
            lock.remove()
            return False
        return True
