"""The sync lane's claims in this process: queues them, and gives them back to the ledger."""

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
        ledger: Takes claims back.
        queue: The claims of this process.
        now: The wall clock.
    """

    def __init__(self, ledger: Ledger, queue: CallQueue, now: Callable[[], datetime]) -> None:
        self._ledger, self._queue, self._now = ledger, queue, now
        self._unpaid: Counter[int] = Counter()
        """How often the calls of a request were refused for load, or could not be sent, by its number."""

    def push(self, claim: Claim, *, urgent: bool = False, wait: float = 0.0) -> None:
        """Hand a claim to this process's queue; it is called after `wait` seconds at the earliest."""
        priority = URGENT if urgent else BLOCKING if claim.terms.blocking else BACKGROUND
        due = claim.terms.deadline
        self._queue.push(
            claim, priority=priority, due=math.inf if due is None else due.timestamp(), now=monotonic(), wait=wait
        )

    def next_call(self) -> Slot | float | None:
        """Return the call to begin now, or the seconds to wait for one; None: nothing is queued. Late calls go last."""
        return self._queue.next(monotonic(), self._now().timestamp())

    def put_back(self) -> None:
        """Give all claims back to the ledger's queue whose calls have not begun."""
        claims = self._queue.drain()
        try:
            self.give_back(claims)
        except BaseException:
            for claim in claims:  # else they would be lost until the next process
                self.push(claim, urgent=claim.terms.deadline is not None)
            raise

    def give_back(self, claims: Iterable[Claim], *, costs_attempt: bool = False) -> None:
        """Give claims back to the ledger's queue."""
        numbers = [claim.id for claim in claims]
        if numbers:
            self._ledger.requeue(Which(requests=numbers), lane=Lane.SYNC, costs_attempt=costs_attempt, now=self._now())

    def count_unpaid(self, request: int) -> int:
        """Count a call of this request that was refused for load, or could not be sent; returns how many there were."""
        self._unpaid[request] += 1
        return self._unpaid[request]

    def forget_unpaid(self, request: int) -> None:
        """Forget the count: this request has settled, or was called."""
        self._unpaid.pop(request, None)
