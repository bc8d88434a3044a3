"""What waiting is worth: the interval that pays, the best hedge, and that more time never costs more."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import attrs
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tests.planning.test_forecast import forecasts, shares
from tests.strategies import HOUR, NOW, durations, params

import batchwise as bw
from batchwise.errors import InvalidValueError
from batchwise.models import Lane, Latency, Policy, Reason
from batchwise.planning.forecast import Forecast
from batchwise.planning.pricing import PriceBook
from batchwise.planning.routing import Case, case_of
from batchwise.planning.waiting_cost import best_hedge, delay_cost, hedge_gain, longest_worthwhile

MINUTE = timedelta(minutes=1)
TICK = timedelta.resolution
PRIOR = Forecast.prior()
LONG = timedelta(days=60)
spans = durations | st.timedeltas(MINUTE, 30 * HOUR)

costs = st.decimals("0.00001", "0.02", places=5)
"""Of an hour, in USD; a batch saves 0.0052 USD on the request of these tests."""


def choose(latency: Any, policy: Policy, forecast: Forecast | None = None) -> bw.Decision:
    return bw.choose_lane(bw.Request(params(), latency=latency), now=NOW, policy=policy, forecast=forecast)


def case(latency: Any, policy: Policy) -> Case:
    request = bw.Request(params(), latency=latency)
    return case_of(request, now=NOW, policy=policy, forecast=None, prices=PriceBook())


# -- a longer latency never costs more --------------------------------------------------------------------------------

waiting = st.builds(
    Policy,
    window=st.sampled_from([24 * HOUR, 6 * HOUR]),
    reserve=st.none() | st.timedeltas(timedelta(0), 6 * HOUR),
    min_reserve=st.timedeltas(timedelta(0), HOUR),
    interval=st.none() | st.timedeltas(MINUTE, 6 * HOUR),
    hedge=st.booleans(),
    delay_cost_per_hour=st.just(0) | costs,
)
COSTLY = Policy(delay_cost_per_hour="0.001")
BETTING = attrs.evolve(COSTLY, hedge=True)


@given(spans, st.just(Latency.FLEXIBLE) | spans, waiting, st.none() | forecasts)
@example(26 * HOUR, 72 * HOUR, COSTLY, None)
@example(26 * HOUR, Latency.FLEXIBLE, COSTLY, None)
@example(2 * HOUR, 23 * HOUR, Policy(delay_cost_per_hour="0.0035", hedge=True), None)
@example(2 * HOUR, 23 * HOUR, BETTING, None)
@example(20 * HOUR, 26 * HOUR, Policy(delay_cost_per_hour="0.0014", hedge=True), None)
@example(HOUR, Latency.FLEXIBLE, Policy(delay_cost_per_hour="0.005", hedge=True), None)
def test_a_longer_latency_never_costs_more(one: Any, other: Any, policy: Policy, forecast: Forecast | None) -> None:
    shorter, longer = sorted((one, other), key=lambda latency: LONG if latency is Latency.FLEXIBLE else latency)
    assume(choose(shorter, policy, forecast).lane is Lane.BATCH)
    assert choose(longer, policy, forecast).lane is Lane.BATCH


@given(durations | st.just(Latency.FLEXIBLE), costs)
def test_an_interval_is_as_long_as_it_pays(latency: Any, cost: Decimal) -> None:
    policy = Policy(delay_cost_per_hour=cost)
    asked, free = case(latency, policy), case(latency, Policy())
    saving = asked.saving()
    assert saving is not None
    run = PRIOR.expected(24 * HOUR)
    if choose(latency, policy).lane is Lane.BATCH:
        assert delay_cost(asked.interval + 2 * run, cost) <= 2 * saving
        if asked.interval < free.interval:
            assert delay_cost(asked.interval + 2 * run + TICK, cost) > 2 * saving
        else:
            assert asked.interval == free.interval
    elif latency is Latency.FLEXIBLE:
        assert delay_cost(run, cost) > saving


@given(
    st.decimals("0.00001", 100, places=5), st.decimals("0.00001", 100, places=5), st.timedeltas(timedelta(0), 24 * HOUR)
)
@example(Decimal(10**12), Decimal("1E-40"), HOUR)
@example(Decimal(2), Decimal(1), 2 * HOUR)
def test_the_longest_worthwhile_interval_is_exact(saving: Decimal, cost: Decimal, run: timedelta) -> None:
    def costs_less(interval: timedelta) -> bool:
        wait = Fraction(interval // TICK, 2) + run // TICK
        return wait * Fraction(cost) <= Fraction(saving) * (HOUR // TICK)

    found = longest_worthwhile(saving, cost, run)
    assert costs_less(found)
    assert found == timedelta(days=36_525) or not costs_less(found + TICK)


def test_the_plan_of_the_docs() -> None:
    """Without the cap of the interval 72 h went to the sync lane, where 26 h goes to a batch."""
    saving = case(72 * HOUR, COSTLY).saving()
    assert saving is not None
    interval = longest_worthwhile(saving, Decimal("0.001"), PRIOR.expected(24 * HOUR))
    assert case(72 * HOUR, COSTLY).interval == interval
    assert 3 * HOUR < interval < 4 * HOUR
    assert case(26 * HOUR, COSTLY).interval == 80 * MINUTE
    assert case(26 * HOUR, attrs.evolve(COSTLY, interval=HOUR)).interval == HOUR


# -- hedges -----------------------------------------------------------------------------------------------------------


class TestGain:
    def test_a_hedge_pays_if_the_inequality_of_the_docs_holds(self) -> None:
        usd = Decimal
        assert hedge_gain(p=0.1, saving=usd(1), hang=0.01, share_done=0.5, delay_cost=usd("0.09")) > 0
        assert hedge_gain(p=0.1, saving=usd(1), hang=0.01, share_done=0.5, delay_cost=usd("0.0956")) < 0
        assert hedge_gain(p=0.3, saving=usd(1), hang=1, share_done=0.5, delay_cost=usd(0)) < 0

    def test_is_exact(self) -> None:
        def gain(cost: str) -> Fraction:
            return hedge_gain(p=0.5, saving=Decimal(2), hang=0.5, share_done=1, delay_cost=Decimal(cost))

        assert gain("0.5") == 0
        assert 0 < gain("0." + "4" + "9" * 30) < Fraction(1, 10**29)
        assert gain("1") == Fraction(-1, 2)

    @given(
        st.tuples(shares, shares),
        st.fixed_dictionaries(
            {"saving": st.decimals(0, 100), "hang": shares, "share_done": shares, "delay_cost": st.decimals(0, 100)}
        ),
    )
    def test_a_better_chance_never_hurts(self, chances: tuple[float, float], rest: dict[str, Any]) -> None:
        low, high = sorted(chances)
        assert hedge_gain(p=high, **rest) >= hedge_gain(p=low, **rest)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"p": 2}, "p=2 is"),
            ({"hang": -1}, "hang=-1 "),
            ({"share_done": 1.5}, r"share_done=1\.5 "),
            ({"saving": Decimal("NaN")}, "saving=NaN"),
            ({"delay_cost": Decimal("Infinity")}, "delay_cost=Infinity"),
            ({"delay_cost": Decimal(-1)}, "delay_cost=-1"),
        ],
    )
    def test_what_makes_no_sense_is_refused_by_name(self, changes: dict[str, Any], said: str) -> None:
        usual: dict[str, Any] = {"p": 1, "saving": Decimal(1), "hang": 0, "share_done": 0, "delay_cost": Decimal(0)}
        with pytest.raises(InvalidValueError, match=f"^{said}"):
            hedge_gain(**{**usual, **changes})


def hedge(room: timedelta, saving: Decimal, cost: Decimal, forecast: Forecast) -> Any:
    return best_hedge(room, saving=saving, cost_per_hour=cost, settle=10 * MINUTE, forecast=forecast)


@given(
    st.timedeltas(TICK, 30 * HOUR), st.decimals("0.001", 1, places=3), st.just(Decimal(0)) | costs, forecasts,
    st.lists(st.fractions(0, 1), max_size=10),
)  # fmt: skip
def test_no_other_hedge_is_worth_more(
    room: timedelta, saving: Decimal, cost: Decimal, forecast: Forecast, others: list[Fraction]
) -> None:
    found = hedge(room, saving, cost, forecast)

    def gain(run: timedelta) -> Fraction:
        hang = 1 - forecast.p_cancel_within(10 * MINUTE)
        wait = delay_cost(forecast.expected(run), cost)
        return hedge_gain(p=forecast.p_end_within(run), saving=saving, hang=hang, share_done=1, delay_cost=wait)

    assert timedelta(0) < found.run <= room
    assert found.gain == gain(found.run)
    assert found.pays == (found.gain > 0)
    assert found.chance == forecast.p_end_within(found.run)
    assert found.delay_cost == delay_cost(forecast.expected(found.run), cost)
    for share in others:
        assert gain(room * float(share)) <= max(gain(found.run), 0) + Fraction(1, 10**9)


@given(st.timedeltas(TICK, 30 * HOUR), st.decimals(-100, 0), costs, forecasts)
def test_nothing_saved_never_pays(room: timedelta, saving: Decimal, cost: Decimal, forecast: Forecast) -> None:
    assert not hedge(room, saving, cost, forecast).pays


def test_a_hedge_whose_wait_costs_is_broken_off_when_it_is_worth_most() -> None:
    free, costly = choose(20 * HOUR, Policy(hedge=True)), choose(20 * HOUR, BETTING)
    assert free.reason is costly.reason is Reason.HEDGED
    assert (free.deadline, costly.deadline) == (NOW + 20 * HOUR, NOW + 20 * HOUR)
    assert free.rescue_at == NOW + 20 * HOUR - 25 * MINUTE
    assert costly.rescue_at is not None
    assert costly.submit_by == NOW + 5 * MINUTE
    assert costly.rescue_at < free.rescue_at
    assert costly.rescue_at - costly.submit_by in PRIOR.steps(30 * HOUR)
    assert "costs" in costly.explanation
