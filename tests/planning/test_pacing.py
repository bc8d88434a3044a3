from __future__ import annotations

import heapq
import itertools
import math
import random
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.planning.pacing_simulation import Books, Server, simulate

from batchwise.models import Limits
from batchwise.planning.capacity import limits_of
from batchwise.planning.outcomes import Refusal
from batchwise.planning.output_forecast import OutputForecast
from batchwise.planning.pacing import BURST, Pacer, Permit

SMALL = (100, 20, 20)
LIMITS = Limits(
    requests_per_minute=1_000, input_tokens_per_minute=2_000_000, output_tokens_per_minute=400_000, concurrency=200
)
UNLIMITED = (None, None, None)


def mixed(seed: int = 1, *, answered: float = 1.0):
    """Calls of 100 to 8,000 input and 20 to 600 reserved output tokens, of which `answered` are used."""
    rng = random.Random(seed)
    while True:
        reserved = rng.randint(20, 600)
        yield rng.randint(100, 8_000), reserved, int(reserved * answered)


def tailed(mean: float):
    return lambda rng, _used: mean * (0.5 + 0.5 * rng.expovariate(1))


def excess(books: Books, index: int, per_minute: float) -> float:
    """The most that any interval's bookings, less what was given back in it, pass `per_minute`."""
    given_back = ((now, (0, *tokens)) for now, *tokens in books.refunds)
    booked = ((now, (1, *tokens)) for now, *tokens in books.starts)
    steps = heapq.merge(((now, -a[index]) for now, a in given_back), ((now, a[index]) for now, a in booked))
    total, lowest, worst = 0.0, math.inf, 0.0
    for now, amount in steps:
        line = per_minute / 60.0 * now
        lowest = min(lowest, total - line)
        total += amount
        worst = max(worst, total - line - lowest)
    return worst


@given(
    limits=st.builds(
        Limits,
        requests_per_minute=st.none() | st.integers(1, 5_000),
        input_tokens_per_minute=st.none() | st.integers(1_000, 5_000_000),
        output_tokens_per_minute=st.none() | st.integers(1_000, 1_000_000),
        concurrency=st.integers(1, 300),
    ),
    latency=st.floats(0.05, 60.0),
    answered=st.sampled_from([1.0, 0.5, 0.05]),
    wake_late=st.sampled_from([0.0, 0.1, 3.0]),
    seed=st.integers(0, 1_000),
)
def test_no_interval_passes_the_limits_by_more_than_the_burst_and_one_call(
    limits: Limits, latency: float, answered: float, wake_late: float, seed: int
) -> None:
    calls = itertools.islice(mixed(seed, answered=answered), 600)
    books, _ = simulate(limits, calls, seconds=600, latency=tailed(latency), wake_late=wake_late, seed=seed)
    assert books.starts
    assert books.peak_running <= (limits.concurrency or 0)
    configured = (limits.requests_per_minute, limits.input_tokens_per_minute, limits.output_tokens_per_minute)
    for index, per_minute in enumerate(configured):
        if per_minute is not None:
            largest = max((1, *tokens)[index] for _, *tokens in books.starts)
            assert excess(books, index, per_minute) <= per_minute * BURST + largest + 1e-3


@pytest.mark.parametrize(
    ("limits", "calls", "per_minute", "index"),
    [
        (Limits(requests_per_minute=1_000), itertools.repeat(SMALL), 1_000, 0),
        (Limits(requests_per_minute=7), itertools.repeat(SMALL), 7, 0),
        (Limits(input_tokens_per_minute=2_000_000), mixed(), 2_000_000, 1),
        (Limits(input_tokens_per_minute=20_000), mixed(), 20_000, 1),  # one call is a third of a minute
        (Limits(output_tokens_per_minute=400_000), mixed(), 400_000, 2),
        (LIMITS, mixed(), 2_000_000, 1),
        (Limits(concurrency=20), itertools.repeat(SMALL), 120, 0),
        (Limits(requests_per_minute=1_000, concurrency=20), itertools.repeat(SMALL), 120, 0),
    ],
)
def test_a_saturated_lane_uses_what_the_limits_allow(limits: Limits, calls, per_minute: int, index: int) -> None:
    books, pacer = simulate(limits, calls, seconds=1_200, latency=tailed(10.0), wake_late=0.05)
    used = sum((1, *tokens)[index] for _, *tokens in books.starts)
    assert used >= 0.95 * per_minute * 20
    assert pacer.share == 1.0


