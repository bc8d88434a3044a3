"""Submission and reconciliation case by case, in virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import attrs
import orjson
import pytest

import batchwise as bw
from batchwise.api.faults import LaneFault
from batchwise.engine import reconciliation, submission
from batchwise.planning import agenda, planner
from batchwise.planning.outcomes import Fault
from batchwise.planning.state import BatchState, BatchView
from tests.reliability.simulation import HOUR, MINUTE, REFUSALS, SECOND, World, commits, resumed_before_suspending

NAMES = [f"prompt {number}" for number in range(6)]
OUTCOMES = {outcome.value: outcome for outcome in bw.Outcome}


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def refuse_if(world: World, guilty: Callable[[bytes], bool], fault: Fault) -> list[int]:
    """Have creates refused by their body; returns the number of rows of each create."""
    real, sizes = world.api.create, list[int]()

    def create(chunks: Iterator[bytes], length: int, betas: tuple[str, ...]) -> Any:
        body = b"".join(chunks)
        sizes.append(len(orjson.loads(body)["requests"]))
        if guilty(body):
            raise LaneFault(fault)
        return real(iter([body]), length, betas)

    world.api.create = create  # type: ignore[method-assign]
    return sizes


def outcomes(world: World) -> dict[str, str]:
    return {world.accepted[number]: outcome.value for number, (outcome, _) in world.seen.items()}


def view(world: World) -> BatchView:
    (batch,) = world.ledger.snapshot().batches
    return batch


def test_uploads_that_are_cut_off_every_time_are_halved(world: World) -> None:
    texts = [f"{number}" + "x" * 300_000 for number in range(8)]
    world.dispatch_all(texts, bw.Latency.FLEXIBLE)
    cut = Fault(None, "connection_error", "WriteError: reset by peer", request_sent=False)
    sizes = refuse_if(world, lambda body: len(body) > 1_000_000, cut)
    world.settle_all()
    world.check()
    assert set(outcomes(world).values()) == {"succeeded"}
    assert sizes[:5] == [8, 8, 8, 4, 2]
    assert len(sizes) < 15
    assert not world.engine.suspensions.lanes


def test_a_413_halves_and_batches_grow_again(world: World) -> None:
    world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
    sizes = refuse_if(world, lambda body: body.count(b"custom_id") > 3, REFUSALS["413"])
    world.settle_all()
    world.check()
    assert set(outcomes(world).values()) == {"succeeded"}
    assert sizes[:2] == [6, 3]
    assert (world.ledger.snapshot().sizes.largest or 0) > 3


def test_a_full_queue_gets_what_fits(world: World) -> None:
    world.dispatch_all([f"prompt {number}" for number in range(40)], bw.Latency.FLEXIBLE)
    places = 10
    taken = Counter[bool]()

    def refused(body: bytes) -> bool:
        free = places - sum(len(batch.rows) for batch in world.api.batches if batch.status(world.true) != "ended")
        taken[body.count(b"custom_id") <= free] += 1
        return body.count(b"custom_id") > free

    sizes = refuse_if(world, refused, REFUSALS["queue"])
    world.pass_time(MINUTE)
    assert sizes[:3] == [40, 20, 10]
    assert len(world.api.batches[0].rows) == places, "places were free, and nothing was sent"
    for _ in range(60):
        world.pass_time(10 * MINUTE)
    world.check()
    assert Counter(outcomes(world).values()) == {"succeeded": 40}
    assert not world.engine.suspensions.lanes
    assert taken[False] < 150, "it was asked more often than every two minutes while the queue was full"


@pytest.mark.parametrize("fault", ["queue", "413", "400"])
def test_a_new_process_knows_how_many_requests_were_too_many(fault: str, world: World) -> None:
    """A cron line is a new process each time: it would begin with the full size each time, and never send anything."""
    world.dispatch_all([f"prompt {number}" for number in range(40)], bw.Latency.FLEXIBLE)
    sizes = refuse_if(world, lambda body: body.count(b"custom_id") > 10, REFUSALS[fault])
    for creates in (1, 2, 3):
        world.restart()
        world.true += 5 * MINUTE
        while len(sizes) < creates or (sizes[-1] > 10 and world.ledger.snapshot().batches):
            world.run(steps=1)
    assert sizes in ([40, 20, 10], [40, 20, 9]), "one fewer tells a batch from another"


def test_one_request_that_spoils_its_create_fails_by_name_and_the_others_go_on(world: World) -> None:
    world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
    sizes = refuse_if(world, lambda body: b"prompt 4" in body, REFUSALS["400"])
    world.settle_all()
    assert outcomes(world) == {name: "failed" if name == "prompt 4" else "succeeded" for name in NAMES}
    assert len(sizes) <= 10
    world.dispatch_all([f"more {number}" for number in range(20)], bw.Latency.FLEXIBLE)
    world.settle_all()
    assert len(sizes) <= 14, "the hunt for one culprit keeps later batches small"


def test_requests_that_are_all_refused_alike_suspend_the_lane(world: World) -> None:
    names = [f"prompt {number}" for number in range(40)]
    world.dispatch_all(names, bw.Latency.FLEXIBLE)
    sizes = refuse_if(world, lambda _body: True, REFUSALS["400"])
    world.pass_time(3 * HOUR)
    assert "10 requests in a row were refused" in world.engine.suspensions.lanes[bw.Lane.BATCH]
    assert REFUSALS["400"].message not in world.engine.suspensions.lanes[bw.Lane.BATCH], "it may quote a request"
    world.check()
    assert len(outcomes(world)) == 10
    assert len(sizes) < 20


@pytest.mark.parametrize(
    ("fault", "rests"),
    [
        ("401", "suspend"),
        ("queue", "note"),
        ("unconnected", "note"),
        ("400", "suspend"),
        ("dropped before", "suspend"),
    ],
)
def test_the_lane_is_suspended_before_anything_is_queued_for_it_again(
    fault: str, rests: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is queued while the lane still takes work goes out at once, into the same trouble."""
    monkeypatch.setattr(submission, "_REFUSED", 1)
    monkeypatch.setattr(reconciliation, "_VANISHED", 1)
    names = commits(world, monkeypatch)
    world.dispatch_all(NAMES[:1], bw.Latency.FLEXIBLE)
    world.api.order("create", fault)
    world.pass_time(HOUR)
    assert names.index(rests) < names.index("unseal")


