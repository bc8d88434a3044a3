"""The planner's rules, one by one and as properties. `WAIT` is the last action if something is due later."""

from __future__ import annotations

from datetime import datetime, timedelta
from fractions import Fraction
from time import perf_counter
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import HOUR, NOW

from batchwise.models import Lane, Limits, Policy, Reason
from batchwise.planning.agenda import (
    Action,
    Cancel,
    Collect,
    FailLate,
    GiveUp,
    Move,
    MoveFromBatch,
    Poll,
    Probe,
    Reconcile,
    Run,
    Seal,
    Unseal,
    WaitUntil,
)
from batchwise.planning.capacity import FILLED, Capacity, Measured, tail_of
from batchwise.planning.packing import MAX_BYTES
from batchwise.planning.planner import next_due, plan, safe_moments
from batchwise.planning.rescue import Rescues, cohorts_of
from batchwise.planning.reserve import margin_of
from batchwise.planning.state import BatchState, BatchView, Group, Snapshot, Terms
from batchwise.planning.sync_schedule import Cohort, Pace, latest_starts, work

MINUTE, SECOND, MICROSECOND, ZERO = (
    timedelta(minutes=1),
    timedelta(seconds=1),
    timedelta(microseconds=1),
    timedelta(0),
)
WINDOW = 24 * HOUR
LIMITS = Limits(requests_per_minute=100)
POLICY = Policy(limits=LIMITS)
MARGIN = margin_of(POLICY)
LEAD = POLICY.cancel_settle
TAIL = tail_of(LIMITS)
DOWN = {Lane.SYNC: "no credit"}
BATCH_DOWN = {Lane.BATCH: "no permission"}


def terms(number: int = 1, due: timedelta | None = 30 * HOUR, **others: Any) -> Terms:
    deadline = None if due is None else NOW + due
    given_terms: dict[str, Any] = {
        "lane": Lane.BATCH,
        "reason": Reason.LATENCY_TOLERANT,
        "interval": 4 * HOUR,
        "submit_by": None if deadline is None else deadline - 26 * HOUR,
        "model": "m",
        "max_tokens": 1_024,
        "output_tokens": 500,
    }
    return Terms(id=number, deadline=deadline, **{**given_terms, **others})


def group(*args: Any, requests: int = 10, since: datetime = NOW, flush: bool = False, **others: Any) -> Group:
    return Group(terms=terms(*args, **others), requests=requests, size=1_000, since=since, flush=flush)


def hedged(number: int = 1, due: timedelta = 2 * HOUR, **others: Any) -> Group:
    settings = {"reason": Reason.HEDGED, "interval": 5 * MINUTE, "submit_by": NOW + 5 * MINUTE, **others}
    return group(number, due, **settings)


def batch(
    *groups: Group, number: int = 1, state: BatchState = BatchState.OPEN, age: timedelta = HOUR, **others: Any
) -> BatchView:
    created = NOW - age
    return BatchView(
        **{
            "id": number,
            "nonce": "n",
            "state": state,
            "requests": max(1, sum(each.requests for each in groups)),
            "sealed_at": created,
            "posting_at": created,
            "created_at": created,
            "expires_at": created + WINDOW,
            "polled_at": NOW,
            "groups": groups,
            **others,
        }
    )


def working(*batches: BatchView, at: datetime, **others: Any) -> Snapshot:
    """The sync lane has answered just then."""
    return Snapshot(batches=batches, sync_answered_at=at, **others)


def start_of(requests: int, due: timedelta) -> datetime:
    """The latest start of so many alone."""
    return latest_starts(
        [Cohort(deadline=NOW + due, requests=requests)], Pace(limits=LIMITS, share=FILLED), tail=MARGIN
    )[0]


def acts(snapshot: Snapshot, now: datetime = NOW, policy: Policy = POLICY, **gap: timedelta) -> list[Action]:
    """What is done now."""
    return [action for action in plan(snapshot, now, policy, **gap) if not isinstance(action, WaitUntil)]


def wait(snapshot: Snapshot, now: datetime = NOW, policy: Policy = POLICY, **gap: timedelta) -> datetime | None:
    last = plan(snapshot, now, policy, **gap)[-1:]
    return last[0].moment if last and isinstance(last[0], WaitUntil) else None


# -- rule 1 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [BatchState.SEALED, BatchState.POSTING, BatchState.IN_DOUBT, BatchState.CANCELING])
def test_1_what_is_unsettled_at_its_last_safe_moment_goes_to_the_sync_lane(state: BatchState) -> None:
    start = start_of(10, 30 * HOUR)
    snapshot = Snapshot(batches=(batch(group(), state=state, polled_at=start),))
    assert MoveFromBatch(1, (1,)) in acts(snapshot, start)
    assert MoveFromBatch(1, (1,)) not in acts(snapshot, start - SECOND)


def test_1_unsent_work_goes_to_the_sync_lane_when_no_batch_can_be_had() -> None:
    snapshot = Snapshot(batch_queue=(hedged(),), suspended=BATCH_DOWN)
    last = start_of(10, 2 * HOUR) - LEAD
    assert acts(snapshot, last - SECOND) == []
    assert acts(snapshot, last) == [Move(1, Lane.SYNC)]


def test_1_unreadable_results_are_bought_again_only_at_the_last_safe_moment() -> None:
    start = start_of(10, 30 * HOUR)
    ended = batch(group(), state=BatchState.ENDED, polled_at=start - HOUR, failures=2)
    assert acts(Snapshot(batches=(ended,)), start - SECOND) == [Collect(1)]
    assert acts(Snapshot(batches=(ended,)), start) == [MoveFromBatch(1, (1,)), Collect(1)]


def test_1_an_ended_batch_is_read_before_anything_is_bought_again() -> None:
    start = start_of(10, 30 * HOUR)
    ended = Snapshot(batches=(batch(group(), state=BatchState.ENDED, polled_at=start),))
    assert acts(ended, start) == [Collect(1)]
    assert acts(ended, start + POLICY.cancel_settle / 10) == [MoveFromBatch(1, (1,)), Collect(1)]


@pytest.mark.parametrize(("state", "look"), [(BatchState.CANCELING, Poll(1)), (BatchState.IN_DOUBT, Reconcile(1))])
def test_1_while_there_is_time_a_look_goes_before_a_release(state: BatchState, look: Action) -> None:
    start, gap = start_of(10, 30 * HOUR), 20 * MINUTE
    waiting = batch(group(), state=state, cancel_at=start - HOUR, polled_at=start - HOUR)
    assert acts(Snapshot(batches=(waiting,)), start - MINUTE, wake_gap=gap) == [look]
    assert acts(Snapshot(batches=(waiting,)), start, wake_gap=gap) == [MoveFromBatch(1, (1,))]
    looked = attrs.evolve(waiting, polled_at=start - MINUTE)
    assert acts(Snapshot(batches=(looked,)), start - MINUTE, wake_gap=gap) == [MoveFromBatch(1, (1,))]


