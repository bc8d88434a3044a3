"""The driver of tasks: one for the pump, one for each batch action and each call.

Lives in one task group on the event loop that entered it (asyncio or trio); the ledger is reached through threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread

from batchwise.engine.actions import withdraw
from batchwise.engine.adoption import adopt
from batchwise.engine.core import Engine
from batchwise.engine.effects import AsyncPorts, Procedure, drive_async
from batchwise.engine.queue import Ticked
from batchwise.errors import WrongLoopError

from .pump import Driver

__all__ = ["TaskDriver", "in_thread"]

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *args: Any, **keywords: Any) -> T:
    """Call something that blocks for a moment, in a worker thread."""
    return await anyio.to_thread.run_sync(partial(function, *args, **keywords))


class _Bell:
    """Wakes whoever waits for a change; a ring is never missed. For the event loop's thread only."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def ring(self) -> None:
        self._event.set()
        self._event = anyio.Event()

    def heard(self) -> anyio.Event:
        return self._event

    def rung(self, heard: anyio.Event) -> bool:
        return heard.is_set()

    async def wait(self, heard: anyio.Event, timeout: float | None) -> None:
        with anyio.move_on_after(timeout):
            await heard.wait()


class TaskDriver(Driver):
    """Carries out what the planner asks for, in tasks of a group of its own.

    Args:
        engine: The core.
        ports: The API.
    """

    def __init__(self, engine: Engine, ports: AsyncPorts) -> None:
        super().__init__(engine, _Bell)
        self._ports = ports
        self._thread, self._loop = threading.get_ident(), anyio.lowlevel.current_token()
        self._tasks = anyio.create_task_group()

    async def start(self) -> None:
        """Enter the task group and start the pump."""
        await self._tasks.__aenter__()
        self._begin(self._pump())
        self._tasks.start_soon(self._feed)

    async def wait_for(
        self, check: Callable[[], T | None], timeout: float | None, request: int | None = None
    ) -> T | None:
        """The first value that `check` (run in a thread) gives; None after `timeout` seconds."""
        return await drive_async(self._waiting(check, timeout, request), self._ports)

    async def cancel(
        self, *, request: int | None = None, job: int | None = None, requests: Sequence[int] | None = None
    ) -> int:
        """Cancel for the caller; returns how many settled now."""
        settled = await drive_async(withdraw(self.engine, request=request, job=job, requests=requests), self._ports)
        self.wake()
        return settled

    async def adopt(self, batch_id: str, keys: Mapping[str, str] | None, job: str | None) -> str:
        """Take in a batch made elsewhere; returns its job's name."""
        name = await drive_async(adopt(self.engine, batch_id, keys, job), self._ports)
        self.wake()
        return name

    async def advance(self, gap: timedelta) -> None:
        """Carry out what is due in this task until nothing is."""
        await drive_async(self._advancing(gap), self._ports)

    def check(self) -> None:
        """Raise what a user of a dispatcher in the wrong state has to know."""
        super().check()
        if anyio.lowlevel.current_token() != self._loop:
            raise WrongLoopError("this dispatcher belongs to the event loop that entered it; make one for this loop")

    def call(self) -> bool:
        """Take up what the call queue holds."""
        self._work_bell.ring()
        return True

    def _on_settled(self, requests: Sequence[int]) -> None:
        """Called from worker threads, too."""
        if threading.get_ident() == self._thread:
            super()._on_settled(requests)
        else:
            anyio.from_thread.run_sync(super()._on_settled, requests)

    def _begin(self, procedure: Procedure[None]) -> bool:
        self._tasks.start_soon(drive_async, procedure, self._ports)
        return True

    async def _feed(self) -> None:
        """Start calls as the queue lets them through."""
        while not self._over:
            heard = self._work_bell.heard()
            got = self.engine.queue.next(monotonic())
            if isinstance(got, Ticked):
                self._begin(self._call(got))
            else:
                await self._work_bell.wait(heard, got)

    async def close(self, *, finish: bool, spare_calls: bool) -> None:
        """End.

        Args:
            finish: Only after what is queued for a batch was sent and the sync calls have ended.
            spare_calls: Let calls that run end: they are paid for.
        """
        try:
            if finish and self._fatal is None:
                await drive_async(self._ended(self._drain()), self._ports)
        finally:
            self._closed = True
            try:
                if spare_calls:
                    with anyio.CancelScope(shield=True):
                        await drive_async(self._ended(self._let_calls_end()), self._ports)
            finally:
                await self._stop()

    async def _stop(self) -> None:
        self._tell_all()
        self._tasks.cancel_scope.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:
            with anyio.CancelScope(shield=True):
                await in_thread(self.engine.close)
