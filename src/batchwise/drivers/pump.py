"""The pump: asks the planner what is due, begins that, and sleeps until the next moment or the next change."""

from __future__ import annotations

from time import monotonic
from typing import Any

from batchwise.engine.core import Engine
from batchwise.engine.effects import pause, store
from batchwise.engine.setbacks import lasting, passing
from batchwise.errors import LedgerError
from batchwise.planning import agenda

from .action_runner import ActionRunner
from .call_runner import CallRunner
from .changes import Changes
from .life import Life
from .passes import CLOCK_LOOK, QUICK, action_key, describe, seconds_until
from .retrying import Retrying
from .schedule import Schedule
from .waiters import Notifiers

__all__ = ["Pump"]

_LOOKING = "a pass"


class Pump:
    """One for each dispatcher.

    Args:
        engine: The core.
        life: Whether the dispatcher works.
        retrying: Handles failures.
        notifiers: Wakes the pump, and waiting callers.
        schedule: Knows when it looks next.
        changes: Notices what other processes do.
        actions: Begins actions.
        calls: Runs calls where there are no workers.
    """

    def __init__(
        self,
        engine: Engine,
        life: Life,
        retrying: Retrying,
        notifiers: Notifiers,
        *,
        schedule: Schedule,
        changes: Changes,
        actions: ActionRunner,
        calls: CallRunner,
    ) -> None:
        self._engine, self._life, self._retrying, self._notifiers = engine, life, retrying, notifiers
        self._schedule, self._changes, self._actions, self._calls = schedule, changes, actions, calls
        self._problems = engine.situation.problems

    async def run(self) -> None:
        """Make passes until the dispatcher stops, or an error ends it."""
        notifier = self._notifiers.pump
        while not self._life.stopped:
            seen = notifier.version()
            self._schedule.begin_look()
            wait = await self.look()
            if self._life.failed:
                return
            wait = self._schedule.end_look(self._engine.now(), wait, self._engine.waits.end)
            try:
                await self._sleep(seen, wait)
            except Exception as error:  # noqa: BLE001  # tried again
                await pause(notifier.wait, seen, self._retrying.failed(_LOOKING, _LOOKING, error))

    async def look(self) -> float | None:
        """Make a pass; returns the seconds until the next one is due, or the pause after a failure."""
        try:
            await self._changes.look()
            if self._engine.waits.end is not None:
                await store(self._engine.waits.submit, self._engine.now())
            begun = monotonic()
            wait = await self._begin_due()
            if await self._calls.run_one_here():
                wait = 0.0
            self._changes.slow_down(monotonic() - begun)
            self._wake_for_problems()
        except Exception as error:  # noqa: BLE001  # tried again
            if isinstance(error, LedgerError) and not passing(error):  # the ledger is gone, or damaged
                self._life.fail(error)
                return 0.0
            return self._retrying.failed(_LOOKING, _LOOKING, error)
        self._engine.setbacks.resolved(_LOOKING)
        return wait

    def _wake_for_problems(self) -> None:
        """Wake waiting callers if the problems have changed: some are raised in the waiting callers."""
        problems = self._engine.situation.problems
        if problems != self._problems:
            self._problems = problems
            self._notifiers.waiters.notify_all()

    async def _begin_due(self) -> float | None:
        """Ask the planner once, and begin what is due; returns the seconds until something is due again."""
        wait: float | None = None
        before, moved = await store(self._engine.ledger.version), False
        actions = await store(self._engine.plan)
        self._engine.setbacks.forget(tuple, {action_key(action) for action in actions})
        for action in actions:
            if isinstance(action, agenda.WaitUntil):
                due = seconds_until(action.moment, self._engine.now())
                wait = due if wait is None else min(wait, due)
            elif resting := self._engine.setbacks.pause(action_key(action)):
                wait = resting if wait is None else min(wait, resting)
            elif isinstance(action, QUICK):
                moved |= await self._move(action)
            else:
                await self._actions.begin_in_background(action)
        if moved and await store(self._engine.ledger.version) != before:
            return 0.0  # rows moved, so other actions may be due now
        return wait

    async def _move(self, action: agenda.Action) -> bool:
        """Carry out an action within the pass; returns whether it was begun. A fault in it does not end the pass."""
        what = action_key(action)
        try:
            moved = await self._actions.carry_out_here(action)
        except Exception as error:
            if lasting(error) or passing(error):  # the next action would meet the same error
                raise
            self._retrying.failed(what, describe(action), error)
            return False
        self._engine.setbacks.resolved(what)
        return moved

    async def _sleep(self, seen: Any, wait: float | None) -> None:
        """Sleep until something is due, until it is woken, or until another process changed the ledger or ended.

        The wall clock can be changed, and it runs on while the machine sleeps. The monotonic clock cannot be changed,
        and may stand still meanwhile. So this looks at both again and again: the first one that is due decides.
        """
        end = None if wait is None else monotonic() + wait
        notifier = self._notifiers.pump
        while not notifier.changed_since(seen) and not self._life.stopped:
            look_at = self._changes.look_at
            until = look_at if end is None else min(look_at, end, monotonic() + CLOCK_LOOK)
            await pause(notifier.wait, seen, max(0.0, until - monotonic()))
            due = end is not None and (monotonic() >= end or self._schedule.is_due(self._engine.now()))
            if await self._changes.look() or due:
                return