# -- rule 2 ------------------------------------------------------------------------------------------------------------


def test_2_the_last_safe_moment_is_joint() -> None:
    alone = batch(group(1, requests=5_700), number=1)
    other = batch(group(2, 30 * HOUR + MINUTE, requests=5_700), number=2)
    snapshot = Snapshot(batches=(alone, other))
    assert safe_moments(Snapshot(batches=(alone,)), NOW, POLICY)[1] == start_of(5_700, 30 * HOUR) - LEAD
    joint = start_of(11_400, 30 * HOUR + MINUTE) - LEAD
    assert abs(safe_moments(snapshot, NOW, POLICY)[1] - joint) <= 2 * MICROSECOND
    assert acts(snapshot, joint)[0] == Poll(1)


def test_2_what_waits_and_what_runs_counts_too() -> None:
    mine = batch(hedged(1))
    for place in ("sync_queue", "sync_running", "batch_queue"):
        snapshot = Snapshot(batches=(mine,), **{place: (hedged(2, requests=950),)})
        joint = start_of(960, 2 * HOUR) - LEAD
        assert abs(safe_moments(snapshot, NOW, POLICY)[1] - joint) <= 2 * MICROSECOND


def test_2_the_lane_is_planned_for_every_model_that_may_need_it_at_the_pace_that_was_measured() -> None:
    seen = {"m": Measured(at=NOW, share=0.5)}
    snapshot = Snapshot(sync_queue=(group(),), batches=(batch(group(2, model="n")),), measured=seen)
    capacity = Rescues(snapshot, NOW, POLICY).capacity
    assert capacity.classes == {"m", "n"}
    assert (capacity.share("m"), capacity.share("n")) == (0.5, 1)


def test_2_a_class_without_hope_hides_no_other() -> None:
    fine, lost, last = group(), group(2, MICROSECOND, model="n"), group(3, MICROSECOND, model="o")
    rescues = Rescues(Snapshot(sync_queue=(fine, lost, last)), NOW, POLICY)
    assert [rescues.start(each) for each in (fine, lost, last)] == [start_of(10, 30 * HOUR), None, None]


def test_2_a_deadline_is_lost_by_the_limits_of_its_class() -> None:
    soon = group(1, 30 * SECOND, requests=1)
    for limit, lost in ((1, True), (100, False)):
        policy = Policy(limits={"m": Limits(requests_per_minute=limit)})
        assert (Rescues(Snapshot(sync_queue=(soon,)), NOW, policy).start(soon) is None) == lost


# -- rule 3 ------------------------------------------------------------------------------------------------------------


def test_3_a_batch_is_cancelled_at_its_last_safe_moment_and_not_before() -> None:
    moment = start_of(10, 2 * HOUR) - LEAD
    assert acts(working(batch(hedged(), polled_at=moment), at=moment), moment) == [Cancel(1)]
    before = working(batch(hedged(), polled_at=moment - SECOND), at=moment - SECOND)
    assert acts(before, moment - SECOND) == []
    assert wait(before, moment - SECOND) == moment


def test_3_a_batch_that_nobody_looked_at_may_have_ended() -> None:
    late = start_of(10, 2 * HOUR)
    assert acts(working(batch(hedged(), polled_at=NOW), at=late), late) == [Poll(1)]
    assert acts(working(batch(hedged(), polled_at=late), at=late), late) == [Cancel(1)]
    assert acts(working(batch(hedged(), polled_at=NOW, failures=1), at=late), late) == [Cancel(1)]


def test_3_nothing_is_cancelled_while_the_sync_lane_is_suspended() -> None:
    late = start_of(10, 2 * HOUR)
    assert acts(working(batch(hedged(), polled_at=late), at=late, suspended=DOWN), late) == []


def test_3_what_cannot_be_in_time_anyway_is_not_cancelled() -> None:
    over = NOW + 2 * HOUR
    assert acts(Snapshot(batches=(batch(hedged(), polled_at=over),)), over) == []


def test_3_a_rescue_that_is_late_saves_what_it_can() -> None:
    now = start_of(6_000, 2 * HOUR) + 30 * MINUTE
    assert acts(working(batch(hedged(requests=6_000), polled_at=now), at=now), now) == [Cancel(1)]


def test_3_a_sync_lane_that_has_not_answered_lately_gets_one_row_before_the_cancel() -> None:
    def at(polled: datetime, **others: Any) -> Snapshot:
        return Snapshot(batches=(batch(group(7, 9 * HOUR), hedged(4), polled_at=polled),), **others)

    asked = safe_moments(at(NOW), NOW, POLICY)[1] - TAIL
    assert (acts(at(asked - SECOND), asked - SECOND), wait(at(asked - SECOND), asked - SECOND)) == ([], asked)
    assert acts(at(asked - MINUTE), asked) == [Poll(1)]
    assert acts(at(asked), asked) == [Probe(1, 4)]
    assert acts(at(asked, sync_answered_at=asked - 10 * MINUTE), asked) == []
    assert acts(at(asked, sync_answered_at=asked - 10 * MINUTE - SECOND), asked) == [Probe(1, 4)]
    assert acts(at(asked, suspended=DOWN), asked) == []


def test_3_one_row_is_sent_ahead_for_all_batches_and_none_beside_other_calls() -> None:
    moment = start_of(20, 2 * HOUR) - LEAD
    wave = batch(hedged(1), polled_at=moment), batch(hedged(2), number=2, polled_at=moment)
    assert acts(Snapshot(batches=wave), moment) == [Probe(1, 1)]
    call = group(3, None, since=moment)
    assert acts(Snapshot(batches=wave, sync_running=(call,)), moment) == []
    assert acts(Snapshot(batches=wave, sync_queue=(call,)), moment) == [Run(3, 10, urgent=False)]


def test_3_an_answer_that_is_slow_does_not_hold_a_cancel_up_for_longer_than_a_call_may_take() -> None:
    moment = start_of(11, 2 * HOUR) - LEAD

    def at(now: datetime, since: datetime) -> Snapshot:
        call = hedged(2, requests=1, since=since)
        return Snapshot(batches=(batch(hedged(), polled_at=now),), sync_running=(call,))

    assert acts(at(moment, moment - TAIL), moment) == [Cancel(1)]
    assert acts(at(moment, moment - SECOND), moment) == []
    assert wait(at(moment, moment - SECOND), moment) == moment - SECOND + TAIL
    start = moment + LEAD
    assert acts(at(start, start - SECOND), start) == [Cancel(1)], "the rows have to start"


def test_3_a_call_that_runs_for_long_is_no_test_of_the_lane() -> None:
    asked = start_of(11, 2 * HOUR) - LEAD - TAIL
    for since, done in ((asked - TAIL, [Probe(1, 1)]), (asked - TAIL + SECOND, [])):
        call = hedged(2, requests=1, since=since)
        snapshot = Snapshot(batches=(batch(hedged(), polled_at=asked),), sync_running=(call,))
        assert acts(snapshot, asked) == done
        failed = attrs.evolve(snapshot, sync_failed_at=asked - POLICY.poll_every[1])
        assert acts(failed, asked) == done


