"""Decides by the ledger's lease which process does batch actions, and takes over from dead processes."""

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
        spend_limit: Counts calls that may have been billed.
        now: The wall clock.
    """

    def __init__(self, ledger: Ledger, spend_limit: SpendLimit, now: Callable[[], datetime]) -> None:
        self._ledger, self._spend_limit, self._now = ledger, spend_limit, now

    def take(self) -> bool:
        """Take the lease if it is free; returns whether it was taken now."""
        lease = self._ledger.lease
        return not lease.held and lease.acquire()

    def take_over(self) -> bool:
        """Take over the calls and the lease of a process that has ended; returns whether there were any.

        A process that dies writes nothing, so this has to look again and again.
        """
        recovered = self.clear_up()
        return self.take() or recovered

    def clear_up(self) -> bool:
        """Take over the calls of a process that has ended; returns whether there were any."""
        return self._ledger.recover(now=self._now(), max_spend=self._spend_limit.max_spend()) > 0

    def resign(self) -> None:
        """Give the lease back, if this process holds it."""
        if self._ledger.lease.held:
            self._ledger.lease.release()
