"""Promises: nothing is accepted whose worst-case rescue does not fit beside what is promised."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import HOUR, NOW

from batchwise.errors import AdmissionError
from batchwise.models import Lane, Limits, Policy, Reason
from batchwise.planning.admission import Admission, Promises, admit, may_wait, promises_of
from batchwise.planning.cache_priming import Caching
from batchwise.planning.capacity import Capacity
from batchwise.planning.reserve import least_reserve, margin_of, overhead_of, reserve_for
from batchwise.planning.state import BatchState, BatchView, Group, Snapshot, Terms
from batchwise.planning.sync_schedule import Cohort, fits

MINUTE, ZERO = timedelta(minutes=1), timedelta(0)
POLICY = Policy(limits=Limits(requests_per_minute=100))
HEDGE = attrs.evolve(POLICY, hedge=True)
RATE = 95 * 60
"""Calls an hour that rescues count on."""
NOTHING = promises_of(Snapshot(), NOW, POLICY)
OVERHEAD = 2 * POLICY.poll_every[0] + POLICY.cancel_settle / 10
"""Between a batch's expiry and its rows on the sync lane."""


def group(requests: int, due: timedelta | None = 30 * HOUR, **others: Any) -> Group:
    settings: dict[str, Any] = {"lane": Lane.BATCH, "reason": Reason.LATENCY_TOLERANT, "interval": 4 * HOUR, **others}
    flush = settings.pop("flush", False)
    deadline = None if due is None else NOW + due
    terms = Terms(id=1, deadline=deadline, model="m", max_tokens=1_024, output_tokens=500, **settings)
    return Group(terms=terms, requests=requests, size=requests * 100, since=NOW, flush=flush)


def batch(state: BatchState, *groups: Group) -> BatchView:
    return BatchView(id=1, nonce="n", state=state, requests=1, sealed_at=NOW, created_at=NOW, groups=groups)


def promised(admission: Admission, now: datetime = NOW, policy: Policy = POLICY) -> bool:
    pace = Capacity(policy, now).pace("m")
    return fits(admission.promises.cohorts, pace, now=now, tail=margin_of(policy)) is None


def test_what_fits_is_promised_to_a_batch() -> None:
    admission = admit(group(1_000), NOTHING, NOW, POLICY, at_once=False)
    assert (admission.sync, admission.words, admission.terms.interval) == (0, "", 4 * HOUR)
    assert admission.promises.cohorts[0].release == NOW + 28 * HOUR + OVERHEAD


def test_what_fits_only_if_it_is_sent_earlier_is_sent_at_once() -> None:
    admission = admit(group(3 * RATE), NOTHING, NOW, POLICY, at_once=False)
    assert admission.sync == 0
    assert (admission.terms.interval, admission.terms.submit_by) == (ZERO, NOW)
    assert admission.words == "submitted at once, so that its rescue fits beside what is promised"


def test_what_still_does_not_fit_goes_to_the_sync_lane() -> None:
    admission = admit(group(8 * RATE), NOTHING, NOW, POLICY, at_once=True)
    assert 2 * RATE < admission.sync < 2.1 * RATE
    assert admission.words.startswith(f"{admission.sync:,} of 45,600 run on the sync lane now, since a rescue of all")
    assert promised(admission)


def test_what_fits_nowhere_is_refused_with_the_figures() -> None:
    with pytest.raises(
        AdmissionError, match=r"177,990 requests .* need .* of the sync lane \(bound by requests_per_min"
    ):
        admit(group(177_990), NOTHING, NOW, POLICY, at_once=True)


def test_sync_work_with_a_deadline_is_promised_too() -> None:
    urgent = group(RATE, 2 * HOUR, lane=Lane.SYNC, reason=Reason.DEADLINE_INSIDE_WINDOW)
    admission = admit(urgent, NOTHING, NOW, POLICY, at_once=True)
    assert (admission.sync, len(admission.promises.cohorts)) == (0, 1)
    with pytest.raises(AdmissionError, match="5,700 requests"):
        admit(urgent, admission.promises, NOW, POLICY, at_once=True)


