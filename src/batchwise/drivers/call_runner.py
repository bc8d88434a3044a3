"""Runs the calls of the sync lane: in workers, or here if none can be started."""

from __future__ import annotations

import logging
from collections.abc import Callable

from batchwise.engine.calls import call
from batchwise.engine.core import Engine
from batchwise.engine.effects import pause, store
from batchwise.engine.queue import Slot
from batchwise.engine.setbacks import lasting
from batchwise.models import Lane

from .life import Life
from .retrying import Retrying
from .waiters import Notifiers

__all__ = ["CallRunner"]

_log = logging.getLogger("batchwise")


class CallRunner:
    """Runs the calls that the queue gives out.

    Args:
        engine: The core.
        life: Whether the dispatcher works.
        retrying: What is done about failures.
        notifiers: Wakes the pump, and callers who wait for the end of work.
        take_up: Has a worker take up the queued calls; returns False if there is no worker.
    """

    def __init__(
        self, engine: Engine, life: Life, retrying: Retrying, notifiers: Notifiers, take_up: Callable[[], bool]
    ) -> None:
        self._engine, self._life, self._retrying, self._notifiers = engine, life, retrying, notifiers
        self._take_up = take_up

    @property
    def going_on(self) -> bool:
        """Whether calls wait or run, and the lane is not suspended."""
        return self._engine.queue.busy > 0 and not self.suspended

    @property
    def suspended(self) -> bool:
        """Whether no call can be made."""
        return Lane.SYNC in self._engine.suspensions.lanes

    @property
    def used_up(self) -> bool:
        """Whether the queue is empty, and the ledger has more for it."""
        return self._engine.situation.backlog and not self._engine.queue.waiting

    async def run(self, slot: Slot) -> None:
        """Run one call to its end."""
        what = f"call {slot.sequence}"
        try:
            # Retry all its ledger calls: the planner does not plan a call again, and its answer is paid for.
            procedure = call(self._engine, slot)
            await self._retrying.storing(procedure, what, "storing the outcome of a call", every=True)
        except Exception as error:  # noqa: BLE001  # recovery settles its request after this run
            if lasting(error):
                self._life.fail(error)
            else:
                _log.exception("batchwise: the outcome of a call could not be stored")
        self._engine.setbacks.resolved(what)
        self._notifiers.work.notify()
        if self.used_up:
            self._notifiers.pump.notify()
        if self._engine.suspensions.lanes:
            self._notifiers.waiters.notify_all()

    async def run_one_here(self) -> bool:
        """If no worker can be started, run one call of the queue here; returns whether it did."""
        if not self._engine.queue.waiting or self._take_up():
            return False
        got = self._engine.sync_lane.next_call()
        if not isinstance(got, Slot):
            return False
        await self.run(got)
        return True

    async def finish(self) -> None:
        """Wait until the queued calls have run: in workers, or here if none can be started."""
        while self.going_on and not self._life.failed:
            self._retrying.raise_if_stuck()
            if await self.run_one_here():
                continue
            work = self._notifiers.work
            seen = work.version()
            if self._engine.queue.busy:
                await pause(work.wait, seen, 0.05)

    async def put_back(self) -> None:
        """Give the calls back to the ledger that have not begun."""
        await store(self._engine.sync_lane.put_back)