def test_tokens_that_are_not_used_are_given_back() -> None:
    calls = itertools.repeat((100, 1_000, 200))
    books, _ = simulate(Limits(output_tokens_per_minute=100_000), calls, seconds=1_200, latency=5.0)
    used = 200 * sum(now >= 600 for now in books.admitted)
    assert 0.95 * 1_000_000 <= used <= 1.01 * 1_000_000


MIX = [next(itertools.islice(mixed(), number, None)) for number in range(1_000)]
MEAN_IN = sum(call[0] for call in MIX) / 1_000
MEAN_OUT = sum(call[1] for call in MIX) / 1_000


@pytest.mark.parametrize("burst_seconds", [60.0, 5.0])
@pytest.mark.parametrize("latency", [0.5, 10.0])
@pytest.mark.parametrize(
    ("real", "calls", "per_minute"),
    [
        ((333, None, None), itertools.repeat(SMALL), 333),
        ((None, 666_667, None), None, 666_667 / MEAN_IN),
        ((None, None, 133_333), None, 133_333 / MEAN_OUT),
    ],
)
def test_limits_configured_three_times_too_high_make_no_storm(
    real: tuple[int | None, int | None, int | None], calls, per_minute: float, latency: float, burst_seconds: float
) -> None:
    server = Server(real, burst_seconds=burst_seconds)
    calls = calls or itertools.cycle((i, o, o) for i, o, _ in MIX)
    books, _ = simulate(LIMITS, calls, seconds=2_400, server=server, latency=tailed(latency), wake_late=0.05)
    refused = sum(now >= 600 for now in books.refusals)
    admitted = sum(now >= 600 for now in books.admitted)
    assert len(books.refusals) <= 0.012 * len(books.starts)
    assert refused <= 0.01 * (refused + admitted)
    assert admitted >= 0.85 * per_minute * 30


@pytest.mark.parametrize("limits", [LIMITS, Limits(concurrency=200)])
def test_a_concurrency_configured_three_times_too_high_adapts(limits: Limits) -> None:
    server = Server(UNLIMITED, concurrency=67)
    books, _ = simulate(limits, itertools.repeat(SMALL), seconds=2_400, server=server, latency=tailed(10.0))
    refused = sum(now >= 600 for now in books.refusals)
    admitted = sum(now >= 600 for now in books.admitted)
    assert refused <= 0.01 * admitted
    assert admitted >= 0.8 * 67 * 6 * 30


def test_an_outage_is_probed_by_single_calls_and_then_forgotten() -> None:
    books, pacer = simulate(LIMITS, itertools.repeat(SMALL), seconds=1_800, latency=1.0, outage=(300.0, 900.0))
    assert len(books.refusals) <= 25
    assert sum(now >= 1_200 for now in books.admitted) >= 0.95 * 1_000 * 10
    assert pacer.share > 0.95


OUT: dict[int, list[Permit]] = {}


def ask(pacer: Pacer, now: float, tokens_in: int = 10, tokens_out: int = 10) -> float:
    """The wait; 0.0: it goes, and is out until the next `end` or `refuse`."""
    got = pacer.ask(now, input_tokens=tokens_in, output_tokens=tokens_out)
    if isinstance(got, Permit):
        OUT.setdefault(id(pacer), []).append(got)
        return 0.0
    return got


def go(pacer: Pacer, now: float = 0.0) -> float:
    return ask(pacer, now)


def refuse(
    pacer: Pacer, now: float, retry_after: float | None = None, refusal: Refusal = Refusal.TOO_FAST, which: int = 0
) -> None:
    pacer.refused(now, OUT[id(pacer)].pop(which), refusal, retry_after)


def end(pacer: Pacer, now: float, which: int = 0) -> None:
    pacer.done(now, OUT[id(pacer)].pop(which), input_tokens_used=10, output_tokens_used=10)


@pytest.fixture(autouse=True)
def _nothing_is_out() -> None:
    OUT.clear()