def test_a_call_is_promised_only_where_one_fits_before_its_deadline() -> None:
    slow = Limits(requests_per_minute=100, latency=MINUTE)
    policy = Policy(limits={"m": slow, "other": attrs.evolve(slow, latency=2 * MINUTE)})
    nothing = promises_of(Snapshot(), NOW, policy)
    urgent = {"lane": Lane.SYNC, "reason": Reason.DEADLINE_INSIDE_WINDOW}
    near = margin_of(policy) + MINUTE
    assert admit(group(1, near, **urgent), nothing, NOW, policy, at_once=True).promises is nothing
    after = group(1, near + timedelta(microseconds=1), **urgent)
    assert len(admit(after, nothing, NOW, policy, at_once=True).promises.cohorts) == 1


def test_a_refusal_says_what_to_change() -> None:
    with pytest.raises(AdmissionError) as raised:
        admit(group(177_990), NOTHING, NOW, POLICY, at_once=True)
    said = str(raised.value)
    assert said.startswith(
        f"177,990 requests for 'm' cannot be kept to their deadline {(NOW + 30 * HOUR).isoformat()} beside what is "
        "promised: 177,990 requests need "
    )
    assert said.endswith(
        "; give them a later deadline, raise Policy.limits if the account allows more, or pass a smaller "
        "expected_output_tokens"
    )


def test_a_second_class_and_a_second_group_of_it_are_promised_beside_the_first() -> None:
    promises = admit(group(10), NOTHING, NOW, POLICY, at_once=True).promises
    other = attrs.evolve(group(20), terms=attrs.evolve(group(20).terms, model="n"))
    for count in (1, 2):
        promises = admit(other, promises, NOW, POLICY, at_once=True).promises
        assert [len(each.cohorts) for each in promises.by_class.values()] == [1, count]


def test_a_deadline_so_near_that_nothing_can_be_promised_is_tried_all_the_same() -> None:
    urgent = group(1, timedelta(seconds=20), lane=Lane.SYNC, reason=Reason.DEADLINE_INSIDE_WINDOW)
    assert admit(urgent, NOTHING, NOW, POLICY, at_once=True).promises is NOTHING


@pytest.mark.parametrize(
    "free", [group(10**7, None), group(10**7, batch_only=True), group(10**7, None, lane=Lane.SYNC, blocking=True)]
)
def test_what_has_no_deadline_or_no_rescue_needs_no_promise(free: Group) -> None:
    assert admit(free, NOTHING, NOW, POLICY, at_once=True).promises is NOTHING


def test_each_alone_fits_and_together_they_do_not() -> None:
    first = admit(group(39_000, 31 * HOUR), NOTHING, NOW, POLICY, at_once=True)
    second = admit(group(39_000, 31 * HOUR), first.promises, NOW, POLICY, at_once=True)
    assert first.sync == 0 < second.sync
    assert promised(second)


def test_hedged_work_counts_as_available_once_a_cancel_has_settled() -> None:
    hedged = group(RATE, 2 * HOUR, reason=Reason.HEDGED, interval=5 * MINUTE)
    admission = admit(hedged, NOTHING, NOW, POLICY, at_once=True)
    assert (admission.sync, admission.promises.cohorts[0].release) == (0, NOW + POLICY.cancel_settle)
    assert admit(group(8 * RATE), NOTHING, NOW, HEDGE, at_once=True).sync == 0


@pytest.mark.parametrize(
    ("snapshot", "release"),
    [
        (Snapshot(sync_queue=(group(10),)), None),
        (Snapshot(sync_running=(group(10),)), None),
        (Snapshot(batch_queue=(group(10),)), 28 * HOUR),
        (Snapshot(batch_queue=(group(10, flush=True),)), 24 * HOUR),
        (Snapshot(batches=(batch(BatchState.OPEN, group(10)),)), 24 * HOUR),
        (Snapshot(batches=(batch(BatchState.IN_DOUBT, group(10)),)), 24 * HOUR),
        (Snapshot(batches=(batch(BatchState.ENDED, group(10)),)), ZERO),
    ],
)
def test_what_is_unsettled_is_promised_from_its_worst_release_on(snapshot: Snapshot, release: timedelta | None) -> None:
    (cohort,) = promises_of(snapshot, NOW, POLICY).cohorts
    over = OVERHEAD if release else ZERO
    assert cohort.release == (None if release is None else NOW + release + over)


