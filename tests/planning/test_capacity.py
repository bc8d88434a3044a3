"""What the sync lane is planned with: classes of models, the account's limits, and what was measured."""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import HOUR, NOW

from batchwise.errors import InvalidValueError
from batchwise.models import Limits, Policy
from batchwise.planning.capacity import (
    FILLED,
    MOST_CALLS,
    Capacity,
    Measured,
    calls_at_once,
    class_of,
    given_limits,
    latest,
    limits_of,
    queue_limit,
    tail_of,
)
from batchwise.planning.reserve import margin_of

MINUTE = timedelta(minutes=1)
START = Limits.for_tier("start")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("claude-haiku-4-5", "claude-haiku-4-5"),
        ("claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("anthropic.claude-haiku-4-5-20251001-v1:0", "claude-haiku-4-5"),
        ("claude-haiku-4-5@20251001", "claude-haiku-4-5"),
        ("claude-opus-4-1-20250805", "claude-opus-4"),
        ("claude-opus-4-5", "claude-opus-4"),
        ("claude-opus-5-5", "claude-opus-5-5"),
        ("claude-opus-40", "claude-opus-40"),
        ("some-model", "some-model"),
    ],
)
def test_models_that_share_a_limit_are_of_one_class(model: str, name: str) -> None:
    assert class_of(model, None) == class_of(name, None) == name


def test_the_longest_prefix_gives_the_limits_and_what_has_none_follows_the_headers() -> None:
    few, many = Limits(requests_per_minute=5), Limits(requests_per_minute=500)
    given = {"claude": many, "claude-haiku": few}
    assert class_of("claude-haiku-4-5", given) == "claude-haiku"
    assert limits_of("anthropic.claude-haiku-4-5", given) == few
    assert limits_of("claude-sonnet-5", given) == many
    assert limits_of("other", given) == attrs.evolve(START, concurrency=None)
    assert queue_limit(given) == queue_limit(None) == START.batch_requests_in_queue
    least = {"a": Limits(batch_requests_in_queue=7), "b": Limits(batch_requests_in_queue=9)}
    assert queue_limit(least) == 7
    for wrong in ({}, {"claude": 5}, {5: few}, "start"):
        with pytest.raises(InvalidValueError, match="cannot be limits; give a Limits"):
            Policy(limits=wrong)  # type: ignore[arg-type]


def test_no_class_has_a_slower_call_than_is_planned_with() -> None:
    given = {"claude-haiku": Limits(latency=timedelta(seconds=1))}
    lane = Capacity(Policy(limits=given), NOW)
    slowest = [lane.tail(lane.class_of(model)) for model in ("claude-haiku-4-5", "claude-opus-5-5")]
    assert slowest == [timedelta(seconds=3), 3 * START.latency]
    assert tail_of(given) == max(slowest)


def test_headers_lower_given_and_are_followed_where_none_are_given() -> None:
    for said, kept, followed in ((100, 100, 100), (10_000, 1_000, 10_000)):
        told = Measured(at=NOW, requests_per_minute=said)
        assert limits_of("m", Limits(requests_per_minute=1_000), told).requests_per_minute == kept
        assert limits_of("m", None, told).requests_per_minute == followed
        assert limits_of("m", None, told).output_tokens_per_minute == START.output_tokens_per_minute
        assert limits_of("m", Limits(), told).requests_per_minute == said


def share(measured: Measured | None) -> Fraction:
    return Capacity(Policy(), NOW, {} if measured is None else {"m": measured}, ["m"]).share("m")


def test_a_measured_share_is_planned_with_for_a_while() -> None:
    slow = Measured(at=NOW, share=0.25)
    assert share(None) == share(attrs.evolve(slow, share=None)) == 1
    assert share(slow) == share(attrs.evolve(slow, at=NOW - 9 * MINUTE)) == Fraction(1, 4)
    assert share(attrs.evolve(slow, at=NOW - 11 * MINUTE)) == 1
    assert share(attrs.evolve(slow, share=0.0)) == Fraction(1, 1_000)
    assert share(attrs.evolve(slow, at=NOW + MINUTE)) == Fraction(1, 4), "clocks of two machines differ"
    assert share(attrs.evolve(slow, at=NOW + HOUR)) == 1, "the clock was ahead"
    capacity = Capacity(Policy(), NOW, {"m": slow}, ["m", "n"])
    assert (capacity.pace("m").share, capacity.pace("n").share) == (Fraction(1, 4), FILLED)


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1), st.integers(1, 5_000))
def test_classes_share_the_calls_that_a_process_runs(models: list[str], concurrency: int) -> None:
    capacity = Capacity(Policy(limits=Limits(concurrency=concurrency)), NOW, None, models)
    calls = [capacity.limits(name).concurrency or 0 for name in capacity.classes]
    assert min(calls) >= 1
    assert max(calls) <= concurrency
    assert sum(calls) <= max(MOST_CALLS, len(calls))
    assert capacity.joined(models[0]) is capacity
    assert capacity.joined("z").classes == capacity.classes | {"z"}


def test_the_last_word_on_a_class_counts_but_none_from_the_future() -> None:
    early, late, ahead = (Measured(at=NOW + span) for span in (-HOUR, -MINUTE, HOUR))
    assert latest({"a": early, "b": late, "c": ahead}, {}, NOW) == {"a": early, "b": late, "c": ahead}
    assert latest({"a": early, "b": late}, {"a": late, "b": early}, NOW) == {"a": late, "b": late}
    assert latest({"a": ahead}, {"a": early}, NOW) == {"a": early}


