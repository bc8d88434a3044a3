"""What this process sees of the sync lane, and which of it the ledger has to store for other processes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from time import monotonic

import attrs

from batchwise.planning.capacity import Measured, latest
from batchwise.planning.state import Snapshot

from .queue import CallQueue

__all__ = ["Health"]

_REPEAT = timedelta(minutes=1)
"""The ledger stores anew after so long that the sync lane goes on answering, or failing."""
_SOON = timedelta(seconds=1)
_NEWS = 0.05
"""A change of the lane's share of the limits, so large that the ledger stores it at once."""


class Health:
    """This process's knowledge of the sync lane.

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
        self._stored: tuple[bool, datetime] | None = None
        """Whether the lane answered, and when, as it was last stored."""
        self._paces: dict[str, Measured] = {}
        """What was measured last, by class of models."""
        self._paces_stored: dict[str, Measured] = {}

    def seen_with(self, known: Snapshot) -> Snapshot:
        """Return the ledger's snapshot, completed by what this process knows."""
        return attrs.evolve(
            known,
            sync_answered_at=_later(known.sync_answered_at, self.answered_at),
            sync_failed_at=_later(known.sync_failed_at, self.failed_at),
            measured=latest(known.measured, dict(self._paces), self._now()),
        )

    def set_right(self, right: Snapshot) -> None:
        """Take over the times as they are believed after the clock was set."""
        self.answered_at, self.failed_at = right.sync_answered_at, right.sync_failed_at

    def note_call(self, *, answered: bool) -> bool:
        """Note whether the sync lane answered; True if the ledger has to store that: a change, or once a minute."""
        now, stored = self._now(), self._stored
        if answered:
            self.answered_at = now
        else:
            self.failed_at = now
        if stored is not None and stored[0] is answered and stored[1] <= now < stored[1] + _REPEAT:
            return False
        self._stored = answered, now
        return True

    def paced(self, model: str) -> tuple[str, Measured] | None:
        """Return the class of a model and what was measured of it, if the ledger has to store that; else None.

        The ledger stores new limits of the account, a share that has changed, and once a minute a share below one.
        """
        now = self._now()
        name, measured = self._queue.measured(model, monotonic(), now)
        self._paces[name], stored = measured, self._paces_stored.get(name)
        if stored is not None:
            same = attrs.evolve(measured, at=stored.at, share=stored.share) == stored
            before, share = stored.share or 0.0, measured.share or 0.0
            since = abs(now - stored.at)  # a clock that is set back makes nothing new
            if same and not (abs(share - before) >= _NEWS and since >= _SOON) and (share == before or since < _REPEAT):
                return None
        self._paces_stored[name] = measured
        return name, measured


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return max(filter(None, (one, other)), default=None)