def test_what_is_lost_already_binds_nobody() -> None:
    snapshot = Snapshot(sync_queue=(group(100, MINUTE, lane=Lane.SYNC), group(10 * RATE, 2 * HOUR, lane=Lane.SYNC)))
    promises = promises_of(snapshot, NOW, POLICY)
    assert 0 < sum(cohort.requests for cohort in promises.cohorts) < 2 * RATE
    assert admit(group(1_000), promises, NOW, POLICY, at_once=False).sync == 0


groups = st.builds(
    group,
    st.integers(1, 30_000),
    st.timedeltas(HOUR, 48 * HOUR),
    lane=st.sampled_from(Lane),
    reason=st.sampled_from([Reason.LATENCY_TOLERANT, Reason.HEDGED]),
    interval=st.timedeltas(ZERO, 4 * HOUR),
)


def tolerant(each: Group) -> bool:
    left = (each.terms.deadline or NOW) - NOW
    return each.terms.reason is Reason.HEDGED or left >= 30 * HOUR or each.terms.lane is Lane.SYNC


@given(st.lists(groups.filter(tolerant), max_size=6), st.booleans(), st.booleans())
def test_whatever_is_accepted_fits_in_the_worst_case(work: Sequence[Group], hedge: bool, at_once: bool) -> None:
    policy = HEDGE if hedge else POLICY
    promises = NOTHING
    for each in work:
        try:
            admission = admit(each, promises, NOW, policy, at_once=at_once)
        except AdmissionError:
            continue
        assert promised(admission, policy=policy)
        assert 0 <= admission.sync <= each.requests
        assert admission.sync == 0 or each.terms.lane is Lane.BATCH
        before, after = (sum(cohort.requests for cohort in some.cohorts) for some in (promises, admission.promises))
        assert after - before == each.requests
        promises = admission.promises


@given(st.lists(groups, max_size=6))
def test_the_quick_test_never_says_yes_to_what_does_not_fit(work: Sequence[Group]) -> None:
    capacity, tail = Capacity(POLICY, NOW), margin_of(POLICY)
    cohorts = [Cohort(deadline=each.terms.deadline or NOW, requests=each.requests, release=NOW + HOUR) for each in work]
    promises = Promises.of(cohorts, capacity, NOW, tail)
    if all(promised.surely_fits for promised in promises.by_class.values()):
        assert fits(cohorts, capacity.pace(""), now=NOW, tail=tail) is None


def test_only_deadlines_to_come_that_the_sync_lane_can_keep_are_promised() -> None:
    free, lost, alone, kept = group(1, None), group(2, ZERO), group(3, batch_only=True), group(4, HOUR)
    for place in ("sync_queue", "sync_running", "batch_queue"):
        promises = promises_of(Snapshot(**{place: (free, lost, alone, kept)}), NOW, POLICY)
        assert [cohort.requests for cohort in promises.cohorts] == [4]


def test_a_batch_expires_a_window_after_its_creation_or_else_its_seal() -> None:
    ahead = 5 * MINUTE  # the server's clock, by which a creation is told
    for created in (NOW - HOUR + ahead, None):
        view = attrs.evolve(batch(BatchState.OPEN, group(1)), created_at=created, sealed_at=NOW - 2 * HOUR)
        (cohort,) = promises_of(Snapshot(batches=(view,), clock_offset=ahead), NOW, POLICY).cohorts
        assert cohort.release == NOW + (23 if created else 22) * HOUR + OVERHEAD


def test_what_needs_no_promise_is_admitted_as_it_is() -> None:
    for free in (group(1, None), group(1, batch_only=True)):
        assert admit(free, NOTHING, NOW, POLICY, at_once=False) == Admission(free.terms, 0, NOTHING)
    sync = group(1, lane=Lane.SYNC)
    found = admit(sync, NOTHING, NOW, POLICY, at_once=False)
    assert (found.terms, found.sync, found.words) == (sync.terms, 0, "")