def test_a_refusal_pauses_the_whole_lane_once() -> None:
    pacer = Pacer(Limits(concurrency=10), now=0.0)
    assert pacer.paused_until == -math.inf
    assert [go(pacer) for _ in range(5)] == [0.0] * 5
    refuse(pacer, 1.0, 7.0)
    assert pacer.paused_until == 8.0
    assert pacer.concurrency == 8.0
    assert pacer.running == 4
    refuse(pacer, 1.1, 3.0)  # the same event: nothing shortens the pause, nothing is cut twice
    assert pacer.paused_until == 8.0
    refuse(pacer, 1.2, 10.0)
    assert pacer.paused_until == pytest.approx(11.2)
    assert pacer.concurrency == 8.0
    assert pacer.share == 1.0  # no rate is limited that could have been passed
    assert go(pacer, 2.0) == pytest.approx(9.2)
    end(pacer, 3.0)
    assert go(pacer, 11.2) == 0.0


def test_refusals_without_a_success_between_back_off_and_probe() -> None:
    pacer = Pacer(Limits(concurrency=10), now=0.0)
    now, pauses = 0.0, []
    for _ in range(9):
        assert go(pacer, now) == 0.0
        refuse(pacer, now)
        pauses.append(pacer.paused_until - now)
        now = pacer.paused_until
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert go(pacer, now) == 0.0
    assert go(pacer, now) > 0.0  # one at a time
    end(pacer, now + 1.0)
    assert pacer.concurrency > 7.0
    assert pacer.share == 1.0


def test_nothing_is_saved_up_during_a_pause() -> None:
    pacer = Pacer(Limits(requests_per_minute=600), now=0.0)
    assert go(pacer) == 0.0
    refuse(pacer, 0.0, 30.0)
    assert go(pacer, 30.0) == 0.0
    assert go(pacer, 30.0) == pytest.approx(1 / 8, rel=0.01)


def test_the_share_returns_and_the_learned_ceiling_grows() -> None:
    pacer = Pacer(Limits(), now=0.0)
    assert pacer.concurrency == math.inf
    for _ in range(50):
        assert go(pacer) == 0.0
    refuse(pacer, 0.0, 1.0)
    assert pacer.concurrency == 40.0
    for _ in range(20):
        end(pacer, 1.0)
    for now in range(1, 300):
        end(pacer, float(now))
        assert go(pacer, float(now)) == 0.0
    assert pacer.share == 1.0
    assert 50.0 < pacer.concurrency < 200.0
    pacer = Pacer(Limits(), now=0.0)
    go(pacer)
    refuse(pacer, 0.0, 1.0)
    assert pacer.concurrency == 8.0  # one refused call is no reason to go on one by one
    pacer = Pacer(LIMITS, now=0.0)
    go(pacer)
    refuse(pacer, 0.0, 0.0)
    go(pacer, 1e9)
    assert pacer.share == 1.0


def test_a_full_lane_says_when_to_ask_again() -> None:
    pacer = Pacer(Limits(concurrency=2, latency=timedelta(seconds=1)), now=0.0)
    assert go(pacer) == go(pacer) == 0.0
    assert go(pacer) == 0.5
    pacer.done(1.0, OUT[id(pacer)].pop(), latency=0.1)  # a twentieth of the mean
    assert go(pacer, 1.0) == 0.0
    assert go(pacer, 1.0) == pytest.approx((1.0 - 0.9 / 20) / 2)
    for _ in range(100):
        pacer.done(1.0, OUT[id(pacer)].pop(), latency=0.1)
        assert go(pacer, 1.0) == 0.0
    assert go(pacer, 1.0) == pytest.approx(0.05, rel=0.2)


def test_a_call_that_used_more_than_reserved_is_paid_for() -> None:
    pacer = Pacer(Limits(output_tokens_per_minute=6_000), now=0.0)
    assert go(pacer) == 0.0
    pacer.done(0.0, OUT[id(pacer)].pop(), output_tokens_used=1_010)
    assert go(pacer) == pytest.approx(10.0)


def headers(kind: str, limit: object = None, remaining: object = None) -> dict[str, str]:
    values = {"limit": limit, "remaining": remaining, "reset": "2026-11-23T12:00:00Z"}
    return {f"anthropic-ratelimit-{kind}-{name}": str(value) for name, value in values.items() if value is not None}


def steady_wait(pacer: Pacer, now: float) -> float:
    """The wait after one call is let go from an empty bucket."""
    while (wait := go(pacer, now)) == 0.0:
        pass
    assert go(pacer, now + wait) == 0.0
    return go(pacer, now + wait)


