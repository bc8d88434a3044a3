"""Requests and jobs that callers wait for and that are not submitted yet: many callers share one batch."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import NamedTuple

from batchwise.ledger.ledger import Ledger
from batchwise.ledger.values import Which
from batchwise.planning.linger import Gathering

__all__ = ["Waits"]


class _WaitedFor(NamedTuple):
    """Numbers of requests and of jobs that are waited for."""

    requests: frozenset[int]
    jobs: frozenset[int]


class Waits:
    """Thread-safe. Times are those of the wall clock, passed in.

    Args:
        ledger: Takes the order to submit them.
        linger: How long a wait lets others join.
    """

    def __init__(self, ledger: Ledger, linger: timedelta) -> None:
        self._ledger, self._linger, self._lock = ledger, linger, threading.Lock()
        self._gathering: Gathering | None = None
        self._requests: set[int] = set()
        self._jobs: set[int] = set()

    def add(self, now: datetime, *, requests: Iterable[int] = (), jobs: Iterable[int] = ()) -> datetime:
        """Note that a caller waits for these; returns when they are submitted if nothing more joins."""
        with self._lock:
            self._requests.update(requests)
            self._jobs.update(jobs)
            self._gathering = Gathering(now, now) if self._gathering is None else self._gathering.joined(now)
            return self._gathering.ends(self._linger)

    def joined(self, now: datetime) -> None:
        """Note that a request was accepted, which may go into the same batch."""
        if self._gathering is not None:
            with self._lock:
                if self._gathering is not None:
                    self._gathering = self._gathering.joined(now)

    @property
    def end(self) -> datetime | None:
        """When to submit; None: nobody waits for work that is not submitted."""
        with self._lock:
            return None if self._gathering is None else self._gathering.ends(self._linger)

    def submit(self, now: datetime) -> None:
        """Submit what is waited for, unless more joined within the last linger."""
        waited = self._take(now)
        if waited is None:
            return
        try:
            if waited.requests:
                self._ledger.flush(Which(requests=sorted(waited.requests)))
            for job in waited.jobs:
                self._ledger.flush(Which(job=job))
        except BaseException:  # tried again a linger later
            self.add(now, requests=waited.requests, jobs=waited.jobs)
            raise

    def _take(self, now: datetime) -> _WaitedFor | None:
        """Take out and return what is to be submitted now; None: nothing yet."""
        if self._gathering is None:
            return None
        with self._lock:
            if self._gathering is None or not self._gathering.over(now, self._linger):
                return None
            taken = _WaitedFor(frozenset(self._requests), frozenset(self._jobs))
            self._gathering, self._requests, self._jobs = None, set(), set()
            return taken