def test_3_a_batch_runs_on_while_the_sync_lane_fails() -> None:
    moment, again = start_of(10, 2 * HOUR) - LEAD, POLICY.poll_every[1]
    failed = Snapshot(batches=(batch(hedged(), polled_at=moment),), sync_failed_at=moment)
    assert (acts(failed, moment), wait(failed, moment)) == ([], moment + again)
    running = attrs.evolve(failed, sync_running=(hedged(2, requests=1, since=moment - HOUR),))
    assert acts(running, moment) == []
    assert acts(attrs.evolve(running, sync_failed_at=moment - 11 * MINUTE), moment) == [Cancel(1)], "that was long ago"
    looked = attrs.evolve(failed, batches=(batch(hedged(), polled_at=moment + again),))
    assert acts(looked, moment + again - SECOND) == []
    assert acts(looked, moment + again) == [Probe(1, 1)]
    assert acts(attrs.evolve(looked, sync_answered_at=moment - SECOND), moment + again) == [Probe(1, 1)]
    assert acts(attrs.evolve(looked, sync_answered_at=moment + SECOND), moment + again) == [Cancel(1)]


def test_3_a_batch_whose_last_row_is_on_its_way_to_the_sync_lane_runs_on_until_that_answers() -> None:
    empty, row = batch(requests=1), group(1, requests=1)
    assert acts(Snapshot(batches=(empty,))) == [Cancel(1)]
    assert acts(Snapshot(batches=(empty,), sync_running=(row,))) == []
    assert acts(working(empty, at=NOW, sync_running=(row,))) == [Cancel(1)]
    assert acts(working(empty, at=NOW, sync_queue=(row,), suspended=DOWN)) == []


# -- rule 4 ------------------------------------------------------------------------------------------------------------


def test_4_queued_work_is_sealed_when_its_interval_is_over() -> None:
    snapshot = Snapshot(batch_queue=(group(due=40 * HOUR),))
    assert acts(snapshot, NOW + 4 * HOUR - SECOND) == []
    assert wait(snapshot) == NOW + 4 * HOUR
    assert acts(snapshot, NOW + 4 * HOUR) == [Seal((1,), (), 100_000)]


def test_4_or_when_its_submit_by_comes() -> None:
    assert acts(Snapshot(batch_queue=(group(submit_by=NOW + HOUR),)), NOW + HOUR) == [Seal((1,), (), 100_000)]


def test_4_or_when_a_batch_is_full() -> None:
    assert acts(Snapshot(batch_queue=(group(due=None, requests=100_000),))) == [Seal((1,), (), 100_000)]


def test_4_or_when_somebody_waits() -> None:
    assert acts(Snapshot(batch_queue=(group(flush=True),))) == [Seal((1,), (), 100_000)]


def test_4_near_deadlines_share_a_batch_and_others_do_not() -> None:
    near = group(1, 30 * HOUR, flush=True), group(2, 33 * HOUR, flush=True)
    far = group(3, 40 * HOUR, flush=True), group(4, None, flush=True), group(5, 30 * HOUR, flush=True, betas=("b",))
    sealed = [action.terms for action in acts(Snapshot(batch_queue=near + far)) if isinstance(action, Seal)]
    assert sorted(sealed) == [(1, 2), (3,), (4,), (5,)]


def test_4_what_shares_a_batch_goes_by_deadlines_whenever_it_came() -> None:
    queue = (
        group(1, 30 * HOUR, flush=True, since=NOW - 3 * HOUR),
        group(2, 60 * HOUR, flush=True, since=NOW - 2 * HOUR),
        group(3, 31 * HOUR, flush=True, since=NOW - HOUR),
    )
    assert acts(Snapshot(batch_queue=queue)) == [Seal((1, 3), (), 100_000), Seal((2,), (), 100_000)]
    late = hedged(4, 2 * HOUR, flush=True), group(5, 2 * HOUR, flush=True), group(6, None, flush=True)
    policy = attrs.evolve(POLICY, hedge=True)
    sealed = [action.terms for action in acts(Snapshot(batch_queue=late), policy=policy) if isinstance(action, Seal)]
    assert sorted(sealed) == [(4,), (5,), (6,)]


def test_4_the_account_s_queue_limits_a_seal() -> None:
    policy = Policy(limits=Limits(batch_requests_in_queue=100))
    queue = group(1, None, requests=80, flush=True), group(2, requests=80, flush=True)
    running = batch(group(9, None, requests=30), number=9)
    assert acts(Snapshot(batch_queue=queue, batches=(running,)), policy=policy) == [Seal((2,), (), 70)]  # dated first
    assert acts(Snapshot(batch_queue=queue, batches=(attrs.evolve(running, requests=100),)), policy=policy) == []


def test_4_or_when_its_bytes_fill_a_batch() -> None:
    for size, full in ((MAX_BYTES - 1, False), (MAX_BYTES, True)):
        one, two = group(1, None), group(2, None)
        queue = attrs.evolve(one, size=size - 1_000), two
        assert (acts(Snapshot(batch_queue=queue)) == [Seal((1, 2), (), 100_000)]) == full


def test_4_where_there_is_little_room_the_nearest_deadline_goes_first() -> None:
    policy = Policy(limits=Limits(requests_per_minute=100, batch_requests_in_queue=10))
    due = {1: 60 * HOUR, 2: 40 * HOUR, 3: None, 4: 80 * HOUR}
    waits = {1: 2 * HOUR, 2: HOUR, 3: 3 * HOUR, 4: 4 * HOUR}
    queue = tuple(group(n, due[n], since=NOW - waits[n], flush=True) for n in due)
    left = {1, 2, 3, 4}
    for number in (2, 1, 4, 3):
        waiting = Snapshot(batch_queue=tuple(each for each in queue if each.terms.id in left))
        assert acts(waiting, policy=policy) == [Seal((number,), (), 10)]
        left.remove(number)
    older = group(5, None, since=NOW - 9 * HOUR, flush=True, betas=("b",))
    assert acts(Snapshot(batch_queue=(queue[2], older)), policy=policy) == [Seal((5,), ("b",), 10)]


# -- rule 5 ------------------------------------------------------------------------------------------------------------


def test_5_a_batch_gets_only_what_still_has_a_window_and_its_rescue() -> None:
    last = start_of(6_000, 30 * HOUR) - WINDOW
    snapshot = Snapshot(batch_queue=(group(requests=6_000, submit_by=None, interval=9 * HOUR),))
    assert wait(snapshot) == last
    assert acts(snapshot, last) == [Seal((1,), (), 100_000)]
    assert acts(snapshot, last + SECOND) == [Move(1, Lane.SYNC)]


