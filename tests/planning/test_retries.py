"""What a try without an answer costs, and where its request goes on."""

from __future__ import annotations

from datetime import timedelta

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import HOUR, NOW

from batchwise.models import Lane, Policy, Reason
from batchwise.planning.retries import call_costs, may_call_again, next_attempt
from batchwise.planning.state import Terms

FLEXIBLE = Terms(lane=Lane.BATCH, reason=Reason.LATENCY_TOLERANT, model="m", max_tokens=9, output_tokens=9)
WEEK = attrs.evolve(FLEXIBLE, deadline=NOW + 168 * HOUR)
THREE = Policy()


def after(attempts: int, terms: Terms = WEEK, hours: float = 0, policy: Policy = THREE, **more: bool):
    moment = NOW + timedelta(hours=hours)
    return next_attempt(terms, attempts, moment, policy, **{"costs": True, "sync_works": True, **more})


@pytest.mark.parametrize(
    ("attempts", "terms", "hours", "more", "expected"),
    [
        (0, WEEK, 24, {}, (Lane.BATCH, True)),
        (1, WEEK, 48, {}, (Lane.SYNC, True)),  # the last one
        (1, WEEK, 48, {"sync_works": False}, (Lane.BATCH, True)),
        (2, WEEK, 72, {}, (Lane.SYNC, False)),  # it is not used up by a batch
        (2, WEEK, 168, {}, None),  # too late for a rescue
        (0, WEEK, 138, {}, (Lane.BATCH, True)),  # a window, and a third of what is left beside it
        (0, WEEK, 143.75, {}, (Lane.BATCH, True)),  # a window, and the least reserve
        (0, WEEK, 143.76, {}, (Lane.SYNC, True)),
        (0, WEEK, 144, {}, (Lane.SYNC, True)),  # no time for another window
        (0, WEEK, 169, {}, (Lane.SYNC, True)),  # late: the planner finds the cheapest lane
        (1, WEEK, 48, {"costs": False}, (Lane.BATCH, False)),
        (1, FLEXIBLE, 48, {}, (Lane.BATCH, True)),
        (2, FLEXIBLE, 48, {}, None),
        (1, attrs.evolve(WEEK, batch_only=True), 167, {}, (Lane.BATCH, True)),
        (2, attrs.evolve(WEEK, batch_only=True), 48, {}, None),
    ],
)
def test_by_attempts_and_time(attempts: int, terms: Terms, hours: float, more: dict[str, bool], expected: object):
    assert after(attempts, terms, hours, **more) == expected


@given(
    most=st.integers(1, 5),
    tries=st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(0, 30)), min_size=12, max_size=12),
    hours=st.integers(25, 300),
)
def test_batches_never_end_a_request_that_can_be_rescued(
    most: int, tries: list[tuple[bool, bool, float]], hours: int
) -> None:
    terms, policy = attrs.evolve(FLEXIBLE, deadline=NOW + hours * HOUR), Policy(max_attempts=most)
    attempts, passed = 0, 0.0
    for costs, works, took in tries:
        passed += took
        found = after(attempts, terms, passed, policy, costs=costs, sync_works=works)
        if found is None:
            assert passed >= hours
            return
        lane, counted = found
        attempts += counted
        assert attempts < most, "an attempt is left"
        if lane is Lane.SYNC:
            return


def test_max_attempts_bounds_batches_without_a_deadline() -> None:
    found = [after(attempts, FLEXIBLE, policy=Policy(max_attempts=2)) for attempts in range(3)]
    assert found == [(Lane.BATCH, True), None, None]


@pytest.mark.parametrize(
    ("terms", "hours", "attempts", "calls", "expected"),
    [
        (WEEK, 48, 2, 0, True),
        (WEEK, 48, 4, 2, True),  # batches used up two
        (WEEK, 48, 5, 3, False),
        (WEEK, 168, 4, 2, False),  # too late
        (attrs.evolve(WEEK, batch_only=True), 48, 4, 2, False),
        (FLEXIBLE, 48, 2, 1, True),
        (FLEXIBLE, 48, 3, 1, False),
    ],
)
def test_calls_alone_count_while_the_deadline_can_be_met(
    terms: Terms, hours: int, attempts: int, calls: int, expected: bool
) -> None:
    now = NOW + hours * HOUR
    assert may_call_again(terms, attempts=attempts, calls=calls, now=now, policy=THREE) is expected


@pytest.mark.parametrize(
    ("terms", "unpaid", "refused", "costs", "expected"),
    [
        (WEEK, 0, False, True, True),
        (WEEK, 1_000, True, True, False),
        (WEEK, 1_000, False, True, False),
        (attrs.evolve(WEEK, deadline=NOW), 1, False, True, True),
        (FLEXIBLE, 40, True, True, False),
        (FLEXIBLE, 41, True, True, True),
        (FLEXIBLE, 1, False, True, True),
        (FLEXIBLE, 0, False, False, False),
    ],
)
def test_what_is_not_paid_costs_nothing_while_the_deadline_can_be_met(
    terms: Terms, unpaid: int, refused: bool, costs: bool, expected: bool
) -> None:
    assert call_costs(terms, NOW, unpaid=unpaid, refused=refused, costs=costs) is expected
