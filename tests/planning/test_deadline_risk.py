"""Which requests are in danger: those whose rescue should have begun, and those that no schedule can have in time."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.planning.test_planner import HOUR, LIMITS, NOW, POLICY, TAIL, batch, group, hedged, start_of

from batchwise.models import Lane, Limits, Outcome, Policy
from batchwise.planning.deadline_risk import SAFE, Risk, punctuality, risks
from batchwise.planning.planner import safe_moments
from batchwise.planning.state import BatchState, Snapshot
from batchwise.planning.sync_schedule import Cohort, Pace, at_risk

TICK, MINUTE = timedelta(microseconds=1), timedelta(minutes=1)


def test_risks_add_up() -> None:
    assert Risk(1, 2) + Risk(3, 5) == Risk(4, 7)
    assert Risk(1, 2) + SAFE == Risk(at_risk=1, overdue=2)


@pytest.mark.parametrize("place", ["batch_queue", "sync_queue", "sync_running", "batches"])
def test_what_is_past_its_deadline_is_overdue_wherever_it_is(place: str) -> None:
    def at(*groups: Any) -> Snapshot:
        return Snapshot(**{place: (batch(*groups, state=BatchState.ENDED),) if place == "batches" else groups})

    two = group(1, requests=7, job=3), group(2, 31 * HOUR, requests=5, job=3)
    assert risks(at(*two), NOW + 30 * HOUR, POLICY)[3].overdue == 7
    assert risks(at(*two), NOW + 31 * HOUR, POLICY) == {3: Risk(overdue=12)}
    assert risks(at(group(1, batch_only=True)), NOW + 30 * HOUR, POLICY) == {0: Risk(overdue=10)}
    assert risks(at(group(1, None)), NOW + 99 * HOUR, POLICY) == {}


@pytest.mark.parametrize("leeway", [timedelta(0), MINUTE])
def test_an_open_batch_is_at_risk_once_its_cancel_is_late(leeway: timedelta) -> None:
    snapshot = Snapshot(batches=(batch(group(job=4), group(2, None, job=5)),))
    moment = safe_moments(snapshot, NOW, POLICY)[1]
    assert risks(snapshot, moment + leeway, POLICY, leeway=leeway) == {}
    assert risks(snapshot, moment + leeway + TICK, POLICY, leeway=leeway) == {4: Risk(at_risk=10)}


@pytest.mark.parametrize(
    "others",
    [{"state": BatchState.CANCELING}, {"cancel_at": NOW}, {"state": BatchState.ENDED}, {"state": BatchState.IN_DOUBT}],
)
def test_what_is_cancelled_or_no_longer_open_has_until_its_latest_start(others: dict[str, Any]) -> None:
    snapshot = Snapshot(batches=(batch(group(), **others),))
    start = start_of(10, 30 * HOUR)
    assert risks(snapshot, start, POLICY) == {}
    assert risks(snapshot, start + TICK, POLICY) == {0: Risk(at_risk=10)}


def test_what_waits_for_the_sync_lane_is_at_risk_unless_its_class_is_worked_on() -> None:
    waiting, start = group(), start_of(10, 30 * HOUR)
    assert risks(Snapshot(sync_queue=(waiting,)), start, POLICY) == {}
    assert risks(Snapshot(sync_queue=(waiting,)), start + TICK, POLICY) == {0: Risk(at_risk=10)}
    for model, found in (("m", {}), ("n", {0: Risk(at_risk=10)})):
        busy = Snapshot(sync_queue=(waiting,), sync_running=(group(2, None, model=model, requests=1),))
        assert risks(busy, start + TICK, POLICY) == found


IN_AN_HOUR = int((HOUR - TAIL) / HOUR * 6_000)
"""Calls that the lane has in time for a deadline in an hour, at all of its limit."""


def test_what_runs_is_at_risk_only_as_far_as_no_schedule_can_serve_it() -> None:
    for requests, lost in ((IN_AN_HOUR, 0), (IN_AN_HOUR + 1, 1), (10_000, 10_000 - IN_AN_HOUR)):
        running = Snapshot(sync_running=(group(1, HOUR, requests=requests),))
        assert risks(running, NOW, POLICY) == ({0: Risk(at_risk=lost)} if lost else {})


def test_each_class_of_models_has_a_lane_of_its_own() -> None:
    running = (
        group(1, HOUR, requests=IN_AN_HOUR + 3, job=1),
        group(2, HOUR, requests=IN_AN_HOUR + 5, job=2, model="n"),
        group(3, 2 * HOUR, requests=10, job=3, model="o"),
    )
    assert risks(Snapshot(sync_running=running), NOW, POLICY) == {1: Risk(at_risk=3), 2: Risk(at_risk=5)}


def test_what_the_lane_cannot_serve_is_shared_out_among_the_jobs() -> None:
    running = group(1, HOUR, requests=IN_AN_HOUR, job=1), group(2, HOUR, requests=IN_AN_HOUR, job=2)
    found = risks(Snapshot(sync_running=running), NOW, POLICY)
    assert sum(risk.at_risk for risk in found.values()) == IN_AN_HOUR
    late = attrs.evolve(running[0], terms=attrs.evolve(running[0].terms, deadline=NOW))
    assert risks(Snapshot(sync_running=(late, running[1])), NOW, POLICY) == {1: Risk(overdue=IN_AN_HOUR)}


def test_the_slowest_call_counts() -> None:
    policy = Policy(limits=Limits(requests_per_minute=LIMITS.requests_per_minute, latency=MINUTE))
    running = Snapshot(sync_running=(group(1, HOUR, requests=6_000, lane=Lane.SYNC),))
    assert risks(running, NOW, policy) == {0: Risk(at_risk=300)}  # three minutes at 100 a minute


def test_a_batch_that_can_be_cancelled_in_time_is_safe_however_late_it_expires() -> None:
    early = hedged(requests=10)  # due in 2 h, and the batch may run for 23 h
    assert risks(Snapshot(batches=(batch(early),)), NOW, POLICY) == {}


def test_what_one_group_has_lost_is_not_counted_again_for_the_next() -> None:
    """Both lose calls in whatever order they run, but no more than the lane lacks for both together."""
    for counted in ((IN_AN_HOUR + 10, IN_AN_HOUR), (IN_AN_HOUR, IN_AN_HOUR + 10), (20, 2 * IN_AN_HOUR)):
        running = tuple(group(n, HOUR, requests=count, job=n) for n, count in enumerate(counted, 1))
        found = risks(Snapshot(sync_running=running), NOW, POLICY)
        assert sum(risk.at_risk for risk in found.values()) == sum(counted) - IN_AN_HOUR


counts = st.lists(st.tuples(st.integers(1, 9_000), st.sampled_from([1, 2, 3])), min_size=1, max_size=5)


@given(counts)
def test_as_many_are_at_risk_as_no_order_of_calls_can_have_in_time(counted: list[tuple[int, int]]) -> None:
    """All is at work, so that nothing is at risk for a rescue that has not begun."""
    running = tuple(group(n, due * HOUR, requests=count, job=n) for n, (count, due) in enumerate(counted, 1))
    found = risks(Snapshot(sync_running=running), NOW, POLICY)
    cohorts = [Cohort(deadline=NOW + due * HOUR, requests=count) for count, due in counted]
    assert sum(risk.at_risk for risk in found.values()) == at_risk(cohorts, Pace(limits=LIMITS), now=NOW, tail=TAIL)
    assert all(0 < found[number].at_risk <= counted[number - 1][0] for number in found)


def test_each_class_is_reckoned_with_its_own_limits() -> None:
    policy = Policy(limits={"slow": Limits(requests_per_minute=10), "fast": Limits(requests_per_minute=1_000)})
    running = tuple(group(n, HOUR, requests=3_000, job=n, model=model) for n, model in ((1, "slow"), (2, "fast")))
    assert risks(Snapshot(sync_running=running), NOW, policy) == {1: Risk(at_risk=3_000 - IN_AN_HOUR // 10)}


def test_only_an_answer_meets_a_deadline_and_lateness_is_never_negative() -> None:
    due, hour, zero = datetime(2026, 11, 1, tzinfo=timezone.utc), timedelta(hours=1), timedelta(0)
    for outcome in Outcome:
        answered = outcome is Outcome.SUCCEEDED
        assert punctuality(outcome, None, due) == (None, zero)
        for settled, late in ((due - hour, zero), (due, zero), (due + hour, hour)):
            found = punctuality(outcome, due, settled)
            assert found == ((None, zero) if outcome is Outcome.CANCELED else (answered and not late, late))