def test_6_rows_that_cannot_be_read_go_when_the_first_of_them_has_to() -> None:
    now = start_of(10, 2 * HOUR)
    ended = batch(hedged(1), group(2, 40 * HOUR), state=BatchState.ENDED, polled_at=now - HOUR)
    assert MoveFromBatch(1, (1,)) in acts(working(ended, at=now), now)
    before = now - 10 * SECOND
    assert not [each for each in acts(working(ended, at=before), before) if isinstance(each, MoveFromBatch)]


def test_3_hedged_work_is_cancelled_by_the_moment_of_its_decision() -> None:
    decided = NOW + 30 * MINUTE
    early = hedged(rescue_at=decided)
    before = decided - SECOND
    assert acts(working(batch(early, polled_at=before), at=before), before) == []
    assert acts(working(batch(early, polled_at=decided), at=decided), decided) == [Cancel(1)]
    late = start_of(10, 2 * HOUR) - POLICY.cancel_settle
    assert acts(working(batch(hedged(rescue_at=late + HOUR), polled_at=late), at=late), late) == [Cancel(1)]
    other = attrs.evolve(early, terms=attrs.evolve(early.terms, reason=Reason.LATENCY_TOLERANT))
    assert Cancel(1) not in acts(working(batch(other, polled_at=decided), at=decided), decided)


def test_5_hedged_work_is_sealed_until_it_would_be_cancelled_at_once() -> None:
    last = start_of(10, 2 * HOUR) - LEAD
    snapshot = Snapshot(batch_queue=(hedged(flush=True),))
    assert acts(snapshot, last - SECOND) == [Seal((1,), (), 100_000)]
    assert acts(snapshot, last) == [Move(1, Lane.SYNC)]


def test_5_where_the_policy_hedges_late_work_still_tries_a_batch() -> None:
    snapshot = Snapshot(batch_queue=(group(flush=True),))
    assert acts(snapshot, NOW + 20 * HOUR) == [Move(1, Lane.SYNC)]
    assert acts(snapshot, NOW + 20 * HOUR, attrs.evolve(POLICY, hedge=True)) == [Seal((1,), (), 100_000)]


# -- rule 6 ------------------------------------------------------------------------------------------------------------


def test_6_a_create_of_unknown_outcome_is_looked_for() -> None:
    doubt = batch(group(), state=BatchState.IN_DOUBT, last_byte_at=NOW, polled_at=None, age=ZERO)
    assert acts(Snapshot(batches=(doubt,))) == [Reconcile(1)]


def test_6_past_the_grace_it_is_sent_again_and_watched() -> None:
    over = NOW + POLICY.create_grace
    doubt = batch(group(), state=BatchState.IN_DOUBT, last_byte_at=NOW, polled_at=over, age=ZERO)
    assert acts(Snapshot(batches=(doubt,)), over) == [GiveUp(1)]
    assert GiveUp(1) not in acts(Snapshot(batches=(attrs.evolve(doubt, polled_at=over - SECOND),)), over)
    assert GiveUp(1) not in acts(Snapshot(batches=(attrs.evolve(doubt, candidates=("x",)),)), over)
    assert acts(Snapshot(batches=(attrs.evolve(doubt, candidates=("x",), struck=("x",)),)), over) == [GiveUp(1)]
    watched = attrs.evolve(doubt, state=BatchState.WATCHED, groups=())
    assert acts(Snapshot(batches=(watched,)), over + HOUR) == [Reconcile(1)]


def test_6_a_seal_that_never_became_posting_is_safe_to_send() -> None:
    assert acts(Snapshot(batches=(batch(group(), state=BatchState.SEALED),))) == [Unseal(1)]


# -- rule 7 ------------------------------------------------------------------------------------------------------------


def test_7_a_suspended_lane_gets_nothing() -> None:
    queue = Snapshot(batch_queue=(group(flush=True),))
    assert acts(attrs.evolve(queue, suspended=BATCH_DOWN)) == []
    sync = Snapshot(sync_queue=(group(lane=Lane.SYNC),))
    assert acts(sync) == [Run(1, 10, urgent=False)]
    assert acts(attrs.evolve(sync, suspended=DOWN)) == []


def test_7_a_pause_is_sat_out_up_to_the_last_moment() -> None:
    last = start_of(10, 30 * HOUR) - WINDOW
    snapshot = Snapshot(batch_queue=(group(flush=True),), batch_paused_until=last + HOUR)
    assert (acts(snapshot), wait(snapshot)) == ([], last)
    assert acts(snapshot, last) == [Move(1, Lane.SYNC)]


@pytest.mark.parametrize(
    ("state", "done"),
    [(BatchState.SEALED, Unseal(1)), (BatchState.IN_DOUBT, GiveUp(1)), (BatchState.CANCELING, Poll(1))],
)
def test_7_while_the_sync_lane_is_suspended_a_batch_goes_its_way(state: BatchState, done: Action) -> None:
    start = start_of(10, 30 * HOUR)
    view = batch(group(), state=state, polled_at=NOW)
    assert acts(Snapshot(batches=(view,), suspended=DOWN), start) == [done]
    assert acts(Snapshot(batches=(view,)), start) == [MoveFromBatch(1, (1,))]


def test_7_a_pause_is_over_at_its_end() -> None:
    for until, done in ((NOW, [Seal((1,), (), 100_000)]), (NOW + MICROSECOND, [])):
        assert acts(Snapshot(batch_queue=(group(flush=True),), batch_paused_until=until)) == done


def test_7_work_stays_in_the_batch_queue_while_no_lane_works() -> None:
    snapshot = Snapshot(batch_queue=(group(),), suspended={**DOWN, **BATCH_DOWN})
    assert acts(snapshot, start_of(10, 30 * HOUR)) == []


# -- rule 8 ------------------------------------------------------------------------------------------------------------


def test_8_overdue_work_runs_on_the_cheapest_lane() -> None:
    over = NOW + 31 * HOUR
    assert acts(Snapshot(batch_queue=(group(),)), over) == [Seal((1,), (), 100_000)]
    assert acts(Snapshot(sync_queue=(group(),)), over) == [Move(1, Lane.BATCH)]
    assert acts(Snapshot(sync_queue=(group(lane=Lane.SYNC),)), over) == [Run(1, 10, urgent=False)]


def test_8_or_fails_unsent() -> None:
    over, policy = NOW + 31 * HOUR, attrs.evolve(POLICY, late="fail")
    assert acts(Snapshot(batch_queue=(group(1),), sync_queue=(group(2),)), over, policy) == [FailLate(2), FailLate(1)]


def test_8_late_work_runs_after_what_can_be_in_time() -> None:
    queue = group(1, -HOUR, lane=Lane.SYNC), group(2, HOUR), group(3, None, blocking=True), group(4, 2 * MINUTE)
    flexible = group(5, None, since=NOW + MINUTE)
    runs = [action for action in acts(Snapshot(sync_queue=(*queue, flexible))) if isinstance(action, Run)]
    assert [run.terms for run in runs] == [4, 3, 2, 5, 1]
    assert {run.model for run in runs} == {"m"}


