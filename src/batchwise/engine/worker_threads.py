"""Worker threads for what blocks for a moment: the ledger, mostly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import attrs

__all__ = ["Threads"]

T = TypeVar("T")
_THREADS = 40
"""The most calls in worker threads at once, for callers and for work apart: anyio's own default for an application."""


@attrs.define(eq=False)
class _Asked:
    """A piece of work that shares a thread with others; see `Threads.together`."""

    begin: Callable[[], Callable[[], Any]]
    end: Callable[[], Any] | None = None
    done: bool = False
    value: Any = None
    error: BaseException | None = None

    def __call__(self) -> None:
        """Begin the work at the first call; end it at the second."""
        if self.done:
            return
        try:
            if self.end is None:
                self.end = self.begin()
            else:
                self.value, self.done = self.end(), True
        except BaseException as error:  # noqa: BLE001  # raised where it was asked for, Ctrl-C too
            self.error, self.done = error, True


def _do_together(work: Sequence[_Asked]) -> None:
    for each in (*work, *work):
        each()


class Threads:
    """Worker threads for calls that block for a moment, apart from the application's own.

    It is made and used on the event loop.
    """

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(_THREADS)
        self._asked: list[_Asked] = []
        self._turn: anyio.Event | None = None
        """Set when the work that shares a thread now is done."""

    async def run(self, function: Callable[..., T], *args: Any, **keywords: Any) -> T:
        """Call a function in a worker thread; where none can be started, here: then the event loop waits for it."""
        begun = False

        def call() -> T:
            nonlocal begun
            begun = True
            return function(*args, **keywords)

        try:
            return await anyio.to_thread.run_sync(call, limiter=self._limiter)
        except RuntimeError:  # the system's limit, or an interpreter that ends
            if begun:
                raise
        return function(*args, **keywords)

    async def together(self, begin: Callable[[], Callable[[], T]]) -> T:
        """Begin and end work in a worker thread, together with all work that is asked for by then.

        A thread for each piece would cost more than most of the work.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        asked = _Asked(begin)
        self._asked.append(asked)
        with anyio.CancelScope(shield=True):
            while not asked.done:
                if self._turn is not None:
                    await self._turn.wait()
                    continue
                self._turn = turn = anyio.Event()
                work, self._asked = self._asked, []
                try:
                    await self.run(_do_together, work)
                finally:
                    self._turn = None
                    turn.set()
        if asked.error is not None:
            raise asked.error
        value: T = asked.value
        return value
