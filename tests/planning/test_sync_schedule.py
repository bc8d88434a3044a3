"""The shared rescue against brute force: unit tasks on a lane of one unit a microsecond, matched to time slots."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.strategies import HOUR, NOW
from tests.strategies import limits as any_limits

from batchwise.errors import InvalidValueError
from batchwise.models import Limits
from batchwise.planning import sync_schedule
from batchwise.planning.sync_schedule import Cohort, Pace, at_risk, fits, latest_starts, servable, work

ZERO = timedelta(0)
US = timedelta(microseconds=1)
UNIT = Pace(limits=Limits(input_tokens_per_minute=60_000_000))
"""One input token takes one microsecond, so that figures below are small whole numbers."""


def cohort(due: int, tokens: int, release: int = 0, requests: int = 1) -> Cohort:
    return Cohort(deadline=NOW + due * US, requests=requests, input_tokens=tokens, release=NOW + release * US)


def at(moment: datetime) -> int:
    return (moment - NOW) // US


small = st.builds(cohort, st.integers(0, 16), st.integers(0, 6), st.integers(-3, 12))
small_cohorts = st.lists(small, max_size=5)
big = st.builds(
    Cohort,
    deadline=st.timedeltas(ZERO, 60 * HOUR).map(lambda after: NOW + after),
    requests=st.integers(1, 100_000),
    input_tokens=st.integers(0, 10**9),
    output_tokens=st.integers(0, 10**8),
    release=st.none() | st.timedeltas(-HOUR, 60 * HOUR).map(lambda after: NOW + after),
)
big_cohorts = st.lists(big, min_size=1, max_size=8)
any_paces = any_limits.map(lambda limits: Pace(limits=limits))


def can_be_in_time(cohorts: list[Cohort], tail: int = 0) -> bool:
    """Whether unit tasks can be matched to the time slots between release and due: feasible by any schedule."""
    tasks = [range(max(0, at(c.release or NOW)), at(c.deadline) - tail) for c in cohorts for _ in range(c.input_tokens)]
    taken: dict[int, int] = {}

    def place(task: int, seen: set[int]) -> bool:
        for slot in tasks[task]:
            if slot not in seen:
                seen.add(slot)
                if slot not in taken or place(taken[slot], seen):
                    taken[slot] = task
                    return True
        return False

    # A cohort without work is in time if it can start by its due.
    idle = all(max(0, at(c.release or NOW)) <= at(c.deadline) - tail for c in cohorts if not c.input_tokens)
    return idle and all(place(task, set()) for task in range(len(tasks)))


class TestProtocolExample:
    pace = Pace(limits=Limits(requests_per_minute=400))
    cohorts = tuple(
        Cohort(deadline=NOW + due * HOUR, requests=40_000, release=NOW + release * HOUR)
        for due, release in ((30, 28.0), (30 + 1 / 6, 28.1), (30 + 1 / 3, 28.2))
    )

    def test_each_alone_fits_and_together_two_miss(self):
        for alone in self.cohorts:
            assert work(alone, self.pace) == timedelta(hours=1, minutes=40)
            assert fits([alone], self.pace, now=NOW, tail=ZERO) is None
        shortfall = fits(self.cohorts, self.pace, now=NOW, tail=ZERO)
        assert shortfall is not None
        assert (shortfall.start, shortfall.end) == (NOW + 28 * HOUR, NOW + (30 + 1 / 3) * HOUR)
        assert shortfall.needed == 5 * HOUR
        assert shortfall.available == timedelta(hours=2, minutes=20)
        assert shortfall.missing == timedelta(hours=2, minutes=40)
        assert shortfall.requests == 120_000
        assert str(shortfall) == (
            "120,000 requests need 5 h of the sync lane (bound by requests_per_minute) between "
            "2026-11-24 16:00:00+00:00 and 2026-11-24 18:20:00+00:00, which is 2 h 20 min: 2 h 40 min too short"
        )
        assert fits(self.cohorts[:2], self.pace, now=NOW, tail=ZERO) is not None

    def test_the_first_has_to_start_at_25_33_h(self):
        starts = latest_starts(self.cohorts, self.pace, tail=ZERO)
        assert [start - NOW for start in starts] == [
            timedelta(hours=25, minutes=20),
            timedelta(hours=27),
            timedelta(hours=28, minutes=40),
        ]

    def test_what_is_lost_when_nobody_started_early(self):
        now = NOW + 28.2 * HOUR  # 2:08 are left to the last deadline: 51,200 requests
        assert at_risk(self.cohorts, self.pace, now=now, tail=ZERO) == 120_000 - 51_200
        assert sum(servable(self.cohorts, self.pace, now=now, tail=ZERO)) == 51_200


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(), ZERO),
        (Limits(requests_per_minute=60), timedelta(seconds=100)),
        (Limits(requests_per_minute=60, input_tokens_per_minute=600), timedelta(seconds=300)),
        (Limits(requests_per_minute=60, output_tokens_per_minute=60), timedelta(seconds=500)),
        (Limits(requests_per_minute=60, concurrency=4, latency=timedelta(seconds=8)), timedelta(seconds=200)),
        (Limits(input_tokens_per_minute=7), timedelta(microseconds=25_714_285_715)),
    ],
)
def test_work_is_that_of_the_tightest_resource_rounded_up(limits, expected):
    some = Cohort(deadline=NOW, requests=100, input_tokens=3_000, output_tokens=500)
    assert work(some, Pace(limits=limits)) == expected


@given(small_cohorts, st.integers(0, 3))
def test_fits_exactly_what_some_schedule_can_do(cohorts, tail):
    assert (fits(cohorts, UNIT, now=NOW, tail=tail * US) is None) == can_be_in_time(cohorts, tail)


@given(small_cohorts, st.integers(0, 3))
def test_a_shortfall_is_the_worst_of_all_spans(cohorts, tail):
    spans = [(max(0, at(c.release or NOW)), at(c.deadline) - tail, c) for c in cohorts]
    lacks = {
        (start, end): sum(c.input_tokens for release, due, c in spans if start <= release and due <= end)
        - (end - start)
        for start, _, _ in spans
        for _, end, _ in spans
        if any(start <= release and due <= end for release, due, _ in spans)
    }
    shortfall = fits(cohorts, UNIT, now=NOW, tail=tail * US)
    if shortfall is None:
        assert all(lack <= 0 for lack in lacks.values())
    else:
        assert shortfall.missing == max(lacks.values()) * US
        assert lacks[at(shortfall.start), at(shortfall.end)] * US == shortfall.missing
        assert shortfall.available == shortfall.end - shortfall.start
        assert 1 <= shortfall.requests <= len(cohorts)
        assert str(shortfall)


@given(st.lists(small, min_size=1, max_size=5), st.integers(0, 3))
def test_latest_starts_are_in_time_and_a_microsecond_later_is_not(cohorts, tail):
    starts = latest_starts(cohorts, UNIT, tail=tail * US)
    order = sorted(range(len(cohorts)), key=lambda index: (cohorts[index].deadline, index))
    first = min(at(start) for start in starts)
    for position, index in enumerate(order):
        rest = [cohorts[other] for other in order[position:]]
        for delay, expected in ((0, True), (1, False)):
            begun = [cohort(at(c.deadline) - first, c.input_tokens, at(starts[index]) - first + delay) for c in rest]
            assert can_be_in_time(begun, tail) is expected


@given(big_cohorts, any_paces, st.timedeltas(ZERO, HOUR))
def test_latest_starts_run_one_after_the_other(cohorts, pace, tail):
    starts = latest_starts(cohorts, pace, tail=tail)
    order = sorted(range(len(cohorts)), key=lambda index: (cohorts[index].deadline, index))
    following = None
    for index in reversed(order):
        by = cohorts[index].deadline - tail
        end = starts[index] + work(cohorts[index], pace)
        assert end == (by if following is None else min(by, following))
        following = starts[index]
    begun = [
        Cohort(
            deadline=c.deadline,
            requests=c.requests,
            input_tokens=c.input_tokens,
            output_tokens=c.output_tokens,
            release=start,
        )
        for c, start in zip(cohorts, starts, strict=True)
    ]
    assert fits(begun, pace, now=min(starts), tail=tail) is None


@example(
    cohorts=[
        Cohort(deadline=NOW, requests=1, release=NOW + timedelta(days=1)),
        *[Cohort(deadline=NOW + timedelta(days=1, minutes=2), requests=2, release=NOW + timedelta(days=1))] * 2,
    ],
    pace=Pace(limits=Limits(requests_per_minute=1)),
    more=Cohort(deadline=NOW, requests=1),
)  # early work, however little, does not make the later ones' time longer
@given(big_cohorts, any_paces, big)
def test_more_work_and_less_capacity_never_start_later(cohorts, pace, more):
    starts = latest_starts(cohorts, pace, tail=ZERO)
    assert all(new <= old for new, old in zip(latest_starts([*cohorts, more], pace, tail=ZERO), starts, strict=False))
    less = Limits(
        **{
            name: None if value is None else max(1, value // 2)
            for name in ("requests_per_minute", "input_tokens_per_minute", "output_tokens_per_minute", "concurrency")
            for value in [getattr(pace.limits, name)]
        },
        latency=pace.limits.latency * 2,
    )
    halved = Pace(limits=less)
    assert all(new <= old for new, old in zip(latest_starts(cohorts, halved, tail=ZERO), starts, strict=True))
    if fits(cohorts, pace, now=NOW, tail=ZERO) is not None:
        assert fits([*cohorts, more], pace, now=NOW, tail=ZERO) is not None
        assert fits(cohorts, halved, now=NOW, tail=ZERO) is not None
    assert at_risk(cohorts, pace, now=NOW, tail=ZERO) <= at_risk([*cohorts, more], pace, now=NOW, tail=ZERO)
    assert at_risk(cohorts, pace, now=NOW, tail=ZERO) <= at_risk(cohorts, halved, now=NOW, tail=ZERO)


alike = st.builds(
    lambda due, each, count, release: cohort(due, each * count, release, count),
    st.integers(-1, 16),
    st.integers(0, 4),
    st.integers(1, 4),
    st.just(0),
)


def most_in_time(cohorts: list[Cohort], tail: int) -> int:
    """The most requests, by trying every choice of counts."""
    best = 0
    for counts in product(*(range(c.requests + 1) for c in cohorts)):
        if sum(counts) > best:
            chosen = [
                cohort(at(c.deadline), c.input_tokens // c.requests * count, at(c.release or NOW), count)
                for c, count in zip(cohorts, counts, strict=True)
                if count
            ]
            if can_be_in_time(chosen, tail):
                best = sum(counts)
    return best


@given(st.lists(alike, max_size=4), st.integers(0, 2))
def test_at_risk_is_what_no_choice_of_requests_can_avoid(cohorts, tail):
    total, best = sum(c.requests for c in cohorts), most_in_time(cohorts, tail)
    assert at_risk(cohorts, UNIT, now=NOW, tail=tail * US) == total - best
    assert sum(servable(cohorts, UNIT, now=NOW, tail=tail * US)) == best


@given(
    st.lists(
        st.builds(
            lambda c, release: cohort(at(c.deadline), c.input_tokens, release, c.requests), alike, st.integers(-2, 10)
        ),
        max_size=4,
    )
)
def test_with_later_releases_the_truth_lies_between_servable_and_at_risk(cohorts):
    total, best = sum(c.requests for c in cohorts), most_in_time(cohorts, 0)
    counts = servable(cohorts, UNIT, now=NOW, tail=ZERO)
    assert sum(counts) <= best <= total - at_risk(cohorts, UNIT, now=NOW, tail=ZERO)
    served = [
        cohort(at(c.deadline), c.input_tokens // c.requests * count, at(c.release or NOW), count)
        for c, count in zip(cohorts, counts, strict=True)
        if count
    ]
    assert can_be_in_time(served)


@given(big_cohorts, any_paces)
def test_all_can_be_served_exactly_if_all_fits(cohorts, pace):
    counts = servable(cohorts, pace, now=NOW, tail=ZERO)
    everything = tuple(c.requests for c in cohorts)
    if fits(cohorts, pace, now=NOW, tail=ZERO) is None:
        assert counts == everything
        assert at_risk(cohorts, pace, now=NOW, tail=ZERO) == 0
    else:
        assert counts != everything
        assert sum(counts) <= sum(everything) - at_risk(cohorts, pace, now=NOW, tail=ZERO)


def test_a_later_release_leaves_its_cohort_only_the_time_after_it():
    late = cohort(10, 12, 7, requests=6)  # three units of time for calls of two
    early = cohort(10, 1)
    assert at_risk([early, late], UNIT, now=NOW, tail=ZERO) == 5
    assert servable([early, late], UNIT, now=NOW, tail=ZERO) == (1, 1)


def test_resources_that_bind_different_cohorts_are_not_taken_as_parallel():
    pace = Pace(limits=Limits(requests_per_minute=1_000, input_tokens_per_minute=1_000_000))
    heavy = Cohort(deadline=NOW + 0.9 * HOUR, requests=6_000, input_tokens=54_000_000)
    many = Cohort(deadline=NOW + HOUR, requests=54_000, input_tokens=6_000_000)
    assert fits([heavy], pace, now=NOW, tail=ZERO) is None
    shortfall = fits([heavy, many], pace, now=NOW, tail=ZERO)
    assert shortfall is not None
    assert shortfall.needed == 1.8 * HOUR
    assert at_risk([heavy, many], pace, now=NOW, tail=ZERO) == 0  # a lower bound: each resource by itself has room


def test_without_limits_only_what_is_past_its_moment_is_lost():
    late = Cohort(deadline=NOW + HOUR, requests=3, release=NOW + 2 * HOUR)
    good = Cohort(deadline=NOW + HOUR, requests=4)
    assert fits([good], Pace(limits=Limits()), now=NOW, tail=HOUR) is None
    shortfall = fits([good, late], Pace(limits=Limits()), now=NOW, tail=ZERO)
    assert shortfall is not None
    assert str(shortfall) == (
        "3 requests can start at 2026-11-23 14:00:00+00:00, 1 h after they had to (2026-11-23 13:00:00+00:00)"
    )
    assert at_risk([good, late], Pace(limits=Limits()), now=NOW, tail=ZERO) == 3
    assert servable([good, late], Pace(limits=Limits()), now=NOW, tail=ZERO) == (4, 0)


def test_nothing_fits_and_risks_nothing():
    assert fits([], UNIT, now=NOW, tail=ZERO) is None
    assert latest_starts([], UNIT, tail=ZERO) == ()
    assert at_risk([], UNIT, now=NOW, tail=ZERO) == 0
    assert servable([], UNIT, now=NOW, tail=ZERO) == ()


@pytest.mark.parametrize(
    "limit", ["requests_per_minute", "input_tokens_per_minute", "output_tokens_per_minute", "concurrency"]
)
def test_a_shortfall_names_the_limit_that_binds(limit):
    much = Cohort(deadline=NOW + HOUR, requests=1_000, input_tokens=1_000, output_tokens=1_000)
    shortfall = fits([much], Pace(limits=Limits(**{limit: 1}, latency=HOUR)), now=NOW, tail=ZERO)
    assert shortfall is not None
    assert shortfall.resource == limit
    assert f"(bound by {limit})" in str(shortfall)


def test_absurd_work_has_an_answer():
    endless = Cohort(deadline=NOW, requests=10**12)
    slow = Pace(limits=Limits(requests_per_minute=1))
    assert latest_starts([endless], slow, tail=ZERO)[0].year == 1
    assert at_risk([endless], slow, now=NOW, tail=ZERO) == 10**12
    assert fits([Cohort(deadline=NOW, requests=10**15)], slow, now=NOW, tail=ZERO) is not None


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Cohort(deadline=datetime(2026, 1, 1), requests=1), "deadline=2026-01-01T00:00:00 is"),  # noqa: DTZ001
        (lambda: Cohort(deadline=NOW, requests=1, release=datetime(2026, 1, 1)), "release=2026-01-01T00:00:00 is"),  # noqa: DTZ001
        (lambda: Cohort(deadline=NOW, requests=0), "requests=0 "),
        (lambda: Cohort(deadline=NOW, requests=True), "requests=True"),
        (lambda: Cohort(deadline=NOW, requests=1, output_tokens=-1), "output_tokens=-1"),
        (lambda: fits([], UNIT, now=datetime(2026, 1, 1), tail=ZERO), "now="),  # noqa: DTZ001
        (lambda: fits([], UNIT, now=NOW, tail=-US), "tail="),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(call, said):
    with pytest.raises(InvalidValueError, match=f"^{said}"):
        call()


def test_ten_thousand_cohorts_take_a_linear_number_of_steps():
    cohorts = [cohort(200_000 + index * 7_919 % 10_007, 9, index * 104_729 % 100_003) for index in range(10_000)]
    runs, left = sync_schedule._edf(sync_schedule._to_jobs(cohorts, UNIT, NOW, ZERO))
    assert not any(left)
    assert len(runs) <= 2 * len(cohorts)
    assert fits(cohorts, UNIT, now=NOW, tail=ZERO) is None
    assert at_risk(cohorts, UNIT, now=NOW, tail=ZERO) == 0
    assert servable(cohorts, UNIT, now=NOW, tail=ZERO) == (1,) * 10_000


def test_a_shortfall_names_the_limit_that_takes_most_of_the_time() -> None:
    """An hour of requests and two hours of input tokens, all due in two hours."""
    pace = Pace(limits=Limits(requests_per_minute=10, input_tokens_per_minute=1_000))
    cohorts = [
        Cohort(deadline=NOW + 2 * HOUR, requests=600),
        Cohort(deadline=NOW + 2 * HOUR, requests=1, input_tokens=120_000),
    ]
    for some in (cohorts, cohorts[::-1]):
        shortfall = fits(some, pace, now=NOW, tail=ZERO)
        assert shortfall is not None
        assert (shortfall.resource, shortfall.requests) == ("input_tokens_per_minute", 601)
        assert (shortfall.needed, shortfall.available, shortfall.missing) == (3 * HOUR, 2 * HOUR, HOUR)


def test_what_is_lost_before_a_release_and_after_it_is_counted_together() -> None:
    """Three calls of 20 min are due in 10 min; later ten of 1 min are free together, 5 min before they are due."""
    minute = timedelta(minutes=1)
    pace = Pace(limits=Limits(input_tokens_per_minute=1))
    lost = Cohort(deadline=NOW + 10 * minute, requests=3, input_tokens=60)
    later = [
        Cohort(deadline=NOW + 105 * minute, requests=5, input_tokens=5, release=NOW + 100 * minute) for _ in range(2)
    ]
    assert at_risk([lost, *later], pace, now=NOW, tail=ZERO) == 3 + 5
    assert sum(servable([lost, *later], pace, now=NOW, tail=ZERO)) == 5


def test_a_tail_that_is_no_duration_is_refused_by_name() -> None:
    for call in (latest_starts, fits, at_risk, servable):
        moment = {} if call is latest_starts else {"now": NOW}
        with pytest.raises(InvalidValueError, match=r"^tail="):
            call([Cohort(deadline=NOW, requests=1)], Pace(limits=Limits()), tail=-HOUR, **moment)


def test_a_shortfall_in_words_at_the_end_of_the_time_there_is() -> None:
    for due, words in ((ZERO, "which is 0 ms: 1 min too short"), (-HOUR / 60, "1 min after they had to")):
        ten = Cohort(deadline=NOW + due, requests=10)
        shortfall = fits([ten], Pace(limits=Limits(requests_per_minute=10)), now=NOW, tail=ZERO)
        assert words in str(shortfall)
