"""Which process does the batch actions, and who goes on with what a dead process left."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from batchwise.ledger.ledger import Ledger

from .spend_limit import SpendLimit

__all__ = ["Leadership"]


class Leadership:
    """Takes the ledger's lease, and clears up after processes that have ended.

    Args:
        ledger: Holds the lease, and knows which processes live.
        spend_limit: What a call that may have been billed is counted against.
        now: The wall clock.
    """

    def __init__(self, ledger: Ledger, spend_limit: SpendLimit, now: Callable[[], datetime]) -> None:
        self._ledger, self._spend_limit, self._now = ledger, spend_limit, now

    def take(self) -> bool:
        """Take the lease if it is free; returns whether it was taken now."""
        lease = self._ledger.lease
        return not lease.held and lease.acquire()

    def take_over(self) -> bool:
        """Go on with what a process that has ended left: its calls, and the lease. Returns whether there was any.

        A process that ends need not write anything, so this has to be looked for again and again.
        """
        recovered = self.clear_up()
        return self.take() or recovered

    def clear_up(self) -> bool:
        """Go on with the calls of a process that has ended; returns whether there were any."""
        return self._ledger.recover(now=self._now(), cap=self._spend_limit.cap()) > 0

    def resign(self) -> None:
        """Give the lease back, if this process holds it."""
        if self._ledger.lease.held:
            self._ledger.lease.release()
