from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from math import ceil
from random import Random

import attrs
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tests.planning.rescue_simulation import lane_time, lateness
from tests.strategies import HOUR, NOW, params

from batchwise.errors import InfeasibleSLAError, InvalidValueError
from batchwise.models import Lane, Limits, Policy, Rates, Reason
from batchwise.planning.cadence import rescue_duration, sla_cadence
from batchwise.planning.capacity import FILLED, MOST_CALLS
from batchwise.planning.constraints import Load
from batchwise.planning.pricing import PriceBook, Tariff, estimate, to_usd
from batchwise.planning.reserve import overhead_of
from batchwise.planning.routing import case_of, choose_lane
from batchwise.planning.workload import compare_slas, plan_workload
from batchwise.request import Request

ZERO = timedelta(0)
MINUTE = timedelta(minutes=1)
MICROS = HOUR // timedelta.resolution


def tariff(price_in, price_out, *, cache_read=300_000, **longer):
    return Tariff(price_in, price_out, price_in, price_in, cache_read, **longer)


SYNC, BATCH = tariff(3_000_000, 15_000_000), tariff(1_500_000, 7_500_000)


class Prices(PriceBook):
    """3 and 15 USD a million tokens, half in a batch; other models are unknown."""

    def __init__(self, sync=SYNC, batch=BATCH):
        self.by_lane = {Lane.SYNC: sync, Lane.BATCH: batch}
        self.asked = []

    def rates(self, model, lane, *, at=None):
        self.asked.append(at)
        return self.by_lane[lane] if model == "known" else None


def plan(**changes):
    asked = {
        "arrivals_per_hour": 1_000,
        "sla": 30 * HOUR,
        "mean_input_tokens": 2_000,
        "mean_output_tokens": 500,
        "request_bytes": 8_000,
        "model": "known",
        "prices": Prices(),
    }
    return plan_workload(**{**asked, **changes})


def names(found):
    return [violation.name for violation in found.violations]


def test_a_light_load_keeps_a_third_of_the_buffer():
    found = plan()
    assert found.violations == ()
    assert found.nearest is None
    assert found.interval == 4 * HOUR
    assert found.requests_per_submission == 4_000
    assert found.batches_per_submission == 1
    assert found.peak_in_queue == 28_000
    assert found.queue_limit == 200_000
    assert found.reserve == 2 * HOUR
    assert found.rescue == rescue_duration(
        4_000, Limits.for_tier("start"), mean_input_tokens=2_000, mean_output_tokens=500
    )
    assert found.rescue == timedelta(seconds=400)  # 100 calls of 10 s at once
    assert found.reserve_needed == timedelta(seconds=0.1)  # of one request: the deadlines come one after the other
    assert found.sync_per_hour == 36_000
    assert found.cadence == sla_cadence(30 * HOUR)


def test_a_heavy_load_needs_no_more_reserve_than_a_light_one():
    found = plan(arrivals_per_hour=24_000, sla=24 * HOUR + 330 * MINUTE, limits=Limits(requests_per_minute=400))
    assert found.violations == ()
    assert found.interval == 220 * MINUTE
    assert found.rescue == found.interval
    assert found.reserve_needed == timedelta(seconds=0.15)


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
    assert found.requests_per_submission == 2 * 4_000  # what expired in the first round goes again
    assert plan(sla=60 * HOUR, rounds=2, request_bytes=64_000).batches_per_submission == 2
    assert plan(sla=60 * HOUR, rounds=2, burst=100).peak_in_queue == 2 * 28_100
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
    assert plan(
        arrivals_per_hour=Fraction(1, 2), mean_input_tokens=1, mean_output_tokens=0
    ).usd_per_month_sync == Decimal("0.00108")


def test_an_unknown_price_is_none():
    found = plan(model="unknown")
    assert found.usd_per_month_sync is None
    assert found.usd_per_month_batch is None


def test_a_long_request_has_its_own_price():
    long = tariff(3_000_000, 15_000_000, threshold=200_000, above=tariff(6_000_000, 22_500_000))
    at = datetime(2026, 1, 1, tzinfo=timezone.utc)
    prices = Prices(sync=long)
    found = plan(arrivals_per_hour=1, mean_input_tokens=200_001, mean_output_tokens=0, prices=prices, at=at)
    assert found.usd_per_month_sync == Decimal("1.200006") * 720
    assert (
        plan(arrivals_per_hour=1, mean_input_tokens=200_000, mean_output_tokens=0, prices=prices).usd_per_month_sync
        == 432
    )
    assert prices.asked == [at, at, None, None]


def test_a_mean_hides_the_tiers_of_prices():
    said = {"arrivals_per_hour": 100, "mean_output_tokens": 500, "model": "claude-haiku-5-5", "prices": None}
    mean = plan(**said, mean_input_tokens=95_000)
    assert mean.usd_per_month_sync == 702
    for shares in ({20_000: 0.5, 170_000: 0.5}, {20_000: 3, 170_000: 3, 9_000_000: 0}):
        spread = plan(**said, mean_input_tokens=None, input_lengths=shares)
        assert (spread.usd_per_month_sync, spread.usd_per_month_batch) == (3_186, 1_593)
        assert (spread.sync_per_hour, spread.rescue) == (mean.sync_per_hour, mean.rescue)


