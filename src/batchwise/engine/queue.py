"""The sync lane's queue in one process: the most urgent claim first, as fast as the pacing of its class allows."""

from __future__ import annotations

import heapq
import math
import threading
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from batchwise.ledger.values import Claim
from batchwise.models import Limits
from batchwise.planning.capacity import MOST_CALLS, Measured, class_of, given_limits, limits_of
from batchwise.planning.outcomes import Refusal
from batchwise.planning.output_forecast import OutputForecast, Writing
from batchwise.planning.pacing import Pacer, Permit
from batchwise.planning.packing import BYTES_PER_TOKEN

__all__ = ["BACKGROUND", "BLOCKING", "URGENT", "CallQueue", "Slot"]

URGENT, BLOCKING, BACKGROUND = 0, 1, 2
"""The priorities of claims: a deadline needs the call now; a caller waits for it; all others."""
_LONG, _TOLD = 1.0, 60.0
"""Seconds that calls wait before that is announced, and seconds until it is announced again."""
_FULL = 1.0
"""Seconds until the next look when a process runs as many calls as it can; earlier if a call ends."""


class Slot(NamedTuple):
    """A claim that may be called now, with the permit of the pacing."""

    claim: Claim
    permit: Permit
    writing: Writing
    sequence: int
    """The claim's own number in the queue."""


class _Class:
    """The waiting claims of one class of models, and its pace. A class that is paused holds up no other.

    While an urgent claim waits, claims with deadlines run in the order of their deadlines; else blocking claims run
    first.
    """

    def __init__(self, pacer: Pacer) -> None:
        self.pacer = pacer
        self.dated: list[tuple[float, int, Claim, int]] = []
        self.blocking: list[tuple[float, int, Claim, int]] = []
        self.later = self.running = 0
        self._urgent = 0
        self.held_since, self.told_at = math.inf, -math.inf
        """Since when calls have waited for the pacing without a break, and when that was last announced."""

    def put(self, priority: int, due: float, sequence: int, claim: Claim) -> None:
        heapq.heappush(self.blocking if priority == BLOCKING else self.dated, (due, sequence, claim, priority))
        self._urgent += priority == URGENT

    def pass_over(self, moment: float) -> None:
        """Put claims last that were due by this moment: they are late, and no longer urgent."""
        while self.dated and self.dated[0][0] <= moment:
            _, sequence, claim, priority = heapq.heappop(self.dated)
            self._urgent -= priority == URGENT
            self.put(BACKGROUND, math.inf, sequence, claim)

    def line(self) -> list[tuple[float, int, Claim, int]]:
        return self.dated if self.dated and (self._urgent or not self.blocking) else self.blocking

    @property
    def urgency(self) -> tuple[int, float]:
        """The class's place in the order: urgent, blocking, then other work, each by deadline."""
        line = self.line()
        return (0 if self._urgent else 1 if line is self.blocking else 2), line[0][0]

    def pop(self) -> None:
        *_, priority = heapq.heappop(self.line())
        self._urgent -= priority == URGENT

    def clear(self) -> None:
        self.dated.clear()
        self.blocking.clear()
        self._urgent = self.later = 0

    @property
    def waiting(self) -> int:
        return len(self.dated) + len(self.blocking) + self.later


