"""What both drivers do, written once: the pump that asks the planner, waiting, advancing, and the end.

These are procedures (see `engine.effects`): they await ledger calls, calls of the API and waits as effects. A thread
carries an effect out by calling, a task by awaiting. A driver adds only how it waits and how it starts things.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
import weakref
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from datetime import datetime, timedelta
from functools import partial
from time import monotonic
from typing import Any, TypeVar

from batchwise.engine.actions import carry_out
from batchwise.engine.calls import call
from batchwise.engine.core import Engine
from batchwise.engine.effects import Effect, Procedure, Store, pause, persist, store, store_together
from batchwise.engine.passes import (
    CLOCK_LOOK,
    END_GRACE,
    IDLE_SWEEP,
    MAX_ACTIONS,
    NEVER,
    PASS_SHARE,
    QUICK,
    SWEEP,
    WATCH,
    action_key,
    concurrency_group,
    describe,
    one_by_one,
    repeats,
)
from batchwise.engine.queue import Slot
from batchwise.engine.setbacks import lasting, passing
from batchwise.errors import ClosedDispatcherError, LedgerError
from batchwise.ledger.forks import check_own
from batchwise.models import Lane
from batchwise.planning import agenda

from .waiters import Notifier, Waiters

__all__ = ["Driver"]

_log = logging.getLogger("batchwise")
_LOOKING = "a pass"
T = TypeVar("T")


class Driver(ABC):
    """Carries out what the planner asks for.

    Args:
        engine: The core.
        make_notifier: Makes a `Notifier`.
        owns_ledger: Whether the ledger is closed at the end.
    """

    def __init__(self, engine: Engine, make_notifier: Callable[[], Notifier], *, owns_ledger: bool) -> None:
        self.engine, self._owns_ledger = engine, owns_ledger
        self._pump_notifier, self._work_notifier, self._waiters = (
            make_notifier(),
            make_notifier(),
            Waiters(make_notifier),
        )
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._closing = self._closed = self._over = False
        self._under_way: dict[object, object] = {}
        """The `concurrency_group` of each batch action under way, by a mark of its own."""
        self._ending = make_notifier()
        """Notifies when the end begins: whatever waits before another try is then tried at once."""
        self._fatal: Exception | None = None
        self._owner: weakref.ref[object] | None = None
        self._dropped: weakref.finalize[..., object] | None = None
        self._next: datetime | None = None
        """When it looks again; None while it does."""
        self._asked = NEVER
        """When it has to look at the latest, for what was accepted while it was looking."""
        self._gap, self._version, self._look_at = WATCH, -1, 0.0
        self._hears = engine.ledger.listen(self._changed_by_others)
        """Whether the database notifies this process of what others change."""
        self._swept = 0.0
        """When it last looked for what dead processes left (monotonic)."""
        self._problems = engine.situation.problems
        engine.announcing.listen(self._on_settled)

    # -- what a driver adds -----------------------------------------------------------------------------------------

    @abstractmethod
    def call(self) -> bool:
        """See to it that somebody takes up what the call queue holds; False: there is nobody."""

    @abstractmethod
    def _start_in_background(self, procedure: Callable[[], Procedure[None]]) -> bool:
        """Start a procedure in the background; False, and nothing is started, if that is impossible now."""

    def _alone(self) -> bool:
        """Whether the pump cannot be started now, so that whoever waits does its work."""
        return False

    @property
    def _acting(self) -> set[object]:
        """The marks of batch actions under way."""
        with self._lock:
            return set(self._under_way)

    @abstractmethod
    def _abandon(self) -> None:
        """Let calls that run end, then end it. Takes no lock: the collector of garbage may be what calls it."""

    @abstractmethod
    def _changed_by_others(self) -> None:
        """Tell whoever waits that the ledger has changed. From any thread."""

    # -- for whom ---------------------------------------------------------------------------------------------------

    def serve(self, owner: object) -> None:
        """Work as long as somebody holds the owner, or until it is closed. Call it once."""
        self._owner = weakref.ref(owner)
        self._dropped = weakref.finalize(owner, self._forsaken, type(owner).__name__)
        self._dropped.atexit = False

    @property
    def owner(self) -> object:
        """The dispatcher that it works for: while somebody holds that, it goes on."""
        return None if self._owner is None else self._owner()

    def _forsaken(self, name: str) -> None:
        if self.forked:
            return
        if not self._closing:
            self._abandon()
        warnings.warn(
            f"nobody holds {name} on the ledger {self.engine.ledger.name} any more, and it was never closed: it ends, "
            "and queued work stays queued; use it under `with` or `async with`, or close it",
            ResourceWarning,
            stacklevel=2,
        )

    # -- waiting ----------------------------------------------------------------------------------------------------

    async def _waiting(
        self,
        check: Callable[[], T | None],
        timeout: float | None,
        request: int | None,
        held: Callable[[], bool] | None,
    ) -> T | None:
        """The first value that `check` gives; None after `timeout` seconds. A busy ledger is asked again until then.

        While `held` says so, there is nothing to look for in the ledger yet.
        """
        self._check_own()  # a child may go on with an iteration over results
        end = None if timeout is None else monotonic() + timeout
        with self._waiters.listening(request) as notifier, self._asking(notifier):
            while True:
                seen = notifier.version()
                self.raise_fatal()
                retry_in = None
                if held is None or not held():
                    value, retry_in = await self._looked(check, notifier)
                    if value is not None:
                        return value
                left = None if end is None else end - monotonic()
                if left is not None and left <= 0:
                    return None
                if self._alone():
                    await self._round()
                    retry_in = WATCH if retry_in is None else min(retry_in, WATCH)
                if retry_in is not None:
                    left = retry_in if left is None else min(left, retry_in)
                await pause(notifier.wait, seen, left)
                self.raise_fatal()  # first: it says why it is closed
                self.check()

    @contextmanager
    def _asking(self, waiter: object) -> Iterator[None]:
        """Forget at the end that this waiter could not look: nobody waits any more."""
        try:
            yield
        finally:
            self.engine.setbacks.mended(waiter)

    async def _looked(self, check: Callable[[], T | None], waiter: object) -> tuple[T | None, float | None]:
        """What `check` gives; if the ledger cannot be read for now, None and the seconds until it is tried again."""
        try:
            if not self.engine.suspensions.used and await store(self.engine.suspensions.resume_on_first_use):
                self.wake()
            value = await store_together(lambda: check)
        except ClosedDispatcherError:  # of the ledger, which was closed meanwhile
            self.raise_fatal()
            raise
        except LedgerError as error:
            if not passing(error):
                raise
            return None, self.engine.setbacks.failed(waiter, "looking for what is waited for", error)
        self.engine.setbacks.mended(waiter)
        return value, None

    def _on_settled(self, requests: Sequence[int]) -> None:
        self._waiters.settled(requests)

    def _fail(self, error: Exception) -> None:
        """Something that ends this dispatcher: whoever waits is told."""
        self._fatal = error
        self._waiters.notify_all()

    def raise_fatal(self) -> None:
        """Raise what ended this dispatcher, if something did."""
        if self._fatal is not None:
            # To each a copy: a traceback holds everybody whom the error passed, and with him the dispatcher.
            raise copy(self._fatal) from self._fatal.__cause__

    def check_working(self) -> None:
        """Raise if nobody would do work that is handed in now: this dispatcher has ended, or is ending."""
        self.check()
        self.raise_fatal()
        if self._closing:
            raise ClosedDispatcherError("this dispatcher is being closed; open a new one: the ledger has all its work")

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._closed

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that it was made in: it belongs to the parent."""
        return self._pid != os.getpid()

    def check(self) -> None:
        """Raise if this dispatcher is closed, or belongs to the process that this one was forked from."""
        self._check_own()
        if self._closed:
            raise ClosedDispatcherError("this dispatcher is closed; open a new one: the ledger has all its work")

    def _check_own(self) -> None:
        check_own("this dispatcher was made", self._pid)

    # -- the pump ---------------------------------------------------------------------------------------------------

    def wake(self, due: datetime | None = None) -> None:
        """Have the pump look again: at once, or not later than `due`."""
        with self._lock:
            if due is not None:
                self._asked = min(self._asked, due)
                if self._next is None or due >= self._next:
                    return
        self._pump_notifier.notify()

    async def _pump(self) -> None:
        while not self._over:
            seen = self._pump_notifier.version()
            with self._lock:
                self._next, self._asked = None, NEVER
            wait = await self._round()
            if self._fatal is not None:
                return
            now = self.engine.now()
            with self._lock:
                planned = NEVER if wait is None else now + timedelta(seconds=wait)
                self._next = min(self._asked, planned, self.engine.waits.end or NEVER)
                wait = None if self._next is NEVER else (self._next - now) / timedelta(seconds=1)
            try:
                await self._watch(seen, wait)
            except Exception as error:  # noqa: BLE001  # tried again
                await pause(self._pump_notifier.wait, seen, self._failed(_LOOKING, _LOOKING, error))

    async def _round(self) -> float | None:
        """A pass and what belongs to it. Returns the seconds until the next one is due: after a pause if it failed."""
        try:
            await self._notice()
            if self.engine.waits.end is not None:
                await store(self.engine.waits.submit, self.engine.now())
            begun = monotonic()
            wait = await self._pass()
            if await self._call_here():
                wait = 0.0
            self._gap = max(WATCH, PASS_SHARE * (monotonic() - begun))
            if self.engine.situation.problems != self._problems:
                self._problems = self.engine.situation.problems
                self._waiters.notify_all()
        except Exception as error:  # noqa: BLE001  # tried again
            if isinstance(error, LedgerError) and not passing(error):  # its file is gone, or broken
                self._fail(error)
                return 0.0
            return self._failed(_LOOKING, _LOOKING, error)
        self.engine.setbacks.mended(_LOOKING)
        return wait

    def _failed(self, what: Hashable, words: str, error: Exception) -> float:
        """It failed: it is tried again, after so many seconds, unless the error ends this dispatcher."""
        if lasting(error):
            self._fail(error)
            return 0.0
        seconds = self.engine.setbacks.failed(what, words, error)
        self._waiters.notify_all()  # they look for themselves: some of it is theirs to raise
        return seconds

    async def _rest(self, seconds: float) -> None:
        """Sleep so long, or until the end begins; while it ends, for a second at most."""
        await pause(self._ending.wait, self._ending.version(), min(seconds, 1.0) if self._over else seconds)

    async def _watch(self, seen: Any, wait: float | None) -> None:
        """Sleep until something is due, until `wake`, or until another process changed the ledger or ended.

        What is due is due by the wall clock, which may be set, and goes on while the machine sleeps; the monotonic
        clock does neither. So the wall clock is looked at again and again, and whichever is first decides.
        """
        end = None if wait is None else monotonic() + wait
        while not self._pump_notifier.changed_since(seen) and not self._over:
            until = self._look_at if end is None else min(self._look_at, end, monotonic() + CLOCK_LOOK)
            await pause(self._pump_notifier.wait, seen, max(0.0, until - monotonic()))
            due = end is not None and (monotonic() >= end or self.engine.now() >= (self._next or NEVER))
            if await self._notice() or due:
                return

    async def _notice(self) -> bool:
        """Look whether anybody has changed the ledger since the last look. If so, whoever waits is told.

        Every change is told, those that fall between two passes too: a caller that looked just before one would
        wait for ever.
        """
        if monotonic() < self._look_at:
            return False
        self._look_at = monotonic() + self._gap
        sweep = self._sweep()
        left = await store(sweep) if sweep is not None else False
        before, self._version = self._version, await store(self.engine.ledger.version)
        if self._version == before and not left:
            return False
        self._waiters.notify_all()
        return True

    def _sweep(self) -> Callable[[], bool] | None:
        """How to look for what dead processes left; None: not yet. Of a ledger on a server, that asks the server.

        An idle dispatcher asks one question: a dead holder of the lease is found by the lock of its run, too.
        """
        idle = False
        if self._hears:
            unsure = self.engine.ledger.unsure
            with self._lock:
                idle = self._next in {None, NEVER} and not (self._waiters.waiting or unsure)
            if monotonic() < self._swept + (IDLE_SWEEP if idle else SWEEP):
                return None
        self._swept = monotonic()
        return self.engine.leadership.clear_up if idle else self.engine.leadership.take_over

    async def _pass(self) -> float | None:
        """One look at the state; begins what is due. Returns the seconds until something is due again."""
        wait: float | None = None
        before, moved = await store(self.engine.ledger.version), False
        actions = await store(self.engine.plan)
        self.engine.setbacks.forget(tuple, {action_key(action) for action in actions})
        for action in actions:
            if isinstance(action, agenda.WaitUntil):
                due = max(0.0, (action.moment - self.engine.now()) / timedelta(seconds=1))
                wait = due if wait is None else min(wait, due)
            elif resting := self.engine.setbacks.pause(action_key(action)):
                wait = resting if wait is None else min(wait, resting)
            elif isinstance(action, QUICK):
                moved |= await self._move(action)
            else:
                await self._act_in_background(action)
        if moved and await store(self.engine.ledger.version) != before:
            return 0.0  # rows moved: what is due now was not seen by this plan
        return wait

    async def _move(self, action: agenda.Action) -> bool:
        """Carry it out within the pass. A fault in it keeps nothing else of the pass from being done."""
        what = action_key(action)
        try:
            moved = await self._carry_out_now(action)
        except Exception as error:
            if lasting(error) or passing(error):  # what comes next would meet the same
                raise
            self._failed(what, describe(action), error)
            return False
        self.engine.setbacks.mended(what)
        return moved

    async def _carry_out_now(self, action: agenda.Action) -> bool:
        token = self.engine.under_way.try_begin(action)
        if token is None:
            return False
        try:
            await carry_out(self.engine, action)
        finally:
            self.engine.under_way.end(token)
        if isinstance(action, agenda.Run):
            self.call()
        return True

    async def _act_in_background(self, action: agenda.Action, raised: list[Exception] | None = None) -> bool:
        """Start an action in the background, or carry it out here if nothing can be started.

        Returns False if it is under way already, or if too many of its kind are. `raised` takes what it raises, for
        callers who do not have it tried again.
        """
        with self._lock:
            crowd = sum(each == concurrency_group(action) for each in self._under_way.values())
            if crowd >= MAX_ACTIONS or (token := self.engine.under_way.try_begin(action)) is None:
                return False
            mark = object()
            self._under_way[mark] = concurrency_group(action)
        acting = partial(self._act, action, token, mark, raised)
        if not self._start_in_background(acting):
            await acting()
        return True

    async def _act(self, action: agenda.Action, token: object, mark: object, raised: list[Exception] | None) -> None:
        """Carry an action out. One that fails begins again after its pause; its place is free meanwhile."""
        what, words = action_key(action), describe(action)
        try:
            await self._storing(carry_out(self.engine, action), what, words, every=False)
        except Exception as error:  # noqa: BLE001  # tried again, or raised by whoever asked for it
            if raised is None:
                self._failed(what, words, error)
            else:
                raised.append(error)
        else:
            self.engine.setbacks.mended(what)
        finally:
            with self._lock:
                del self._under_way[mark]
            self.engine.under_way.end(token)
            self._pump_notifier.notify()
            self._work_notifier.notify()

    # -- the sync lane ----------------------------------------------------------------------------------------------

    async def _call(self, slot: Slot) -> None:
        what = f"call {slot.sequence}"
        try:
            # All its ledger calls: nobody plans a call again, and an answer that came is paid for.
            await self._storing(call(self.engine, slot), what, "storing what became of a call", every=True)
        except Exception as error:  # noqa: BLE001  # its request is cleared up after the end of this run
            if lasting(error):
                self._fail(error)
            else:
                _log.exception("batchwise: a call's end could not be stored")
        self.engine.setbacks.mended(what)
        self._work_notifier.notify()
        if self.engine.situation.backlog and self.engine.queue.waiting == 0:
            self._pump_notifier.notify()
        if self.engine.suspensions.lanes:
            self._waiters.notify_all()

    async def _storing(self, procedure: Procedure[T], what: Hashable, words: str, *, every: bool) -> T:
        """Carry a procedure out. Ledger calls that fail in passing are repeated: the sure ones, or every one."""

        async def retry(effect: Effect, error: Exception) -> bool:
            if not (isinstance(effect, Store) and (every or effect.sure) and passing(error)):
                return False
            await self._rest(self._failed(what, words, error))
            return True

        return await persist(procedure, retry)

    async def _call_here(self) -> bool:
        """Where no worker can be started, run one call of the queue; returns whether there was one."""
        if not self.engine.queue.waiting or self.call():
            return False
        got = self.engine.sync_lane.next_call()
        if not isinstance(got, Slot):
            return False
        await self._call(got)
        return True

    # -- until nothing is due, for advance and close ------------------------------------------------------------------

    async def _advancing(self, gap: timedelta, *, only_sending: bool = False) -> None:
        """Carry out what is due until nothing is and nothing of it goes on, calls of the sync lane included.

        An upload, a reading or a call may take minutes: what falls due meanwhile does not wait for it.
        """
        await store(self.engine.suspensions.resume_on_first_use)
        done: Counter[object] = Counter()
        raised: list[Exception] = []
        awaited = self._acting
        while self._fatal is None:
            meanwhile = self._going_on(awaited)
            before = await store(self.engine.ledger.version)
            began, due, moved, wait = False, False, False, CLOCK_LOOK
            for action in one_by_one(await store(self.engine.plan, timedelta(0) if meanwhile else gap)):
                if isinstance(action, agenda.WaitUntil):
                    wait = min(wait, max(0.0, (action.moment - self.engine.now()) / timedelta(seconds=1)))
                    continue
                most = repeats(action, only_sending=only_sending)
                if most == 0 or (
                    done[action_key(action)] >= most and not meanwhile
                ):  # time passes, and it is due again
                    continue
                due, quick = True, isinstance(action, QUICK)
                acts = self._carry_out_now(action) if quick else self._act_in_background(action, raised)
                if await acts:
                    done[action_key(action)] += 1
                    began, moved = True, moved or quick
            if raised:
                raise raised[0]
            if due:  # whoever does it: the pump may
                awaited |= self._acting
            if moved and await store(self.engine.ledger.version) != before:
                continue
            unsure = not only_sending and self.engine.ledger.unsure
            if unsure:  # what a dead process left is done in this go
                await store(self.engine.leadership.take_over)
            if self._going_on(awaited) or unsure:
                await self._until_one_ends(wait, unsure=unsure)
            elif not began and not meanwhile:
                return

    def _going_on(self, awaited: set[object]) -> bool:
        """Whether any of these actions, or a call, goes on."""
        return self._calling or not awaited.isdisjoint(self._acting)

    async def _until_one_ends(self, seconds: float, *, unsure: bool) -> None:
        """Wait until an action ends, or calls run out, so many seconds at most; `unsure`: so many, if nothing runs."""
        end, acting = monotonic() + seconds, self._acting
        while monotonic() < end and acting <= self._acting and (acting or self._calling or unsure):
            self._give_up()
            if not await self._call_here():
                seen = self._work_notifier.version()
                await pause(self._work_notifier.wait, seen, min(0.05, max(0.0, end - monotonic())))
            if self.engine.situation.backlog and not self.engine.queue.waiting:
                return

    @property
    def _calling(self) -> bool:
        """Whether calls of the sync lane wait or run, and can end."""
        return self.engine.queue.busy > 0 and Lane.SYNC not in self.engine.suspensions.lanes

    def _give_up(self) -> None:
        """Raise what has been failing for too long for somebody who waits for the end."""
        stuck = self.engine.setbacks.stuck(END_GRACE)
        if stuck is not None:
            raise stuck

    async def _finish_calls(self) -> None:
        """Run what the call queue holds, with the workers where there are threads to be had."""
        while self._calling and self._fatal is None:
            self._give_up()
            if await self._call_here():
                continue
            seen = self._work_notifier.version()
            if self.engine.queue.busy:
                await pause(self._work_notifier.wait, seen, 0.05)

    async def _repeating_to_the_end(self, procedure: Procedure[None]) -> None:
        """Carry out a part of the end. Retry transient failures of the ledger, for `END_GRACE` s in all."""
        end: float | None = None

        async def retry(effect: Effect, error: Exception) -> bool:
            nonlocal end
            end = monotonic() + END_GRACE if end is None else end
            if not (isinstance(effect, Store) and passing(error)) or monotonic() >= end:
                return False
            await self._rest(min(1.0, self._failed("end", "ending", error)))
            return True

        await persist(procedure, retry)
        self.engine.setbacks.mended("end")

    async def _drain(self) -> None:
        """Let the pump and the calls send what is queued; then do here what they could not.

        Raises:
            LedgerError: What is left could not be stored, for as long as calls that run are given.
        """
        await store(self.engine.flush)
        self.wake()
        while self._fatal is None:
            self._give_up()
            seen = self._waiters.news.version()
            if not self._acting and not self.engine.queue.busy:
                await self._advancing(timedelta(0), only_sending=True)
                if not self._acting and not self.engine.queue.busy:
                    return
            if Lane.SYNC in self.engine.suspensions.lanes:
                await store(self.engine.sync_lane.put_back)
            await self._finish_calls()
            await pause(self._waiters.news.wait, seen, 0.02)

    async def _let_calls_end(self) -> None:
        """Calls that run are paid for: let them end, and begin nothing more."""
        self._over = True
        self._ending.notify()
        self._pump_notifier.notify()
        end = monotonic() + END_GRACE
        await store(self.engine.sync_lane.put_back)
        while self.engine.queue.busy and monotonic() < end:
            await pause(self._work_notifier.wait, self._work_notifier.version(), 0.05)
            await store(self.engine.sync_lane.put_back)

    def _begin_end(self) -> None:
        """Nothing more is taken, and no ResourceWarning is due any more."""
        self._closing = True
        if self._dropped is not None:
            self._dropped.detach()

    def _close_ledger(self) -> None:
        """Let go of the ledger: the last step of every end."""
        try:
            self.engine.close()
        finally:
            if self._owns_ledger:
                self.engine.ledger.close()
