"""Closes a dispatcher: sends queued work, lets running calls end, and closes the ledger."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from time import monotonic

from batchwise.engine.core import Engine
from batchwise.engine.effects import pause, store

from .action_runner import ActionRunner
from .advancing import Advancing
from .call_runner import CallRunner
from .life import Life
from .owner import Owner
from .passes import END_GRACE
from .retrying import Retrying
from .waiters import Notifiers

__all__ = ["Ending"]

_BRIEFLY = 0.2
"""Seconds to wait for work that is not to be finished."""


class Ending:
    """The steps of closing, in their order: `begin`, `finish`, `await_rest`, `close_ledger`.

    Args:
        engine: The core.
        life: Whether the dispatcher works.
        owner: The dispatcher, held weakly.
        retrying: Handles failures.
        notifiers: Wakes waiting callers.
        actions: Counts the actions under way.
        calls: The calls of the sync lane.
        advancing: Carries out due actions.
        wake: Has the pump look.
        owns_ledger: Whether the ledger is closed at the end.
    """

    def __init__(
        self,
        engine: Engine,
        life: Life,
        owner: Owner,
        retrying: Retrying,
        notifiers: Notifiers,
        *,
        actions: ActionRunner,
        calls: CallRunner,
        advancing: Advancing,
        wake: Callable[[], None],
        owns_ledger: bool,
    ) -> None:
        self._engine, self._life, self._owner, self._retrying = engine, life, owner, retrying
        self._notifiers, self._actions, self._calls, self._advancing = notifiers, actions, calls, advancing
        self._wake, self._owns_ledger = wake, owns_ledger

    def begin(self) -> None:
        """Take no more work; a ResourceWarning is no longer due."""
        self._life.begin_closing()
        self._owner.close()

    async def finish(self, *, finish: bool, spare_calls: bool) -> None:
        """Do the work that comes before closing.

        Args:
            finish: Send the work that is queued for a batch, and wait for the sync calls.
            spare_calls: Let running calls end: they are paid for.

        Raises:
            LedgerError: The ledger failed for `END_GRACE` seconds.
        """
        if finish and not self._life.failed:
            await self._retrying.to_the_end(self._drain())
        elif spare_calls:
            await self._retrying.to_the_end(self._let_calls_end())

    async def _drain(self) -> None:
        """Wait until the pump and the workers have sent all queued work; then do here what they could not."""
        await store(self._engine.flush)
        self._wake()
        news = self._notifiers.waiters.news
        while not self._life.failed:
            self._retrying.raise_if_stuck()
            seen = news.version()
            if not self._working:
                await self._advancing.advance(timedelta(0), only_sending=True)
                if not self._working:
                    return
            if self._calls.suspended:
                await self._calls.put_back()
            await self._calls.finish()
            await pause(news.wait, seen, 0.02)

    @property
    def _working(self) -> bool:
        return bool(self._actions.under_way) or self._engine.queue.busy > 0

    async def _let_calls_end(self) -> None:
        """Let running calls end, because they are paid for; begin no new ones."""
        self._life.stop()
        end, work = monotonic() + END_GRACE, self._notifiers.work
        await self._calls.put_back()
        while self._engine.queue.busy and monotonic() < end:
            await pause(work.wait, work.version(), 0.05)
            await self._calls.put_back()

    async def await_rest(self, *, wait: bool) -> None:
        """Wait for the actions under way (briefly unless `wait`), and for answers that are being stored."""
        await self._until_none(lambda: len(self._actions.under_way), END_GRACE if wait else _BRIEFLY)
        await self._until_none(lambda: self._engine.queue.storing, END_GRACE)

    async def _until_none(self, going_on: Callable[[], int], seconds: float) -> None:
        """Wait until `going_on` returns 0, at most so many seconds."""
        end, news = monotonic() + seconds, self._notifiers.waiters.news
        while going_on() and monotonic() < end:
            await pause(news.wait, news.version(), 0.01)

    def close_ledger(self) -> None:
        """Close the engine, and the ledger if it is owned: the last step of closing."""
        try:
            self._engine.close()
        finally:
            if self._owns_ledger:
                self._engine.ledger.close()