def test_cached_tokens_have_a_price_of_their_own_and_no_limit():
    said = {"arrivals_per_hour": 1, "mean_output_tokens": 0, "mean_input_tokens": 1_000}
    cached = plan(**said, mean_cached_tokens=10_000)
    assert cached.usd_per_month_sync == 720 * (Decimal("0.003") + Decimal("0.003"))
    assert cached.sync_per_hour == plan(**said).sync_per_hour
    long = tariff(1, 1, cache_read=1, threshold=10_999, above=tariff(10**9, 1, cache_read=10**9))
    assert plan(**said, mean_cached_tokens=9_999, prices=Prices(sync=long)).usd_per_month_sync < Decimal("0.001")
    assert plan(**said, mean_cached_tokens=10_000, prices=Prices(sync=long)).usd_per_month_sync == 11 * 720


sampled = st.builds(
    Request,
    st.builds(
        params,
        st.sampled_from([10, 30_000, 300_000, 450_000]).map("x".__mul__),
        model=st.sampled_from(["claude-haiku-5-5", "claude-sonnet-5"]),
        max_tokens=st.integers(1, 5_000),
    ),
    expected_output_tokens=st.none() | st.integers(1, 5_000),
)


@given(st.lists(sampled, min_size=1, max_size=6), st.booleans())
def test_a_sample_is_counted_and_priced_request_by_request(sample, policy):
    found = plan_workload(arrivals_per_hour=1, sla=30 * HOUR, sample=iter(sample), policy=Policy() if policy else None)
    tokens = [(len(one.body) // 4, one.expected_output_tokens or one.max_tokens) for one in sample]
    for lane, month in ((Lane.SYNC, found.usd_per_month_sync), (Lane.BATCH, found.usd_per_month_batch)):
        costs = [estimate(*pair, PriceBook().rates(one.model, lane)) for one, pair in zip(sample, tokens, strict=True)]
        assert month == pytest.approx(720 * to_usd(sum(costs)) / len(sample), rel=Decimal("1e-20"))
    limits, share = Limits.for_tier("start"), Fraction(1)
    if policy:  # which follows the account's limits; of concurrency the API publishes none
        limits, share = attrs.evolve(limits, concurrency=None), FILLED
    means = [Fraction(sum(figures), len(sample)) for figures in zip(*tokens, strict=True)]
    assert found.sync_per_hour == float(share * (HOUR // timedelta.resolution) / lane_time(limits, *means))
    alike = plan_workload(arrivals_per_hour=1, sla=30 * HOUR, sample=sample * 3, policy=Policy() if policy else None)
    assert alike == found


def test_a_sample_counts_bytes_as_a_create_call_has_them():
    one = Request(params("x" * 600_000))
    size = len(one.body) + len(b'{"custom_id":"","params":},') + 64
    batches = plan_workload(arrivals_per_hour=1_000, sla=30 * HOUR, sample=[one]).batches_per_submission
    assert batches == -(-4_000 // (256_000_000 // size))


def test_without_the_price_of_one_there_is_none():
    sample = [Request(params()), Request(params(model="nobody-knows-1"))]
    found = plan_workload(arrivals_per_hour=1, sla=30 * HOUR, sample=sample)
    assert found.usd_per_month_sync is found.usd_per_month_batch is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample": []}, r"sample has to be requests, at least one: sample=\[Request\(\.\.\.\), \.\.\.\]$"),
        ({"sample": [params()]}, "sample has to be requests"),
        (
            {"sample": [Request(params())], "model": "known"},
            "sample says what requests are like, and so does model; leave one of them out$",
        ),
        ({"sample": [Request(params())], "mean_cached_tokens": 5}, "sample says .* and so does mean_cached_tokens"),
        ({"model": "known"}, r"mean_input_tokens is missing; give it, or sample=\[Request\(\.\.\.\), \.\.\.\]$"),
        (
            {"model": "known", "mean_input_tokens": 5, "input_lengths": {5: 1}},
            "mean_input_tokens and input_lengths both say how long requests are; leave one out$",
        ),
        ({"model": "known", "input_lengths": {5: 1}, "request_bytes": 1}, "mean_output_tokens is missing"),
        ({"sample": [Request(params())], "input_lengths": {5: 1}}, "sample says .* and so does input_lengths"),
        ({"model": "known", "mean_input_tokens": 1, "mean_output_tokens": 1}, "request_bytes is missing"),
        (
            {"model": "known", "input_lengths": {}, "mean_output_tokens": 1, "request_bytes": 1},
            "input_lengths={} has no length with a share above zero$",
        ),
        (
            {"model": "known", "input_lengths": {5: 0}, "mean_output_tokens": 1, "request_bytes": 1},
            "input_lengths={5: 0} has no length with a share above zero$",
        ),
        (
            {"model": "known", "input_lengths": {5: -1}, "mean_output_tokens": 1, "request_bytes": 1},
            "input_lengths.5.=-1",
        ),
        ({"model": "known", "input_lengths": {-5: 1}, "mean_output_tokens": 1, "request_bytes": 1}, "input_lengths=-5"),
        (
            {
                "model": "known",
                "mean_input_tokens": 5,
                "mean_output_tokens": 1,
                "request_bytes": 1,
                "mean_cached_tokens": -1,
            },
            "mean_cached_tokens=-1",
        ),
    ],
)
def test_what_requests_are_like_is_said_once_and_whole(changes, message):
    with pytest.raises(InvalidValueError, match=f"^{message}"):
        plan_workload(arrivals_per_hour=1, sla=30 * HOUR, prices=Prices(), **changes)


def test_slas_side_by_side():
    slas = [24 * HOUR, 24 * HOUR + 15 * MINUTE, 30 * HOUR, 72 * HOUR]
    said = {"arrivals_per_hour": 100, "policy": Policy(), "prices": Prices()}
    said |= {"model": "known", "mean_input_tokens": 2_000, "mean_output_tokens": 500, "request_bytes": 8_000}
    table = compare_slas(slas, **said)
    assert table == [plan(sla=sla, **said) for sla in slas]
    assert str(table).splitlines() == [
        "SLA          lane   interval  batches a day  reserve  USD a month  violates",
        "24 h         sync   -         -              -        972.00       sla",
        "24 h 15 min  batch  at once   2,400          15 min   486.00       -",
        "30 h         batch  4 h       6              2 h      486.00       -",
        "3 d          batch  32 h      0.75           16 h     486.00       -",
    ]
    tight = {**said, "arrivals_per_hour": 9_000, "policy": None}
    assert str(compare_slas([24 * HOUR, 72 * HOUR], **tight)).splitlines() == [
        "SLA   lane   interval  batches a day  reserve  USD a month  violates",
        "24 h  sync   -         -              -        87,480.00    sla, queue",
        "3 d   batch  32 h      6.75           16 h     43,740.00    queue",
    ]
    unknown = compare_slas([30 * HOUR], **{**said, "model": "unknown"})
    assert str(unknown).splitlines()[1].split()[-2:] == ["unknown", "-"]
    assert len(compare_slas(slas, arrivals_per_hour=1, sample=iter([Request(params())]))) == 4


@pytest.mark.parametrize(
    ("changes", "words", "line"),
    [
        ({}, "30 h on the batch lane: submit every 4 h, 2 h left for a rescue; $4,860.00 a month", None),
        (
            {"sla": 24 * HOUR + 15 * MINUTE, "policy": Policy()},
            "24 h 15 min on the batch lane: submit each request at once, 15 min left for a rescue; $4,860.00 a month",
            ("24 h 15 min", "batch", "at once", "24,000", "15 min", "4,860.00", "-"),
        ),
        (
            {"model": "unknown"},
            "30 h on the batch lane: submit every 4 h, 2 h left for a rescue; an unknown price",
            ("30 h", "batch", "4 h", "6", "2 h", "unknown", "-"),
        ),
        (
            {"sla": 24 * HOUR, "request_bytes": 40_000_000},
            (
                "24 h on the sync lane: call at once; $9,720.00 a month. It violates sla (1 x 24 h window "
                "and 0 ms overhead take the whole SLA of 24 h; allow more time); request_bytes (a request "
                "of 40,000,000 bytes cannot be rescued: a Messages call takes 32,000,000; upload large content with "
                "the Files API)"
            ),
            ("24 h", "sync", "-", "-", "-", "9,720.00", "sla, request_bytes"),
        ),
    ],
)
def test_a_plan_in_words_and_as_a_table(changes, words, line):
    found = plan(**changes)
    said = f"1000 requests an hour within {words}."
    assert str(found) == said
    html = found._repr_html_()
    assert html.startswith(f"<table><caption>{said}</caption><thead><tr><th>SLA</th><th>lane</th>")
    if line is not None:
        row = "".join(f"<td>{cell}</td>" for cell in line)
        assert html.endswith(f"<tbody><tr>{row}</tr></tbody></table>")


def test_slas_side_by_side_in_a_notebook():
    table = compare_slas([24 * HOUR, 30 * HOUR], arrivals_per_hour=1, sample=[Request(params())])
    rows = [line.split("  ") for line in str(table).splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    head = "".join(f"<th>{cell}</th>" for cell in cells[0])
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells[1:])
    assert table._repr_html_() == f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def test_a_sample_is_as_large_as_its_mean():
    one = Request(params("x" * 300_000))
    few = Request(params("x"))
    batches = [
        plan_workload(arrivals_per_hour=2_000, sla=30 * HOUR, sample=sample).batches_per_submission
        for sample in ([one], [one] * 3, [one, few])
    ]
    assert batches == [10, 10, 5]


def test_the_bundled_prices_are_used_by_default():
    found = plan(prices=None, model="claude-sonnet-5")
    assert found.usd_per_month_sync == 2 * found.usd_per_month_batch == Decimal(6480)
    assert plan(prices=None, model="claude-sonnet-50000").usd_per_month_sync is None


def test_own_prices_go_before_the_bundled_ones_and_the_policys_hold_where_none_are_given():
    own = {"claude-sonnet-5": Rates(input=1, output=0)}
    month = 1_000 * 720 * Decimal("0.002")
    for told in ({"prices": own}, {"prices": None, "policy": Policy(prices=own)}):
        found = plan(model="claude-sonnet-5", **told)
        assert (found.usd_per_month_sync, found.usd_per_month_batch) == (month, month / 2)


def test_importing_it_leaves_prices_alone():
    code = (
        "import sys; import batchwise.planning.workload; "
        "heavy = {'anthropic', 'pydantic', 'httpx2', 'genai_prices', 'sqlite3'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# Violations and the nearest plan


LANE = Limits(requests_per_minute=400)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"sla": 24 * HOUR},
            ("1 x 24 h window and 0 ms overhead take the whole SLA of 24 h; allow more time"),
        ),
        (
            {"sla": 24 * HOUR, "overhead": 30 * MINUTE},
            ("1 x 24 h window and 30 min overhead take 24 h 30 min, and the SLA is 24 h; allow more time"),
        ),
        (
            {"sla": 24 * HOUR + 14 * MINUTE, "policy": Policy()},
            (
                "1 x 24 h window and 0 ms overhead and the policy's reserve of 15 min take "
                "24 h 15 min, and the SLA is 24 h 14 min; allow more time"
            ),
        ),
        (
            {"interval": 361 * MINUTE},
            (
                "a rescue needs a reserve of 100 ms, and submitting every 6 h 1 min leaves 0 ms before the "
                "first deadline; submit more often or allow more time"
            ),
        ),
        (
            {"arrivals_per_hour": 9_000},
            ("up to 252,000 batch requests wait in the account's queue at once and 200,000 may; send fewer"),
        ),
        (
            {"arrivals_per_hour": 50_000, "limits": LANE},
            (
                "50,000 requests an hour arrive, and the sync lane redoes 24,000 an hour: if batch after batch "
                "expires, it falls behind; send fewer or raise the limits"
            ),
        ),
        (
            {"arrivals_per_hour": 0, "burst": 144_001, "limits": LANE},
            (
                "a burst of 144,001 beside the steady requests needs a reserve of 2 h 0.15 s, and submitting "
                "every 4 h leaves 2 h; spread the burst or allow more time"
            ),
        ),
        (
            {"sla": 72 * HOUR, "limits": LANE, "arrivals_per_hour": 20_000, "interval": HOUR, "burst": 96_001},
            (
                "a burst and what arrives in a window are 576,001 requests, and in a window the sync lane redoes "
                "576,000: with a burst in each window it falls behind; send fewer or raise the limits"
            ),
        ),
        (
            {"request_bytes": 32_000_001},
            (
                "a request of 32,000,001 bytes cannot be rescued: a Messages call takes 32,000,000; upload large "
                "content with the Files API"
            ),
        ),
    ],
)
def test_a_violation_says_what_is_wrong_and_what_to_change(changes, words):
    assert [violation.message for violation in plan(**changes).violations] == [words]