def test_headers_lower_a_limit_and_let_it_return_to_the_configured_one() -> None:
    pacer = Pacer(Limits(requests_per_minute=600), now=0.0)
    assert steady_wait(pacer, 0.0) == pytest.approx(0.1)
    pacer.observe(10.0, headers("requests", 200))
    assert steady_wait(pacer, 20.0) == pytest.approx(0.3)
    pacer.observe(30.0, headers("requests", 10_000))
    assert steady_wait(pacer, 40.0) == pytest.approx(0.1)


def test_headers_set_a_limit_that_was_not_configured() -> None:
    pacer = Pacer(Limits(), now=0.0)
    pacer.observe(0.0, headers("requests", 60))
    assert steady_wait(pacer, 0.0) == pytest.approx(1.0)


def burst(pacer: Pacer, now: float, calls: int, max_tokens: int) -> int:
    """How many of so many calls go at once."""
    went = 0
    while went < calls and ask(pacer, now, 10, max_tokens) == 0.0:
        went += 1
    return went


def test_followed_headers_raise_a_limit_and_lower_it() -> None:
    pacer = Pacer(Limits(requests_per_minute=60), now=0.0, follows=True)
    assert burst(pacer, 0.0, 1_000, 10) == 61  # a minute's limit, and the one that makes the debt
    pacer.observe(0.0, headers("requests", 600, 539))
    assert burst(pacer, 0.0, 1_000, 10) == 479  # and 61 of the first may not be counted yet
    pacer.observe(0.0, headers("requests", 30, 0))
    assert steady_wait(pacer, 0.0) == pytest.approx(2.0)
    pacer.observe(100.0, headers("requests", 6_000, 6_000))
    assert steady_wait(pacer, 100.0) == pytest.approx(0.01)


def test_a_burst_goes_at_once_where_the_accounts_limits_are_followed() -> None:
    pacer = Pacer(limits_of("model", None), now=0.0, follows=True)
    assert burst(pacer, 0.0, 200, 1_024) == 200
    pacer = Pacer(limits_of("model", None), now=0.0, follows=True)
    first = burst(pacer, 0.0, 200, 8_192)  # more than the Start tier's output limit: it waits for the first headers
    assert 1 < first < 200
    end(pacer, 0.2)
    pacer.observe(0.2, headers("output-tokens", 2_000_000, 2_000_000))
    assert burst(pacer, 0.2, 200 - first, 8_192) == 200 - first


def test_headers_that_explain_the_refusals_give_back_what_was_cut() -> None:
    pacer = Pacer(Limits(requests_per_minute=600), now=0.0)
    go(pacer)
    refuse(pacer, 0.0, 1.0)
    pacer.observe(1.0, headers("requests", 200))
    assert pacer.share == 1.0
    assert steady_wait(pacer, 10.0) == pytest.approx(0.3)


def test_what_remains_is_believed_only_downwards() -> None:
    pacer = Pacer(Limits(input_tokens_per_minute=60_000), now=0.0)
    pacer.observe(0.0, headers("input-tokens", 60_000, 0))
    assert go(pacer) == 0.0
    assert go(pacer) == pytest.approx(0.01)
    pacer.observe(0.0, headers("input-tokens", 60_000, 60_000))
    assert go(pacer) == pytest.approx(0.01)


@pytest.mark.parametrize("value", ["", "many", "nan", "inf", "-5", "0"])
def test_nonsense_in_headers_is_ignored(value: str) -> None:
    pacer = Pacer(Limits(requests_per_minute=600), now=0.0)
    pacer.observe(0.0, headers("requests", value) | headers("output-tokens", value, value))
    pacer.observe(0.0, {})
    assert steady_wait(pacer, 0.0) == pytest.approx(0.1)


def learn(forecast: OutputForecast, max_tokens: int, used: int, now: float, took: float = 1.0) -> None:
    forecast.begin("model", max_tokens, now - took).end(used, now)


