"""The sync lane's queue: what is unfinished, what is being stored, and that no permit of the pacing is lost."""

from __future__ import annotations

import math
from datetime import timedelta
from itertools import count

import attrs
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule

from batchwise import Limits
from batchwise.engine.queue import CallQueue, Slot
from batchwise.ledger.values import Claim
from batchwise.planning.capacity import Measured
from batchwise.planning.outcomes import Refusal
from tests.ledger.model import FLEXIBLE
from tests.reliability.simulation import HOUR, World
from tests.strategies import NOW

CONCURRENCY = 3
SECOND = timedelta(seconds=1)


class Calls(RuleBasedStateMachine):
    """Claims go in, run, are answered or fail or are given up, and finish; requests may have several at once."""

    running: Bundle[Slot] = Bundle("running")
    answered: Bundle[Slot] = Bundle("answered")
    finished: Bundle[Slot] = Bundle("finished")

    def __init__(self) -> None:
        super().__init__()
        self.queue = CallQueue(Limits(concurrency=CONCURRENCY))
        self.now = 0.0
        self.waiting: list[int] = []
        self.run: list[Slot] = []
        self.storing: list[Slot] = []
        self.numbers = count()

    @rule(request=st.integers(1, 3), priority=st.integers(0, 2), wait=st.sampled_from([0.0, 5.0]))
    def push(self, request: int, priority: int, wait: float) -> None:
        claim = Claim(request, f"k{next(self.numbers)}", FLEXIBLE, b"{}", 0, ())
        self.queue.push(claim, priority=priority, due=1.0, now=self.now, wait=wait)
        self.waiting.append(request)

    @rule(target=running)
    def take(self) -> object:
        self.now += 10.0
        got = self.queue.next(self.now)
        if not isinstance(got, Slot):
            assert not self.waiting or len(self.run) == CONCURRENCY, "a permit was lost"
            return multiple()
        self.waiting.remove(got.claim.id)
        self.run.append(got)
        return got

    @rule(target=answered, slot=consumes(running), well=st.booleans())
    def answer(self, slot: Slot, well: bool) -> Slot:
        if well:
            self.queue.done(slot, self.now, headers={}, used_in=1, used_out=1, took=SECOND)
        else:
            self.queue.failed(slot, self.now, refusal=None, retry_after=None, headers={})
        self.run.remove(slot)
        self.storing.append(slot)
        return slot

    @rule(target=finished, slot=consumes(answered) | consumes(running))
    def finish(self, slot: Slot) -> Slot:
        assert self.queue.finish(slot, self.now)
        assert not self.queue.holds(slot.claim.id), "whoever is told now would not look"
        (self.run if slot in self.run else self.storing).remove(slot)
        return slot

    @rule(slot=finished)
    def finish_again(self, slot: Slot) -> None:
        assert not self.queue.finish(slot, self.now)

    @precondition(lambda self: self.waiting)
    @rule()
    def drain(self) -> None:
        assert sorted(claim.id for claim in self.queue.drain()) == sorted(self.waiting)
        self.waiting.clear()

    @invariant()
    def counts(self) -> None:
        queue, unfinished = self.queue, [*self.run, *self.storing]
        assert (queue.waiting, queue.storing) == (len(self.waiting), len(self.storing))
        assert queue.busy == len(self.waiting) + len(unfinished)
        known = {*self.waiting, *(slot.claim.id for slot in unfinished)}
        assert not any(queue.holds(request) for request in {1, 2, 3} - known), "its end would never be told"


def claim(number: int, model: str) -> Claim:
    return Claim(number, f"k{number}", attrs.evolve(FLEXIBLE, model=model), b"{}", 0, ())


def gone(queue: CallQueue, now: float) -> list[int]:
    """The requests of the calls that go now."""
    found = []
    while isinstance(got := queue.next(now), Slot):
        found.append(got.claim.id)
    return found


def test_a_class_of_models_that_is_paused_holds_up_no_other() -> None:
    queue = CallQueue(None)
    queue.push(claim(1, "slow"), priority=0, due=1.0, now=0.0)
    refused = queue.next(0.0)
    assert isinstance(refused, Slot)
    queue.failed(refused, 0.0, refusal=Refusal.TOO_FAST, retry_after=60 * SECOND, headers={})
    for number in range(2, 6):
        queue.push(claim(number, ("slow", "fast")[number % 2]), priority=2, due=1.0, now=0.0)
    assert gone(queue, 0.0) == [3, 5]
    assert queue.next(0.0) == 60.0
    assert (queue.busy_with("slow"), queue.busy_with("fast")) == (2, 2)
    assert gone(queue, 61.0)[:1] == [2]
    assert queue.measured("fast", 61.0, NOW)[1].share == 1.0


def test_limits_that_another_process_was_told_are_kept_from_the_first_call() -> None:
    queue = CallQueue(None)
    queue.learn_limits(few := {"few": Measured(at=NOW, requests_per_minute=3)})
    for number in range(12):
        queue.push(claim(number, ("few", "many")[number % 2]), priority=2, due=1.0, now=0.0)
    assert sorted(gone(queue, 0.0)) == [*range(8), 9, 11]  # three, and the one that makes the debt
    assert queue.stored_limits_of("few-20251001") == few["few"]
    assert queue.measured("few", 0.0, NOW)[1].requests_per_minute == 3


TestCalls = Calls.TestCase


@given(
    work=st.lists(st.tuples(st.integers(-5, 30), st.integers(0, 2)), min_size=2, max_size=12),
    steps=st.lists(st.integers(0, 10), min_size=12, max_size=12),
)
def test_nothing_late_runs_before_what_can_be_in_time(work: list[tuple[int, int]], steps: list[int]) -> None:
    """Of whatever priority, and whether it was late when it came or became so in the queue."""
    queue, clock, passed = CallQueue(None), 100.0, 0.0
    dues = {number: math.inf if priority == 1 else clock + due for number, (due, priority) in enumerate(work)}
    for number, (_, priority) in enumerate(work):
        queue.push(claim(number, "m"), priority=priority, due=dues[number], now=0.0)
    left = set(dues)
    for step in steps[: len(work)]:
        passed += step
        got = queue.next(1_000.0 + passed, clock + passed)
        assert isinstance(got, Slot)
        left.remove(got.claim.id)
        if dues[got.claim.id] <= clock + passed:
            assert not [number for number in left if dues[number] > clock + passed]


def test_a_claim_that_becomes_late_in_the_queue_lets_others_go_first() -> None:
    world = World()
    for number, due in enumerate((SECOND, 2 * HOUR), 1):
        terms = attrs.evolve(FLEXIBLE, deadline=world.now() + due)
        world.engine.sync_lane.push(Claim(number, f"k{number}", terms, b"{}", 0, ()), urgent=True)
    world.true += HOUR
    order = [slot.claim.id for _ in range(2) if isinstance(slot := world.engine.sync_lane.next_call(), Slot)]
    world.close()
    assert order == [2, 1]


def test_what_is_late_already_runs_after_what_can_be_in_time() -> None:
    world = World()
    for number, due in enumerate((-SECOND, timedelta(0), SECOND), 1):
        terms = attrs.evolve(FLEXIBLE, deadline=world.now() + due)
        world.engine.sync_lane.push(Claim(number, f"k{number}", terms, b"{}", 0, ()), urgent=True)
    order = [slot.claim.id for _ in range(3) if isinstance(slot := world.engine.sync_lane.next_call(), Slot)]
    world.close()
    assert order[0] == 3