def test_what_violates_a_limit_has_the_figures_of_the_plan():
    (rate,) = plan(arrivals_per_hour=50_000, limits=LANE).violations
    assert (rate.actual, rate.limit) == (50_000.0, 24_000.0)
    assert type(rate.actual) is type(rate.limit) is float  # as the plan's own rates are
    (size,) = plan(request_bytes=32_000_001).violations
    assert (size.actual, size.limit) == (32_000_001, 32_000_000)


def test_a_burst_waits_for_what_arrived_in_the_interval_before_it():
    found = plan(arrivals_per_hour=0.5, interval=3 * HOUR, burst=80_000, limits=LANE)
    assert found.reserve_needed == timedelta(seconds=80_002 * 0.15) - 3 * HOUR


def test_one_request_an_hour_or_none_is_gathered_for_a_submission():
    few = plan(arrivals_per_hour=Fraction(1, 100), limits=LANE)
    assert (few.requests_per_submission, few.rescue) == (1, timedelta(milliseconds=150))
    none = plan(arrivals_per_hour=0, burst=7, limits=LANE)
    assert (none.requests_per_submission, none.batches_per_submission, none.rescue) == (0, 0, ZERO)
    assert none.reserve_needed == ZERO


def test_an_interval_that_is_too_long_is_shortened_by_no_more_than_it_has_to_be():
    found = plan(arrivals_per_hour=7_000, interval=361 * MINUTE)
    assert names(found) == ["reserve", "queue"]
    reserve, queue = found.violations
    assert (reserve.actual, reserve.limit) == (found.reserve_needed, found.reserve) == (timedelta(seconds=0.1), ZERO)
    assert "needs a reserve of 100 ms" in reserve.message
    assert (queue.actual, queue.limit) == (210_117, 200_000)
    assert "210,117" in queue.message
    nearest = found.nearest
    assert nearest is not None
    assert nearest.changed == ("interval",)
    assert nearest.interval == timedelta(microseconds=200_000 * MICROS // 7_000) - 24 * HOUR
    assert (nearest.arrivals_per_hour, nearest.sla, nearest.violations) == (7_000, 30 * HOUR, ())
    assert plan(interval=7 * HOUR).cadence is None
    assert names(plan(interval=7 * HOUR)) == ["reserve"]
    assert plan(interval=7 * HOUR).reserve == ZERO
    assert plan(interval=7 * HOUR).nearest.interval == 6 * HOUR - timedelta(seconds=0.1)
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
    assert "50,000 requests an hour arrive, and the sync lane redoes 24,000 an hour" in found.violations[0].message
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
    (late,) = found.violations  # it has the interval of 4 h beside the reserve of 2 h
    assert (late.actual, late.limit) == (2 * HOUR + timedelta(seconds=0.15), 2 * HOUR)
    assert found.nearest is not None
    assert found.nearest.sla == 30 * HOUR + MINUTE
    assert names(plan(burst=144_000, limits=limits, interval=HOUR)) == ["burst"]
    assert plan(burst=142_999, limits=limits, interval=HOUR).violations == ()  # and 1,001 before it
    assert plan(burst=10**6, limits=Limits()).violations == ()
    beside = plan(burst=143_000, limits=limits, interval=HOUR).nearest
    assert beside is not None
    assert (beside.arrivals_per_hour, beside.sla) == (1_000, 30 * HOUR)
    assert beside.interval < HOUR


def test_a_burst_waits_an_interval_before_each_further_round():
    run = {"arrivals_per_hour": 0, "sla": 60 * HOUR, "rounds": 2, "limits": Limits(requests_per_minute=400)}
    assert plan(**run, interval=2 * HOUR, burst=240_000).violations == ()
    assert names(plan(**run, interval=2 * HOUR, burst=240_001)) == ["burst"]


def test_bursts_that_come_window_after_window_leave_time_for_each_other():
    limits = Limits(requests_per_minute=400)  # 576,000 in a window
    run = {"sla": 72 * HOUR, "limits": limits, "arrivals_per_hour": 20_000, "interval": HOUR}
    assert plan(**run, burst=96_000).violations == ()
    found = plan(**run, burst=96_001)
    assert names(found) == ["burst_rate"]
    assert (found.violations[0].actual, found.violations[0].limit) == (576_001, 576_000)
    assert found.nearest.changed == ("arrivals_per_hour",)


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
        ({"arrivals_per_hour": 0}, "arrivals_per_hour=0 and burst=0: nothing to plan; give one of them$"),
        ({"arrivals_per_hour": -1}, "arrivals_per_hour=-1 is not a number"),
        ({"sla": 30}, "sla=30 is not a timedelta"),
        ({"window": ZERO}, "window=0 ms is not positive"),
        ({"window": ZERO, "policy": Policy()}, "window=0 ms is not positive"),
        ({"mean_output_tokens": -1}, "mean_output_tokens=-1"),
        ({"interval": ZERO}, "interval=0 ms is not positive"),
        ({"overhead": -HOUR}, "overhead=-1 h"),
        ({"rounds": 0}, "rounds=0"),
        ({"rounds": 10**12}, "sla=30 h or rounds=1000000000000 is more than"),
        ({"burst": -1}, "burst=-1"),
        ({"request_bytes": 0}, "request_bytes=0"),
        ({"mean_input_tokens": -1}, "mean_input_tokens=-1"),
        ({"model": ""}, "model='' is not a model's id; give one, e.g. 'claude-sonnet-5'$"),
        ({"limits": "start"}, "limits='start' is not a Limits"),
        ({"prices": None, "at": datetime(2026, 1, 1)}, "at=.* is a naive datetime"),  # noqa: DTZ001
    ],
)
def test_what_is_refused_is_named(changes, message):
    with pytest.raises(InvalidValueError, match=f"^{message}"):
        plan(**changes)


