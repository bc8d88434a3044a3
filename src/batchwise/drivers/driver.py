"""The common base of both drivers: the parts that wait, look, advance and close, put together on one engine.

The parts are procedures (see `engine.effects`): they await ledger calls, calls of the API and waits as effects. A
thread carries an effect out by calling, a task by awaiting. A driver adds only how it waits and how it starts things.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import datetime

from batchwise.engine.core import Engine
from batchwise.engine.effects import Procedure

from .action_runner import ActionRunner
from .advancing import Advancing
from .call_runner import CallRunner
from .changes import Changes
from .ending import Ending
from .life import Life
from .owner import Owner
from .pump import Pump
from .retrying import Retrying
from .schedule import Schedule
from .waiters import Notifier, Notifiers
from .waiting import Waiting

__all__ = ["Driver"]


class Driver(ABC):
    """Carries out the planner's actions.

    Args:
        engine: The core.
        make_notifier: Makes a `Notifier`.
        owns_ledger: Whether the ledger is closed at the end.
    """

    def __init__(self, engine: Engine, make_notifier: Callable[[], Notifier], *, owns_ledger: bool) -> None:
        self.engine = engine
        self.notifiers = notifiers = Notifiers.made_by(make_notifier)
        self.life = life = Life(notifiers)
        self._owner = Owner(life, engine.ledger.name, self._abandon)
        self._retrying = retrying = Retrying(engine.setbacks, life, notifiers)
        self.schedule = Schedule(notifiers.pump)
        self.changes = Changes(engine, self.schedule, notifiers.waiters, self._changed_by_others)
        self._calls = calls = CallRunner(engine, life, retrying, notifiers, self.call)
        self._actions = actions = ActionRunner(
            engine, retrying, notifiers, start=self._start_in_background, take_up_calls=self.call
        )
        self._pump = Pump(
            engine,
            life,
            retrying,
            notifiers,
            schedule=self.schedule,
            changes=self.changes,
            actions=actions,
            calls=calls,
        )
        self._waiting = Waiting(
            engine,
            life,
            notifiers.waiters,
            check=self.check,
            wake=self.wake,
            is_alone=self._is_alone,
            look=self._pump.look,
        )
        self._advancing = Advancing(engine, life, retrying, notifiers, actions=actions, calls=calls)
        self._ending = Ending(
            engine,
            life,
            self._owner,
            retrying,
            notifiers,
            actions=actions,
            calls=calls,
            advancing=self._advancing,
            wake=self.wake,
            owns_ledger=owns_ledger,
        )
        engine.announcing.listen(self._on_settled)

    # -- what a driver adds -----------------------------------------------------------------------------------------

    @abstractmethod
    def call(self) -> bool:
        """Have a worker take up the calls in the queue; False: there is no worker."""

    @abstractmethod
    def _start_in_background(self, procedure: Callable[[], Procedure[None]]) -> bool:
        """Start a procedure in the background; False if that is impossible now."""

    @abstractmethod
    def _abandon(self) -> None:
        """Let running calls end, then close. Takes no lock: the garbage collector may call it."""

    @abstractmethod
    def _changed_by_others(self) -> None:
        """Wake waiting callers: the ledger has changed. Called from any thread."""

    def _is_alone(self) -> bool:
        """Whether the pump cannot be started now, so that waiting callers do its work."""
        return False

    def _on_settled(self, requests: Sequence[int]) -> None:
        """Wake callers who wait for these requests. Called from any thread in which procedures reach the ledger."""
        self.notifiers.waiters.settled(requests)

    # -- for a dispatcher, and what it gives out --------------------------------------------------------------------

    def serve(self, dispatcher: object) -> None:
        """Work as long as somebody holds this dispatcher, or until it is closed. Call it once."""
        self._owner.serve(dispatcher)

    @property
    def owner(self) -> object:
        """The dispatcher that it works for; None: it was garbage-collected."""
        return self._owner.dispatcher

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self.life.closed

    def check(self) -> None:
        """Raise if this dispatcher is closed, or belongs to the process that this one was forked from."""
        self.life.check()

    def check_working(self) -> None:
        """Raise if this dispatcher is closed, or is being closed: new work would not be done."""
        self.check()
        self.life.check_working()

    def raise_fatal(self) -> None:
        """Raise the error that ended this dispatcher, if there is one."""
        self.life.raise_fatal()

    def wake(self, due: datetime | None = None) -> None:
        """Have the pump look again: at once, or not later than `due`."""
        self.schedule.wake(due)