@pytest.mark.parametrize("requests", [8 * RATE, 8 * RATE + 1, 8 * RATE + 2])
def test_a_split_is_submitted_at_once_and_moves_no_more_than_it_has_to(requests: int) -> None:
    asked = group(requests)
    admission = admit(asked, NOTHING, NOW, POLICY, at_once=True)
    assert admission.terms == attrs.evolve(asked.terms, interval=ZERO, submit_by=NOW)
    assert promised(admission)
    assert sum(cohort.requests for cohort in admission.promises.cohorts) == requests

    def schedule(sync: int) -> list[Cohort]:
        deadline, expiry = NOW + 30 * HOUR, NOW + 24 * HOUR + OVERHEAD
        batched = Cohort(deadline=deadline, requests=requests - sync, release=expiry)
        return [batched, Cohort(deadline=deadline, requests=sync, release=NOW)]

    assert fits(schedule(admission.sync), Capacity(POLICY, NOW).pace("m"), now=NOW, tail=margin_of(POLICY)) is None
    assert (
        fits(schedule(admission.sync - 1), Capacity(POLICY, NOW).pace("m"), now=NOW, tail=margin_of(POLICY)) is not None
    )


def test_what_is_lost_binds_only_as_far_as_it_can_be_kept() -> None:
    late = attrs.evolve(group(2 * RATE, HOUR, lane=Lane.SYNC), size=RATE * 8_000)
    (cohort,) = promises_of(Snapshot(sync_queue=(late,)), NOW, POLICY).cohorts
    assert 0 < cohort.requests < RATE
    assert cohort.input_tokens == late.input_tokens * cohort.requests // late.requests
    assert cohort.output_tokens == late.output_tokens * cohort.requests // late.requests


def test_a_refusal_says_what_lacks_and_what_to_do() -> None:
    for lane in Lane:
        with pytest.raises(AdmissionError) as raised:
            admit(group(40 * RATE, lane=lane), NOTHING, NOW, POLICY, at_once=True)
        said = str(raised.value)
        assert said.startswith("228,000 requests for 'm' cannot be kept to their deadline 2026-11-24T18:00:00+00:00")
        assert "of the sync lane (bound by requests_per_minute) between" in said
        assert said.endswith("give them a later deadline, raise Policy.limits if the account allows more, "
                             "or pass a smaller expected_output_tokens")  # fmt: skip


def test_a_rescue_keeps_time_for_its_way_and_the_slowest_call() -> None:
    assert overhead_of(Policy()) == timedelta(minutes=2, seconds=32)
    assert margin_of(Policy()) == timedelta(minutes=1, seconds=30)
    assert least_reserve(Policy(reserve=HOUR, min_reserve=2 * HOUR)) == HOUR
    assert least_reserve(Policy(min_reserve=ZERO)) == timedelta(minutes=2, seconds=32)
    assert reserve_for(Policy(), 12 * HOUR) == 4 * HOUR
    assert reserve_for(Policy(reserve=HOUR), 12 * HOUR) == HOUR
    assert reserve_for(Policy(), 30 * MINUTE) == 15 * MINUTE


def test_a_part_of_a_group_has_its_part_of_the_tokens() -> None:
    promises = admit(group(8 * RATE), NOTHING, NOW, POLICY, at_once=True).promises
    assert len(promises.cohorts) == 2
    assert [cohort.input_tokens for cohort in promises.cohorts] == [25 * cohort.requests for cohort in promises.cohorts]


def test_what_is_lost_is_reckoned_by_the_limits_of_its_class() -> None:
    policy = Policy(limits={"m": Limits(requests_per_minute=100)})
    promises = promises_of(Snapshot(sync_queue=(group(100_000, HOUR),)), NOW, policy)
    assert sum(cohort.requests for cohort in promises.cohorts) == int((HOUR - margin_of(policy)) / HOUR * RATE)


def test_what_waits_for_a_primer_is_free_only_when_its_own_window_is_over_too() -> None:
    """A primer that was sealed two hours ago writes the prefix "p"; what shares it goes after the primer's window."""
    primer = attrs.evolve(batch(BatchState.OPEN, group(1, None, prefix="p")), sealed_at=NOW - 2 * HOUR)
    follows, other = group(10, 60 * HOUR, prefix="p"), group(10, 60 * HOUR, prefix="q")
    for caching, waits in ((Caching.PRIMER, 22 * HOUR + OVERHEAD), (Caching.PRIMED, 4 * HOUR)):
        view = attrs.evolve(primer, caching=caching)
        found = promises_of(Snapshot(batch_queue=(follows, other), batches=(view,)), NOW, POLICY).cohorts
        window = 24 * HOUR + OVERHEAD
        assert [cohort.release for cohort in found] == [NOW + waits + window, NOW + 4 * HOUR + window]
    late = attrs.evolve(follows, terms=attrs.evolve(follows.terms, interval=30 * HOUR))
    (cohort,) = promises_of(
        Snapshot(batch_queue=(late,), batches=(attrs.evolve(primer, caching=Caching.PRIMER),)), NOW, POLICY
    ).cohorts
    assert cohort.release == NOW + 54 * HOUR + OVERHEAD


