"""The driver of tasks: one for the pump, one for each batch action and each call.

They live in one task group, on the event loop that opened it, and reach the ledger through threads. The task that holds
the group is the driver's own: an error of the caller cancels no task of the driver, and no error of the driver cancels
the caller. On asyncio that task has no parent, so any task of the loop may close it. On trio every task has a parent:
there it belongs to the task that entered it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel

from batchwise.engine.actions import withdraw
from batchwise.engine.adoption import adopt
from batchwise.engine.core import Engine
from batchwise.engine.effects import Procedure, drive_async
from batchwise.engine.ports import AsyncPorts
from batchwise.engine.queue import Slot
from batchwise.engine.worker_threads import Threads
from batchwise.errors import ClosedDispatcherError, WrongLoopError

from .driver import Driver
from .reentry import in_background

__all__ = ["TaskDriver", "on_asyncio"]

T = TypeVar("T")
_log = logging.getLogger("batchwise")
_spawned: set[asyncio.Task[None]] = set()
"""Tasks that run: an event loop holds them weakly."""


def on_asyncio() -> bool:
    """Whether the event loop is asyncio's, where a task needs no parent."""
    return isinstance(_loop(), asyncio.AbstractEventLoop)


def _loop() -> Any:
    """Return the event loop, or its token on trio."""
    token = anyio.lowlevel.current_token()
    return getattr(token, "native_token", token)  # anyio before 4.11 returns the loop itself