@pytest.mark.parametrize("operation", ["create", "list", "retrieve", "read"])
def test_what_began_before_a_resume_suspends_no_lane_after_it(
    operation: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = resumed_before_suspending(world, monkeypatch)
    if operation == "list":
        world.api.order("create", "dropped after")
    world.api.faults[operation] = ["401"]
    world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
    for _ in range(30):
        world.pass_time(HOUR)
    assert done == [False]
    world.check()
    assert set(outcomes(world).values()) == {"succeeded"}


def test_a_queue_that_stays_full_for_a_window_suspends_the_lane(world: World) -> None:
    world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
    world.api.order("create", "queue", always=True)
    world.pass_time(20 * HOUR, wakes=1_000)
    assert not world.engine.suspensions.lanes
    world.pass_time(6 * HOUR, wakes=1_000)
    assert "for a whole window (the API answered 429 rate_limit_error)" in world.engine.suspensions.lanes[bw.Lane.BATCH]
    world.settle_all()
    assert world.ledger.statistics.report(job=None).attempts == len(NAMES), "it cost an attempt"


def test_creates_that_vanish_again_and_again_suspend_the_lane(world: World) -> None:
    world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
    world.api.order("create", "dropped before", always=True)
    world.pass_time(6 * HOUR, wakes=1_000)
    assert "never listed" in world.engine.suspensions.lanes[bw.Lane.BATCH]
    assert world.api.calls["create"] < 8
    world.settle_all()
    assert world.api.bought() == dict.fromkeys(NAMES, 1)


@pytest.mark.parametrize(
    ("operation", "fault", "first"),
    [
        ("retrieve", "500", None),
        ("list", "500", "dropped after"),
        ("read", "500", None),
    ],
)
def test_a_suspended_lane_does_not_tell_what_the_api_quoted(
    operation: str, fault: str, first: str | None, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = REFUSALS[fault]
    monkeypatch.setitem(REFUSALS, fault, attrs.evolve(refusal, message=f"{refusal.message}: 'prompt\x1b 3'"))
    world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
    if first is not None:
        world.api.order("create", first)
        world.run()
    world.api.lasting.add((operation, fault))
    world.pass_time(6 * HOUR, wakes=1_000)
    reason = world.engine.suspensions.lanes[bw.Lane.BATCH]
    assert refusal.type in reason
    assert "prompt" not in reason


@pytest.mark.parametrize(
    ("fault", "words", "most"),
    [
        ("unconnected", "10 create calls in a row failed", 10),
        ("queue", "for a whole window", 100),
        ("dropped before", "3 create calls in a row were not answered", 3),
        ("400", "10 requests in a row were refused", 10),
    ],
)
def test_a_process_that_ends_after_each_pass_comes_to_the_same_end(
    fault: str, words: str, most: int, world: World
) -> None:
    world.api.order("create", fault, always=True)
    while not world.engine.suspensions.lanes:
        if len(world.seen) == len(world.accepted):
            world.dispatch("prompt", bw.Latency.FLEXIBLE, f"job {len(world.accepted)}")
            world.ledger.flush()
        world.restart()
        world.run()
        world.check()
        world.true += 30 * MINUTE
        assert world.api.calls["create"] <= most
    assert words in world.engine.suspensions.lanes[bw.Lane.BATCH]
    world.true += HOUR
    made = world.api.calls["create"]
    world.dispatch("one more", bw.Latency.FLEXIBLE)
    world.ledger.flush()
    world.restart()
    world.pass_time(5 * HOUR)
    assert world.engine.suspensions.lanes, "it begins to count anew"
    assert world.api.calls["create"] <= made + 2


def test_what_failed_is_forgotten_when_a_create_is_answered_or_the_lane_resumed(world: World) -> None:
    def fail(times: int) -> None:
        before = world.api.calls["create"]
        world.dispatch(f"prompt {before}", bw.Latency.FLEXIBLE)
        world.ledger.flush()
        world.api.order("create", "unconnected", always=True)
        while world.api.calls["create"] < before + times:
            world.pass_time(5 * MINUTE, wakes=1)
            assert not world.ledger.snapshot().suspended
            world.restart()
        world.api.heal()

    fail(9)
    world.pass_time(10 * MINUTE)
    assert world.api.bought().total() == 1
    fail(9)
    world.ledger.conditions.resume()
    fail(9)
    world.settle_all()


def test_what_is_sent_again_has_another_count(world: World) -> None:
    world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
    world.api.order("create", "dropped before")
    sizes = refuse_if(world, lambda _body: False, REFUSALS["400"])
    world.pass_time(30 * MINUTE)
    assert sizes == [6, 5, 1]


def test_a_candidate_without_a_readable_row_is_not_struck_off(world: World) -> None:
    world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
    for name in ("empty", "500", "empty"):
        world.api.order("read", name)
    world.api.order("create", "dropped after")
    world.api.duration = timedelta(0)
    world.settle_all()
    assert len(world.api.batches) == 1
    world.check()
    assert set(outcomes(world).values()) == {"succeeded"}


@pytest.mark.parametrize("fault", ["500", "dropped", "empty"])
def test_another_tools_unreadable_batch_does_not_hide_ours(fault: str, world: World) -> None:
    world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
    world.api.order("create", "dropped after")
    real = world.api.read

    def read(remote_id: str, feed: Callable[[bytes], bool]) -> None:
        if not next(batch for batch in world.api.batches if batch.id == remote_id).ours:
            if fault != "empty":
                raise LaneFault(REFUSALS[fault])
            return
        real(remote_id, feed)

    world.api.read = read  # type: ignore[method-assign]
    world.run()
    foreign = world.api.add([(str(n), "foreign") for n in range(6)], ours=False)
    foreign.duration = timedelta(0)
    world.settle_all()
    assert sum(batch.ours for batch in world.api.batches) == 1
    assert world.ledger.statistics.report(job=None).possible_doubles == 0


def test_in_an_exclusive_workspace_the_only_candidate_is_ours_at_once() -> None:
    world = World(bw.Policy(exclusive_workspace=True))
    world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
    world.api.order("create", "dropped after")
    world.run()
    assert view(world).state is BatchState.OPEN
    world.close()


def test_in_an_exclusive_workspace_two_candidates_have_to_be_proved() -> None:
    world = World(bw.Policy(exclusive_workspace=True))
    world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
    world.api.order("create", "dropped after")
    real = world.api.create

    def create(*arguments: Any) -> Any:
        world.api.add([(str(n), "foreign") for n in range(6)], ours=False)
        return real(*arguments)

    world.api.create = create  # type: ignore[method-assign]
    world.run()
    assert view(world).state is BatchState.IN_DOUBT
    world.settle_all()
    world.check()
    assert set(outcomes(world).values()) == {"succeeded"}
    world.close()


@pytest.mark.parametrize("jump", [3 * HOUR, -3 * HOUR])
def test_a_clock_that_is_set_does_not_shorten_the_grace(jump: timedelta, world: World) -> None:
    world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
    world.api.order("create", "late")  # by five minutes; the grace is fifteen
    world.run()
    world.skew += jump
    world.pass_time(3 * HOUR)
    world.settle_all()
    assert len(world.api.batches) == 1
    assert world.ledger.statistics.report(job=None).possible_doubles == 0


def test_what_is_cancelled_while_in_doubt_settles_at_once_and_is_not_sent_again(world: World) -> None:
    world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
    world.api.order("create", "late")
    world.run()
    assert view(world).state is BatchState.IN_DOUBT
    world.cancel()
    world.run()
    world.check()
    assert set(outcomes(world).values()) == {"canceled"}
    world.pass_time(30 * HOUR, wakes=1_000)
    assert len(world.api.batches) == 1
    assert world.ledger.snapshot().batches == ()


def test_a_batch_that_turns_up_late_is_cancelled_even_if_the_first_cancel_fails() -> None:
    world = World(bw.Policy(exclusive_workspace=True, create_grace=MINUTE))
    world.api.duration = 20 * HOUR
    world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
    world.api.order("create", "late")
    world.api.order("cancel", "500")
    world.pass_time(HOUR, wakes=1_000)
    first = world.api.batches[0]
    assert first.cancel_at is not None
    assert world.api.calls["cancel"] == 2
    world.settle_all()
    assert world.ledger.statistics.report(job=None).possible_doubles == 6
    world.check()
    assert set(outcomes(world).values()) == {"succeeded"}
    world.close()


def test_a_rescues_cancel_is_asked_for_again_if_it_did_not_take(world: World) -> None:
    world.api.duration = 100 * HOUR
    world.dispatch_all(NAMES, 30 * HOUR)
    world.run()
    world.api.batches[0].window = 100 * HOUR
    world.api.order("cancel", "500")
    world.pass_time(30 * HOUR, wakes=1_000)
    world.check()
    assert world.api.calls["cancel"] == 2
    assert world.api.batches[0].cancel_at is not None
    world.check()
    assert set(outcomes(world).values()) == {"succeeded"}
    assert world.ledger.statistics.report(job=None).missed == 0


def test_a_sealed_batch_of_a_dead_process_is_queued_again_even_while_the_lane_is_suspended(world: World) -> None:
    world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
    world.run(3)
    assert view(world).state is BatchState.SEALED
    world.crash(done=False)
    world.engine.plan()  # a new process takes the lanes up again
    world.ledger.conditions.suspend(bw.Lane.BATCH, "as if")
    world.run()
    snapshot = world.ledger.snapshot()
    assert (snapshot.batches, [group.requests for group in snapshot.batch_queue]) == ((), [6])


def test_a_create_that_is_broken_off_within_the_process_is_in_doubt(world: World) -> None:
    world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)

    def create(*_arguments: object) -> None:
        raise RuntimeError("a bug")

    world.api.create = create  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="a bug"):
        world.run()
    world.tasks.clear()
    del world.api.create
    world.run()
    assert view(world).state is BatchState.IN_DOUBT
    assert view(world).last_byte_at == world.now()
    world.settle_all()
    assert world.api.bought() == dict.fromkeys(NAMES, 1)


