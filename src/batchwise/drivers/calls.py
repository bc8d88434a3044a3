"""The calls of the sync lane, as a driver runs them: by its workers, or here where there are none."""

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

__all__ = ["Calls"]

_log = logging.getLogger("batchwise")


class Calls:
    """Runs what the call queue lets through.

    Args:
        engine: The core.
        life: Whether the dispatcher works.
        retrying: What is done about failures.
        notifiers: Wakes the pump, and whoever waits for the end of work.
        take_up: Sees to it that somebody takes up what the call queue holds; False: there is nobody.
    """

    def __init__(
        self, engine: Engine, life: Life, retrying: Retrying, notifiers: Notifiers, take_up: Callable[[], bool]
    ) -> None:
        self._engine, self._life, self._retrying, self._notifiers = engine, life, retrying, notifiers
        self._take_up = take_up

    @property
    def going_on(self) -> bool:
        """Whether calls wait or run, and can end."""
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
            # All its ledger calls: nobody plans a call again, and an answer that came is paid for.
            procedure = call(self._engine, slot)
            await self._retrying.storing(procedure, what, "storing what became of a call", every=True)
        except Exception as error:  # noqa: BLE001  # its request is cleared up after the end of this run
            if lasting(error):
                self._life.fail(error)
            else:
                _log.exception("batchwise: the outcome of a call could not be stored")
        self._engine.setbacks.mended(what)
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
        """Run what the queue holds, with the workers where there are threads to be had."""
        while self.going_on and not self._life.failed:
            self._retrying.give_up()
            if await self.run_one_here():
                continue
            work = self._notifiers.work
            seen = work.version()
            if self._engine.queue.busy:
                await pause(work.wait, seen, 0.05)

    async def put_back(self) -> None:
        """Give back to the ledger what has not begun."""
        await store(self._engine.sync_lane.put_back)