def test_the_forecast_learns_what_a_model_writes() -> None:
    forecast = OutputForecast()
    for now in range(4):
        learn(forecast, 1_000, 100, float(now))
        assert forecast.expect("model", 1_000, float(now)) == 1_000
    learn(forecast, 1_000, 100, 5.0)
    assert forecast.expect("model", 1_000, 5.0) == pytest.approx(100, abs=1)
    assert forecast.expect("model", 900, 5.0) == pytest.approx(90, abs=1)
    assert forecast.expect("model", 5_000, 5.0) == 5_000  # another kind of work
    assert forecast.expect("other", 1_000, 5.0) == 1_000
    for now in range(10, 3_010):
        learn(forecast, 1_000, 900, float(now))
    assert forecast.expect("model", 1_000, 3_010.0) == pytest.approx(900, abs=1)
    for _ in range(10):
        learn(forecast, 0, 0, 4_000.0)
    assert forecast.expect("model", 0, 4_000.0) == 0


def test_the_forecast_reserves_two_standard_errors_more_than_the_mean() -> None:
    forecast = OutputForecast()
    for number in range(16):
        learn(forecast, 1_000, 200 if number % 2 else 400, 5.0)
    assert forecast.expect("model", 1_000, 5.0) == pytest.approx(300 + 2 * 100 / 16**0.5, abs=1)


def test_the_forecast_forgets_what_was_written_long_ago() -> None:
    forecast = OutputForecast()
    for now in range(2_500):  # 2,000 are remembered
        learn(forecast, 1_000, 900 if now < 500 else 100, float(now))
    assert forecast.expect("model", 1_000, 2_500.0) == pytest.approx(100, abs=1)


def test_long_answers_count_before_they_have_ended() -> None:
    forecast = OutputForecast()
    writing = [forecast.begin("model", 1_000, 0.0) for _ in range(10)]
    for each in writing[:9]:
        each.end(10, 1.0)
    assert forecast.expect("model", 1_000, 10.0) > 100  # the tenth may write all that it may
    writing[9].drop()
    assert forecast.expect("model", 1_000, 20.0) == pytest.approx(10, abs=1)


def two_kinds(seed: int, *, expected: bool):
    """Of ten calls one writes 12,000 tokens, nine write 200; the caller expects that, or says `max_tokens`."""
    rng = random.Random(seed)
    while True:
        used = 12_000 if rng.random() < 0.1 else 200
        yield 100, used if expected else 16_000, used


@pytest.mark.parametrize("per_minute", [80_000, 400_000])
@pytest.mark.parametrize("expected", [True, False])
def test_few_long_answers_among_short_ones_leave_the_lane_full(per_minute: int, expected: bool) -> None:
    forecast = None if expected else OutputForecast()
    limits = Limits(output_tokens_per_minute=per_minute)
    calls = two_kinds(1, expected=expected)
    books, _ = simulate(limits, calls, seconds=1_800, latency=lambda _rng, used: 1 + used / 100, forecast=forecast)
    share = sum(used for now, used in books.used if now >= 600) / (per_minute * 20)
    assert (0.90 if expected else 0.80) <= share <= 1.05


@pytest.mark.parametrize(("refused", "least"), [(0.01, 0.9), (0.05, 0.8), (0.1, 0.7)])
@pytest.mark.parametrize("latency", [1.0, 10.0])
def test_a_busy_api_slows_the_lane_by_little(refused: float, least: float, latency: float) -> None:
    books, pacer = simulate(LIMITS, itertools.repeat(SMALL), seconds=1_200, latency=latency, overloaded=refused)
    assert len(books.admitted) >= least * 1_000 * 20
    assert sum(now >= 600 for now in books.admitted) >= least * 1_000 * 10
    assert pacer.share > 0.8


def test_a_refused_call_gives_its_tokens_back() -> None:
    pacer = Pacer(Limits(output_tokens_per_minute=600), now=0.0)
    assert ask(pacer, 0.0, 0, 500) == 0.0
    refuse(pacer, 0.0, 1.0)
    assert ask(pacer, 1.0, 0, 500) == 0.0


def test_a_call_that_failed_gives_back_all_that_was_booked_for_it() -> None:
    pacer = Pacer(Limits(output_tokens_per_minute=600), now=0.0)  # of which 12 may be started at once
    assert ask(pacer, 0.0, 0, 500) == 0.0
    pacer.done(0.0, OUT[id(pacer)].pop())
    assert ask(pacer, 0.0, 0, 12) == 0.0
    assert ask(pacer, 0.0, 0, 6) == 0.0  # nothing is in debt yet
    assert ask(pacer, 0.0) == pytest.approx(0.6)


