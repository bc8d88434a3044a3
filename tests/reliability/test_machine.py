"""The real ledger, the real planner and the real procedures against a simulated API, in virtual time.

Hypothesis dispatches, lets time pass, breaks things, kills the process between any two effects, cancels, and sets
clocks; after every step nothing may be lost, settled twice, or bought twice without the books saying so. At the end
everything heals, and everything settles.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import timedelta

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import batchwise as bw
from tests.reliability.simulation import FAULTS, HOUR, MINUTE, SECOND, World

LATENCIES = st.sampled_from([
    bw.Latency.BLOCKING, bw.Latency.FLEXIBLE, 2 * HOUR, 25 * HOUR, 26 * HOUR, 30 * HOUR, 49 * HOUR,
])  # fmt: skip
PATIENT = st.sampled_from([bw.Latency.FLEXIBLE, 26 * HOUR, 30 * HOUR, 49 * HOUR])
SPANS = st.sampled_from([SECOND, MINUTE, 10 * MINUTE, HOUR, 6 * HOUR, 24 * HOUR])
SEEDS = st.integers(0, 2**16)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    @initialize(
        hours=st.sampled_from([0, -3, 5]),
        exclusive=st.booleans(),
        hedge=st.booleans(),
        late=st.sampled_from(["run", "fail"]),
        count=st.integers(1, 6),
        latency=PATIENT,
        cap=st.sampled_from([None, None, "0.1", "0.5"]),
    )
    def begin(
        self, hours: int, exclusive: bool, hedge: bool, late: str, count: int, latency: object, cap: str | None
    ) -> None:
        policy = bw.Policy(exclusive_workspace=exclusive, hedge=hedge, late=late, max_spend=cap)  # type: ignore[arg-type]
        self.exclusive = exclusive
        self.world = World(policy, server_skew=hours * HOUR)
        self.dispatch_all(count, latency, named=True)

    def texts(self, count: int) -> list[str]:
        self.count += count
        return [f"prompt {number}" for number in range(self.count - count, self.count)]

    @rule(latency=LATENCIES)
    def dispatch(self, latency: object) -> None:
        with suppress(bw.SpendLimitError):
            self.world.dispatch(self.texts(1)[0], latency)

    @rule(count=st.integers(1, 6), latency=PATIENT, named=st.booleans())
    def bulk(self, count: int, latency: object, named: bool) -> None:
        self.dispatch_all(count, latency, named=named)

    def dispatch_all(self, count: int, latency: object, *, named: bool) -> None:
        texts = self.texts(count)
        with suppress(bw.SpendLimitError):
            self.world.dispatch_all(texts, latency, f"job {self.count}" if named else None)

    @rule()
    def flush(self) -> None:
        self.world.ledger.flush()

    @rule(span=SPANS, seed=SEEDS)
    def tick(self, span: timedelta, seed: int) -> None:
        self.world.random.seed(seed)
        self.world.pass_time(span)

    @rule(steps=st.integers(1, 12), seed=SEEDS)
    def begin_something(self, steps: int, seed: int) -> None:
        """Some effects only: what is under way stays so while other things happen."""
        self.world.random.seed(seed)
        self.world.run(steps)

    @rule(span=SPANS)
    def stand_still(self, span: timedelta) -> None:
        """Time passes while nothing runs: a stopped process, a sleeping laptop, a slow call."""
        self.world.true += span

    @rule(count=st.integers(0, 4), latency=LATENCIES, steps=st.integers(0, 10), done=st.booleans(), seed=SEEDS)
    def crash(self, count: int, latency: object, steps: int, done: bool, seed: int) -> None:
        """Between any two effects, or with one that happened and was not heard of."""
        self.world.random.seed(seed)
        if count:
            self.dispatch_all(count, latency, named=False)
        self.world.run(steps)
        self.world.crash(done=done)

    @rule(
        fault=st.sampled_from([(about, name) for about, names in FAULTS.items() for name in names]),
        span=SPANS,
        count=st.integers(0, 4),
        seed=SEEDS,
    )
    def go_wrong(self, fault: tuple[str, str], span: timedelta, count: int, seed: int) -> None:
        """Something is sent, and something goes wrong."""
        self.world.api.order(*fault)
        if count:
            self.dispatch_all(count, 30 * HOUR, named=False)
        self.tick(span, seed)

    @rule(
        count=st.integers(0, 4),
        operation=st.sampled_from(["create", "create", *FAULTS]),
        done=st.booleans(),
        span=SPANS,
        seed=SEEDS,
    )
    def die(self, count: int, operation: str, done: bool, span: timedelta, seed: int) -> None:
        """In the middle of a call to the API: before it is done, or after, its answer unseen."""
        self.world.api.deadly = operation, done
        if count:
            self.dispatch_all(count, 30 * HOUR, named=False)
        self.tick(span, seed)
        self.world.api.deadly = None

    @precondition(lambda self: not self.world.tasks)
    @rule()
    def restart(self) -> None:
        self.world.restart()

    @rule(data=st.data())
    def fault(self, data: st.DataObject) -> None:
        operation = data.draw(st.sampled_from(sorted(FAULTS)))
        self.world.api.order(operation, data.draw(st.sampled_from(FAULTS[operation])))

    @rule(data=st.data())
    def lasting_fault(self, data: st.DataObject) -> None:
        operation = data.draw(st.sampled_from(sorted(FAULTS)))
        self.world.api.order(operation, data.draw(st.sampled_from(FAULTS[operation])), always=True)

    @rule()
    def heal(self) -> None:
        self.world.api.heal()
        self.world.ledger.conditions.resume()

    @rule(hours=st.sampled_from([0, 1, 20, 30]))
    def slow_batches(self, hours: int) -> None:
        """Batches made from now on take so long; beyond the window their rows expire."""
        self.world.api.duration = hours * HOUR

    @precondition(lambda self: self.world.accepted)
    @rule(data=st.data(), everything=st.booleans())
    def cancel(self, data: st.DataObject, everything: bool) -> None:
        if everything:
            self.world.cancel()
        else:
            self.world.cancel(request=data.draw(st.sampled_from(sorted(self.world.accepted))))

    @precondition(lambda self: self.world.accepted)
    @rule(count=st.integers(1, 6), span=SPANS, seed=SEEDS)
    def cancel_while_it_is_looked_at(self, count: int, span: timedelta, seed: int) -> None:
        """A look that began before a cancel ends after it."""
        self.dispatch_all(count, bw.Latency.FLEXIBLE, named=False)
        self.tick(SECOND, seed)
        self.world.true += span
        self.world.cancel()
        self.world.run()

    @rule(
        count=st.integers(1, 6),
        fault=st.sampled_from(["empty", "500", "drop"]),
        times=st.integers(1, 3),
        span=SPANS,
        seed=SEEDS,
    )
    def lose_sight(self, count: int, fault: str, times: int, span: timedelta, seed: int) -> None:
        """A create's answer is lost, and what it made ends soon, but cannot be read at first."""
        before, self.world.api.duration = self.world.api.duration, timedelta(0)
        self.world.api.order("create", "dropped after")
        for _ in range(times):
            self.world.api.order("read", fault)
        self.dispatch_all(count, 30 * HOUR, named=False)
        self.tick(span, seed)
        self.world.api.duration = before

    @rule(minutes=st.sampled_from([-180, -5, 5, 180]))
    def set_our_clock(self, minutes: int) -> None:
        self.world.skew += minutes * MINUTE

    @precondition(lambda self: not self.exclusive)
    @rule(data=st.data(), ended=st.booleans())
    def foreign_batch(self, data: st.DataObject, ended: bool) -> None:
        """Another tool's batch, as many rows in it as in one of ours."""
        snapshot = self.world.ledger.snapshot()
        sizes = {each.requests for each in (*snapshot.batches, *snapshot.batch_queue)}
        count = data.draw(st.sampled_from(sorted(sizes or {1})))
        rows = [(f"foreign-{number}", "foreign") for number in range(count)]
        made = self.world.api.add(rows, ours=False)
        if ended:
            made.duration = timedelta(0)

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.world.settle_all()
            finally:
                self.world.close()


SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=3_000 if SOAK else 50,
    stateful_step_count=30 if SOAK else 20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
