"""Handles failures: retries ledger calls, for how long, and wakes waiting callers."""

from __future__ import annotations

from collections.abc import Hashable
from time import monotonic
from typing import Any, TypeGuard, TypeVar

from batchwise.engine.effects import Effect, Procedure, Store, pause, persist
from batchwise.engine.setbacks import Setbacks, lasting, passing

from .life import Life
from .passes import END_GRACE
from .waiters import Notifiers

__all__ = ["Retrying"]

T = TypeVar("T")
_CLOSING = "closing"
"""The setback's name when closing fails."""


class Retrying:
    """Retries ledger calls after transient failures.

    Args:
        setbacks: Notes what failed, and says when it is tried again.
        life: Is told of an error that will last: that ends the dispatcher.
        notifiers: Wakes waiting callers.
    """

    def __init__(self, setbacks: Setbacks, life: Life, notifiers: Notifiers) -> None:
        self._setbacks, self._life, self._notifiers = setbacks, life, notifiers

    def failed(self, what: Hashable, words: str, error: Exception) -> float:
        """Note a failure; returns the seconds until the next try, unless the error ends the dispatcher."""
        if lasting(error):
            self._life.fail(error)
            return 0.0
        seconds = self._setbacks.failed(what, words, error)
        self._notifiers.waiters.notify_all()  # they look, and raise some errors themselves
        return seconds

    async def storing(self, procedure: Procedure[T], what: Hashable, words: str, *, every: bool) -> T:
        """Carry out a procedure. Retry transient failures of `every` ledger call, or else of the `sure` ones."""

        async def retry(effect: Effect, error: Exception) -> bool:
            if not (_is_passing(effect, error) and (every or effect.sure)):
                return False
            await self._rest(self.failed(what, words, error))
            return True

        return await persist(procedure, retry)

    async def to_the_end(self, procedure: Procedure[None]) -> None:
        """Carry out a part of closing. Retry transient failures of the ledger, for `END_GRACE` s in all."""
        end: float | None = None

        async def retry(effect: Effect, error: Exception) -> bool:
            nonlocal end
            end = monotonic() + END_GRACE if end is None else end
            if not _is_passing(effect, error) or monotonic() >= end:
                return False
            await self._rest(min(1.0, self.failed(_CLOSING, "ending", error)))
            return True

        await persist(procedure, retry)
        self._setbacks.resolved(_CLOSING)

    def raise_if_stuck(self) -> None:
        """Raise the error of something that has failed for `END_GRACE` seconds: it is no use to wait longer."""
        stuck = self._setbacks.stuck(END_GRACE)
        if stuck is not None:
            raise stuck

    async def _rest(self, seconds: float) -> None:
        """Sleep for so many seconds, or until closing begins; while it closes, for at most a second."""
        ending = self._notifiers.ending
        await pause(ending.wait, ending.version(), min(seconds, 1.0) if self._life.stopped else seconds)


def _is_passing(effect: Effect, error: Exception) -> TypeGuard[Store[Any]]:
    """Whether a ledger call failed in a way that may end by itself."""
    return isinstance(effect, Store) and passing(error)
