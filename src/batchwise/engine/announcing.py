"""Who is told that requests have settled: whoever waits for them, and whoever listens to events."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime

from batchwise import events
from batchwise.ledger.ledger import Ledger

from .queue import CallQueue
from .telling import Telling

__all__ = ["Announcing"]

_log = logging.getLogger("batchwise")


class Announcing:
    """Tells what has settled, outside of transactions and locks.

    Args:
        ledger: Notes in its transactions what is to be told.
        queue: Notes under its lock how the sync lane is paced.
        telling: The log, and whoever listens to events.
        now: The wall clock.
    """

    def __init__(self, ledger: Ledger, queue: CallQueue, telling: Telling, now: Callable[[], datetime]) -> None:
        self._ledger, self._queue, self._telling, self._now = ledger, queue, telling, now
        self._waiter: Callable[[Sequence[int]], None] | None = None

    def listen(self, waiter: Callable[[Sequence[int]], None]) -> None:
        """Have this function told the numbers of requests that have settled, in place of the one before."""
        self._waiter = waiter

    def settled(self, requests: Sequence[int]) -> None:
        """Tell whoever waits. What goes wrong in that harms none of the work."""
        self._tell_news()
        if not requests or self._waiter is None:
            return
        try:
            self._waiter(requests)
        except Exception:  # noqa: BLE001  # logged
            _log.exception("batchwise: telling what settled failed; whoever waits notices it a moment later")

    def _tell_news(self) -> None:
        """What was noted inside of transactions and locks since the last time."""
        for each in self._ledger.take_sums():
            self._telling.settled(each)
        for name, limit, waiting in self._queue.take_news():
            self._telling.tell(events.Paced(at=self._now(), models=name, limit=limit, waiting=waiting))