def one_after_the_other(pacer: Pacer, seconds: float, until: float) -> None:
    """Calls that each take so long, on a lane for one, with another that always waits."""
    now = 0.0
    assert go(pacer, now) == 0.0
    while now < until:
        assert go(pacer, now) > 0.0
        now += seconds
        end(pacer, now)
        assert go(pacer, now) == 0.0


@pytest.mark.parametrize(("seconds", "reached"), [(5.0, 1.0), (10.0, 1.0), (20.0, 0.5), (40.0, 0.25)])
def test_what_the_lane_reaches_is_measured_while_calls_wait(seconds: float, reached: float) -> None:
    pacer = Pacer(Limits(concurrency=1, latency=timedelta(seconds=10)), now=0.0)
    one_after_the_other(pacer, seconds, 400.0)
    assert pacer.reached(400.0) == pytest.approx(reached)


def test_what_the_lane_reaches_is_unknown_until_calls_have_waited_for_20_s() -> None:
    for now, reached in ((19.9, 1.0), (20.0, 0.0)):
        pacer = Pacer(Limits(concurrency=1, latency=timedelta(seconds=10)), now=0.0)
        assert [go(pacer), go(pacer)] == [0.0, 1.0]
        assert pacer.reached(now) == reached
    idle = Pacer(Limits(requests_per_minute=60), now=0.0)
    assert go(idle) == 0.0
    assert idle.reached(100.0) == 1.0


def test_a_refused_call_is_not_reached() -> None:
    pacer = Pacer(Limits(concurrency=1), now=0.0)
    assert [go(pacer), go(pacer)] == [0.0, 1.0]
    end(pacer, 20.0)
    assert [go(pacer, 20.0), go(pacer, 20.0)] == [0.0, 1.0]
    assert pacer.reached(45.0) > 0.0
    refuse(pacer, 45.0)
    assert pacer.reached(45.0) == 0.0


def test_refusals_lower_what_is_planned_with() -> None:
    pacer = Pacer(Limits(requests_per_minute=60_000, concurrency=100), now=0.0)
    for _ in range(5):
        assert go(pacer) == 0.0
    refuse(pacer, 0.0, 0.0)
    assert pacer.reached(0.0) == pytest.approx(0.8)
    refuse(pacer, 0.0, 0.0, Refusal.OVERLOADED)  # one of five, and five that are taken to have been answered
    assert pacer.share == pytest.approx(0.72)
    assert pacer.reached(0.0) == pytest.approx(0.8 * 0.9 * 0.9)


@pytest.mark.parametrize("between", [0, 1])
def test_five_calls_in_a_row_that_are_refused_are_an_outage(between: int) -> None:
    pacer = Pacer(Limits(concurrency=100), now=0.0)
    for _ in range(60):
        assert go(pacer) == 0.0
    for _ in range(50):
        end(pacer, 0.0)
    for _ in range(5):
        refuse(pacer, 0.0, refusal=Refusal.OVERLOADED)
        for _ in range(between):
            end(pacer, 0.0)
    assert (pacer.paused_until > 0.0) == (between == 0)


@pytest.mark.parametrize(("answered", "alone"), [(0.999, True), (1.0, False)])
def test_an_answer_to_an_earlier_call_ends_a_series_of_refusals_only_after_the_pause(
    answered: float, alone: bool
) -> None:
    pacer = Pacer(Limits(concurrency=100), now=0.0)
    assert [go(pacer), go(pacer)] == [0.0, 0.0]
    refuse(pacer, 0.5, 0.5)
    end(pacer, answered)
    assert go(pacer, 1.0) == 0.0
    refuse(pacer, 1.0, 1.0)
    now = pacer.paused_until
    assert go(pacer, now) == 0.0
    assert (go(pacer, now) > 0.0) == alone


def cut(pacer: Pacer, times: int) -> float:
    """Refusals with successes between them; the time of the last pause's end."""
    now = 0.0
    for _ in range(times):
        assert go(pacer, now) == 0.0
        assert go(pacer, now) == 0.0
        refuse(pacer, now, 0.1)
        now = pacer.paused_until
        end(pacer, now)
        now += 1.0
    return now


def test_a_cut_share_returns_soon_and_then_grows_faster_and_faster() -> None:
    pacer = Pacer(LIMITS, now=0.0)
    now = cut(pacer, 5)
    assert 0.33 < pacer.share < 0.45
    assert go(pacer, now + 60.0) == 0.0
    assert 0.42 < pacer.share < 0.55
    assert go(pacer, now + 300.0) == 0.0
    assert pacer.share > 0.95


