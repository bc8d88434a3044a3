from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from math import ceil

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.strategies import HOUR, NOW

from batchwise.errors import InvalidValueError
from batchwise.models import Lane, Limits
from batchwise.planning.cadence import rescue_duration, sla_cadence
from batchwise.planning.workload import plan_workload

ZERO = timedelta(0)
MINUTE = timedelta(minutes=1)
MICROS = HOUR // timedelta.resolution


@attrs.frozen
class Rates:
    input: int
    output: int
    threshold: int | None = None
    above: Rates | None = None


class Prices:
    """3 and 15 USD a million tokens, half in a batch; other models are unknown."""

    def __init__(self, sync=Rates(3_000_000, 15_000_000), batch=Rates(1_500_000, 7_500_000)):
        self.by_lane = {Lane.SYNC: sync, Lane.BATCH: batch}
        self.asked = []

    def rates(self, model, lane, *, at=None):
        self.asked.append(at)
        return self.by_lane[lane] if model == "known" else None


def plan(**changes):
    asked = {
        "arrivals_per_hour": 1_000,
        "sla": 30 * HOUR,
        "input_tokens": 2_000,
        "output_tokens": 500,
        "request_bytes": 8_000,
        "model": "known",
        "prices": Prices(),
    }
    return plan_workload(**{**asked, **changes})


def names(found):
    return [violation.name for violation in found.violations]


def test_a_light_load_follows_the_card():
    found = plan()
    assert found.violations == ()
    assert found.nearest is None
    assert found.interval == 4 * HOUR
    assert found.requests_per_submission == 4_000
    assert found.batches_per_submission == 1
    assert found.peak_in_queue == 28_000
    assert found.queue_limit == 200_000
    assert found.reserve == 2 * HOUR
    assert found.reserve_needed == rescue_duration(
        4_000, Limits.for_tier("start"), input_tokens=2_000, output_tokens=500
    )
    assert found.reserve_needed == timedelta(seconds=400)  # 100 calls of 10 s at once
    assert found.sync_per_hour == 36_000
    assert found.cadence == sla_cadence(30 * HOUR)


def test_a_heavy_load_needs_more_than_a_third():
    found = plan(arrivals_per_hour=20_000, sla=24 * HOUR + 330 * MINUTE, limits=Limits(requests_per_minute=400))
    assert found.violations == ()
    assert found.interval == 3 * HOUR
    assert found.reserve == found.reserve_needed == 150 * MINUTE


def test_overhead_comes_out_of_the_reserve_until_the_rescue_needs_it():
    assert plan(overhead=HOUR).interval == 4 * HOUR
    assert plan(overhead=HOUR).reserve == HOUR
    late = plan(overhead=3 * HOUR)
    assert late.violations == ()
    assert late.interval < 3 * HOUR
    assert late.reserve >= late.reserve_needed


@pytest.mark.parametrize(
    ("changes", "batches"),
    [
        ({"request_bytes": 64_000}, 1),
        ({"request_bytes": 64_001}, 2),
        ({"request_bytes": 30_000_000}, 500),
        ({"arrivals_per_hour": 25_000, "limits": Limits(), "request_bytes": 1}, 1),
        ({"arrivals_per_hour": 25_000.25, "limits": Limits(), "request_bytes": 1}, 2),
    ],
)
def test_batches_by_count_and_bytes(changes, batches):
    assert plan(**changes).batches_per_submission == batches


def test_rounds():
    found = plan(sla=60 * HOUR, rounds=2)
    assert found.interval == 4 * HOUR
    assert found.peak_in_queue == 2 * 28_000
    assert found.reserve == 4 * HOUR
    assert found.cadence == sla_cadence(60 * HOUR, rounds=2)


# Money


def test_dollars_a_month():
    found = plan()
    each = Decimal("0.006") + Decimal("0.0075")
    assert found.usd_per_month_sync == each * 720_000
    assert found.usd_per_month_batch == each * 360_000
    assert plan(arrivals_per_hour=Fraction(1, 2), input_tokens=1, output_tokens=0).usd_per_month_sync == Decimal(
        "0.00108"
    )


def test_an_unknown_price_is_none():
    found = plan(model="unknown")
    assert found.usd_per_month_sync is None
    assert found.usd_per_month_batch is None