def test_8_the_lane_is_handed_a_minute_of_work_and_what_is_urgent() -> None:
    late, soon = group(1, 9 * HOUR, requests=1_000), group(2, 2 * MINUTE, requests=10)
    running = group(3, 9 * HOUR, requests=90)
    assert acts(Snapshot(sync_queue=(late,))) == [Run(1, 95, urgent=False)]
    assert wait(Snapshot(sync_queue=(late,))) == NOW + 30 * SECOND
    assert acts(Snapshot(sync_queue=(late,)), wake_gap=MINUTE) == [Run(1, 190, urgent=False)]
    assert acts(Snapshot(sync_queue=(late,), sync_running=(running,))) == [Run(1, 5, urgent=False)]
    full = attrs.evolve(running, requests=900)
    assert acts(Snapshot(sync_queue=(late, soon), sync_running=(full,))) == [Run(2, 10, urgent=True)]


def test_8_what_one_group_is_handed_is_not_there_for_the_next() -> None:
    """The lane does 95 calls in the minute that is handed out."""
    first, second, third = (group(n, (8 + n) * HOUR, requests=40) for n in (1, 2, 3))
    assert acts(Snapshot(sync_queue=(third, second, first))) == [
        Run(1, 40, urgent=False), Run(2, 40, urgent=False), Run(3, 15, urgent=False)
    ]  # fmt: skip
    running = Snapshot(sync_queue=(first, second), sync_running=(group(9, 30 * HOUR, requests=20),))
    assert acts(running) == [Run(1, 40, urgent=False), Run(2, 35, urgent=False)]
    other = group(4, 9 * HOUR, requests=90, model="n")
    assert acts(attrs.evolve(running, sync_queue=(first, second, other))) == [
        Run(4, 90, urgent=False), Run(1, 40, urgent=False), Run(2, 35, urgent=False)
    ]  # fmt: skip


def test_8_what_has_to_start_within_the_margin_is_urgent() -> None:
    for gap in (ZERO, MINUTE):
        for more, urgent in ((ZERO, True), (MICROSECOND, False)):
            soon = group(1, requests=1, lane=Lane.SYNC)
            due = NOW + (NOW + 30 * HOUR - start_of(1, 30 * HOUR)) + MARGIN + gap + more
            soon = attrs.evolve(soon, terms=attrs.evolve(soon.terms, deadline=due))
            assert acts(Snapshot(sync_queue=(soon,)), wake_gap=gap) == [Run(1, 1, urgent=urgent)]


# -- rule 9 ------------------------------------------------------------------------------------------------------------


def test_9_what_would_be_too_late_next_time_is_done_now() -> None:
    gap, cancel = 4 * HOUR, start_of(10, 20 * HOUR) - LEAD
    for now, done in ((cancel - gap, [Cancel(1)]), (cancel - gap - SECOND, [])):
        assert acts(working(batch(hedged(due=20 * HOUR), polled_at=now), at=now), now, wake_gap=gap) == done
    queue = Snapshot(batch_queue=(group(due=40 * HOUR),))
    assert acts(queue, wake_gap=4 * HOUR) == [Seal((1,), (), 100_000)]
    assert acts(queue, wake_gap=4 * HOUR - SECOND) == []


def test_9_a_batch_cancelled_in_time_is_not_bought_again_in_the_same_pass() -> None:
    gap, start = 4 * HOUR, start_of(10, 20 * HOUR)
    for now, done in ((start - gap - SECOND, []), (start - gap, [MoveFromBatch(1, (1,))])):
        canceling = batch(hedged(due=20 * HOUR), state=BatchState.CANCELING, cancel_at=now, polled_at=now)
        assert acts(Snapshot(batches=(canceling,)), now, wake_gap=gap) == done


# -- looks -------------------------------------------------------------------------------------------------------------


def test_looks_grow_rare_but_come_at_the_expiry_and_often_after_it() -> None:
    shortest, longest = POLICY.poll_every

    def next_look(polled: timedelta, **others: Any) -> timedelta:
        snapshot = Snapshot(batches=(batch(group(due=None), age=ZERO, polled_at=NOW + polled, **others),))
        moment = wait(snapshot, NOW + polled)
        assert moment is not None
        return moment - NOW - polled

    assert next_look(SECOND) == shortest
    assert next_look(10 * MINUTE) == MINUTE
    assert next_look(10 * HOUR) == longest
    assert next_look(WINDOW - MINUTE) == MINUTE
    assert next_look(WINDOW) == shortest
    assert next_look(WINDOW + 10 * MINUTE) == MINUTE
    assert next_look(10 * HOUR, failures=1) == 2 * shortest


@pytest.mark.parametrize(
    "known", [{"remote_id": "msgbatch_1"}, {"state": BatchState.IN_DOUBT}, {"state": BatchState.CANCELING}]
)
def test_the_first_look_at_an_open_batch_is_a_pause_after_its_create_and_at_others_at_once(known: Any) -> None:
    begun = {"age": ZERO, "polled_at": None, "sealed_at": NOW - HOUR, "posting_at": NOW, **known}
    snapshot = Snapshot(batches=(batch(group(due=None), **begun),))
    first = NOW + POLICY.poll_every[0] if "remote_id" in known else NOW - HOUR
    assert wait(snapshot, first - SECOND) == first
    assert acts(snapshot, first - SECOND) == []
    assert len(acts(snapshot, first)) == 1
    unposted = Snapshot(batches=(batch(group(due=None), **{**begun, "posting_at": None}),))
    assert len(acts(unposted, first - HOUR if "remote_id" in known else first)) == 1


def test_looks_at_a_batch_that_is_cancelled_grow_rare_from_its_cancel_on() -> None:
    for cancel, pause in (
        (10 * HOUR - 10 * MINUTE, MINUTE),
        (10 * HOUR, POLICY.poll_every[0]),
        (None, POLICY.poll_every[1]),
    ):
        canceling = {"cancel_at": None if cancel is None else NOW + cancel, "polled_at": NOW + 10 * HOUR}
        view = batch(group(due=None), state=BatchState.CANCELING, age=ZERO, **canceling)
        assert wait(Snapshot(batches=(view,)), NOW + 10 * HOUR) == NOW + 10 * HOUR + pause
    ended = batch(group(due=None), state=BatchState.ENDED, polled_at=NOW - HOUR, failures=1)
    assert wait(Snapshot(batches=(ended,)), NOW - HOUR) == NOW - HOUR + 2 * POLICY.poll_every[0]


def test_a_batch_is_looked_at_when_it_expires_by_our_clock() -> None:
    polled = NOW + WINDOW - MINUTE
    view = batch(group(due=None), age=ZERO, polled_at=polled)
    for offset in (-20 * SECOND, ZERO, 20 * SECOND):
        assert wait(Snapshot(batches=(view,), clock_offset=offset), polled) == NOW + WINDOW - offset
    unknown = Snapshot(batches=(attrs.evolve(view, expires_at=None),))
    assert wait(unknown, polled) == polled + POLICY.poll_every[1]