def test_the_share_has_a_floor() -> None:
    pacer = Pacer(Limits(requests_per_minute=10_000_000), now=0.0)
    cut(pacer, 100)
    assert 0.01 <= pacer.share < 0.02


def test_a_cut_of_configured_rates_leaves_an_unlimited_concurrency_alone() -> None:
    pacer = Pacer(Limits(requests_per_minute=600), now=0.0)
    go(pacer)
    refuse(pacer, 0.0, 1.0)
    assert pacer.concurrency == math.inf


def test_the_burst_falls_with_the_share() -> None:
    pacer = Pacer(Limits(requests_per_minute=6_000), now=0.0)
    go(pacer)
    refuse(pacer, 0.0, 1.0)
    started = sum(go(pacer, 4.0) == 0.0 for _ in range(200))
    assert started == int(6_000 * BURST * pacer.share) + 1
    assert started < 110


@pytest.mark.parametrize(
    ("limits", "binds"),
    [
        (Limits(requests_per_minute=6), "requests_per_minute"),
        (Limits(input_tokens_per_minute=600), "input_tokens_per_minute"),
        (Limits(output_tokens_per_minute=600), "output_tokens_per_minute"),
        (Limits(concurrency=1), "concurrency"),
    ],
)
def test_it_says_what_calls_wait_for(limits: Limits, binds: str) -> None:
    pacer = Pacer(limits, now=0.0)
    while isinstance(pacer.ask(0.0, input_tokens=100, output_tokens=100), Permit):
        pass
    assert pacer.limited_by(0.0) == binds


def test_after_a_refusal_calls_wait_for_its_pause() -> None:
    pacer = Pacer(Limits(), now=0.0)
    permit = pacer.ask(0.0, input_tokens=1, output_tokens=1)
    assert isinstance(permit, Permit)
    pacer.refused(1.0, permit, Refusal.TOO_FAST, 5.0)
    assert pacer.limited_by(2.0) == "refusals"


def permitted(pacer: Pacer, now: float, tokens_in: int, tokens_out: int) -> Permit:
    got = pacer.ask(now, input_tokens=tokens_in, output_tokens=tokens_out)
    assert isinstance(got, Permit)
    return got


def test_what_a_call_used_beyond_what_was_booked_is_repaid_first_and_what_it_left_lowers_that() -> None:
    pacer = Pacer(Limits(output_tokens_per_minute=6_000), now=0.0)  # 100 a second; 120 may start at once
    first, second = permitted(pacer, 0.0, 0, 120), permitted(pacer, 0.0, 0, 100)
    assert ask(pacer, 0.0) == 1.0
    pacer.done(0.0, first, output_tokens_used=220)
    assert ask(pacer, 0.0) == 2.0
    pacer.done(0.0, second, output_tokens_used=50)
    assert ask(pacer, 0.0) == 1.5  # 50 of the 100 owed are repaid
    third = permitted(pacer, 1.5, 0, 300)
    assert ask(pacer, 1.5) == 3.0
    pacer.done(1.5, third, output_tokens_used=100)
    assert ask(pacer, 1.5) == 1.0


def test_a_debt_is_repaid_at_the_whole_limit_and_what_is_booked_at_the_share() -> None:
    pacer = Pacer(Limits(output_tokens_per_minute=6_000), now=0.0)
    first, second = permitted(pacer, 0.0, 0, 120), permitted(pacer, 0.0, 0, 100)
    pacer.refused(0.0, second, Refusal.TOO_FAST, 1.0)
    assert pacer.share == pytest.approx(0.8)
    pacer.done(1.0, first, output_tokens_used=320)
    assert ask(pacer, 1.0) == pytest.approx(2.0)


