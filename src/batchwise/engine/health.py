"""How the sync lane does in this process, and what of it the ledger has to be told, for other processes to see."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from time import monotonic

import attrs

from batchwise.planning.capacity import Measured, latest
from batchwise.planning.state import Snapshot

from .queue import CallQueue

__all__ = ["Health"]

_TOLD = timedelta(minutes=1)
"""For so long the ledger need not be told again that the sync lane goes on answering, or failing."""
_SOON = timedelta(seconds=1)
_NEWS = 0.05
"""A change of what the sync lane reaches that the ledger is told at once: of a share of the limits."""


class Health:
    """What this process knows of the sync lane.

    Args:
        queue: Its calls.
        now: The clock.
    """

    def __init__(self, queue: CallQueue, now: Callable[[], datetime]) -> None:
        self._queue, self._now = queue, now
        self.answered_at: datetime | None = None
        """When the sync lane last answered this process."""
        self.failed_at: datetime | None = None
        """When it last refused this process for good, or did not answer."""
        self._told: tuple[bool, datetime] | None = None
        self._paces: dict[str, Measured] = {}
        """By class of models."""
        self._paces_told: dict[str, Measured] = {}

    def seen_with(self, known: Snapshot) -> Snapshot:
        """The ledger's snapshot with what this process knows beyond it."""
        return attrs.evolve(
            known,
            sync_answered_at=_later(known.sync_answered_at, self.answered_at),
            sync_failed_at=_later(known.sync_failed_at, self.failed_at),
            measured=latest(known.measured, dict(self._paces), self._now()),
        )

    def set_right(self, right: Snapshot) -> None:
        """Take over what is believed after the clock was set."""
        self.answered_at, self.failed_at = right.sync_answered_at, right.sync_failed_at

    def note_call(self, *, answered: bool) -> bool:
        """The sync lane answered, or did not; whether the ledger has to be told: of a change, and once a minute."""
        now, told = self._now(), self._told
        if answered:
            self.answered_at = now
        else:
            self.failed_at = now
        if told is not None and told[0] is answered and told[1] <= now < told[1] + _TOLD:
            return False
        self._told = answered, now
        return True

    def paced(self, model: str) -> tuple[str, Measured] | None:
        """The class of a model and how the sync lane does for it, if the ledger has to be told.

        It is told of the account's limits, of a share that has changed, and once a minute while that is below one.
        """
        now = self._now()
        name, measured = self._queue.measured(model, monotonic(), now)
        self._paces[name], told = measured, self._paces_told.get(name)
        if told is not None:
            same = attrs.evolve(measured, at=told.at, share=told.share) == told
            before, share = told.share or 0.0, measured.share or 0.0
            since = abs(now - told.at)  # a clock that is set back makes nothing new
            if same and not (abs(share - before) >= _NEWS and since >= _SOON) and (share == before or since < _TOLD):
                return None
        self._paces_told[name] = measured
        return name, measured


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return max(filter(None, (one, other)), default=None)
