"""Carries out actions until none is due: for `advance`, and for closing."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from time import monotonic

import attrs

from batchwise.engine.core import Engine
from batchwise.engine.effects import pause, store
from batchwise.planning import agenda

from .action_runner import ActionRunner
from .call_runner import CallRunner
from .life import Life
from .passes import CLOCK_LOOK, QUICK, action_key, one_by_one, repeats, seconds_until
from .retrying import Retrying
from .waiters import Notifiers

__all__ = ["Advancing"]

_NO_GAP = timedelta(0)


@attrs.define
class _Go:
    """What one `advance` has done, and what it waits for."""

    only_sending: bool
    awaited: set[object]
    """Marks of the actions that it waits for."""
    done: Counter[object] = attrs.field(factory=Counter)
    """How often each action was begun."""
    raised: list[Exception] = attrs.field(factory=list)
    """Errors of its actions in the background."""

    def may_begin(self, action: agenda.Action, *, meanwhile: bool) -> bool:
        """Whether this `advance` may begin an action (again). `meanwhile`: time has passed, so it may be due again."""
        most = repeats(action, only_sending=self.only_sending)
        return most > 0 and (meanwhile or self.done[action_key(action)] < most)


@attrs.define
class _Look:
    """The outcome of one look at the planner's actions."""

    due: bool = False
    """Whether an action was due; the pump may carry it out."""
    began: bool = False
    moved: bool = False
    """Whether rows may have moved."""
    wait: float = CLOCK_LOOK
    """The most seconds until the next look."""


class Advancing:
    """Carries out due actions.

    Args:
        engine: The core.
        life: Whether the dispatcher works.
        retrying: Handles failures.
        notifiers: Wakes it when work has ended.
        actions: Begins actions.
        calls: The calls of the sync lane.
    """

    def __init__(
        self,
        engine: Engine,
        life: Life,
        retrying: Retrying,
        notifiers: Notifiers,
        *,
        actions: ActionRunner,
        calls: CallRunner,
    ) -> None:
        self._engine, self._life, self._retrying, self._notifiers = engine, life, retrying, notifiers
        self._actions, self._calls = actions, calls

    async def advance(self, gap: timedelta, *, only_sending: bool = False) -> None:
        """Carry out actions until none is due and none is under way, and until no call runs.

        An upload, a reading or a call may take minutes: actions that fall due meanwhile do not wait for it.
        """
        await store(self._engine.suspensions.resume_on_first_use)
        go = _Go(only_sending, awaited=self._actions.under_way)
        while not self._life.failed:
            meanwhile = self._going_on(go)
            before = await store(self._engine.ledger.version)
            look = await self._begin_due(go, _NO_GAP if meanwhile else gap, meanwhile=meanwhile)
            if go.raised:
                raise go.raised[0]
            if look.due:
                go.awaited |= self._actions.under_way
            if look.moved and await store(self._engine.ledger.version) != before:
                continue
            unsure = not only_sending and self._engine.ledger.unsure
            if unsure:  # take over from dead processes now
                await store(self._engine.leadership.take_over)
            if self._going_on(go) or unsure:
                await self._until_one_ends(look.wait, unsure=unsure)
            elif not look.began and not meanwhile:
                return

    async def _begin_due(self, go: _Go, gap: timedelta, *, meanwhile: bool) -> _Look:
        """Ask the planner once, and begin the actions that are due."""
        look = _Look()
        for action in one_by_one(await store(self._engine.plan, gap)):
            if isinstance(action, agenda.WaitUntil):
                look.wait = min(look.wait, seconds_until(action.moment, self._engine.now()))
            elif go.may_begin(action, meanwhile=meanwhile):
                look.due = True
                if await self._actions.begin(action, go.raised):
                    go.done[action_key(action)] += 1
                    look.began, look.moved = True, look.moved or isinstance(action, QUICK)
        return look

    def _going_on(self, go: _Go) -> bool:
        """Whether an action that it waits for is under way, or a call runs."""
        return self._calls.going_on or not go.awaited.isdisjoint(self._actions.under_way)

    async def _until_one_ends(self, seconds: float, *, unsure: bool) -> None:
        """Wait until an action ends or no call waits, at most so many seconds; `unsure`: so long if nothing runs."""
        end, acting, work = monotonic() + seconds, self._actions.under_way, self._notifiers.work
        while monotonic() < end and acting <= self._actions.under_way and (acting or self._calls.going_on or unsure):
            self._retrying.raise_if_stuck()
            if not await self._calls.run_one_here():
                await pause(work.wait, work.version(), min(0.05, max(0.0, end - monotonic())))
            if self._calls.used_up:
                return
