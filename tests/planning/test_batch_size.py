"""The size of batches that is chosen by how long batches of each size have taken."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import HOUR, NOW

from batchwise import Lane, Policy, Reason
from batchwise.planning import planner
from batchwise.planning.agenda import Seal
from batchwise.planning.batch_size import SIZES, best_size, expected_ends, well_known
from batchwise.planning.forecast import Forecast, Sample, size_class
from batchwise.planning.state import Group, Snapshot, Terms

LARGEST = 100_000
MINUTE = timedelta(minutes=1)
CLASSES = st.integers(3, 6)
times = st.integers(1, 10_000).map(lambda seconds: timedelta(seconds=seconds))
ends_by_class = st.dictionaries(CLASSES, times)


@given(st.integers(1, 1_000_000), ends_by_class)
def test_a_smaller_size_is_chosen_only_where_it_ends_clearly_earlier(requests: int, ends: dict[int, timedelta]) -> None:
    size = best_size(requests, ends)
    assert size in {LARGEST, *SIZES}
    whole = ends.get(size_class(min(requests, LARGEST)))
    if size == LARGEST:
        return
    assert size < requests <= 100 * size
    assert whole is not None
    assert ends[size_class(size)] <= 0.9 * whole
    larger = [each for each in SIZES if size < each < requests <= 100 * each and size_class(each) in ends]
    assert all(ends[size_class(size)] <= 0.9 * ends[size_class(each)] for each in larger), "a larger one is as early"


@given(st.integers(1, 1_000_000), ends_by_class)
def test_a_size_that_is_much_earlier_is_not_passed_over(requests: int, ends: dict[int, timedelta]) -> None:
    whole = ends.get(size_class(min(requests, LARGEST)))
    chosen = best_size(requests, ends)
    there = whole if chosen == LARGEST else ends[size_class(chosen)]
    for size in SIZES:
        if whole is not None and size_class(size) in ends and size < requests <= 100 * size:
            assert there is not None
            assert ends[size_class(size)] > there * 0.8


@given(st.integers(1, 1_000_000), times)
def test_where_all_sizes_are_alike_or_unknown_batches_are_as_large_as_can_be(requests: int, time: timedelta) -> None:
    assert best_size(requests, {}) == LARGEST
    assert best_size(requests, dict.fromkeys(range(1, 7), time)) == LARGEST
    assert best_size(requests, {3: time}) == LARGEST or size_class(min(requests, LARGEST)) == 3


def group(number: int, model: str, requests: int) -> Group:
    terms = Terms(
        id=number,
        lane=Lane.BATCH,
        reason=Reason.LATENCY_TOLERANT,
        model=model,
        max_tokens=10,
        output_tokens=10,
        interval=HOUR,
    )
    return Group(terms=terms, requests=requests, size=100 * requests, since=NOW, flush=True)


def test_groups_of_several_models_count_by_their_requests() -> None:
    ends = {("a", 3): 10 * MINUTE, ("b", 3): 20 * MINUTE, ("a", 4): HOUR}
    assert expected_ends([group(1, "a", 300), group(2, "b", 100)], ends) == {3: 12.5 * MINUTE}
    assert expected_ends([group(1, "a", 300)], ends) == {3: 10 * MINUTE, 4: HOUR}


def ends_of(samples: list[Sample]) -> dict[tuple[str, int], timedelta]:
    """As a dispatcher gives them."""
    return {
        ("m", size_class(size)): Forecast.from_history(samples, model="m", requests=size).expected(24 * HOUR)
        for size in (LARGEST, *SIZES)
        if ("m", size_class(size)) in well_known(samples)
    }


def sample(requests: int, duration: timedelta) -> Sample:
    return Sample(kind="batch", duration=duration, ended=True, model="m", requests=requests, hour=12)


def seal(requests: int, samples: list[Sample], most: object = "auto") -> int:
    """The most requests of the batch that the planner seals now."""
    snapshot = Snapshot(batch_queue=(group(1, "m", requests),), batch_ends=ends_of(samples))
    policy = Policy(max_batch_requests=most)  # type: ignore[arg-type]
    (found,) = (each for each in planner.plan(snapshot, NOW, policy) if isinstance(each, Seal))
    return found.max_requests


def test_the_record_decides() -> None:
    """1,000 rows took 5 minutes and 100,000 rows 2 h 44 min, as users measured."""
    slow = [sample(100_000, timedelta(hours=2, minutes=44))] * 10
    quick = [sample(1_000, 5 * MINUTE)] * 10
    assert seal(80_000, []) == LARGEST, "nothing is known"
    assert seal(100_000, slow + quick) == 1_000
    assert seal(100_000, slow) == seal(100_000, quick) == LARGEST, "nothing is known of the other"
    assert seal(100_000, slow + quick[:4]) == LARGEST, "too little is known of it"
    assert seal(900, slow + quick) == LARGEST
    assert seal(250_000, [*slow, *quick, *[sample(10_000, 30 * MINUTE)] * 10]) == 10_000, "at most 100 batches"
    assert seal(100_000, slow + quick, None) == LARGEST, "off unless it is asked for"
    assert seal(100_000, slow + quick, 500) == 500


def test_a_tenth_earlier_is_enough_and_less_is_not() -> None:
    minute, microsecond = timedelta(seconds=100), timedelta(microseconds=1)
    assert best_size(50_000, {5: minute, 4: minute * 9 / 10}) == 1_000
    assert best_size(50_000, {5: minute, 4: minute * 9 / 10 + microsecond}) == LARGEST


def test_five_batches_of_a_model_that_have_ended_are_enough() -> None:
    def seen(number: int, **others: Any) -> list[Sample]:
        told = {"duration": HOUR, "ended": True, "model": "m", "requests": 500, "hour": 3, **others}
        return [Sample(**told)] * number

    assert well_known(seen(5)) == {("m", 3)}
    assert well_known(seen(4)) == frozenset()
    for others in ({"ended": False}, {"kind": "cancel"}, {"model": ""}, {"model": "n"}, {"requests": 5}):
        assert well_known([*seen(4), *seen(1, **others)]) == frozenset()