def _spawn(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.get_running_loop().create_task(work, name="batchwise")
    _spawned.add(task)
    task.add_done_callback(_spawned.discard)


class _Notifier:
    """See `waiters.Notifier`. For the event loop's thread only."""

    def __init__(self) -> None:
        self._version = 0
        self._event: anyio.Event | None = None
        """The event of the tasks that wait now; None while none waits, which is most of the time."""

    def notify(self) -> None:
        self._version += 1
        event, self._event = self._event, None
        if event is not None:
            event.set()

    def version(self) -> int:
        return self._version

    def changed_since(self, seen: int) -> bool:
        return self._version != seen

    async def wait(self, seen: int, timeout: float | None) -> None:
        if self._version != seen:
            await anyio.lowlevel.checkpoint()
            return
        if self._event is None:
            self._event = anyio.Event()
        if timeout is None:
            await self._event.wait()
            return
        with anyio.move_on_after(timeout):
            await self._event.wait()


class TaskDriver(Driver):
    """Carries out the planner's actions, in tasks of a group of its own.

    Args:
        engine: The core.
        ports: The API.
        threads: Threads in which callers reach the ledger: if an iterable of theirs blocks, that holds up no work.
        owns_ledger: Whether the ledger is closed at the end.
        close_client: Awaited at the end; None: the client is the caller's, and stays open.
    """

    def __init__(
        self,
        engine: Engine,
        ports: AsyncPorts,
        threads: Threads,
        *,
        owns_ledger: bool,
        close_client: Callable[[], Awaitable[object]] | None,
    ) -> None:
        self._thread, self._loop = threading.get_ident(), _loop()
        super().__init__(engine, _Notifier, owns_ledger=owns_ledger)
        self._ports, self._close_client = ports, close_client
        self.in_thread, self.together = threads.run, threads.together
        self._tasks = anyio.create_task_group()
        self._leaving, self._gone = anyio.Event(), anyio.Event()
        self._end_error: Exception | None = None
        self._parent: Any = None
        """On trio the group of the task that entered it, in which the host lives; None on asyncio."""
        self._entered_by: int | None = None

    def _changed_by_others(self) -> None:
        with suppress(RuntimeError):  # the loop has ended, and all waiting tasks with it
            if isinstance(self._loop, asyncio.AbstractEventLoop):
                self._loop.call_soon_threadsafe(self.notifiers.waiters.notify_all)
            else:
                self._loop.run_sync_soon(self.notifiers.waiters.notify_all)

    async def start(self) -> None:
        """Start the host, which starts the pump."""
        begun = anyio.Event()
        if on_asyncio():
            _spawn(self._host(begun))
        else:
            self._parent, self._entered_by = anyio.create_task_group(), anyio.get_current_task().id
            await self._parent.__aenter__()
            self._parent.start_soon(self._host, begun)
        try:
            await begun.wait()
        except BaseException:  # cancelled: no caller has it, so none will close it
            await self.leave(finish=False, spare_calls=False)
            raise

    async def _host(self, begun: anyio.Event) -> None:
        """Hold the group of all tasks until it is closed, or cancelled with the event loop's other tasks."""
        try:
            async with self._tasks:
                self._start_in_background(self._pump.run)
                self._tasks.start_soon(self._feed)
                begun.set()
                await self._leaving.wait()
                self._tasks.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001  # waiting callers get it
            _log.exception("batchwise: a dispatcher ended by a fault within batchwise")
            fault = ClosedDispatcherError(
                "this dispatcher ended by a fault within batchwise; the log says where. Open a new one: the ledger has "
                "all its work"
            )
            fault.__cause__ = error
            self.life.fail(fault)
        finally:
            self.life.end()
            begun.set()
            with anyio.CancelScope(shield=True):
                await self._let_go()

    async def _let_go(self) -> None:
        try:
            try:
                await self._ports.threads.run(self._ending.close_ledger)
            finally:
                if self._close_client is not None:
                    await self._close_client()
        except Exception as error:  # noqa: BLE001  # `close` raises it
            self._end_error = error
        finally:
            self._gone.set()

    async def wait_for(
        self,
        check: Callable[[], T | None],
        timeout: float | None,
        request: int | None = None,
        held: Callable[[], bool] | None = None,
    ) -> T | None:
        """Return the first value that `check` (run in a thread) gives; None after `timeout` seconds."""
        return await drive_async(self._waiting.until(check, timeout, request, held), self._ports)

    async def cancel(self, *, request: int | None = None, job: int | None = None) -> int:
        """Cancel for the caller; returns how many settled now."""
        settled = await drive_async(withdraw(self.engine, request=request, job=job), self._ports)
        self.wake()
        return settled

    async def adopt(self, batch_id: str, keys: Mapping[str, str] | None, job: str | None) -> str:
        """Take in a batch made elsewhere; returns its job's name."""
        name = await drive_async(adopt(self.engine, batch_id, keys, job), self._ports)
        self.wake()
        return name

    async def advance(self, gap: timedelta) -> None:
        """Carry out actions in this task until none is due."""
        await drive_async(self._advancing.advance(gap), self._ports)

    def check(self) -> None:
        """Raise if this dispatcher is closed, or belongs to another process or event loop."""
        super().check()
        self._check_loop()

    def _check_loop(self) -> None:
        if _loop() is not self._loop:
            raise WrongLoopError("this dispatcher belongs to the event loop that opened it; make one for this loop")

    def call(self) -> bool:
        """Have the queued calls taken up."""
        self.notifiers.work.notify()
        return True

    def _on_settled(self, requests: Sequence[int]) -> None:
        """Wake waiting callers; called from worker threads, too."""
        if threading.get_ident() == self._thread:
            super()._on_settled(requests)
        else:
            anyio.from_thread.run_sync(super()._on_settled, requests)

    def _start_in_background(self, procedure: Callable[[], Procedure[None]]) -> bool:
        if self.life.closed:
            return False
        self._tasks.start_soon(self._drive, procedure)
        return True

    async def _drive(self, procedure: Callable[[], Procedure[None]]) -> None:
        await drive_async(procedure(), self._ports)

    async def _feed(self) -> None:
        """Start calls as soon as the queue gives them out."""
        work = self.notifiers.work
        while not self.life.stopped:
            seen = work.version()
            got = self.engine.sync_lane.next_call()
            if isinstance(got, Slot):
                self._start_in_background(partial(self._calls.run, got))
            else:
                await work.wait(seen, got)

    async def close(self, *, finish: bool, spare_calls: bool = False) -> None:
        """Close it; a second caller waits until it is closed.

        Args:
            finish: First send the work that is queued for a batch, and wait for the sync calls.
            spare_calls: First let running calls end: they are paid for.

        Raises:
            WrongLoopError: It lives on another event loop.
        """
        if self.life.forked:
            return
        if not self._gone.is_set():
            self._check_loop()
        first = not self.life.closing
        self._ending.begin()
        try:
            if not first:
                await self._gone.wait()
            elif spare_calls:
                with anyio.CancelScope(shield=True):
                    await drive_async(self._ending.finish(finish=finish, spare_calls=True), self._ports)
            else:
                await drive_async(self._ending.finish(finish=finish, spare_calls=False), self._ports)
        finally:
            if first:
                await self._stop()

    def _abandon(self) -> None:
        if self._parent is not None:
            return  # trio's block holds its owner, and closes it
        try:
            self._loop.call_soon_threadsafe(lambda: _spawn(self.close(finish=False, spare_calls=True)))
        except RuntimeError:  # the loop is closed, and its tasks are gone
            with suppress(RuntimeError):
                in_background(self._ending.close_ledger)

    async def _stop(self) -> None:
        self.life.end()
        self._leaving.set()
        with anyio.CancelScope(shield=True):
            await self._gone.wait()
        if self._end_error is not None:
            raise self._end_error

    async def leave(self, *, finish: bool, spare_calls: bool) -> None:
        """Close it at the end of `async with`; on trio leave the group that the host lives in.

        Raises:
            WrongLoopError: It lives on another event loop, or another task of trio entered it.
        """
        if self._entered_by not in {None, anyio.get_current_task().id}:
            raise WrongLoopError(
                "this dispatcher was entered in one task and is left in another, which trio cannot do: its tasks "
                "belong to the task that entered it. Leave it there. Nothing was ended"
            )
        try:
            await self.close(finish=finish, spare_calls=spare_calls)
        finally:
            parent, self._parent = self._parent, None
            if parent is not None:
                await parent.__aexit__(None, None, None)
