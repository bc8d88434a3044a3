"""The driver of tasks: a pump that asks the planner, tasks that call, and bells that wake whoever waits.

Lives in one task group on the event loop that entered it (asyncio or trio); the ledger is reached through threads.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from time import monotonic
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread

from batchwise.engine.actions import carry_out, withdraw
from batchwise.engine.calls import call
from batchwise.engine.core import Engine
from batchwise.engine.effects import AsyncPorts, drive_async
from batchwise.engine.passes import MAX_ACTIONS, NEVER, PASS_SHARE, QUICK, SPARED, WATCH, once, repeats
from batchwise.engine.queue import Ticked
from batchwise.errors import BatchwiseError, ClosedDispatcherError, ForkedDispatcherError, WrongLoopError
from batchwise.models import Lane
from batchwise.planning import planner

__all__ = ["TaskDriver", "in_thread"]

_log = logging.getLogger("batchwise")
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

    async def wait(self, heard: anyio.Event, timeout: float | None) -> None:
        """Return when it has rung since `heard`, or after `timeout` seconds."""
        with anyio.move_on_after(timeout):
            await heard.wait()


class TaskDriver:
    """Carries out what the planner asks for, in tasks of a group of its own.

    Args:
        engine: The core.
        ports: The API.
    """

    def __init__(self, engine: Engine, ports: AsyncPorts) -> None:
        self.engine = engine
        self._ledger, self._ports = engine.ledger, ports
        self._closed = False
        self._pid = os.getpid()
        self._thread, self._loop = threading.get_ident(), anyio.lowlevel.current_token()
        engine.on_settled = self._on_settled
        self._pump_bell, self._work_bell, self._news = _Bell(), _Bell(), _Bell()
        self._acting = 0
        self._next: datetime | None = None
        self._gap = WATCH
        self._waiters: dict[int, list[anyio.Event]] = {}
        self._fatal: BaseException | None = None
        self._version, self._look_at = -1, 0.0
        self._told = engine.troubles
        self._tasks = anyio.create_task_group()

    async def start(self) -> None:
        """Enter the task group and start the pump."""
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._run_pump)
        self._tasks.start_soon(self._feed)

    async def close(self, *, finish: bool, spare_calls: bool) -> None:
        """End.

        Args:
            finish: Only after what is queued for a batch was sent and the sync calls have ended.
            spare_calls: Let calls that run end: they are paid for.
        """
        try:
            if finish and self._fatal is None:
                await in_thread(self._ledger.flush)
                self.wake()
                await self._drain()
        finally:
            self._closed = True
            if spare_calls:
                with anyio.CancelScope(shield=True):
                    await self._let_calls_end()
            self._tell_all()
            self._tasks.cancel_scope.cancel()
            try:
                await self._tasks.__aexit__(None, None, None)
            finally:
                with anyio.CancelScope(shield=True):
                    await in_thread(self.engine.close)

    def check(self) -> None:
        """Raise what a user of a dispatcher in the wrong state has to know."""
        if self._pid != os.getpid():
            raise ForkedDispatcherError(
                f"this dispatcher was made in process {self._pid}, before a fork; make one in this process "
                f"({os.getpid()})"
            )
        if self._closed:
            raise ClosedDispatcherError("this dispatcher is closed; open a new one: the ledger has all its work")
        if anyio.lowlevel.current_token() != self._loop:
            raise WrongLoopError("this dispatcher belongs to the event loop that entered it; make one for this loop")

    def wake(self, due: datetime | None = None) -> None:
        """Have the pump look again: at once, or not later than `due`."""
        if due is None or self._next is None or due < self._next:
            self._pump_bell.ring()

    def call(self) -> None:
        """Take up what the call queue holds."""
        self._work_bell.ring()

    async def cancel(
        self, *, request: int | None = None, job: int | None = None, requests: Sequence[int] | None = None
    ) -> int:
        """Cancel for the caller; returns how many settled now."""
        procedure = withdraw(self.engine, request=request, job=job, requests=requests)
        settled = await drive_async(procedure, self._ports)
        self.wake()
        return settled

    # -- waiting ----------------------------------------------------------------------------------------------------

    async def wait_for(
        self, check: Callable[[], T | None], timeout: float | None, request: int | None = None
    ) -> T | None:
        """The first value that `check` (run in a thread) gives; None after `timeout` seconds."""
        end = None if timeout is None else monotonic() + timeout
        while True:
            heard = self._news.heard()
            if request is not None:
                heard = anyio.Event()
                self._waiters.setdefault(request, []).append(heard)
            self.raise_fatal()
            value = await in_thread(check)
            if value is not None:
                return value
            left = None if end is None else end - monotonic()
            if left is not None and left <= 0:
                return None
            with anyio.move_on_after(left):
                await heard.wait()
            self.check()

    def _on_settled(self, requests: Sequence[int]) -> None:
        """Called from worker threads, too."""
        if threading.get_ident() == self._thread:
            self._notify(requests)
        else:
            anyio.from_thread.run_sync(self._notify, requests)

    def _notify(self, requests: Sequence[int]) -> None:
        if self._waiters:
            for number in requests:
                for event in self._waiters.pop(number, ()):
                    event.set()
        self._news.ring()

    def _tell_all(self) -> None:
        """Something changed that any waiter may have to know."""
        waiting, self._waiters = self._waiters, {}
        for events in waiting.values():
            for event in events:
                event.set()
        self._news.ring()

    def raise_fatal(self) -> None:
        """Raise what ended the pump, if something did."""
        if self._fatal is not None:
            raise self._fatal

    def _fail(self, error: BatchwiseError) -> None:
        """Something that no retry mends: whoever waits is told."""
        self._fatal = error
        self._tell_all()

    # -- the pump ---------------------------------------------------------------------------------------------------

    async def _run_pump(self) -> None:
        while self._fatal is None:
            heard, self._next = self._pump_bell.heard(), None
            try:
                await self._notice()
                begun = monotonic()
                wait = await self._pass()
                self._gap = max(WATCH, PASS_SHARE * (monotonic() - begun))
                if self.engine.troubles != self._told:
                    self._told = self.engine.troubles
                    self._tell_all()
            except BatchwiseError as error:
                self._fail(error)
                return
            except Exception:  # noqa: BLE001  # logged, and tried again
                _log.exception("batchwise: a pass failed; the next one follows")
                wait = 1.0
            self._next = NEVER if wait is None else self.engine.now() + timedelta(seconds=wait)
            await self._watch(heard, wait)

    async def _watch(self, heard: anyio.Event, wait: float | None) -> None:
        """Sleep until something is due, until the bell rings, or until another process changed the ledger."""
        end = None if wait is None else monotonic() + wait
        while not heard.is_set():
            until = self._look_at if end is None else min(self._look_at, end)
            await self._pump_bell.wait(heard, max(0.0, until - monotonic()))
            if (await self._notice()) or (end is not None and monotonic() >= end):
                return

    async def _notice(self) -> bool:
        """Whether the ledger changed since the last look, by whomever: then whoever waits is told.

        Every change is told, those that fall between two passes too: a caller that looked just before one would
        wait for ever.
        """
        if monotonic() < self._look_at:
            return False
        self._look_at = monotonic() + WATCH
        before, self._version = self._version, await in_thread(self._ledger.version)
        if self._version == before:
            return False
        self._tell_all()
        return True

    async def _pass(self) -> float | None:
        """One look at the state; begins what is due. Returns the seconds until something is due again."""
        wait: float | None = None
        before, moved = await in_thread(self._ledger.version), False
        for action in await in_thread(self.engine.plan):
            if isinstance(action, planner.WaitUntil):
                wait = max(0.0, (action.moment - self.engine.now()) / timedelta(seconds=1))
            elif isinstance(action, QUICK):
                moved |= await self._carry_out_now(action)
            elif self._acting < MAX_ACTIONS and (token := self.engine.begin(action)) is not None:
                self._acting += 1
                self._tasks.start_soon(self._act, action, token)
        if moved and await in_thread(self._ledger.version) != before:
            return 0.0  # rows moved: what is due now was not seen by this plan
        return wait

    async def _carry_out_now(self, action: planner.Action) -> bool:
        token = self.engine.begin(action)
        if token is None:
            return False
        try:
            await drive_async(carry_out(self.engine, action), self._ports)
        finally:
            self.engine.end(token)
        self._work_bell.ring()
        return True

    async def _act(self, action: planner.Action, token: object) -> None:
        try:
            await drive_async(carry_out(self.engine, action), self._ports)
        except BatchwiseError as error:
            self._fail(error)
        except Exception:  # noqa: BLE001  # logged, and planned again
            _log.exception("batchwise: %s failed; it will be planned again", type(action).__name__)
            await anyio.sleep(1.0)
        finally:
            self._acting -= 1
            self.engine.end(token)
            self._pump_bell.ring()

    # -- the sync lane ----------------------------------------------------------------------------------------------

    async def _feed(self) -> None:
        """Start calls as the queue lets them through."""
        while True:
            heard = self._work_bell.heard()
            got = self.engine.queue.next(monotonic())
            if isinstance(got, Ticked):
                self._tasks.start_soon(self._run_call, got)
            else:
                await self._work_bell.wait(heard, got)

    async def _run_call(self, ticked: Ticked) -> None:
        try:
            await drive_async(call(self.engine, ticked), self._ports)
        except BatchwiseError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001  # a fault of ours: whoever waits has to know
            _log.exception("batchwise: a call failed within batchwise; its request stays in the ledger")
            self._fail(BatchwiseError(f"a call failed within batchwise ({type(error).__name__}); the log says where"))
        self._work_bell.ring()
        if self.engine.queue.waiting == 0:
            self._pump_bell.ring()
        if self.engine.suspended:
            self._tell_all()

    async def _let_calls_end(self) -> None:
        """Calls that run are paid for: let them end, and start no more."""
        await in_thread(self.engine.put_back)
        with anyio.move_on_after(SPARED):
            while self.engine.queue.busy:
                await self._work_bell.wait(self._work_bell.heard(), 0.05)
                await in_thread(self.engine.put_back)

    # -- one pass at a time, for advance and close ------------------------------------------------------------------

    async def advance(self, gap: timedelta, *, only_sending: bool = False) -> None:
        """Carry out what is due, one action after the other, until nothing is, calls of the sync lane included."""
        done: Counter[object] = Counter()
        while True:
            acted = False
            for action in await in_thread(self.engine.plan, gap):
                if done[once(action)] >= repeats(action, only_sending=only_sending):
                    continue
                if await self._carry_out_now(action):
                    done[once(action)] += 1
                    acted = True
            await self._finish_calls()
            if not acted or self._fatal is not None:
                return

    async def _finish_calls(self) -> None:
        while self.engine.queue.busy and self._fatal is None and Lane.SYNC not in self.engine.suspended:
            await self._work_bell.wait(self._work_bell.heard(), 0.05)

    async def _drain(self) -> None:
        while self._fatal is None:
            heard = self._news.heard()
            if self._acting == 0 and self.engine.queue.busy == 0:
                await self.advance(timedelta(0), only_sending=True)
                if self._acting == 0 and self.engine.queue.busy == 0:
                    return
            if self.engine.queue.busy and Lane.SYNC in self.engine.suspended:
                return
            await self._finish_calls()
            await self._news.wait(heard, 0.02)
