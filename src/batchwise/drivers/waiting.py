"""Waits for callers until the ledger has what they ask for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from time import monotonic
from typing import TypeVar

from batchwise.engine.core import Engine
from batchwise.engine.effects import Procedure, pause, store, store_together
from batchwise.engine.setbacks import passing
from batchwise.errors import ClosedDispatcherError, LedgerError

from .life import Life
from .passes import WATCH
from .waiters import Waiters

__all__ = ["Waiting"]

T = TypeVar("T")


class Waiting:
    """Waits for callers.

    Args:
        engine: The core.
        life: Whether the dispatcher works.
        waiters: Wakes waiting callers.
        check: Raises if nobody can wait any more.
        wake: Has the pump look.
        is_alone: Whether the pump cannot be started now, so that waiting callers do its work.
        look: Makes a pass of the pump.
    """

    def __init__(
        self,
        engine: Engine,
        life: Life,
        waiters: Waiters,
        *,
        check: Callable[[], None],
        wake: Callable[[], None],
        is_alone: Callable[[], bool],
        look: Callable[[], Procedure[float | None]],
    ) -> None:
        self._engine, self._life, self._waiters = engine, life, waiters
        self._check, self._wake, self._is_alone, self._pump_look = check, wake, is_alone, look

    async def until(
        self,
        check: Callable[[], T | None],
        timeout: float | None,
        request: int | None,
        held: Callable[[], bool] | None,
    ) -> T | None:
        """Return the first value that `check` gives; None after `timeout` seconds. A busy ledger is tried again.

        While `held` returns True, the ledger cannot have the value yet, and is not asked.
        """
        self._life.check_own()  # a forked child may go on with an iteration over results
        end = None if timeout is None else monotonic() + timeout
        waiter = object()  # the key of its setbacks
        with self._waiters.listening(request) as notifier, ExitStack() as at_end:
            at_end.callback(self._engine.setbacks.resolved, waiter)
            while True:
                seen = notifier.version()
                self._life.raise_fatal()
                retry_in = None
                if held is None or not held():
                    value, retry_in = await self._look(check, waiter)
                    if value is not None:
                        return value
                left = None if end is None else end - monotonic()
                if left is not None and left <= 0:
                    return None
                if self._is_alone():
                    await self._pump_look()
                    retry_in = WATCH if retry_in is None else min(retry_in, WATCH)
                if retry_in is not None:
                    left = retry_in if left is None else min(left, retry_in)
                await pause(notifier.wait, seen, left)
                self._life.raise_fatal()  # first: it says why it is closed
                self._check()

    async def _look(self, check: Callable[[], T | None], waiter: object) -> tuple[T | None, float | None]:
        """Return the value of `check`; if the ledger cannot be read now, None and the seconds until the next try."""
        suspensions, setbacks = self._engine.suspensions, self._engine.setbacks
        try:
            if not suspensions.used and await store(suspensions.resume_on_first_use):
                self._wake()
            value = await store_together(lambda: check)
        except ClosedDispatcherError:  # the ledger was closed meanwhile
            self._life.raise_fatal()
            raise
        except LedgerError as error:
            if not passing(error):
                raise
            return None, setbacks.failed(waiter, "looking for what is waited for", error)
        setbacks.resolved(waiter)
        return value, None