def test_a_long_request_has_its_own_price():
    long = Rates(3_000_000, 15_000_000, threshold=200_000, above=Rates(6_000_000, 22_500_000))
    at = datetime(2026, 1, 1, tzinfo=timezone.utc)
    prices = Prices(sync=long)
    found = plan(arrivals_per_hour=1, input_tokens=200_001, output_tokens=0, prices=prices, at=at)
    assert found.usd_per_month_sync == Decimal("1.200006") * 720
    assert plan(arrivals_per_hour=1, input_tokens=200_000, output_tokens=0, prices=prices).usd_per_month_sync == 432
    assert prices.asked == [at, at, None, None]


def test_the_bundled_prices_are_used_by_default():
    found = plan(prices=None, model="claude-sonnet-4-5")
    assert found.usd_per_month_sync == 2 * found.usd_per_month_batch == Decimal(9720)
    assert plan(prices=None, model="claude-sonnet-4-5000").usd_per_month_sync is None


def test_importing_it_leaves_prices_alone():
    code = (
        "import sys; import batchwise.planning.workload; "
        "heavy = {'anthropic', 'pydantic', 'httpx2', 'genai_prices', 'sqlite3'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# Violations and the nearest plan


def test_an_interval_that_is_too_long_is_shortened():
    found = plan(arrivals_per_hour=7_000, interval=350 * MINUTE)
    assert names(found) == ["reserve", "queue"]
    reserve, queue = found.violations
    assert (
        (reserve.actual, reserve.limit)
        == (found.reserve_needed, found.reserve)
        == (timedelta(seconds=4083.4), 10 * MINUTE)
    )
    assert "40,834 requests that expire together need 1:08:03.400000" in reserve.message
    assert (queue.actual, queue.limit) == (208_834, 200_000)
    assert "208,834" in queue.message
    assert found.nearest is not None
    assert found.nearest.interval == 4 * HOUR
    assert (found.nearest.arrivals_per_hour, found.nearest.sla) == (7_000, 30 * HOUR)
    assert found.nearest.violations == ()
    assert plan(interval=7 * HOUR).cadence is None
    assert names(plan(interval=7 * HOUR)) == ["reserve"]
    assert plan(interval=7 * HOUR).reserve == ZERO
    assert plan(interval=3 * HOUR).violations == ()
    whole = plan(interval=6 * HOUR, limits=Limits())
    assert whole.violations == ()
    assert whole.cadence == sla_cadence(30 * HOUR, reserve=ZERO)
    assert plan(interval=3 * HOUR).interval == 3 * HOUR


def test_an_sla_inside_the_window_is_lengthened():
    found = plan(sla=24 * HOUR, overhead=30 * MINUTE)
    assert names(found) == ["sla"]
    assert found.interval == ZERO
    assert found.cadence is None
    (violation,) = found.violations
    assert (violation.actual, violation.limit) == (24 * HOUR + 30 * MINUTE, 24 * HOUR)
    nearest = found.nearest
    assert nearest is not None
    assert nearest.arrivals_per_hour == 1_000
    assert nearest.interval >= 15 * MINUTE
    assert plan(sla=nearest.sla, overhead=30 * MINUTE).violations == ()
    assert plan(sla=nearest.sla - MINUTE, overhead=30 * MINUTE).interval < 15 * MINUTE


def test_more_than_the_sync_lane_can_redo_is_cut_to_its_rate():
    found = plan(arrivals_per_hour=50_000, limits=Limits(requests_per_minute=400))
    assert names(found) == ["sync_rate"]
    assert "50,000 requests an hour arrive, the sync lane serves 24,000" in found.violations[0].message
    assert found.nearest is not None
    assert found.nearest.arrivals_per_hour == 24_000
    assert found.nearest.sla == 30 * HOUR
    assert found.nearest.violations == ()


def test_a_full_queue_shortens_the_interval_first():
    found = plan(arrivals_per_hour=7_500)
    assert found.violations == ()
    assert found.peak_in_queue == 200_000
    assert found.interval == timedelta(microseconds=200_000 * MICROS // 7_500) - 24 * HOUR


def test_a_queue_that_is_too_small_cuts_the_arrivals():
    found = plan(arrivals_per_hour=9_000)
    assert names(found) == ["queue"]
    assert found.nearest is not None
    assert found.nearest.violations == ()
    assert found.nearest.interval >= 15 * MINUTE
    assert found.nearest.sla == 30 * HOUR
    assert names(plan(arrivals_per_hour=found.nearest.arrivals_per_hour + 1)) == ["queue"]


def test_both_the_sla_and_the_arrivals_may_have_to_give():
    found = plan(arrivals_per_hour=9_000, sla=23 * HOUR)
    assert names(found) == ["sla", "queue"]
    assert found.nearest is not None
    assert found.nearest.violations == ()
    assert found.nearest.sla > 24 * HOUR
    assert found.nearest.arrivals_per_hour < 9_000


def test_a_burst_that_cannot_be_redone_in_time():
    limits = Limits(requests_per_minute=400)
    assert plan(arrivals_per_hour=0, burst=144_000, limits=limits).violations == ()
    found = plan(arrivals_per_hour=0, burst=144_001, limits=limits)
    assert names(found) == ["burst"]
    assert (found.violations[0].actual, found.violations[0].limit) == (144_001, 144_000)
    assert found.nearest is not None
    assert found.nearest.sla == 30 * HOUR + MINUTE
    assert names(plan(burst=144_000, limits=limits, interval=HOUR)) == ["burst"]
    assert plan(burst=142_000, limits=limits, interval=HOUR).violations == ()
    assert plan(burst=10**6, limits=Limits()).violations == ()
    beside = plan(burst=142_001, limits=limits, interval=HOUR).nearest
    assert beside is not None
    assert (beside.arrivals_per_hour, beside.sla) == (1_000, 30 * HOUR)
    assert beside.interval < HOUR


def test_a_burst_waits_an_interval_before_each_further_round():
    run = {"arrivals_per_hour": 0, "sla": 60 * HOUR, "rounds": 2, "limits": Limits(requests_per_minute=400)}
    assert plan(**run, interval=2 * HOUR, burst=240_000).violations == ()
    assert names(plan(**run, interval=2 * HOUR, burst=240_001)) == ["burst"]


def test_more_time_is_asked_for_before_fewer_arrivals():
    found = plan(burst=143_990, limits=Limits(requests_per_minute=400))
    assert names(found) == ["burst"]
    assert found.nearest is not None
    assert found.nearest.arrivals_per_hour == 1_000
    assert found.nearest.sla > 30 * HOUR
    fewer = plan(burst=143_990, arrivals_per_hour=1, limits=Limits(requests_per_minute=400))
    assert fewer.violations == ()  # fewer arrivals would have done too


def test_a_request_that_is_too_large_has_no_nearest_plan():
    found = plan(request_bytes=32_000_001)
    assert names(found) == ["request_bytes"]
    assert found.nearest is None
    assert plan(request_bytes=32_000_000).violations == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arrivals_per_hour": 0}, "nothing to plan"),
        ({"arrivals_per_hour": -1}, "arrivals_per_hour=-1 is not a number"),
        ({"sla": 30}, "sla=30 is not a timedelta"),
        ({"window": ZERO}, "window=0:00:00 is not positive"),
        ({"interval": ZERO}, "interval=0:00:00 is not positive"),
        ({"overhead": -HOUR}, "overhead="),
        ({"rounds": 0}, "rounds=0"),
        ({"rounds": 10**12}, "rounds=1000000000000"),
        ({"burst": -1}, "burst=-1"),
        ({"request_bytes": 0}, "request_bytes=0"),
        ({"input_tokens": -1}, "input_tokens=-1"),
        ({"model": ""}, "model='' is not a model's id"),
        ({"limits": "start"}, "limits='start' is not a Limits"),
        ({"prices": None, "at": datetime(2026, 1, 1)}, "at=.* is a naive datetime"),  # noqa: DTZ001
    ],
)
def test_what_is_refused_is_named(changes, message):
    with pytest.raises(InvalidValueError, match=message):
        plan(**changes)


