"""Begins the planner's actions: at once if they only move rows, in the background if they talk to the API."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from batchwise.engine.actions import carry_out
from batchwise.engine.core import Engine
from batchwise.engine.effects import Procedure
from batchwise.planning import agenda

from .passes import MAX_ACTIONS, QUICK, action_key, concurrency_group, describe
from .retrying import Retrying
from .waiters import Notifiers

__all__ = ["ActionRunner"]


class ActionRunner:
    """Begins actions, and counts those under way in the background. Thread-safe.

    Args:
        engine: The core.
        retrying: Handles failures.
        notifiers: Wakes the pump, and callers who wait for the end of work.
        start: Starts a procedure in the background; returns False if that is impossible now.
        take_up_calls: See `CallRunner`.
    """

    def __init__(
        self,
        engine: Engine,
        retrying: Retrying,
        notifiers: Notifiers,
        *,
        start: Callable[[Callable[[], Procedure[None]]], bool],
        take_up_calls: Callable[[], bool],
    ) -> None:
        self._engine, self._retrying, self._notifiers = engine, retrying, notifiers
        self._start, self._take_up_calls = start, take_up_calls
        self._lock = threading.Lock()
        self._groups: dict[object, object] = {}
        """The `concurrency_group` of each batch action under way, by a mark of its own."""

    @property
    def under_way(self) -> set[object]:
        """Marks of the batch actions under way."""
        with self._lock:
            return set(self._groups)

    async def begin(self, action: agenda.Action, raised: list[Exception] | None = None) -> bool:
        """Carry out an action here if it is quick, else in the background; False: it cannot begin now.

        `raised` takes its error in the background, for callers who do not have it tried again.
        """
        if isinstance(action, QUICK):
            return await self.carry_out_here(action)
        return await self.begin_in_background(action, raised)

    async def carry_out_here(self, action: agenda.Action) -> bool:
        """Carry out a quick action; False: it is under way already."""
        token = self._engine.under_way.try_begin(action)
        if token is None:
            return False
        try:
            await carry_out(self._engine, action)
        finally:
            self._engine.under_way.end(token)
        if isinstance(action, agenda.Run):
            self._take_up_calls()
        return True

    async def begin_in_background(self, action: agenda.Action, raised: list[Exception] | None = None) -> bool:
        """Start an action in the background, or carry it out here if nothing can be started.

        Returns False if it is under way already, or if too many of its group are.
        """
        group = concurrency_group(action)
        with self._lock:
            crowd = sum(each == group for each in self._groups.values())
            if crowd >= MAX_ACTIONS or (token := self._engine.under_way.try_begin(action)) is None:
                return False
            mark = object()
            self._groups[mark] = group
        acting = partial(self._act, action, token, mark, raised)
        if not self._start(acting):
            await acting()
        return True

    async def _act(self, action: agenda.Action, token: object, mark: object, raised: list[Exception] | None) -> None:
        """Carry out an action. If it fails, it begins again after a pause; meanwhile it does not count in its group."""
        what, words = action_key(action), describe(action)
        try:
            await self._retrying.storing(carry_out(self._engine, action), what, words, every=False)
        except Exception as error:  # noqa: BLE001  # tried again, or raised by the caller
            if raised is None:
                self._retrying.failed(what, words, error)
            else:
                raised.append(error)
        else:
            self._engine.setbacks.resolved(what)
        finally:
            with self._lock:
                del self._groups[mark]
            self._engine.under_way.end(token)
            self._notifiers.pump.notify()
            self._notifiers.work.notify()
