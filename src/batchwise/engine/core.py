"""The core that both drivers share: the parts that accept, plan, call and spend, put together on one ledger."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone

from batchwise.ledger.ledger import Ledger
from batchwise.models import Policy
from batchwise.planning import agenda
from batchwise.planning.pricing import book_of

from .accepting import Accepting
from .admissions import Admissions
from .announcing import Announcing
from .deadlines import Deadlines
from .event_emitter import EventEmitter, Hook
from .forecasts import Forecasts
from .health import Health
from .kept_policy import KeptPolicy
from .leadership import Leadership
from .planner_pass import PlannerPass
from .queue import CallQueue
from .routes import Router
from .setbacks import Setbacks
from .situation import Situation
from .spend_limit import SpendLimit
from .suspensions import Suspensions
from .sync_lane import SyncLane
from .telemetry import observe
from .under_way import UnderWay
from .waits import Waits
from .workspace import Workspace

__all__ = ["Engine"]

_NO_GAP, _DAY = timedelta(0), timedelta(days=1)


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


class Engine:
    """One dispatcher's core. Thread-safe; blocks for ledger calls only.

    Each part takes what it needs, and writes only its own fields.

    Args:
        ledger: The durable record.
        policy: The rules' figures; None: the policy under which the ledger's work was last accepted, else the defaults.
        endpoint: The client's base URL, which the ledger is bound to; None: the ledger is only read.
        now: The clock; injected by tests that run in virtual time.
        on_event: Is called with each event.
    """

    def __init__(
        self,
        ledger: Ledger,
        policy: Policy | None,
        *,
        endpoint: str | None,
        now: Callable[[], datetime] = _utc_now,
        on_event: Hook | None = None,
    ) -> None:
        self.ledger, self.now = ledger, now

        def clock() -> datetime:
            return self.now()  # which may be set anew

        kept_policy = KeptPolicy(ledger, policy)
        self.policy = policy = kept_policy.policy
        self.emitter = EventEmitter(on_event, clock)
        self.suspensions, self.setbacks = Suspensions(ledger, self.emitter), Setbacks(clock)
        self.prices, self.forecasts = book_of(policy.prices), Forecasts(ledger, policy)
        self.router, self.admissions = Router(policy, self.prices, self.forecasts.of), Admissions(ledger, policy)
        self.spend_limit = SpendLimit(policy, ledger, self.router, self.setbacks, clock)
        ledger.books.use_prices(lambda: self.prices.source, self.spend_limit.with_max_cost)
        self.queue = CallQueue(policy.limits)
        self.sync_lane, self.health = SyncLane(ledger, self.queue, clock), Health(self.queue, clock)
        self.announcing = Announcing(ledger, self.queue, self.emitter, clock)
        self.waits, self.under_way = Waits(ledger, policy.linger), UnderWay()
        self.deadlines = Deadlines(ledger, policy, self.emitter, clock)
        self.situation = Situation(
            ledger,
            policy,
            self.prices,
            suspensions=self.suspensions,
            health=self.health,
            forecasts=self.forecasts,
            queue=self.queue,
            now=clock,
        )
        self.leadership = Leadership(ledger, self.spend_limit, clock)
        self.workspace, self.run = Workspace(ledger, endpoint, clock), 0
        if endpoint is not None:
            self.run = ledger.start_run(pid=os.getpid(), now=self.now())
            self.leadership.clear_up()
        self._pass = self._make_pass(clock)
        self.accepting = self._make_accepting(kept_policy, clock)
        observe(self)

    def _make_pass(self, clock: Callable[[], datetime]) -> PlannerPass:
        return PlannerPass(
            self.ledger,
            self.policy,
            leadership=self.leadership,
            situation=self.situation,
            spend_limit=self.spend_limit,
            under_way=self.under_way,
            deadlines=self.deadlines,
            setbacks=self.setbacks,
            run=self.run,
            now=clock,
        )

    def _make_accepting(self, kept_policy: KeptPolicy, clock: Callable[[], datetime]) -> Accepting:
        return Accepting(
            self.ledger,
            self.run,
            router=self.router,
            admissions=self.admissions,
            spend_limit=self.spend_limit,
            suspensions=self.suspensions,
            queue=self.queue,
            sync_lane=self.sync_lane,
            waits=self.waits,
            kept_policy=kept_policy,
            emitter=self.emitter,
            now=clock,
        )

    def plan(self, wake_gap: timedelta = _NO_GAP) -> tuple[agenda.Action, ...]:
        """Return the actions that are due; takes the lease if it is free.

        Args:
            wake_gap: How late the next call may be: the planner acts early by so much.
        """
        return self._pass.actions(wake_gap)

    def flush(self) -> None:
        """Have all requests that are queued for a batch sent now."""
        self.suspensions.resume_on_first_use()
        self.ledger.flush()

    def wake_gap(self) -> timedelta:
        """Return how long it may take until the next `advance`: as long as since the last one, at most a day."""
        return min(self.ledger.conditions.note_advance(now=self.now()) or _NO_GAP, _DAY)

    def close(self) -> None:
        """End the run: give claims and the lease back, and let go of the ledger's liveness lock."""
        with ExitStack() as steps:  # each step runs, last first, whatever fails: other processes wait for the locks
            steps.callback(self.ledger.end_run, self.run)
            steps.callback(self.leadership.resign)
            steps.callback(self.suspensions.warn_of_rest)
            steps.callback(self.sync_lane.put_back)
            steps.callback(self.setbacks.store, self.ledger, self.run)
