"""How long batches take: properties of the distribution, and of what it learns."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import HOUR, NOW

from batchwise.errors import InvalidValueError
from batchwise.planning.forecast import STRENGTH, Forecast, Sample

ZERO = timedelta(0)
MINUTE = timedelta(minutes=1)
DAY = timedelta(hours=24)
END = timedelta(hours=25)
CLOSE = 1e-9
DURATIONS = {
    "most within the hour": lambda draw: 12 * draw.paretovariate(0.75),
    "a few minutes": lambda draw: draw.lognormvariate(2.3, 0.6),
    "hours": lambda draw: draw.lognormvariate(5.5, 0.7),
    "anything": lambda draw: draw.lognormvariate(4.0, 1.6),
    "two kinds": lambda draw: draw.uniform(5, 15) if draw.random() < 0.7 else draw.uniform(200, 700),
}
"""Minutes that batches take."""


def sample(duration: timedelta, ended: bool = True, **others) -> Sample:
    return Sample(**{"duration": duration, "ended": ended, "model": "m", "requests": 500, "hour": 3, **others})


samples = st.builds(
    Sample,
    duration=st.timedeltas(ZERO, timedelta(hours=30)),
    ended=st.booleans(),
    model=st.sampled_from("mn"),
    requests=st.integers(1, 100_000),
    hour=st.integers(0, 23),
    kind=st.sampled_from(("batch", "cancel")),
)
forecasts = st.builds(
    Forecast.from_history,
    st.lists(samples, max_size=60),
    model=st.none() | st.just("m"),
    requests=st.none() | st.just(500),
    hour=st.none() | st.just(3),
)
times = st.timedeltas(ZERO, timedelta(hours=30))
shares = st.floats(0, 1)


class TestPrior:
    prior = Forecast.prior()

    @pytest.mark.parametrize(
        ("after", "share"), [(HOUR, 0.6), (4 * HOUR, 0.8), (16 * HOUR, 0.92), (DAY, 0.95), (END, 1.0), (ZERO, 0.0)]
    )
    def test_says_what_is_documented_of_batches(self, after, share):
        assert self.prior.p_end_within(after) == pytest.approx(share, abs=CLOSE)

    @pytest.mark.parametrize(("minutes", "share"), [(1, 0.5), (10, 0.9), (60, 0.99), (25 * 60, 1.0)])
    def test_says_what_is_documented_of_cancels(self, minutes, share):
        assert self.prior.p_cancel_within(minutes * MINUTE) == pytest.approx(share, abs=CLOSE)

    def test_expects_a_range(self):
        low, high = self.prior.expected_range(NOW)
        assert timedelta(minutes=5) < low - NOW < timedelta(minutes=15)
        assert timedelta(hours=8) < high - NOW < timedelta(hours=16)
        assert self.prior.expected_range(NOW, 2 * HOUR) > (NOW + 2 * HOUR, high)

    def test_scales_with_the_window(self):
        fast = Forecast.prior(window=timedelta(seconds=24))
        for seconds, share in ((1, 0.6), (4, 0.8), (24, 0.95)):
            assert fast.p_end_within(timedelta(seconds=seconds)) == pytest.approx(share, abs=CLOSE)
        assert fast.p_cancel_within(timedelta(seconds=1 / 6)) == pytest.approx(0.9, abs=1e-4)

    def test_even_a_window_of_a_microsecond_has_buckets(self):
        tiny = Forecast.prior(window=timedelta(microseconds=1))
        assert all(low < high for low, high in pairwise(tiny.ends.edges))
        assert all(low < high for low, high in pairwise(tiny.cancels.edges))


@given(forecasts, times, times)
def test_the_chance_rises_from_0_to_1(forecast, one, other):
    early, late = sorted((one, other))
    for chance in (forecast.p_end_within, forecast.p_cancel_within):
        assert 0 <= chance(early) <= chance(late) <= 1
        assert chance(ZERO) == 0
        assert chance(-HOUR) == 0
        assert chance(END) == 1


def ended_of_those_running(forecast, elapsed, total):
    """The chance to have ended by `total`, given that it ran at `elapsed`; past the end it takes an hour more."""
    left = 1 - forecast.p_end_within(elapsed)
    if not left:
        return min(1.0, (total - elapsed) / HOUR)
    return 1 - (1 - forecast.p_end_within(total)) / left


@given(forecasts, shares, times)
def test_the_quantile_is_the_inverse(forecast, p, elapsed):
    total = forecast.quantile(p, elapsed)
    assert total >= elapsed
    # In the last microseconds before the curve's end one microsecond carries much of what is left.
    slack = CLOSE + 2e-6 / max(1e-6, (END - elapsed).total_seconds()) if elapsed < END else CLOSE
    assert ended_of_those_running(forecast, elapsed, total) >= p - slack
    if total - timedelta(milliseconds=1) > elapsed:
        assert ended_of_those_running(forecast, elapsed, total - timedelta(milliseconds=1)) < p + slack


@given(forecasts, shares, shares, times)
def test_a_larger_share_takes_longer(forecast, one, other, elapsed):
    low, high = sorted((one, other))
    assert forecast.quantile(low, elapsed) <= forecast.quantile(high, elapsed)
    early, late = forecast.expected_range(NOW, elapsed)
    assert NOW + elapsed <= early <= late


@given(forecasts, times)
def test_the_mean_is_the_area_under_the_share_still_running(forecast, cap):
    steps = 2_000
    area = sum(
        (1 - forecast.p_end_within(cap * (step + 0.5) / steps)) * cap.total_seconds() / steps for step in range(steps)
    )
    assert forecast.expected(cap).total_seconds() == pytest.approx(area, abs=2 * cap.total_seconds() / steps)
    assert forecast.expected(cap) <= min(cap, END)


def test_an_overdue_batch_is_expected_within_the_next_hour_without_promise():
    overdue = timedelta(hours=40)
    assert Forecast.prior().quantile(0.9, overdue) == overdue + timedelta(minutes=54)


def test_the_steps_are_the_ends_of_its_buckets():
    minutes = [step / MINUTE for step in Forecast.prior().steps(12 * MINUTE)]
    assert minutes == [1, 2, 3, 4, 5, 7, 10, 12]
    assert Forecast.prior().steps(5 * MINUTE)[-2:] == [4 * MINUTE, 5 * MINUTE]


def test_the_prior_has_the_shares_that_it_names():
    prior = Forecast.prior()
    for minutes, share in (
        (5, 0.05),
        (15, 0.2),
        (30, 0.4),
        (60, 0.6),
        (240, 0.8),
        (480, 0.87),
        (1_440, 0.95),
        (1_500, 1),
    ):
        assert prior.p_end_within(minutes * MINUTE) == pytest.approx(share)
    for minutes, share in ((1, 0.5), (5, 0.8), (10, 0.9), (30, 0.97), (60, 0.99), (1_500, 1)):
        assert prior.p_cancel_within(minutes * MINUTE) == pytest.approx(share)


class TestHistory:
    def test_none_is_the_prior(self):
        learned, prior = Forecast.from_history([], model="m", requests=5, hour=7), Forecast.prior()
        for hours in range(25):
            assert learned.p_end_within(hours * HOUR) == pytest.approx(prior.p_end_within(hours * HOUR), abs=CLOSE)
            assert learned.p_cancel_within(hours * MINUTE) == pytest.approx(prior.p_cancel_within(hours * MINUTE))

    def test_is_dirichlet_smoothing_where_nothing_was_cut_off(self):
        learned = Forecast.from_history([sample(30 * MINUTE)] * 30)
        prior = Forecast.prior()
        for minutes, seen in ((25, 0), (30, 30), (60, 30), (600, 30)):
            expected = (STRENGTH * prior.p_end_within(minutes * MINUTE) + seen) / (STRENGTH + 30)
            assert learned.p_end_within(minutes * MINUTE) == pytest.approx(expected)

    @given(samples)
    def test_one_sample_moves_little(self, one):
        learned, prior = Forecast.from_history([one], model="m", requests=500, hour=3), Forecast.prior()
        most = 1 / (STRENGTH + 1) + CLOSE
        for minutes in (1, 10, 60, 240, 1_440):
            assert abs(learned.p_end_within(minutes * MINUTE) - prior.p_end_within(minutes * MINUTE)) <= most

    def test_thick_is_near_what_was_seen(self):
        draw = random.Random(5)
        seen = [timedelta(minutes=draw.paretovariate(1.0) * 10) for _ in range(20_000)]
        learned = Forecast.from_history((sample(min(t, END)) for t in seen), model="m", requests=500, hour=3)
        for minutes in (10, 15, 30, 60, 240, 1_440):
            share = sum(t <= minutes * MINUTE for t in seen) / len(seen)
            assert learned.p_end_within(minutes * MINUTE) == pytest.approx(share, abs=0.005)

    def test_cut_off_batches_count_for_as_long_as_they_were_watched(self):
        # Truth: half end at 10 minutes, half at 3 hours; most of the long ones are cancelled at 1 hour.
        seen = [sample(10 * MINUTE)] * 5_000 + [sample(HOUR, ended=False)] * 4_000 + [sample(3 * HOUR)] * 1_000
        learned = Forecast.from_history(seen)
        assert learned.p_end_within(HOUR) == pytest.approx(0.5, abs=0.01)
        assert learned.p_end_within(3 * HOUR) == pytest.approx(1.0, abs=0.02)
        blind = Forecast.from_history([one for one in seen if one.ended])
        assert blind.p_end_within(HOUR) > 0.8

    def test_a_cut_inside_a_bucket_counts_in_part(self):
        prior = Forecast.prior().p_end_within(HOUR)
        chances = [
            Forecast.from_history([sample(minutes * MINUTE, ended=False)] * 200).p_end_within(HOUR)
            for minutes in (50, 52.5, 55, 57.5, 60)
        ]
        assert chances[0] > chances[1] > chances[2] > chances[3] > chances[4]
        assert chances[0] < prior

    def test_batches_just_started_change_nothing(self):
        learned = Forecast.from_history([sample(ZERO, ended=False)] * 1_000)
        for minutes in (1, 60, 1_440):
            assert learned.p_end_within(minutes * MINUTE) == pytest.approx(
                Forecast.prior().p_end_within(minutes * MINUTE)
            )

    @given(st.lists(samples, max_size=30), st.timedeltas(ZERO, DAY))
    def test_a_longer_look_at_a_batch_that_still_runs_never_makes_it_likelier_to_have_ended(self, seen, looked):
        short = Forecast.from_history([*seen, sample(looked, ended=False)])
        longer = Forecast.from_history([*seen, sample(looked + HOUR, ended=False)])
        for minutes in (1, 60, 240, 1_440):
            assert longer.p_end_within(minutes * MINUTE) <= short.p_end_within(minutes * MINUTE) + CLOSE

    def test_the_order_of_samples_does_not_matter(self):
        seen = [sample(minutes * MINUTE, ended=minutes % 3 > 0) for minutes in range(90)]
        assert Forecast.from_history(seen) == Forecast.from_history(reversed(seen))

    def test_cancels_and_batches_are_apart(self):
        cancels = Forecast.from_history([sample(2 * HOUR, kind="cancel")] * 500)
        assert cancels.ends.survival == pytest.approx(Forecast.prior().ends.survival)
        assert cancels.p_cancel_within(HOUR) < 0.05
        assert cancels.p_cancel_within(2 * HOUR) > 0.9

    @pytest.mark.parametrize(
        ("asked", "others"),
        [
            ({"model": "m"}, {"model": "n"}),
            ({"requests": 999}, {"requests": 1_000}),
            ({"hour": 23}, {"hour": 12}),
        ],
    )
    def test_each_pool_is_told_apart(self, asked, others):
        own = {"model": "m", "requests": 100, "hour": 1}
        seen = [sample(10 * MINUTE, **own)] * 300 + [sample(10 * HOUR, **{**own, **others})] * 300
        assert Forecast.from_history(seen, **asked).p_end_within(HOUR) > 0.9
        assert Forecast.from_history(seen, **others).p_end_within(HOUR) < 0.1
        assert Forecast.from_history(seen).p_end_within(HOUR) == pytest.approx(0.5, abs=0.02)

    @pytest.mark.parametrize(("asked", "hour"), [(23, 1), (1, 23), (22, 0), (0, 22), (5, 7), (7, 5)])
    def test_hours_two_apart_are_one_pool_and_three_apart_are_not(self, asked, hour):
        seen = [sample(10 * MINUTE, hour=hour)] * 300 + [sample(10 * HOUR, hour=12)] * 300
        assert Forecast.from_history(seen, hour=asked).p_end_within(HOUR) > 0.9
        further = (hour + (1 if (hour - asked) % 24 == 2 else -1)) % 24
        apart = [sample(10 * MINUTE, hour=further)] * 300 + [sample(10 * HOUR, hour=asked)] * 300
        assert Forecast.from_history(apart, hour=asked).p_end_within(HOUR) < 0.1

    def test_a_thin_pool_leans_on_the_wider_one(self):
        seen = [sample(10 * MINUTE, model="n")] * 500 + [sample(10 * HOUR, model="m")]
        assert Forecast.from_history(seen, model="m").p_end_within(HOUR) > 0.85
        assert Forecast.from_history(seen, model="m", hour=3).p_end_within(HOUR) > 0.8

    @pytest.mark.parametrize("asked", [{}, {"model": "m"}, {"model": "m", "requests": 500, "hour": 3}])
    def test_each_sample_counts_once(self, asked):
        """So many as the prior weighs leave half of it, however much they have in common with what is asked about."""
        learned = Forecast.from_history([sample(30 * MINUTE)] * STRENGTH, **asked)
        prior = Forecast.prior()
        for minutes, seen in ((25, 0), (30, 1), (600, 1)):
            expected = (prior.p_end_within(minutes * MINUTE) + seen) / 2
            assert learned.p_end_within(minutes * MINUTE) == pytest.approx(expected)

    @pytest.mark.parametrize(
        "others", [{}, {"hour": 12}, {"requests": 5}, {"model": "n"}, {"model": "n", "requests": 5, "hour": 12}]
    )
    def test_samples_that_have_less_in_common_move_it_first(self, others):
        far, near = [sample(10 * HOUR, **others)] * STRENGTH, [sample(30 * MINUTE)] * STRENGTH
        learned = Forecast.from_history([*near, *far], model="m", requests=500, hour=3).p_end_within(30 * MINUTE)
        prior = Forecast.prior().p_end_within(30 * MINUTE)
        assert learned == pytest.approx((prior / 2 + 1) / 2 if others else (prior + 1) / 3)

    @pytest.mark.parametrize("seen", [20, 60, 200])
    @pytest.mark.parametrize("truth", DURATIONS)
    def test_it_is_calibrated(self, truth, seen):
        draw = random.Random(1)

        def minutes():
            return min(1_500.0, DURATIONS[truth](draw))

        held = []
        for _ in range(100):
            history = [sample(minutes() * MINUTE) for _ in range(seen)]
            low, high = Forecast.from_history(history, model="m", requests=500, hour=3).expected_range(NOW)
            held += [low <= NOW + minutes() * MINUTE <= high for _ in range(20)]
        assert 0.77 <= sum(held) / len(held) <= 0.93

    def test_history_scales_with_the_window(self):
        window = timedelta(seconds=24)
        learned = Forecast.from_history([sample(timedelta(seconds=2))] * 400, window=window)
        assert learned.p_end_within(timedelta(seconds=1)) < 0.1
        assert learned.p_end_within(timedelta(seconds=2)) > 0.9


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: sample(-HOUR), "duration="),
        (lambda: sample(HOUR, hour=24), "hour=24"),
        (lambda: sample(HOUR, hour=True), "hour=True"),
        (lambda: sample(HOUR, kind="poll"), "kind='poll'"),
        (lambda: Forecast.prior(window=ZERO), "window="),
        (lambda: Forecast.from_history([], hour=-1), "hour=-1"),
        (lambda: Forecast.prior().quantile(1.1), r"p=1\.1"),
        (lambda: Forecast.prior().quantile(0.5, -HOUR), "elapsed="),
        (lambda: Forecast.prior().expected(-HOUR), "cap="),
        (lambda: Forecast.prior().expected_range(datetime(2026, 1, 1)), "created_at="),  # noqa: DTZ001
        (lambda: Forecast.prior().quantile(float("nan")), "p=nan"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(call, said):
    with pytest.raises(InvalidValueError, match=f"^{said}"):
        call()


@pytest.mark.parametrize("method", ["expected", "steps"])
def test_a_cap_that_is_no_duration_is_refused_by_name(method):
    with pytest.raises(InvalidValueError, match=r"^cap="):
        getattr(Forecast.prior(), method)(-HOUR)