def test_a_second_class_takes_its_share_of_the_calls_from_the_first() -> None:
    """Each class alone could use 800 of the 1,000 calls that a process runs at once."""
    policy = Policy(limits=Limits(requests_per_minute=4_800, latency=timedelta(seconds=10)))
    nothing = promises_of(Snapshot(), NOW, policy)
    one = Cohort(deadline=NOW + HOUR, requests=10, model="m")
    first = nothing.with_one(one, NOW)
    second = first.with_one(attrs.evolve(one, model="n"), NOW)
    third = second.with_one(Cohort(deadline=NOW + 2 * HOUR, requests=30, model="n"), NOW)
    third = third.with_one(Cohort(deadline=NOW + HOUR / 2, requests=30, model="n"), NOW)
    assert (first.capacity.classes, second.capacity.classes) == ({"m"}, {"m", "n"})
    assert third.capacity is second.capacity
    assert [promises.capacity.limits("m").concurrency for promises in (first, second, third)] == [1_000, 500, 500]
    for promises in (first, second, third):
        assert promises == Promises.of(promises.cohorts, promises.capacity, NOW, promises.margin)


def test_what_no_batch_can_have_in_time_goes_to_the_sync_lane_whole() -> None:
    admission = admit(group(100, 20 * HOUR), NOTHING, NOW, POLICY, at_once=True)
    assert admission.sync == 100
    assert admission.words.startswith("100 of 100 run on the sync lane now")
    assert [(cohort.requests, cohort.release) for cohort in admission.promises.cohorts] == [(100, NOW)]


def test_what_is_lost_in_one_class_takes_nothing_from_another() -> None:
    def of(model: str, requests: int, due: timedelta) -> Group:
        found = group(requests, due, lane=Lane.SYNC)
        return attrs.evolve(found, terms=attrs.evolve(found.terms, model=model))

    lost, fine = of("m", 2 * RATE, HOUR), of("n", 7, 2 * HOUR)
    for queue in ((lost, fine), (fine, lost)):
        promises = promises_of(Snapshot(sync_queue=queue), NOW, POLICY)
        kept = {model: sum(each.requests for each in promises.by_class[model].cohorts) for model in "mn"}
        assert kept == {"m": int((HOUR - margin_of(POLICY)) / HOUR * RATE), "n": 7}
    hopeless = promises_of(Snapshot(sync_queue=(of("m", 3, MINUTE), of("m", 2 * RATE, HOUR))), NOW, POLICY)
    assert [cohort.deadline for cohort in hopeless.cohorts] == [NOW + HOUR]


def test_what_waits_for_a_primer_is_promised_from_its_end_on_and_only_once() -> None:
    first, second = (group(hours * RATE, prefix="p", interval=ZERO) for hours in (2, 1))
    second = attrs.evolve(second, terms=attrs.evolve(second.terms, id=2))
    free = 30 * HOUR - margin_of(POLICY) - 24 * HOUR - OVERHEAD
    for queue, hours in (((first,), 2), ((first, second), 3)):
        latest = NOW + free - hours * HOUR
        waiting = Snapshot(batch_queue=queue)
        assert may_wait(waiting, "p", latest, NOW, POLICY)
        assert not may_wait(waiting, "p", latest + MINUTE, NOW, POLICY)
        assert may_wait(waiting, "q", latest + HOUR, NOW, POLICY)
    alone = group(1, None, prefix="p"), group(1, batch_only=True, prefix="p")
    assert may_wait(Snapshot(batch_queue=alone), "p", NOW + 99 * HOUR, NOW, POLICY)


def test_a_class_without_work_needs_no_promises() -> None:
    capacity = Capacity(POLICY, NOW)
    promises = Promises.of((), capacity, NOW, ZERO).with_classes({"m": ()}, NOW)
    assert promises.cohorts == ()
    assert promises.kept(NOW) is None
