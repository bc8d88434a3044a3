"""What is waited for in this process and not submitted yet: many waiting callers share one batch."""

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
        ledger: Where it is submitted.
        linger: How long a wait lets others join.
    """

    def __init__(self, ledger: Ledger, linger: timedelta) -> None:
        self._ledger, self._linger, self._lock = ledger, linger, threading.Lock()
        self._gathering: Gathering | None = None
        self._requests: set[int] = set()
        self._jobs: set[int] = set()

    def add(self, now: datetime, *, requests: Iterable[int] = (), jobs: Iterable[int] = ()) -> datetime:
        """Somebody waits for these; returns when they are submitted if nothing joins any more."""
        with self._lock:
            self._requests.update(requests)
            self._jobs.update(jobs)
            self._gathering = Gathering(now, now) if self._gathering is None else self._gathering.joined(now)
            return self._gathering.ends(self._linger)

    def joined(self, now: datetime) -> None:
        """A request was accepted, which may go with those that are waited for."""
        if self._gathering is not None:
            with self._lock:
                if self._gathering is not None:
                    self._gathering = self._gathering.joined(now)

    @property
    def end(self) -> datetime | None:
        """When there is something to submit; None: nobody waits for what is not submitted."""
        with self._lock:
            return None if self._gathering is None else self._gathering.ends(self._linger)

    def submit(self, now: datetime) -> None:
        """Have what is waited for sent, unless something joined it within the last linger."""
        waited = self._take(now)
        if waited is None:
            return
        try:
            if waited.requests:
                self._ledger.flush(Which(requests=sorted(waited.requests)))
            for job in waited.jobs:
                self._ledger.flush(Which(job=job))
        except BaseException:  # it is tried again a linger later
            self.add(now, requests=waited.requests, jobs=waited.jobs)
            raise

    def _take(self, now: datetime) -> _WaitedFor | None:
        """What is to be submitted now, once; None: nothing yet."""
        if self._gathering is None:
            return None
        with self._lock:
            if self._gathering is None or not self._gathering.over(now, self._linger):
                return None
            taken = _WaitedFor(frozenset(self._requests), frozenset(self._jobs))
            self._gathering, self._requests, self._jobs = None, set(), set()
            return taken
