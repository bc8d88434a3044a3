"""Runs: the dispatchers that use the ledger, and whether their processes live."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import datetime

from .database import Database, Lock
from .rows import micros

__all__ = ["Runs"]


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
        """The lock that says that a run lives; `others`: another process's."""
        return self._database.process_lock(f"run-{run}", others=others, again=not others)

    def hold(self) -> set[int]:
        """Take again the locks of our own runs that were lost; returns the runs whose locks are held.

        What sweeps old files away may have taken a lock, and a connection may have been lost.
        """
        return {run for run, lock in list(self.held.items()) if lock.acquire()}

    def write_again(self, runs: Iterable[int], now: datetime) -> None:
        """Write down again runs of our own that somebody took for dead while their locks were lost."""
        with self._database.write("start_run") as db:
            for run in runs:
                db.execute(
                    "INSERT INTO run (id, pid, started) VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING",
                    (run, os.getpid(), micros(now)),
                )

    def alive(self, run: int) -> bool:
        """Whether the process of a run lives."""
        if run in self.held:
            return True
        lock = self.lock(run, others=True)
        if lock.acquire():
            lock.remove()
            return False
        return True