@pytest.mark.parametrize(
    ("ahead", "over"), [(ZERO, True), (-MINUTE, False), (-SECOND, True), (-2 * SECOND, False), (MINUTE, True)]
)
def test_6_the_grace_is_over_only_when_the_server_s_clock_says_so_too(ahead: timedelta, over: bool) -> None:
    """Our clock was set forwards by a minute while the create was sent: the server's has not moved as far."""
    sent, server = NOW, NOW + 5 * HOUR
    looked = sent + POLICY.create_grace
    doubt = batch(
        group(), state=BatchState.IN_DOUBT, posting_at=sent, posting_server=server, last_byte_at=sent, polled_at=looked
    )
    snapshot = Snapshot(batches=(doubt,), clock_offset=5 * HOUR + ahead)
    assert (acts(snapshot, looked) == [GiveUp(1)]) == over
    fails = attrs.evolve(snapshot, batches=(attrs.evolve(doubt, failures=1),))
    assert GiveUp(1) not in acts(fails, looked)


def test_6_the_grace_begins_at_the_last_byte_or_else_at_the_create_or_the_seal() -> None:
    begun = {"sealed_at": NOW - 2 * MINUTE, "posting_at": NOW - MINUTE, "last_byte_at": NOW}
    for name in ("last_byte_at", "posting_at", "sealed_at"):
        over = begun[name] + POLICY.create_grace
        for polled, expected in ((over - MICROSECOND, False), (over, True)):
            doubt = batch(group(), state=BatchState.IN_DOUBT, **{**begun, "polled_at": polled})
            assert (GiveUp(1) in acts(Snapshot(batches=(doubt,)), over)) == expected
        begun[name] = None


def test_10_what_a_stopped_lease_holder_has_not_read_is_taken_over_once_it_ought_to_be_read() -> None:
    start = start_of(10, 30 * HOUR)
    ended = batch(group(), state=BatchState.ENDED, polled_at=start)
    stranded = Snapshot(batches=(ended,), leased=False)
    read = start + POLICY.cancel_settle / 10
    assert (acts(stranded, start), wait(stranded, start)) == ([], read)
    assert acts(stranded, read) == [MoveFromBatch(1, (1,))]
    unread = Snapshot(batches=(attrs.evolve(ended, failures=1),), leased=False)
    assert acts(unread, start) == [MoveFromBatch(1, (1,))]
    assert acts(unread, start - SECOND) == []
    never = Snapshot(batches=(attrs.evolve(ended, polled_at=None, sealed_at=start - HOUR),), leased=False)
    assert acts(never, start) == [MoveFromBatch(1, (1,))]


@pytest.mark.parametrize("due", [-HOUR, ZERO, SECOND / 2])
def test_8_what_cannot_be_in_time_holds_up_nothing_that_can(due: timedelta) -> None:
    urgent = group(1, MARGIN + 5 * SECOND, lane=Lane.SYNC, requests=1)
    late = group(2, due, lane=Lane.SYNC, requests=1_000)
    actions = plan(Snapshot(sync_queue=(urgent,), sync_running=(late,)), NOW, POLICY)
    assert Run(1, 1, urgent=True, model="m") in actions


# -- properties --------------------------------------------------------------------------------------------------------

moments = st.timedeltas(-HOUR, 50 * HOUR)
gaps = st.sampled_from([ZERO, MINUTE, HOUR, 4 * HOUR])
lately = st.timedeltas(ZERO, 20 * MINUTE)


@st.composite
def groups(draw: st.DrawFn, number: int) -> Group:
    due = draw(st.none() | moments)
    made = draw(st.sampled_from([group, hedged])) if due is not None and due < WINDOW else group
    return made(
        number,
        due,
        requests=draw(st.integers(1, 20_000)),
        since=NOW - draw(st.timedeltas(ZERO, 5 * HOUR)),
        flush=draw(st.booleans()),
        lane=draw(st.sampled_from(Lane)),
        blocking=due is None and draw(st.booleans()),
    )


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    counts = [draw(st.integers(0, 3)) for _ in range(3)]
    numbers = iter(range(1, 100))
    batch_queue, sync_queue, running = (tuple(draw(groups(next(numbers))) for _ in range(count)) for count in counts)
    batches = []
    for number in range(1, draw(st.integers(0, 4)) + 1):
        state = draw(st.sampled_from([each for each in BatchState if each not in {BatchState.CLOSED, BatchState.VOID}]))
        age = draw(st.timedeltas(ZERO, 25 * HOUR))
        batches.append(
            batch(
                *(draw(groups(next(numbers))) for _ in range(draw(st.integers(0, 2)))),
                number=number,
                state=state,
                age=age,
                polled_at=draw(st.none() | st.timedeltas(ZERO, age).map(lambda ago: NOW - ago)),
                failures=draw(st.integers(0, 2)),
            )
        )
    return Snapshot(
        batch_queue=batch_queue,
        sync_queue=sync_queue,
        sync_running=running,
        batches=tuple(batches),
        suspended=draw(st.sampled_from([{}, DOWN, BATCH_DOWN])),
        batch_paused_until=draw(st.none() | moments.map(lambda after: NOW + after)),
        leased=draw(st.booleans()),
        sync_answered_at=draw(st.none() | lately.map(lambda ago: NOW - ago)),
        sync_failed_at=draw(st.none() | lately.map(lambda ago: NOW - ago)),
    )


policies = st.builds(
    Policy,
    limits=st.sampled_from([LIMITS, Limits(requests_per_minute=100, batch_requests_in_queue=30_000)]),
    hedge=st.booleans(),
    late=st.sampled_from(["run", "fail"]),
)


@given(snapshots(), policies, gaps)
def test_no_seal_of_work_without_a_window_and_its_rescue(snapshot: Snapshot, policy: Policy, gap: timedelta) -> None:
    queued = {each.terms.id: each for each in snapshot.batch_queue}
    cohorts = {each.terms.id: cohort for cohort, each, _ in cohorts_of(snapshot, NOW)}
    sealed = [
        number for act in plan(snapshot, NOW, policy, wake_gap=gap) if isinstance(act, Seal) for number in act.terms
    ]
    for number in sealed:
        if number not in cohorts or policy.hedge or queued[number].terms.reason is Reason.HEDGED:
            continue
        rescue = work(cohorts[number], Capacity(policy, NOW).pace("m")) + margin_of(policy)
        can_be_in_time = NOW + rescue <= cohorts[number].deadline
        if can_be_in_time and Lane.SYNC not in snapshot.suspended and not overloaded(snapshot, policy):
            assert NOW + policy.window + rescue <= cohorts[number].deadline


def overloaded(snapshot: Snapshot, policy: Policy) -> bool:
    cohorts = [cohort for cohort, _, _ in cohorts_of(snapshot, NOW)]
    return any(start < NOW for start in latest_starts(cohorts, Capacity(policy, NOW).pace("m"), tail=margin_of(policy)))