class CallQueue:
    """Thread-safe. Times are seconds of a monotonic clock, passed in.

    Args:
        limits: `Policy.limits`.
    """

    def __init__(self, limits: Limits | Mapping[str, Limits] | None) -> None:
        self._lock = threading.Lock()
        self._limits = limits
        self._outputs = OutputForecast()
        self._classes: dict[str, _Class] = {}
        self._later: list[tuple[float, int, int, float, Claim]] = []
        self._sequence = 0
        self._stored_limits: Mapping[str, Measured] = {}
        """The account's limits by class as the ledger knows them, for classes that this process has not called yet."""
        self._running: set[int] = set()
        """The sequence numbers of claims for which the pacing holds a permit."""
        self._news: list[tuple[str, str, int]] = []
        self._storing: set[int] = set()
        """The sequence numbers of claims whose answers, or failures, are not stored yet."""
        self._held: set[int] = set()
        """The requests of unfinished claims, without those of which another claim has finished."""

    def _class(self, claim: Claim, now: float) -> _Class:
        name = class_of(claim.terms.model, self._limits)
        found = self._classes.get(name)
        if found is None:
            limits = limits_of(name, self._limits, self._stored_limits.get(name))
            pacer = Pacer(limits, now=now, follows=given_limits(name, self._limits) is None)
            found = self._classes[name] = _Class(pacer)
        return found

    def take_news(self) -> list[tuple[str, str, int]]:
        """Return the classes that have begun to wait since the last call: name, limiting figure, waiting calls."""
        if not self._news:
            return []
        with self._lock:
            found, self._news = self._news, []
        return found

    def push(self, claim: Claim, *, priority: int, due: float, now: float, wait: float = 0.0) -> None:
        """Queue a claim with this priority (`URGENT`, ...); it is called after `wait` seconds at the earliest."""
        with self._lock:
            self._sequence += 1
            self._held.add(claim.id)
            if wait:
                heapq.heappush(self._later, (now + wait, priority, self._sequence, due, claim))
                self._class(claim, now).later += 1
            else:
                self._class(claim, now).put(priority, due, self._sequence, claim)

    def next(self, now: float, moment: float = -math.inf) -> Slot | float | None:
        """Return the next claim to run (booked as running), or the seconds to wait for one; None: nothing is queued.

        `moment`: claims that were due by then are late; by the clock of `push(due=)`.
        """
        with self._lock:
            while self._later and self._later[0][0] <= now:
                _, priority, sequence, due, claim = heapq.heappop(self._later)
                lane = self._class(claim, now)
                lane.later -= 1
                lane.put(priority, due, sequence, claim)
            if len(self._running) >= MOST_CALLS:
                return _FULL
            for lane in self._classes.values():
                lane.pass_over(moment)
            ready = [lane for lane in self._classes.values() if lane.line()]
            if len(ready) > 1:
                ready.sort(key=lambda lane: lane.urgency)
            waits = [self._later[0][0] - now] if self._later else []
            for lane in ready:
                got = self._ask(lane, now)
                if isinstance(got, Slot):
                    return got
                waits.append(got)
            return min(waits, default=None)

    def _ask(self, lane: _Class, now: float) -> Slot | float:
        _, sequence, claim, _ = lane.line()[0]
        terms = claim.terms
        tokens_in = max(1, len(claim.body) // BYTES_PER_TOKEN)
        tokens_out = terms.output_tokens
        if not terms.expected:
            tokens_out = self._outputs.expect(terms.model, terms.max_tokens, now)
        got = lane.pacer.ask(now, input_tokens=tokens_in, output_tokens=tokens_out)
        if not isinstance(got, Permit):
            lane.held_since = min(lane.held_since, now)
            if now >= lane.told_at + _TOLD and now + got >= lane.held_since + _LONG:
                lane.told_at = now
                name = class_of(terms.model, self._limits)
                self._news.append((name, lane.pacer.limited_by(now), lane.waiting))
            return got
        lane.pop()
        if not lane.line():
            lane.held_since = math.inf
        lane.running += 1
        self._running.add(sequence)
        return Slot(claim, got, self._outputs.begin(terms.model, terms.max_tokens, now), sequence)

    def done(
        self, slot: Slot, now: float, *, headers: Mapping[str, str], used_in: int, used_out: int, took: timedelta
    ) -> None:
        """Note that the claim has its answer. It is unfinished until `finish` says that the answer is stored."""
        with self._lock:
            lane = self._has_ended(slot, now)
            slot.writing.end(used_out, now)
            lane.pacer.done(
                now,
                slot.permit,
                input_tokens_used=used_in,
                output_tokens_used=used_out,
                latency=took / timedelta(seconds=1),
            )
            lane.pacer.observe(now, headers)

    def failed(
        self,
        slot: Slot,
        now: float,
        *,
        refusal: Refusal | None,
        retry_after: timedelta | None,
        headers: Mapping[str, str],
    ) -> None:
        """Note that the claim's call failed, or was refused for load."""
        with self._lock:
            if refusal is None:
                self._free(slot, now)
            else:
                lane = self._has_ended(slot, now)
                slot.writing.drop()
                wait = None if retry_after is None else retry_after / timedelta(seconds=1)
                lane.pacer.refused(now, slot.permit, refusal, wait)
                lane.pacer.observe(now, headers)

    def measured(self, model: str, now: float, at: datetime) -> tuple[str, Measured]:
        """Return the class of a model, and what was measured of it."""
        with self._lock:
            name = class_of(model, self._limits)
            pacer = self._classes[name].pacer
            requests, tokens_in, tokens_out = pacer.header_limits
            before = self._stored_limits.get(name) or Measured(at=at)
            return name, Measured(
                at=at,
                share=pacer.reached(now),
                requests_per_minute=requests or before.requests_per_minute,
                input_tokens_per_minute=tokens_in or before.input_tokens_per_minute,
                output_tokens_per_minute=tokens_out or before.output_tokens_per_minute,
            )

    def _has_ended(self, slot: Slot, now: float) -> _Class:
        self._running.remove(slot.sequence)
        self._storing.add(slot.sequence)
        lane = self._class(slot.claim, now)
        lane.running -= 1
        return lane

    def _free(self, slot: Slot, now: float) -> None:
        lane = self._has_ended(slot, now)
        slot.writing.drop()
        lane.pacer.done(now, slot.permit)

    def drain(self) -> list[Claim]:
        """Take out and return all claims whose calls have not begun."""
        with self._lock:
            claims = [entry[2] for lane in self._classes.values() for entry in (*lane.dated, *lane.blocking)]
            claims += [entry[4] for entry in self._later]
            self._later.clear()
            for lane in self._classes.values():
                lane.clear()
            self._held.difference_update(claim.id for claim in claims)
            return claims

    def finish(self, slot: Slot, now: float) -> bool:
        """Note that the claim's outcome is stored, or that it is given up; False: it was finished before."""
        with self._lock:
            if slot.sequence in self._running:
                self._free(slot, now)
            if slot.sequence not in self._storing:
                return False
            self._storing.remove(slot.sequence)
            self._held.discard(slot.claim.id)
            return True

    def _waiting(self) -> int:
        return sum(lane.waiting for lane in self._classes.values())

    def learn_limits(self, stored: Mapping[str, Measured]) -> None:
        """Take over what the ledger knows of the account's limits, by class."""
        self._stored_limits = stored

    def stored_limits_of(self, model: str) -> Measured | None:
        """Return what the ledger knows of the limits of a model's class; None: nothing."""
        return self._stored_limits.get(class_of(model, self._limits))

    def busy_with(self, model: str) -> int:
        """Return how many claims of a model's class wait or run."""
        with self._lock:
            lane = self._classes.get(class_of(model, self._limits))
            return 0 if lane is None else lane.waiting + lane.running

    @property
    def waiting(self) -> int:
        """How many claims have not begun."""
        with self._lock:
            return self._waiting()

    @property
    def busy(self) -> int:
        """How many claims are not finished: they wait, run, or have an answer that is not stored yet."""
        with self._lock:
            return self._waiting() + len(self._running) + len(self._storing)

    @property
    def storing(self) -> int:
        """How many claims have an answer, or a failure, that is not stored yet."""
        with self._lock:
            return len(self._storing)

    def holds(self, request: int) -> bool:
        """True if this process will still announce the outcome of this request; False is inconclusive."""
        return request in self._held
