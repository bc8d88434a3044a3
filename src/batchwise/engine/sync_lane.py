"""The calls of the sync lane that this process holds: handed to its queue, and given back to the ledger."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime
from time import monotonic

from batchwise.ledger.ledger import Ledger
from batchwise.ledger.values import Claim, Which
from batchwise.models import Lane

from .queue import BACKGROUND, BLOCKING, URGENT, CallQueue, Slot

__all__ = ["SyncLane"]


class SyncLane:
    """Thread-safe.

    Args:
        ledger: Where claims go that are given back.
        queue: The claims of this process.
        now: The wall clock.
    """

    def __init__(self, ledger: Ledger, queue: CallQueue, now: Callable[[], datetime]) -> None:
        self._ledger, self._queue, self._now = ledger, queue, now
        self._unpaid: Counter[int] = Counter()
        """How often a request's calls were refused for load, or not even sent, by its number."""

    def push(self, claim: Claim, *, urgent: bool = False, wait: float = 0.0) -> None:
        """Hand a claim to this process's queue; it is not called before `wait` seconds have passed."""
        priority = URGENT if urgent else BLOCKING if claim.terms.blocking else BACKGROUND
        due = claim.terms.deadline
        self._queue.push(
            claim, priority=priority, due=math.inf if due is None else due.timestamp(), now=monotonic(), wait=wait
        )

    def next_call(self) -> Slot | float | None:
        """The call to begin now, seconds to wait for it, or None when nothing is queued; what is late comes last."""
        return self._queue.next(monotonic(), self._now().timestamp())

    def put_back(self) -> None:
        """Queue anew, in the ledger, the claims whose calls have not begun."""
        claims = self._queue.drain()
        try:
            self.give_back(claims)
        except BaseException:
            for claim in claims:  # else nobody would have them
                self.push(claim, urgent=claim.terms.deadline is not None)
            raise

    def give_back(self, claims: Iterable[Claim], *, costs_attempt: bool = False) -> None:
        """Queue claims anew, in the ledger."""
        numbers = [claim.id for claim in claims]
        if numbers:
            self._ledger.requeue(Which(requests=numbers), lane=Lane.SYNC, costs_attempt=costs_attempt, now=self._now())

    def count_unpaid(self, request: int) -> int:
        """A call of this request was refused for load, or not even sent; returns how often that was."""
        self._unpaid[request] += 1
        return self._unpaid[request]

    def forget_unpaid(self, request: int) -> None:
        """This request has ended, or was called: what was refused before counts no more."""
        self._unpaid.pop(request, None)
