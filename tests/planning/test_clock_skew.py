"""Stored moments that a clock which was ahead left behind are taken as now; all others stay."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import HOUR, NOW

from batchwise.models import Lane, Policy, Reason
from batchwise.planning.clock_skew import corrected, longest_pause, sent_at, sent_by
from batchwise.planning.state import BatchState, BatchView, Group, Snapshot, Terms

SECOND, TICK = timedelta(seconds=1), timedelta(microseconds=1)
POLICY = Policy()
TERMS = Terms(id=1, lane=Lane.BATCH, reason=Reason.LATENCY_TOLERANT, model="m", max_tokens=1, output_tokens=1)
QUEUES = ("batch_queue", "sync_queue", "sync_running")
OURS = ("sealed_at", "posting_at", "last_byte_at", "cancel_at", "polled_at")
SERVERS = ("posting_server", "created_at", "expires_at", "ended_at")


def group(since: datetime) -> Group:
    return Group(terms=TERMS, requests=1, size=1, since=since)


def batch(**others: Any) -> BatchView:
    return BatchView(**{"id": 1, "nonce": "n", "state": BatchState.OPEN, "requests": 1, "sealed_at": NOW, **others})


def test_the_longest_pause_is_an_hour_or_the_longest_backoff() -> None:
    assert longest_pause(POLICY) == HOUR
    assert longest_pause(Policy(poll_every=(30 * SECOND, 2 * HOUR))) == 2 * HOUR + 30 * SECOND


moments = st.timedeltas(-HOUR, HOUR).map(lambda after: NOW + after) | st.just(NOW)


@given(
    st.fixed_dictionaries({name: st.lists(moments, max_size=3) for name in QUEUES}),
    st.lists(st.fixed_dictionaries(dict.fromkeys((*OURS, *SERVERS), moments)), max_size=2),
    st.lists(moments, max_size=2),
)
def test_what_lies_in_the_future_is_taken_as_now_and_nothing_else_changes(
    queues: dict[str, list[datetime]], batches: list[dict[str, datetime]], members: list[datetime]
) -> None:
    groups = tuple(map(group, members))
    views = tuple(batch(groups=groups, **times) for times in batches)
    before = Snapshot(**{name: tuple(map(group, times)) for name, times in queues.items()}, batches=views)
    after = corrected(before, NOW, POLICY)
    for name, times in queues.items():
        assert [found.since for found in getattr(after, name)] == [min(time, NOW) for time in times]
        for found, was in zip(getattr(after, name), getattr(before, name), strict=True):
            assert found is was or was.since > NOW
        assert (getattr(after, name) is getattr(before, name)) == all(time <= NOW for time in times)
    for found, was in zip(after.batches, before.batches, strict=True):
        assert [getattr(found, name) for name in OURS] == [min(getattr(was, name), NOW) for name in OURS]
        assert [getattr(found, name) for name in SERVERS] == [getattr(was, name) for name in SERVERS]
        assert [each.since for each in found.groups] == [min(time, NOW) for time in members]
        ahead = [getattr(was, name) for name in OURS] + members
        assert (found is was) == all(time <= NOW for time in ahead)
    if all(found is was for found, was in zip(after.batches, before.batches, strict=True)):
        assert after.batches is before.batches
    times = [time for all_times in queues.values() for time in all_times]
    times += [time for view in batches for time in (*(view[name] for name in OURS), *members)]
    assert (after is before) == all(time <= NOW for time in times)


def test_a_batch_that_was_never_sent_has_no_moments_to_mend() -> None:
    snapshot = Snapshot(batches=(batch(state=BatchState.SEALED),))
    assert corrected(snapshot, NOW, POLICY) is snapshot


@pytest.mark.parametrize(
    ("until", "kept"),
    [(None, True), (NOW - HOUR, True), (NOW + HOUR, True), (NOW + HOUR + TICK, False)],
)
def test_a_pause_is_over_that_is_longer_than_any_that_is_given(until: datetime | None, kept: bool) -> None:
    snapshot = Snapshot(batch_paused_until=until)
    found = corrected(snapshot, NOW, POLICY)
    assert found.batch_paused_until == (until if kept else None)
    assert (found is snapshot) == kept


@pytest.mark.parametrize(
    ("answered", "failed", "found"),
    [
        (-HOUR, -2 * HOUR, (-HOUR, -2 * HOUR)),
        (3 * HOUR, HOUR, (timedelta(0), -2 * HOUR)),
        (HOUR, 3 * HOUR, (-2 * HOUR, timedelta(0))),
        (HOUR, -3 * HOUR, (timedelta(0), -3 * HOUR)),
        (None, HOUR, (None, timedelta(0))),
        (HOUR, None, (timedelta(0), None)),
    ],
)
def test_answers_and_failures_of_the_sync_lane_keep_their_order(
    answered: timedelta | None, failed: timedelta | None, found: tuple[timedelta | None, timedelta | None]
) -> None:
    def at(after: timedelta | None) -> datetime | None:
        return None if after is None else NOW + after

    snapshot = corrected(Snapshot(sync_answered_at=at(answered), sync_failed_at=at(failed)), NOW, POLICY)
    assert (snapshot.sync_answered_at, snapshot.sync_failed_at) == tuple(map(at, found))


SERVER = NOW + 5 * HOUR
SENT = batch(posting_at=NOW, posting_server=SERVER, last_byte_at=NOW + 3 * SECOND)


def test_a_create_was_sent_by_the_servers_clock_at_its_last_byte() -> None:
    assert sent_at(SENT) == SERVER + 3 * SECOND
    assert sent_at(attrs.evolve(SENT, last_byte_at=None)) == SERVER
    assert sent_at(attrs.evolve(SENT, posting_at=None)) is None
    assert sent_at(attrs.evolve(SENT, posting_server=None)) is None


def test_a_create_that_was_sent_in_the_servers_future_was_sent_by_now() -> None:
    found = sent_by(SENT, SERVER + SECOND)
    assert sent_at(found) == SERVER + SECOND
    assert found == attrs.evolve(SENT, posting_at=NOW + 2 * SECOND)
    assert sent_by(SENT, SERVER + 3 * SECOND) is SENT
    unsent = batch(state=BatchState.SEALED)
    assert sent_by(unsent, SERVER) is unsent