# A plan without violations keeps the SLA


workloads = st.fixed_dictionaries(
    {
        "arrivals_per_hour": st.fractions(Fraction(1, 10), 60, max_denominator=20),
        "sla": st.timedeltas(min_value=25 * HOUR, max_value=60 * HOUR),
        "input_tokens": st.integers(0, 2_000),
        "output_tokens": st.integers(0, 2_000),
        "overhead": st.timedeltas(ZERO, 2 * HOUR),
        "interval": st.none() | st.timedeltas(10 * MINUTE, 10 * HOUR),
        "burst": st.integers(0, 60),
        "limits": st.builds(
            Limits,
            requests_per_minute=st.none() | st.integers(1, 3),
            input_tokens_per_minute=st.none() | st.integers(1_000, 3_000),
            output_tokens_per_minute=st.none() | st.integers(500, 3_000),
            concurrency=st.none() | st.integers(1, 3),
            latency=st.timedeltas(MINUTE, 5 * MINUTE),
            batch_requests_in_queue=st.none() | st.integers(200, 3_000),
        ),
    }
)


def simulate(asked, interval, phase, burst_at):
    """Every batch expires whole at the end of its window. Lateness in microseconds, and the queue's peak."""
    tick = timedelta.resolution
    every, window = interval // tick, 24 * MICROS
    period = MICROS / asked["arrivals_per_hour"]
    horizon = max(8 * every, 30 * MICROS)
    arrivals = [phase * period + index * period for index in range(ceil(horizon / period))]
    submitted = [(arrival, ceil(arrival / every) * every) for arrival in arrivals]
    submitted += [(burst_at * horizon, burst_at * horizon)] * asked["burst"]
    peak = max(sum(at - window <= other <= at for _, other in submitted) for at in {at for _, at in submitted})
    expired = sorted(
        (at + window + asked["overhead"] // tick, arrival + asked["sla"] // tick) for arrival, at in submitted
    )
    tokens = {"input_tokens": asked["input_tokens"], "output_tokens": asked["output_tokens"]}
    unit = rescue_duration(10**6, asked["limits"], **tokens) // tick
    cost = Fraction(unit, 10**6)  # within a millionth of a microsecond a request
    lane, late, waiting = Fraction(0), Fraction(-(10**18)), []
    while expired or waiting:
        if not waiting:
            lane = max(lane, Fraction(expired[0][0]))
        while expired and expired[0][0] <= lane:
            waiting.append(expired.pop(0)[1])
        waiting.sort()
        lane += cost
        late = max(late, lane - waiting.pop(0))
    return late, peak


@given(asked=workloads, phase=st.fractions(0, 1, max_denominator=50), burst_at=st.fractions(0, 1, max_denominator=50))
def test_a_plan_without_violations_keeps_every_deadline(asked, phase, burst_at):
    found = plan(**asked)
    chosen = found if not found.violations else found.nearest
    assume(chosen is not None)
    run = {**asked, "arrivals_per_hour": chosen.arrivals_per_hour, "sla": chosen.sla}
    assume(run["arrivals_per_hour"] * 40 < 2_000)
    late, peak = simulate(run, chosen.interval, phase, burst_at)
    one_call = rescue_duration(
        1, asked["limits"], input_tokens=asked["input_tokens"], output_tokens=asked["output_tokens"]
    )
    assert late <= (one_call // timedelta.resolution if asked["burst"] else 1)  # a call that runs is not interrupted
    assert peak <= chosen.peak_in_queue
    assert chosen.queue_limit is None or chosen.peak_in_queue <= chosen.queue_limit


@given(asked=workloads)
def test_the_nearest_plan_is_a_plan(asked):
    found = plan(**asked)
    if found.violations:
        assert {violation.name for violation in found.violations} <= {"sla", "reserve", "sync_rate", "queue", "burst"}
        nearest = found.nearest
        if nearest is not None:
            assert nearest.violations == ()
            assert nearest.sla >= found.sla
            assert nearest.arrivals_per_hour <= found.arrivals_per_hour
            again = {**asked, "arrivals_per_hour": nearest.arrivals_per_hour, "sla": nearest.sla, "interval": None}
            assert plan(**again) == nearest
    else:
        assert found.nearest is None
        assert found.cadence is not None
        assert found.cadence.worst_case + found.reserve_needed <= found.sla
        assert list(found.cadence.submissions(NOW, NOW + found.interval)) == [NOW]
