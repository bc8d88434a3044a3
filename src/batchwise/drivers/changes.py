"""Notices what other processes do: they change the ledger, or die and leave work behind."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from batchwise.engine.core import Engine
from batchwise.engine.effects import store

from .passes import IDLE_SWEEP, PASS_SHARE, SWEEP, WATCH
from .schedule import Schedule
from .waiters import Waiters

__all__ = ["Changes"]


class Changes:
    """Looks for changes again and again, and wakes waiting callers. Only the pump uses it.

    Args:
        engine: The core.
        schedule: Knows whether anything falls due.
        waiters: The waiting callers.
        listener: Called from any thread when another process has changed the ledger, if the database can tell.
    """

    def __init__(self, engine: Engine, schedule: Schedule, waiters: Waiters, listener: Callable[[], None]) -> None:
        self._engine, self._schedule, self._waiters = engine, schedule, waiters
        self._is_notified = engine.ledger.listen(listener)
        """Whether the database notifies this process of changes by others."""
        self._gap, self._version, self._swept = WATCH, -1, 0.0
        self.look_at = 0.0
        """When it looks next, by the monotonic clock."""

    def slow_down(self, pass_took: float) -> None:
        """Set the gap between looks by the seconds of a pass, so that planning takes a small share of the time."""
        self._gap = max(WATCH, PASS_SHARE * pass_took)

    async def look(self) -> bool:
        """Return whether the ledger was changed since the last look; if so, wake waiting callers.

        Changes between two passes count too: a caller that looked just before one would wait for ever.
        """
        if monotonic() < self.look_at:
            return False
        self.look_at = monotonic() + self._gap
        sweep = self._sweep()
        left = await store(sweep) if sweep is not None else False
        before, self._version = self._version, await store(self._engine.ledger.version)
        if self._version == before and not left:
            return False
        self._waiters.notify_all()
        return True

    def _sweep(self) -> Callable[[], bool] | None:
        """Return the function that looks for dead processes; None: it is too early. With Postgres it asks the server.

        An idle dispatcher only looks at the locks of runs: they show a dead holder of the lease, too.
        """
        idle = False
        if self._is_notified:
            unsure = self._engine.ledger.unsure
            idle = not (self._schedule.planned or self._waiters.waiting or unsure)
            if monotonic() < self._swept + (IDLE_SWEEP if idle else SWEEP):
                return None
        self._swept = monotonic()
        leadership = self._engine.leadership
        return leadership.clear_up if idle else leadership.take_over
