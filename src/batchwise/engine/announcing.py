"""Announces requests that have settled, to callers who wait for them and to listeners of events."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime

from batchwise import events
from batchwise.ledger.ledger import Ledger

from .event_emitter import EventEmitter
from .queue import CallQueue

__all__ = ["Announcing"]

_log = logging.getLogger("batchwise")


class Announcing:
    """Announces settled requests, outside of transactions and locks.

    Args:
        ledger: Collects in its transactions what is to be announced.
        queue: Collects under its lock news of the sync lane's pace.
        emitter: Passes events on to the log and to listeners.
        now: The wall clock.
    """

    def __init__(self, ledger: Ledger, queue: CallQueue, emitter: EventEmitter, now: Callable[[], datetime]) -> None:
        self._ledger, self._queue, self._emitter, self._now = ledger, queue, emitter, now
        self._waiter: Callable[[Sequence[int]], None] | None = None

    def listen(self, waiter: Callable[[Sequence[int]], None]) -> None:
        """Call this function with the numbers of requests that have settled, in place of the one before."""
        self._waiter = waiter

    def settled(self, requests: Sequence[int]) -> None:
        """Announce that these requests have settled. An error in that is logged, and harms no work."""
        self._emit_news()
        if not requests or self._waiter is None:
            return
        try:
            self._waiter(requests)
        except Exception:  # noqa: BLE001  # logged
            _log.exception("batchwise: announcing settled requests failed; callers who wait notice them a moment later")

    def _emit_news(self) -> None:
        """Pass on what was collected inside of transactions and locks since the last time."""
        for each in self._ledger.take_sums():
            self._emitter.emit_settled(each)
        for name, limit, waiting in self._queue.take_news():
            self._emitter.emit(events.Paced(at=self._now(), models=name, limit=limit, waiting=waiting))
