"""Passes events on to the log and to listeners."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from inspect import iscoroutinefunction
from time import monotonic

from batchwise.errors import InvalidValueError, shown
from batchwise.events import AtRisk, Event, Missed, Settled
from batchwise.ledger.values import Sum
from batchwise.models import Outcome
from batchwise.planning.deadline_risk import SAFE, Risk
from batchwise.planning.pricing import to_usd

__all__ = ["EventEmitter", "Hook"]

_log = logging.getLogger("batchwise")
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}
_AGAIN = 600.0
"""Seconds after which it is announced again that more deadlines are in danger."""

Hook = Callable[[Event], object]


def _check_hook(hook: object) -> None:
    if not callable(hook):
        raise InvalidValueError(f"on_event={shown(hook)} cannot be called; give a function that takes an event")
    if iscoroutinefunction(hook) or iscoroutinefunction(type(hook).__call__):
        raise InvalidValueError("on_event is a coroutine function, which nobody would await; give a plain function")


class EventEmitter:
    """Thread-safe. Call it outside of transactions and locks.

    Args:
        hook: The caller's `on_event`; None: there is none.
        now: The wall clock.

    Raises:
        InvalidValueError: The hook cannot be called, or would have to be awaited.
    """

    def __init__(self, hook: Hook | None, now: Callable[[], datetime]) -> None:
        if hook is not None:
            _check_hook(hook)
        self._hooks = [] if hook is None else [hook]
        self.now = now
        self._broken = False
        self._risk, self._risk_emitted = SAFE, float("-inf")

    def listen(self, hook: Hook) -> None:
        """Add a listener."""
        self._hooks.append(hook)

    @property
    def wanted(self) -> bool:
        """Whether anybody reads events that are too frequent for the log: a listener, or a log at DEBUG."""
        return bool(self._hooks) or _log.isEnabledFor(logging.DEBUG)

    @property
    def in_danger(self) -> bool:
        """Whether deadlines were in danger the last time."""
        return self._risk != SAFE

    def emit(self, event: Event) -> None:
        """Log an event, and pass it to the listeners. An error in a listener is logged, and harms no work."""
        _log.log(_LEVELS[event.level], "batchwise: %s", event)
        for hook in self._hooks:
            try:
                hook(event)
            except Exception:  # noqa: BLE001  # logged
                if not self._broken:
                    self._broken = True
                    _log.exception("batchwise: on_event raised; it is still called, and this is logged once")

    def emit_settled(self, found: Sum) -> None:
        """Announce requests that have settled, and deadlines that they missed."""
        now = self.now()
        if self.wanted:
            slack = None if found.outcome is Outcome.CANCELED or found.deadline is None else found.deadline - now
            self.emit(
                Settled(
                    at=now,
                    job=found.job,
                    lane=found.lane,
                    outcome=found.outcome,
                    requests=found.requests,
                    cost=to_usd(found.cost),
                    saved=to_usd(found.saved),
                    unpriced=found.unpriced,
                    slack=slack,
                )
            )
        if found.met is False:
            self.emit(Missed(at=now, job=found.job, requests=found.requests, lateness=found.lateness))

    def emit_risk(self, found: Risk) -> None:
        """Announce deadlines in danger: the first ones, and now and then that there are more."""
        before, self._risk = self._risk, found
        more = found.at_risk > before.at_risk or found.overdue > before.overdue
        begins = (found.at_risk > 0 and not before.at_risk) or (found.overdue > 0 and not before.overdue)
        if begins or (more and monotonic() - self._risk_emitted > _AGAIN):
            self._risk_emitted = monotonic()
            self.emit(AtRisk(at=self.now(), at_risk=found.at_risk, overdue=found.overdue))