@pytest.mark.parametrize("after", [1, 2])
def test_a_process_that_stood_still_while_it_sent_breaks_the_create_off(
    after: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first chunk of three, or before the last one, which is small. A slow line is no standstill."""
    texts = [*(f"{number}" + "x" * 60_000 for number in range(10)), "small"]
    patience = world.engine.policy.create_grace / SECOND
    elapsed, given = [0.0], list[int]()
    monkeypatch.setattr(submission, "_clock", lambda: lambda: elapsed[0])
    real = world.api.create

    def create(chunks: Iterator[bytes], length: int, betas: tuple[str, ...]) -> Any:
        first = not given
        given.append(0)

        def slowly() -> Iterator[bytes]:
            for chunk in chunks:
                given[-1] += 1
                elapsed[0] += patience + 1 if first and given[-1] == after else patience - 1
                yield chunk

        return real(slowly(), length, betas)

    world.api.create = create  # type: ignore[method-assign]
    world.dispatch_all(texts, bw.Latency.FLEXIBLE)
    world.settle_all()
    assert given == [after, 3]
    assert world.api.bought() == dict.fromkeys(texts, 1)


def test_a_look_that_is_out_of_date_overwrites_nothing(world: World) -> None:
    world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
    world.api.order("create", "dropped after")
    world.run()
    before = view(world)
    world.ledger.batches.created(before.id, remote_id="x", created_at=None, expires_at=None, now=world.now())
    stale = attrs.evolve(before, state=BatchState.WATCHED, failures=3)
    assert not world.ledger.batches.update(stale, was=before)
    assert (view(world).state, view(world).remote_id, view(world).failures) == (BatchState.OPEN, "x", 0)
    assert world.ledger.batches.update(attrs.evolve(before, canceled=True), was=before), "what it does not know stays"
    assert (view(world).state, view(world).remote_id, view(world).canceled) == (BatchState.OPEN, "x", True)


def test_without_the_lease_only_the_last_safe_moment_moves_anything(world: World) -> None:
    world.api.duration = 100 * HOUR
    world.dispatch_all(NAMES, 30 * HOUR)
    world.run()
    snapshot = attrs.evolve(world.engine.situation.read(), leased=False)
    for hours in (1, 10, 25):
        actions = planner.plan(snapshot, world.now() + hours * HOUR, world.policy)
        assert all(isinstance(action, agenda.WaitUntil) for action in actions), (hours, actions)
    late = planner.plan(snapshot, world.now() + 30 * HOUR - 30 * SECOND, world.policy)
    assert isinstance(late[0], agenda.MoveFromBatch)