@given(snapshots(), policies, gaps)
def test_every_dated_group_is_acted_on_or_asked_about_by_its_latest_start(
    snapshot: Snapshot, policy: Policy, gap: timedelta
) -> None:
    snapshot = attrs.evolve(snapshot, leased=True, suspended={}, sync_failed_at=None)
    if overloaded(snapshot, policy):
        return
    actions = plan(snapshot, NOW, policy, wake_gap=gap)
    again = next((act.moment for act in actions if isinstance(act, WaitUntil)), None)
    touched: set[int] = {number for act in actions if isinstance(act, Seal) for number in act.terms}
    touched |= {act.terms for act in actions if isinstance(act, (Move, Run, FailLate))}
    batches = {getattr(act, "batch", None) for act in actions}
    found = cohorts_of(snapshot, NOW)
    starts = latest_starts([cohort for cohort, _, _ in found], Capacity(policy, NOW).pace("m"), tail=margin_of(policy))
    running = {each.terms.id for each in snapshot.sync_running}
    for (_, each, place), start in zip(found, starts, strict=True):
        if each.terms.id in touched | running or (place is not None and place.id in batches):
            continue
        if place is not None and place.state is BatchState.WATCHED:
            continue  # its requests went elsewhere when it was given up
        assert again is not None
        assert again <= start


@given(snapshots(), policies, gaps)
def test_nothing_is_cancelled_or_run_while_the_sync_lane_is_suspended(
    snapshot: Snapshot, policy: Policy, gap: timedelta
) -> None:
    actions = plan(attrs.evolve(snapshot, suspended=DOWN), NOW, policy, wake_gap=gap)
    needed = {each.id for each in snapshot.batches if each.groups}
    assert not [act for act in actions if isinstance(act, Cancel) and act.batch in needed]
    assert not [act for act in actions if isinstance(act, (Run, MoveFromBatch))]


@given(snapshots(), policies, gaps)
def test_nothing_is_cancelled_that_needs_a_lane_which_fails_or_is_unknown(
    snapshot: Snapshot, policy: Policy, gap: timedelta
) -> None:
    unknown = attrs.evolve(snapshot, sync_answered_at=None, leased=True)
    needed = {each.id for each in snapshot.batches if each.groups}

    def found(state: Snapshot, kind: type[Action]) -> list[Any]:
        return [act for act in plan(state, NOW, policy, wake_gap=gap) if isinstance(act, kind)]

    assert not [act for act in found(attrs.evolve(unknown, sync_failed_at=NOW), Cancel) if act.batch in needed]
    idle = attrs.evolve(unknown, sync_queue=(), sync_running=())
    assert not [act for act in found(idle, Cancel) if act.batch in needed]
    probes = found(unknown, Probe)
    assert len(probes) <= 1
    for probe in probes:
        (place,) = [each for each in snapshot.batches if each.id == probe.batch]
        assert place.state is BatchState.OPEN
        assert any(each.terms.id == probe.terms and each.terms.deadline is not None for each in place.groups)
    assert not found(attrs.evolve(unknown, sync_answered_at=NOW, sync_failed_at=None), Probe)


@given(snapshots(), policies, gaps)
def test_the_same_state_gives_the_same_plan_and_asks_again_later(
    snapshot: Snapshot, policy: Policy, gap: timedelta
) -> None:
    actions = plan(snapshot, NOW, policy, wake_gap=gap)
    assert plan(snapshot, NOW, policy, wake_gap=gap) == actions
    assert all(act.moment >= NOW for act in actions if isinstance(act, WaitUntil))
    assert not [act for act in actions[:-1] if isinstance(act, WaitUntil)]


@given(snapshots(), policies, gaps)
def test_a_batch_has_one_action_and_perhaps_a_release(snapshot: Snapshot, policy: Policy, gap: timedelta) -> None:
    actions = plan(snapshot, NOW, policy, wake_gap=gap)
    others = [act.batch for act in actions if hasattr(act, "batch") and not isinstance(act, MoveFromBatch)]
    released = [act.batch for act in actions if isinstance(act, MoveFromBatch)]
    assert len(others) == len(set(others))
    assert len(released) == len(set(released))
    sealed = [number for act in actions if isinstance(act, Seal) for number in act.terms]
    moved = [act.terms for act in actions if isinstance(act, (Move, FailLate))]
    assert len(sealed + moved) == len(set(sealed + moved))


@given(snapshots(), policies, gaps)
def test_without_the_lease_only_the_sync_lane_acts(snapshot: Snapshot, policy: Policy, gap: timedelta) -> None:
    for act in plan(attrs.evolve(snapshot, leased=False), NOW, policy, wake_gap=gap):
        assert isinstance(act, (Run, Move, FailLate, MoveFromBatch, WaitUntil))


# -- rule 10 ----------------------------------------------------------------------------------------------------------


def test_10_what_a_stopped_lease_holder_leaves_to_its_last_safe_moment_is_taken_over() -> None:
    start = start_of(20, 30 * HOUR)
    stranded = Snapshot(batches=(batch(group()),), batch_queue=(group(2),), leased=False)
    assert acts(stranded) == []
    assert acts(stranded, start) == [MoveFromBatch(1, (1,)), Move(2, Lane.SYNC)]


def test_10_what_is_queued_behind_a_stopped_lease_holder_is_left_to_it_until_its_last_safe_moment() -> None:
    """Until its last seal it can still go into a batch; after that its way is the sync lane's."""
    queued = group(submit_by=None, interval=9 * HOUR)
    last = start_of(10, 30 * HOUR) - WINDOW
    stranded = Snapshot(batch_queue=(queued,), leased=False)
    assert acts(stranded, last) == []
    assert acts(stranded, last + SECOND) == [Move(1, Lane.SYNC)]


# -- when somebody must come ------------------------------------------------------------------------------------------


def test_where_nothing_waits_nobody_has_to_come() -> None:
    assert next_due(Snapshot(), NOW, POLICY) is None


@pytest.mark.parametrize("leased", [True, False])
@pytest.mark.parametrize("after", [-HOUR, ZERO, HOUR, 10 * HOUR, 40 * HOUR])
def test_queued_work_is_due_when_its_interval_ends_however_late_it_is(after: timedelta, leased: bool) -> None:
    end = NOW + 4 * HOUR
    queue = (group(), group(2, since=NOW + 30 * MINUTE, job=7))
    snapshot = Snapshot(batch_queue=queue, leased=leased)
    assert next_due(snapshot, end + after, POLICY) == end
    assert next_due(snapshot, end + after, POLICY, job=0) == end
    assert next_due(snapshot, end + after, POLICY, job=9) is None
    flexible = Snapshot(batch_queue=(group(3, None, since=NOW + HOUR, interval=HOUR),))
    assert next_due(flexible, end + after, POLICY) == NOW + 2 * HOUR


