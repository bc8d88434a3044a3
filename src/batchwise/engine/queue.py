"""The sync lane's queue in one process: the most urgent claim first, as fast as the pacing lets through."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Mapping
from datetime import timedelta
from typing import NamedTuple

from batchwise.ledger.values import Claim
from batchwise.models import Limits
from batchwise.planning.pacing import OutputForecast, Pacer
from batchwise.planning.state import BYTES_PER_TOKEN

__all__ = ["CallQueue", "Ticked"]


_BLOCKING = 1


class Ticked(NamedTuple):
    """A claim let through, with what the pacing reserved for it."""

    claim: Claim
    input_tokens: int
    output_tokens: int
    place: int
    """Its own number in the queue: a claim that was never accepted may share its request's with another."""


class CallQueue:
    """Thread-safe. Times are seconds of a monotonic clock, passed in.

    While something urgent waits, what has a deadline runs in the order of deadlines, whatever had slack when it was
    claimed; else blocking work goes first.
    """

    def __init__(self, limits: Limits, *, now: float) -> None:
        self._lock = threading.Lock()
        self._pacer = Pacer(limits, now=now)
        self._outputs = OutputForecast()
        self._dated: list[tuple[float, int, Claim, int]] = []
        self._blocking: list[tuple[float, int, Claim, int]] = []
        self._later: list[tuple[float, int, int, float, Claim]] = []
        self._urgent = 0
        self._sequence = 0
        self._running: set[int] = set()
        """The places of claims for which the pacing holds a reservation."""
        self._storing: set[int] = set()
        """Of those whose answers, or failures, have come and are not stored yet."""
        self._held: set[int] = set()
        """The requests of all unfinished claims, less those that had another claim which finished."""

    def push(self, claim: Claim, *, priority: int, due: float, not_before: float = 0.0) -> None:
        """Queue a claim of `priority` 0 (urgent), 1 (blocking) or 2 (neither); not before `not_before`."""
        with self._lock:
            self._sequence += 1
            self._held.add(claim.id)
            if not_before:
                heapq.heappush(self._later, (not_before, priority, self._sequence, due, claim))
            else:
                self._put(priority, due, self._sequence, claim)

    def _put(self, priority: int, due: float, sequence: int, claim: Claim) -> None:
        heapq.heappush(self._blocking if priority == _BLOCKING else self._dated, (due, sequence, claim, priority))
        self._urgent += priority == 0

    def _next_in_line(self) -> list[tuple[float, int, Claim, int]]:
        return self._dated if self._dated and (self._urgent or not self._blocking) else self._blocking

    def next(self, now: float) -> Ticked | float | None:
        """The next claim to run (booked as running), seconds to wait for it, or None when nothing is queued."""
        with self._lock:
            while self._later and self._later[0][0] <= now:
                _, priority, sequence, due, claim = heapq.heappop(self._later)
                self._put(priority, due, sequence, claim)
            line = self._next_in_line()
            if not line:
                return self._later[0][0] - now if self._later else None
            _, place, claim, priority = line[0]
            tokens_in = max(1, len(claim.body) // BYTES_PER_TOKEN)
            tokens_out = min(claim.terms.output_tokens, self._outputs.expect(claim.terms.model, claim.terms.max_tokens))
            wait = self._pacer.ask(now, input_tokens=tokens_in, output_tokens=tokens_out)
            if wait > 0:
                return wait
            heapq.heappop(line)
            self._urgent -= priority == 0
            self._running.add(place)
            return Ticked(claim, tokens_in, tokens_out, place)

    def done(
        self, ticked: Ticked, now: float, *, headers: Mapping[str, str], used_in: int, used_out: int, took: timedelta
    ) -> None:
        """The claim has its answer. It is unfinished until that is stored."""
        with self._lock:
            self._has_ended(ticked)
            terms = ticked.claim.terms
            self._outputs.learn(terms.model, terms.max_tokens, used_out)
            self._pacer.done(
                now,
                input_tokens=ticked.input_tokens,
                output_tokens=ticked.output_tokens,
                input_tokens_used=used_in,
                output_tokens_used=used_out,
                latency=took / timedelta(seconds=1),
            )
            self._pacer.observe(now, headers)

    def failed(self, ticked: Ticked, now: float, *, throttled: bool, retry_after: timedelta | None) -> None:
        """The claim's call failed; a throttled one pauses the whole lane."""
        with self._lock:
            if throttled:
                self._has_ended(ticked)
                wait = None if retry_after is None else retry_after / timedelta(seconds=1)
                self._pacer.throttled(now, wait, input_tokens=ticked.input_tokens, output_tokens=ticked.output_tokens)
            else:
                self._release(ticked, now)

    def _has_ended(self, ticked: Ticked) -> None:
        self._running.remove(ticked.place)
        self._storing.add(ticked.place)

    def _release(self, ticked: Ticked, now: float) -> None:
        self._has_ended(ticked)
        self._pacer.done(
            now,
            input_tokens=ticked.input_tokens,
            output_tokens=ticked.output_tokens,
            input_tokens_used=0,
            output_tokens_used=0,
            latency=None,
        )

    def drain(self) -> list[Claim]:
        """Take out everything that has not begun."""
        with self._lock:
            claims = [entry[2] for entry in (*self._dated, *self._blocking)] + [entry[4] for entry in self._later]
            self._dated.clear()
            self._blocking.clear()
            self._urgent = 0
            self._later.clear()
            self._held.difference_update(claim.id for claim in claims)
            return claims

    def finish(self, ticked: Ticked, now: float) -> bool:
        """What became of the claim is stored, or it is given up. False: it was finished before."""
        with self._lock:
            if ticked.place in self._running:
                self._release(ticked, now)
            if ticked.place not in self._storing:
                return False
            self._storing.remove(ticked.place)
            self._held.discard(ticked.claim.id)
            return True

    def _waiting(self) -> int:
        return len(self._dated) + len(self._blocking) + len(self._later)

    @property
    def waiting(self) -> int:
        """Claims that have not begun."""
        with self._lock:
            return self._waiting()

    @property
    def busy(self) -> int:
        """Claims not finished: waiting, running, or answered and not stored yet."""
        with self._lock:
            return self._waiting() + len(self._running) + len(self._storing)

    @property
    def storing(self) -> int:
        """Claims whose answers, or failures, have come and are not stored yet."""
        with self._lock:
            return len(self._storing)

    def holds(self, request: int) -> bool:
        """Whether an end of this request has still to come from here, and is told. A False tells nothing."""
        return request in self._held