@pytest.mark.parametrize(("jitter", "factor"), [(0.0, 0.75), (0.5, 0.875), (1.0, 1.0)])
def test_an_outage_pauses_for_twice_as_long_each_time_less_up_to_a_quarter(jitter: float, factor: float) -> None:
    pacer = Pacer(Limits(), now=0.0, jitter=lambda: jitter)
    for _ in range(5):
        go(pacer)
    now = 0.0
    for _ in range(5):
        refuse(pacer, now, refusal=Refusal.OVERLOADED)
    for pause in (2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
        assert pacer.paused_until - now == pytest.approx(pause * factor)
        assert pacer.limited_by(now) == "refusals"
        now = pacer.paused_until
        assert go(pacer, now) == 0.0
        refuse(pacer, now, refusal=Refusal.OVERLOADED)


@pytest.mark.parametrize(("remaining", "more"), [(500, False), (501, True)])
def test_what_remains_is_believed_upwards_only_beyond_all_that_runs(remaining: int, more: bool) -> None:
    """Nothing runs but a call of 400 tokens, and 100 are left of the bucket of 500."""
    pacer = Pacer(Limits(output_tokens_per_minute=500), now=0.0, follows=True)
    permitted(pacer, 0.0, 0, 400)
    pacer.observe(0.0, headers("output-tokens", remaining=remaining))
    permitted(pacer, 0.0, 0, 100)
    permitted(pacer, 0.0, 0, 120)
    assert ask(pacer, 0.0) == pytest.approx((119 if more else 120) * 60 / 500)


def test_of_several_limits_the_one_that_takes_longest_is_waited_for() -> None:
    for few, binds in ((10, "input_tokens_per_minute"), (1_000, "output_tokens_per_minute")):
        limits = Limits(requests_per_minute=1_000, input_tokens_per_minute=few * 10, output_tokens_per_minute=1_000)
        pacer = Pacer(limits, now=0.0)
        permitted(pacer, 0.0, 100, 100)
        assert pacer.limited_by(0.0) == binds


def test_what_is_planned_with_after_refusals_is_what_is_let_go_and_answered() -> None:
    busy = Pacer(Limits(requests_per_minute=1_000), now=0.0)
    for _ in range(5):
        go(busy)
    refuse(busy, 0.0, refusal=Refusal.OVERLOADED)  # one of five, and five more are taken to have been answered
    assert busy.share == pytest.approx(0.9)
    assert busy.reached(0.0) == pytest.approx(0.9 * 0.9)
    refuse(busy, 0.0, refusal=Refusal.OVERLOADED)
    assert busy.share == pytest.approx(0.8)
    crowded = Pacer(Limits(concurrency=10), now=0.0)
    go(crowded)
    refuse(crowded, 0.0, 1.0, Refusal.TOO_MANY_AT_ONCE)
    assert (crowded.share, crowded.reached(0.0)) == (1.0, pytest.approx(0.8))


@pytest.mark.parametrize("origin", [0.0, 5_000.0])
def test_what_a_model_writes_is_learned_by_any_clock(origin: float) -> None:
    """Five calls of 10 s wrote a tenth, and one that runs for 20 s may write all of its 1,000 tokens."""
    forecast = OutputForecast()
    forecast.begin("m", 1_000, origin)
    calls = [forecast.begin("m", 1_000, origin) for _ in range(5)]
    for call in calls:
        call.end(100, origin + 10.0)
    # The mean is (5 * 0.1 + 1) / 6 = 0.25; the mean square 0.175, so two standard errors are 0.3.
    spread = math.sqrt((5 * 0.01 + 1) / 6 - 0.25**2)
    assert forecast.expect("m", 1_000, origin + 20.0) == math.ceil(1_000 * (0.25 + 2 * spread / math.sqrt(5)))
    young = OutputForecast()
    for call in [young.begin("m", 1_000, origin) for _ in range(5)]:
        call.end(100, origin + 10.0)
    young.begin("m", 1_000, origin + 15.0)  # it has run for 5 s, which says nothing
    assert young.expect("m", 1_000, origin + 20.0) == pytest.approx(100, abs=1)


def test_a_refusal_of_the_same_event_that_asks_for_no_pause_prolongs_none() -> None:
    pacer = Pacer(Limits(), now=0.0)
    assert [go(pacer), go(pacer)] == [0.0, 0.0]
    refuse(pacer, 1.0, 7.0)
    refuse(pacer, 7.5)
    assert pacer.paused_until == 8.0


def test_at_its_end_a_pause_holds_nothing_up() -> None:
    pacer = Pacer(Limits(concurrency=1), now=0.0)
    go(pacer)
    refuse(pacer, 0.0, 5.0)
    assert [pacer.limited_by(now) for now in (4.9, 5.0)] == ["refusals", "requests_per_minute"]