def test_a_job_is_due_for_its_own_rows_of_a_batch() -> None:
    early = batch(group(1, job=1), group(2, None, job=2), age=2 * HOUR)
    snapshot = Snapshot(batches=(early, batch(group(3, job=2), number=2, age=HOUR)))
    due = NOW + WINDOW - HOUR
    assert [next_due(snapshot, NOW, POLICY, job=job) for job in (None, 1, 2, 3)] == [
        due - HOUR,
        due - HOUR,
        due - HOUR,
        None,
    ]
    second = Snapshot(batches=(batch(group(1, job=1), age=2 * HOUR), batch(group(3, job=2), number=2, age=HOUR)))
    assert [next_due(second, NOW, POLICY, job=job) for job in (1, 2)] == [due - HOUR, due]


def test_what_came_first_is_due_since_then_and_what_came_later_does_not_hide_it() -> None:
    first, second = group(3, None, interval=HOUR), group(4, None, since=NOW + 3 * HOUR, interval=HOUR)
    assert next_due(Snapshot(batch_queue=(second, first)), NOW + 9 * HOUR, POLICY) == NOW + HOUR
    assert next_due(Snapshot(batch_queue=(second,)), NOW + 9 * HOUR, POLICY) == NOW + 4 * HOUR


@pytest.mark.parametrize("after", [ZERO, 3 * HOUR])
def test_an_open_batch_is_due_at_its_expiry_and_what_somebody_waits_for_at_once(after: timedelta) -> None:
    ended = NOW + WINDOW - HOUR
    snapshot = Snapshot(batches=(batch(group()),))
    assert next_due(snapshot, NOW, POLICY) == ended
    assert next_due(snapshot, ended + MINUTE + after, POLICY) == ended
    queued = group(2, None, since=NOW + HOUR, lane=Lane.SYNC, reason=Reason.BLOCKING, blocking=True)
    assert next_due(Snapshot(sync_queue=(queued,)), NOW + 2 * HOUR + after, POLICY) == NOW + HOUR
    assert next_due(Snapshot(sync_queue=(queued,)), NOW + 2 * HOUR, POLICY, job=0) == NOW + HOUR
    assert next_due(Snapshot(sync_queue=(queued,)), NOW + 2 * HOUR, POLICY, job=7) is None
    busy = Snapshot(sync_queue=(queued,), sync_running=(attrs.evolve(queued, requests=1),))
    assert next_due(busy, NOW + 2 * HOUR + after, POLICY) == NOW + 2 * HOUR + after  # whoever runs calls comes to it


def test_what_fell_due_while_nobody_came_is_due_since_then() -> None:
    decided = NOW + 5 * HOUR
    open_batch = batch(hedged(due=20 * HOUR, rescue_at=decided), polled_at=decided + HOUR)
    assert next_due(Snapshot(batches=(open_batch,)), decided + 2 * HOUR, POLICY) == decided - TAIL
    start = start_of(10, 20 * HOUR)
    for polled, since in ((start + SECOND, start + SECOND), (None, start)):
        canceling = batch(hedged(due=20 * HOUR), state=BatchState.CANCELING, polled_at=polled)
        assert next_due(Snapshot(batches=(canceling,)), start + 2 * SECOND, POLICY) == since


def test_a_job_is_due_since_its_own_work_was_and_no_other_job_hides_it() -> None:
    first, second = group(1, job=1), group(2, since=NOW + 30 * MINUTE, job=2, submit_by=None)
    queued = Snapshot(batch_queue=(first, second))
    end = NOW + 4 * HOUR
    assert [next_due(queued, end + 9 * HOUR, POLICY, job=job) for job in (1, 2)] == [end, end + 30 * MINUTE]
    call = group(3, None, lane=Lane.SYNC, since=NOW + HOUR, job=3)
    waiting = Snapshot(batch_queue=(first,), sync_queue=(call,))
    assert [next_due(waiting, NOW + 2 * HOUR, POLICY, job=job) for job in (1, 2, 3)] == [end, None, NOW + HOUR]


def test_calls_that_ran_before_anything_was_due_hide_nothing() -> None:
    running = group(1, None, lane=Lane.SYNC)
    queue = group(2, None, since=NOW + HOUR, interval=HOUR)
    snapshot = Snapshot(sync_running=(running,), batch_queue=(queue,))
    assert next_due(snapshot, NOW + 9 * HOUR, POLICY) == NOW + 2 * HOUR


# -- performance ------------------------------------------------------------------------------------------------------


def test_thousands_of_groups_are_planned_in_well_under_a_second() -> None:
    queue = tuple(group(number, 30 * HOUR + number * SECOND, requests=1) for number in range(1, 3_001))
    started = perf_counter()
    plan(Snapshot(batch_queue=queue), NOW, POLICY)
    assert perf_counter() - started < 2.0  # 0.1 s on an idle core


def test_2_hedged_work_counts_on_less_of_the_lane_than_urgent_work() -> None:
    """A batch that may be broken off is, while seven tenths of the limits are enough."""
    policy = attrs.evolve(POLICY, hedge=True)
    view = batch(group(requests=4_200))
    pace = Pace(limits=Capacity(policy, NOW, models=["m"]).limits("m"), share=Fraction(7, 10))
    (start,) = latest_starts([Cohort(deadline=NOW + 30 * HOUR, requests=4_200)], pace, tail=MARGIN)
    assert safe_moments(Snapshot(batches=(view,)), NOW, policy) == {1: start - LEAD}
    assert safe_moments(Snapshot(batches=(view,)), NOW, POLICY) == {1: start_of(4_200, 30 * HOUR) - LEAD}


def test_3_a_row_goes_ahead_by_as_much_as_the_slowest_call_may_take() -> None:
    policy = Policy(limits=attrs.evolve(LIMITS, latency=MINUTE))
    asked = safe_moments(Snapshot(batches=(batch(hedged()),)), NOW, policy)[1] - 3 * MINUTE
    waiting = Snapshot(batches=(batch(hedged(), polled_at=asked),))
    assert acts(waiting, asked, policy) == [Probe(1, 1)]
    assert (
        wait(attrs.evolve(waiting, batches=(batch(hedged(), polled_at=asked - SECOND),)), asked - SECOND, policy)
        == asked
    )


def test_work_that_came_later_was_not_there_before() -> None:
    """Somebody has waited for an hour; what was there before has time."""
    early = group(1, None, interval=9 * HOUR)
    for place in ("batch_queue", "sync_queue"):
        late = group(2, None, since=NOW + HOUR, flush=True)
        queues = {"batch_queue": (early,)}
        queues[place] = (*queues.get(place, ()), late)
        assert next_due(Snapshot(**queues), NOW + 2 * HOUR, POLICY) == NOW + HOUR


def test_1_a_batch_that_runs_on_after_its_cancel_is_left_at_the_last_safe_moment() -> None:
    start = start_of(10, 2 * HOUR)
    for cancel_at, done in ((start - LEAD, MoveFromBatch(1, (1,))), (None, Cancel(1))):
        view = batch(hedged(), cancel_at=cancel_at, polled_at=start)
        assert acts(working(view, at=start), start) == [done]