# A plan without violations keeps the SLA


workloads = st.fixed_dictionaries(
    {
        "arrivals_per_hour": st.just(Fraction(0)) | st.fractions(Fraction(1, 10), 40, max_denominator=20),
        "sla": st.timedeltas(min_value=25 * HOUR, max_value=60 * HOUR),
        "mean_input_tokens": st.integers(0, 2_000),
        "mean_output_tokens": st.integers(0, 2_000),
        "rounds": st.integers(1, 2),
        "overhead": st.timedeltas(ZERO, 2 * HOUR),
        "interval": st.none() | st.timedeltas(10 * MINUTE, 10 * HOUR),
        "burst": st.just(0) | st.integers(1, 60),
        "policy": st.none() | st.just(Policy()),
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
).filter(lambda asked: asked["burst"] or asked["arrivals_per_hour"])


def simulated(found, asked, **others):
    """Lateness (microseconds) and the queue's peak of the plan, if everything expires as late as it can."""
    limits, overhead, share = asked["limits"], asked["overhead"], Fraction(1)
    if asked["policy"] is not None:
        overhead += overhead_of(attrs.evolve(asked["policy"], limits=limits))
        share = FILLED
    return lateness(
        arrivals_per_hour=found.arrivals_per_hour if found.changed else Fraction(asked["arrivals_per_hour"]),
        sla=found.sla,
        interval=found.interval or timedelta.resolution,
        each=lane_time(limits, asked["mean_input_tokens"], asked["mean_output_tokens"]) / share,
        rounds=asked["rounds"],
        overhead=overhead,
        **others,
    )


@given(
    asked=workloads,
    phase=st.just(Fraction(0)) | st.fractions(0, 1, max_denominator=50),
    tick=st.integers(0, 4),
    after=st.just(Fraction(0)) | st.fractions(0, 1, max_denominator=50),
)
def test_a_plan_without_violations_keeps_every_deadline(asked, phase, tick, after):
    found = plan(**asked)
    chosen = found if not found.violations else found.nearest
    assume(chosen is not None)
    assume(chosen.interval >= MINUTE or not chosen.arrivals_per_hour)
    every = max(chosen.interval, timedelta.resolution) // timedelta.resolution
    bursts = [((tick + after) * every + 1 + day * (24 * MICROS + 1), asked["burst"]) for day in range(2)]
    horizon = min(Fraction(8 * every), 600 / (chosen.arrivals_per_hour or 1) * MICROS)
    late, peak = simulated(chosen, asked, phase=phase, bursts=bursts, horizon=horizon)
    assert late <= 1  # a rescue's length is rounded to the microsecond
    assert peak <= chosen.peak_in_queue
    assert chosen.queue_limit is None or chosen.peak_in_queue <= chosen.queue_limit


def census(kind, seed, count):
    """Random workloads of one kind, judged by the plan and by the simulation: [(feasible, kept)]."""
    draw, judged = Random(seed), []
    for _ in range(count):
        rounds, each, overhead = draw.choice((1, 1, 2)), draw.uniform(0.5, 10) * MINUTE, draw.uniform(0, 30) * MINUTE
        room = overhead + draw.uniform(0.3, 8) * HOUR
        ratio = draw.uniform(1.05, 2) if kind == "slow lane" else draw.uniform(0.1, 1)
        arrivals = Fraction(HOUR / each * ratio).limit_denominator(100)
        interval = (room - overhead) / rounds * draw.uniform(0.2, 1.1)
        capacity = max(1, (room - overhead) // each)
        asked = {
            "arrivals_per_hour": arrivals,
            "sla": rounds * 24 * HOUR + room,
            "mean_input_tokens": 0,
            "mean_output_tokens": 0,
            "rounds": rounds,
            "overhead": overhead,
            "interval": interval,
            "burst": ceil(capacity * draw.uniform(0.1, 1.3)) if kind == "burst" else 0,
            "policy": None,
            "limits": Limits(concurrency=1, latency=each),
        }
        found = plan(**asked)
        every = interval // timedelta.resolution
        ticks = [{"bursts": [(Fraction(tick * every + 1), asked["burst"])]} for tick in range(1, 5)]
        slow = [{"horizon": Fraction(10 * (room / MINUTE)) * MICROS / 60 / Fraction(ratio - 1)}]
        runs = {"steady": [{}], "burst": ticks, "slow lane": slow}[kind]
        kept = all(simulated(found, asked, **run)[0] <= 1 for run in runs)
        judged.append((not found.violations, kept, asked, found))
    return judged


@pytest.mark.parametrize(("kind", "count"), [("steady", 300), ("burst", 60), ("slow lane", 8)])
def test_a_plan_seldom_names_violations_that_do_no_harm(kind, count):
    judged = census(kind, 1, count)
    feasible = [kept for called, kept, *_ in judged if called]
    refused = [kept for called, kept, *_ in judged if not called]
    assert all(feasible)
    assert len(feasible) >= (0 if kind == "slow lane" else count // 5)
    assert len(refused) >= count // 20
    assert sum(refused) <= len(refused) // 20


@given(asked=workloads)
def test_the_nearest_plan_is_a_plan(asked):
    found = plan(**asked)
    assert found.changed == ()
    if found.violations:
        nearest = found.nearest
        if nearest is not None:
            assert nearest.violations == ()
            assert nearest.sla >= found.sla
            assert nearest.arrivals_per_hour <= found.arrivals_per_hour
            assert nearest.arrivals_per_hour.is_integer() or "arrivals_per_hour" not in nearest.changed
            changed = {
                "interval": asked["interval"] is not None and nearest.interval != asked["interval"],
                "sla": nearest.sla != found.sla,
                "arrivals_per_hour": nearest.arrivals_per_hour != found.arrivals_per_hour,
            }
            assert nearest.changed == tuple(name for name, differs in changed.items() if differs)
            assert nearest.changed
            again = {"sla": nearest.sla}
            if changed["arrivals_per_hour"]:
                again["arrivals_per_hour"] = nearest.arrivals_per_hour
            again["interval"] = nearest.interval or None
            assert plan(**{**asked, **again}) == attrs.evolve(nearest, changed=())
    else:
        assert found.nearest is None
        assert found.cadence is not None
        assert found.cadence.worst_case + found.reserve_needed <= found.sla
        assert found.cadence.interval == found.interval


@given(asked=workloads, more=st.timedeltas(ZERO, 48 * HOUR))
def test_a_longer_sla_never_breaks_a_plan(asked, more):
    if not plan(**asked).violations:
        assert not plan(**{**asked, "sla": asked["sla"] + more}).violations


# With a policy: as the dispatcher does


policies = st.builds(
    Policy,
    window=st.timedeltas(HOUR, 48 * HOUR),
    reserve=st.none() | st.timedeltas(ZERO, 6 * HOUR),
    min_reserve=st.timedeltas(ZERO, 2 * HOUR),
    interval=st.none() | st.timedeltas(MINUTE, 6 * HOUR),
    limits=st.builds(Limits, latency=st.timedeltas(timedelta(seconds=1), timedelta(minutes=10))),
    hedge=st.booleans(),
    delay_cost_per_hour=st.sampled_from([0, "0.0001", "0.001", "0.01"]),
    zero_data_retention=st.booleans(),
)


def agrees(policy, sla, output_tokens):
    request = Request(params(), latency=sla, expected_output_tokens=output_tokens)
    decision = choose_lane(request, now=NOW, policy=policy)
    found = plan(
        arrivals_per_hour=1,
        sla=sla,
        policy=policy,
        model=request.model,
        mean_input_tokens=len(request.body) // 4,
        mean_output_tokens=output_tokens,
        prices=PriceBook(),
    )
    assert (found.lane, found.reason, found.explanation) == (decision.lane, decision.reason, decision.explanation)
    rates = PriceBook().rates(request.model, decision.lane)
    assert found.usd_per_month == 720 * to_usd(estimate(len(request.body) // 4, output_tokens, rates))
    try:
        cadence = sla_cadence(sla, policy=policy)
    except InfeasibleSLAError:
        assert names(found) == ["sla"]
        assert found.cadence is None
    else:
        asked = case_of(request, now=NOW, policy=policy, forecast=None, prices=PriceBook())
        assert asked.interval <= cadence.interval == asked.usual_interval
        one = timedelta(
            microseconds=ceil((policy.limits or Limits()).latency // timedelta.resolution / (MOST_CALLS * FILLED))
        )
        more = max(ZERO, overhead_of(policy) + one - cadence.reserve)  # what one call takes of the lane is planned, too
        assert found.reserve_needed == cadence.reserve + more
        room = cadence.buffer - found.reserve_needed
        assert found.interval == max(ZERO, min(asked.interval, room))
        assert names(found) == ([] if room >= ZERO else ["reserve"])
        assert found.reserve >= found.reserve_needed or room < ZERO


@given(policies, st.timedeltas(MINUTE, timedelta(days=5)), st.integers(1, 5_000))
@example(Policy(), 24 * HOUR + 14 * MINUTE, 500)
@example(Policy(), 24 * HOUR + 15 * MINUTE, 500)
@example(Policy(), 30 * HOUR, 500)
def test_a_plan_and_the_router_agree(policy, sla, output_tokens):
    agrees(policy, sla, output_tokens)


@given(policies, st.timedeltas(MINUTE, timedelta(days=5)), sampled)
def test_a_plan_of_a_sample_and_the_router_agree(policy, sla, one):
    request = Request(json.loads(one.body), latency=sla, expected_output_tokens=one.expected_output_tokens)
    decision = choose_lane(request, now=NOW, policy=policy)
    found = plan_workload(arrivals_per_hour=1, sla=sla, policy=policy, sample=[request])
    assert (found.lane, found.reason, found.explanation) == (decision.lane, decision.reason, decision.explanation)
    output = request.expected_output_tokens or request.max_tokens
    rates = PriceBook().rates(request.model, decision.lane)
    assert found.usd_per_month == 720 * to_usd(estimate(len(request.body) // 4, output, rates))


@pytest.mark.soak
@settings(max_examples=100_000)
@given(policies, st.timedeltas(MINUTE, timedelta(days=5)), st.integers(1, 5_000))
def test_a_plan_and_the_router_agree_at_length(policy, sla, output_tokens):
    agrees(policy, sla, output_tokens)


def test_just_over_a_day_a_dispatcher_pays_full_price_and_so_says_the_plan():
    for policy in (None, Policy()):
        short = plan(sla=24 * HOUR + 14 * MINUTE, policy=policy)
        assert (short.lane, short.reason) == (Lane.SYNC, Reason.DEADLINE_INSIDE_WINDOW)
        assert short.usd_per_month == short.usd_per_month_sync
        assert "too little for the reserve of 15 min" in short.explanation
    assert names(short) == ["sla"]
    assert "the policy's reserve of 15 min take" in short.violations[0].message
    assert short.nearest.sla == 24 * HOUR + 15 * MINUTE
    assert short.nearest.changed == ("sla",)
    assert (short.nearest.lane, short.nearest.usd_per_month) == (Lane.BATCH, short.usd_per_month_batch)
    assert short.nearest.interval == ZERO


def test_a_policy_brings_its_window_limits_and_size_of_batches():
    policy = Policy(window=12 * HOUR, limits=Limits(requests_per_minute=400), max_batch_requests=1_000)
    found = plan(sla=18 * HOUR, policy=policy)
    assert found.interval == 4 * HOUR
    assert found.batches_per_submission == 4
    assert found.sync_per_hour == 60 * 380  # a rescue counts on 95 %
    unlimited = plan(sla=30 * HOUR, policy=policy, window=24 * HOUR, limits=Limits())
    assert unlimited.sync_per_hour == 3_600 * FILLED * MOST_CALLS / 10  # calls of 10 s, as many as a process runs
    assert plan(sla=30 * HOUR, policy=policy, window=24 * HOUR).interval == 4 * HOUR
    assert names(plan(policy=Policy(), interval=5 * HOUR)) == ["reserve"]  # 2 h are kept, 1 h is left
    assert plan(policy=Policy(), interval=5 * HOUR).nearest.changed == ("interval",)


def test_the_fewest_arrivals_that_a_plan_keeps_are_found_to_the_last():
    slow = Limits(concurrency=1, latency=40 * MINUTE)  # 1.5 requests an hour
    for arrivals in (2, 3, 50):
        near = plan(arrivals_per_hour=arrivals, sla=40 * HOUR, limits=slow).nearest
        assert (near.arrivals_per_hour, near.changed, near.violations) == (1, ("arrivals_per_hour",), ())
    assert plan(arrivals_per_hour=2, sla=40 * HOUR, limits=attrs.evolve(slow, latency=61 * MINUTE)).nearest is None


def load(limits=Limits(concurrency=1, latency=15 * MINUTE), **changes):  # noqa: B008
    usual = {
        "arrivals": Fraction(5, 2), "burst": 50, "sla": 60 * HOUR, "window": 24 * HOUR, "rounds": 1, "overhead": ZERO,
        "each": lane_time(limits, 0, 0), "request_bytes": 1,
    }  # fmt: skip
    return Load(**{**usual, **changes})


@pytest.mark.parametrize(
    ("changes", "minutes"),
    [
        # In the hour before it 2.5 arrive: 53 calls of 15 min by the end of the interval, or 54 by the next arrival.
        ({}, 54 * 15 - 72),
        ({"arrivals": Fraction(2)}, 53 * 15 - 60),
        ({"limits": Limits(concurrency=1, latency=MINUTE)}, 53 - 60),
        ({"arrivals": Fraction(0)}, 50 * 15 - 60),
    ],
)
def test_the_reserve_of_a_burst_is_that_of_what_came_before_it_and_right_after(changes, minutes):
    assert load(**changes).burst_reserve(HOUR) == minutes * MINUTE
    kept = load(**changes, policy=Policy())
    assert kept.burst_reserve(HOUR) == minutes * MINUTE + overhead_of(Policy())


def test_the_limits_of_the_slowest_class_of_a_sample_rule_under_a_policy():
    few, many = Limits(requests_per_minute=10), Limits(requests_per_minute=1_000)
    policy = Policy(limits={"claude-haiku": few, "claude-sonnet": many})
    models = {"claude-haiku-4-5": 10, "claude-sonnet-5": 1_000}
    for asked in (["claude-haiku-4-5"], ["claude-sonnet-5"], list(models), list(models)[::-1]):
        sample = [Request(params(model=model)) for model in asked]
        found = plan_workload(arrivals_per_hour=1, sla=30 * HOUR, sample=sample, policy=policy)
        assert found.sync_per_hour == pytest.approx(min(models[model] for model in asked) * 60 * 0.95)


@pytest.mark.parametrize(
    ("slas", "more", "said"),
    [
        (5, {}, r"^slas is a int; give a list of SLAs, such as \[timedelta\(hours=30\)\]$"),
        ([HOUR], {"sla": HOUR}, r"^compare_slas takes each SLA from its list; leave sla= out$"),
    ],
)
def test_slas_are_a_list_and_none_beside_it(slas, more, said):
    with pytest.raises(InvalidValueError, match=said):
        compare_slas(slas, arrivals_per_hour=1, sample=[Request(params())], **more)


def test_a_burst_is_not_blamed_where_the_sla_leaves_no_time_at_all():
    assert names(plan(sla=24 * HOUR, burst=5)) == ["sla"]
    assert names(plan(sla=24 * HOUR, burst=0)) == ["sla"]