def test_limits_are_followed_where_none_are_given_for_a_model() -> None:
    assert given_limits("claude-haiku-4-5", None) is None
    assert given_limits("claude-haiku-4-5", Limits()) == Limits()
    assert given_limits("claude-haiku-4-5", {"claude-haiku": Limits()}) == Limits()
    assert given_limits("claude-sonnet-5", {"claude-haiku": Limits()}) is None


@pytest.mark.parametrize(
    ("limits", "calls"),
    [
        (Limits(), MOST_CALLS),
        (Limits(concurrency=5), 5),
        (Limits(requests_per_minute=61, latency=timedelta(seconds=10)), 11),
        (Limits(requests_per_minute=60, latency=timedelta(seconds=10), concurrency=4), 4),
        (Limits(requests_per_minute=10**6), MOST_CALLS),
    ],
)
def test_calls_at_once_that_fill_the_limits(limits: Limits, calls: int) -> None:
    assert calls_at_once(limits) == calls


def test_only_classes_that_want_more_calls_than_there_are_get_a_part_of_them() -> None:
    few = Limits(requests_per_minute=60, latency=timedelta(seconds=10))
    assert Capacity(Policy(limits=few), NOW, None, ["m"]).limits("m").concurrency == MOST_CALLS
    many = Limits(requests_per_minute=4_800, latency=timedelta(seconds=10))  # 800 calls at once
    assert Capacity(Policy(limits=many), NOW, None, ["m", "n"]).limits("m").concurrency == 500
    assert Capacity(Policy(limits=many), NOW).limits("m").concurrency == MOST_CALLS


def test_headers_lower_each_limit_by_itself() -> None:
    limits = Limits(requests_per_minute=10, input_tokens_per_minute=100, output_tokens_per_minute=1_000)
    for name in ("requests_per_minute", "input_tokens_per_minute", "output_tokens_per_minute"):
        assert limits_of("m", limits, Measured(at=NOW, **{name: 7})) == attrs.evolve(limits, **{name: 7})
        assert limits_of("m", limits, Measured(at=NOW, **{name: 7_000})) == limits
        assert limits_of("m", Limits(), Measured(at=NOW, **{name: 7})) == Limits(**{name: 7})


def test_the_longest_prefix_counts_wherever_it_begins() -> None:
    assert class_of("anthropic.claude-haiku-4-5", {"claude": Limits(), "anthropic": Limits()}) == "anthropic"


def test_a_class_that_wants_hardly_a_call_has_one() -> None:
    limits = {"few": Limits(requests_per_minute=1), "many": Limits()}
    lane = Capacity(Policy(limits=limits), NOW, None, ["few", "many"])
    assert lane.limits("few").concurrency == 1


def test_a_margin_is_as_long_as_the_slowest_call_that_the_limits_allow_for() -> None:
    slow = Policy(limits=Limits(latency=timedelta(seconds=60)))
    assert margin_of(slow) - margin_of(Policy()) == 3 * timedelta(seconds=50)


def test_of_two_words_on_a_class_at_the_same_moment_ones_own_counts() -> None:
    own, other = Measured(at=NOW, share=0.5), Measured(at=NOW, share=0.25)
    assert latest({"a": other}, {"a": own}, NOW) == {"a": own}


def test_a_share_is_believed_for_ten_minutes() -> None:
    assert share(Measured(at=NOW - 10 * MINUTE, share=0.25)) == Fraction(1, 4)


def test_a_lane_is_planned_with_what_the_headers_said_of_its_class() -> None:
    policy = Policy(limits={"claude-haiku": Limits(requests_per_minute=100)})
    told = {"claude-haiku": Measured(at=NOW, share=0.5, requests_per_minute=50)}
    lane = Capacity(policy, NOW, told, ["claude-haiku-4-5"])
    assert lane.class_of("claude-haiku-4-5") == "claude-haiku"
    assert lane.classes == {"claude-haiku"}
    for capacity in (lane, lane.joined("claude-sonnet-5"), Capacity(policy, NOW, told)):
        assert capacity.limits("claude-haiku").requests_per_minute == 50
        assert capacity.share("claude-haiku") == Fraction(1, 2)
        assert capacity.pace("claude-haiku").limits.requests_per_minute == 50
    other = lane.joined("claude-sonnet-5")
    assert other.classes == {"claude-haiku", "claude-sonnet-5"}
    assert other.limits("claude-sonnet-5").requests_per_minute == START.requests_per_minute
    assert other.by_class(["claude-haiku-4-5", "claude-sonnet-5", "claude-haiku-5"], str) == {
        "claude-haiku": ["claude-haiku-4-5", "claude-haiku-5"],
        "claude-sonnet-5": ["claude-sonnet-5"],
    }


def test_the_slowest_call_of_a_class_is_three_times_its_mean() -> None:
    policy = Policy(limits={"slow": Limits(latency=MINUTE), "fast": Limits(latency=timedelta(seconds=1))})
    lane = Capacity(policy, NOW)
    assert (lane.tail("slow"), lane.tail("fast"), lane.tail("other")) == (
        3 * MINUTE, timedelta(seconds=3), 3 * START.latency
    )  # fmt: skip
