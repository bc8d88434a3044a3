from __future__ import annotations

import subprocess
import sys
from bisect import bisect_left
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from itertools import pairwise
from math import inf
from zoneinfo import ZoneInfo

import attrs
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.strategies import HOUR, NOW, instants, limits, params, slas

from batchwise.basics.times import WINDOW
from batchwise.basics.wording import exact
from batchwise.errors import InfeasibleSLAError, InvalidValueError, NoCronExpressionError
from batchwise.models import Lane, Limits, Policy, Reason
from batchwise.planning.cadence import (
    lane_time,
    largest_rescuable,
    latest_submission,
    rescue_duration,
    sla_cadence,
    worst_case_latency,
)
from batchwise.planning.reserve import overhead_of, reserve_for
from batchwise.planning.routing import choose_lane
from batchwise.request import Request

BERLIN = ZoneInfo("Europe/Berlin")
TICK = timedelta.resolution
ZERO = timedelta(0)
spans = st.timedeltas(min_value=ZERO, max_value=timedelta(days=3))


# The README's figures


def test_thirty_hours_submit_every_four():
    cadence = sla_cadence(timedelta(hours=30))
    assert cadence.buffer == 6 * HOUR
    assert cadence.reserve == 2 * HOUR
    assert cadence.interval == 4 * HOUR
    assert cadence.worst_case == 28 * HOUR
    assert (cadence.sla, cadence.window, cadence.rounds) == (30 * HOUR, 24 * HOUR, 1)
    assert cadence.per_day == 6
    assert cadence.cron() == "0 */4 * * *"


@pytest.mark.parametrize(
    ("sla", "arguments", "interval", "reserve", "worst_case"),
    [
        (30, {"reserve": 3 * HOUR}, 3, 3, 27),
        (30, {"reserve": ZERO}, 6, 0, 30),
        (30, {"window": 12 * HOUR}, 12, 6, 24),
        (60, {"rounds": 2}, 4, 4, 56),
        (30, {"overhead": HOUR}, 3, 2, 28),
        (60, {"rounds": 2, "reserve": HOUR, "overhead": HOUR}, 5, 1, 59),
    ],
)
def test_reserve_window_rounds_and_overhead(sla, arguments, interval, reserve, worst_case):
    cadence = sla_cadence(sla * HOUR, **arguments)
    assert cadence.interval == interval * HOUR
    assert cadence.reserve == reserve * HOUR
    assert cadence.worst_case == worst_case * HOUR
    keep = {name: value for name, value in arguments.items() if name != "reserve"}
    assert worst_case_latency(cadence.interval, **keep) == cadence.worst_case


def test_no_drift():
    cadence = sla_cadence(timedelta(hours=24, microseconds=7), rounds=1)
    assert cadence.reserve + cadence.interval == timedelta(microseconds=7)
    assert cadence.interval == timedelta(microseconds=5)


def test_worst_case_latency():
    assert worst_case_latency(4 * HOUR) == 28 * HOUR
    assert worst_case_latency(4 * HOUR, rounds=2, window=HOUR, overhead=timedelta(minutes=5)) == timedelta(minutes=605)
    assert worst_case_latency(ZERO) == WINDOW


def test_latest_submission_is_in_utc():
    deadline = datetime(2026, 11, 24, 12, tzinfo=BERLIN)
    assert latest_submission(deadline) == datetime(2026, 11, 23, 11, tzinfo=timezone.utc)
    latest = latest_submission(deadline, window=12 * HOUR, reserve=2 * HOUR, overhead=HOUR)
    assert latest == datetime(2026, 11, 23, 20, tzinfo=timezone.utc)
    assert latest.tzinfo is timezone.utc


@pytest.mark.parametrize(
    ("name", "latest"),
    [
        ("spring", datetime(2026, 3, 28, 11, tzinfo=BERLIN)),
        ("autumn", datetime(2026, 10, 24, 13, tzinfo=BERLIN)),
    ],
)
def test_latest_submission_across_a_change_of_the_clocks(name, latest):
    deadline = (
        datetime(2026, 3, 29, 12, tzinfo=BERLIN) if name == "spring" else datetime(2026, 10, 25, 12, tzinfo=BERLIN)
    )
    assert latest_submission(deadline) == latest


# Submissions


@pytest.mark.parametrize(
    ("day", "hours"),
    [
        (datetime(2026, 3, 29, tzinfo=BERLIN), [0, 5, 9, 13, 17, 21]),
        (datetime(2026, 10, 25, tzinfo=BERLIN), [0, 3, 7, 11, 15, 19, 23]),
    ],
)
def test_submissions_are_elapsed_time_apart(day, hours):
    cadence = sla_cadence(timedelta(hours=30))
    found = list(cadence.submissions(day, day + timedelta(days=1)))  # a day on the wall: 23 or 25 hours
    assert [moment.astimezone(BERLIN).hour for moment in found] == hours
    assert all(moment.tzinfo is timezone.utc for moment in found)
    assert {later - earlier for earlier, later in pairwise(found)} == {4 * HOUR}


def test_submissions_from_the_start_to_before_the_end():
    cadence = sla_cadence(timedelta(hours=30))
    assert list(cadence.submissions(NOW, NOW)) == []
    assert list(cadence.submissions(NOW, NOW + 4 * HOUR)) == [NOW]
    assert list(cadence.submissions(NOW, NOW + 4 * HOUR + TICK)) == [NOW, NOW + 4 * HOUR]
    endless = cadence.submissions(NOW, datetime.max.replace(tzinfo=timezone.utc))
    assert [next(endless), next(endless)] == [NOW, NOW + 4 * HOUR]


@given(sla=slas, start=instants, waits=st.lists(st.fractions(0, 1), max_size=5), data=st.data())
def test_waiting_processing_and_reserve_fit_the_sla(sla, start, waits, data):
    rounds = data.draw(st.integers(1, max(1, min(3, (sla - HOUR) // WINDOW))))
    overhead = data.draw(st.timedeltas(ZERO, timedelta(minutes=10)))
    cadence = sla_cadence(sla, rounds=rounds, overhead=overhead)
    submissions = list(cadence.submissions(start, start + min(cadence.interval * 200, timedelta(days=60))))
    arrival = data.draw(st.datetimes(start.replace(tzinfo=None), submissions[-1].replace(tzinfo=None)))
    moment = arrival = arrival.replace(tzinfo=timezone.utc)
    for _ in range(rounds):
        index = bisect_left(submissions, moment)
        if index == len(submissions):
            return
        moment = submissions[index] + data.draw(st.timedeltas(TICK, cadence.window))
    assert moment + overhead - arrival <= cadence.worst_case
    assert moment + overhead + cadence.reserve <= arrival + sla


# For any SLA


feasible = st.tuples(
    st.integers(1, 4),
    st.timedeltas(min_value=TICK, max_value=timedelta(days=5)),
    st.none() | spans,
    spans,
)


@given(sla=st.timedeltas(min_value=TICK, max_value=timedelta(days=60)), case=feasible)
@example(sla=timedelta(hours=24), case=(1, WINDOW, None, ZERO))
@example(sla=TICK, case=(2, WINDOW, None, TICK))
@example(sla=30 * HOUR, case=(1, WINDOW, TICK, ZERO))
def test_a_cadence_fits_or_the_shortest_that_can_is_named(sla, case):
    rounds, window, reserve, overhead = case
    keep = {"rounds": rounds, "window": window, "reserve": reserve, "overhead": overhead}
    refusal = None
    try:
        cadence = sla_cadence(sla, **keep)
    except InfeasibleSLAError as error:
        refusal = error
    if refusal is not None:
        assert refusal.shortest > sla
        assert exact(refusal.shortest) in str(refusal)
        assert sla_cadence(refusal.shortest, **keep).interval >= ZERO
        assert sla_cadence(refusal.shortest, **keep, policy=Policy()).interval >= ZERO
        with pytest.raises(InfeasibleSLAError):
            sla_cadence(refusal.shortest - TICK, **keep, policy=Policy())
        return
    assert cadence.interval >= ZERO
    assert cadence.buffer == sla - rounds * window
    assert cadence.worst_case == rounds * (cadence.interval + window) + overhead
    unused = sla - (cadence.worst_case + cadence.reserve)
    assert ZERO <= unused < rounds * TICK
    assert cadence.reserve == (cadence.buffer / 3 if reserve is None else reserve)
    assert ZERO < cadence.check_every <= (cadence.interval or cadence.reserve or window)
    assert cadence.check_every <= (cadence.reserve or cadence.interval or window)


@given(shorter=slas, more=spans, case=feasible)
@example(shorter=timedelta(hours=25), more=TICK, case=(1, WINDOW, None, ZERO))
def test_a_longer_sla_never_gives_a_shorter_interval(shorter, more, case):
    rounds, window, reserve, overhead = case
    keep = {"rounds": rounds, "window": window, "reserve": reserve, "overhead": overhead}
    try:
        interval = sla_cadence(shorter, **keep).interval
    except InfeasibleSLAError:
        return
    assert sla_cadence(shorter + more, **keep).interval >= interval


# With a policy: as the dispatcher does


@given(st.timedeltas(ZERO, timedelta(days=30)))
def test_the_reserve_is_a_third_and_never_under_the_floor_or_what_a_rescue_takes(buffer):
    assert reserve_for(Policy(), buffer) == max(timedelta(minutes=15), buffer / 3)
    assert reserve_for(Policy(reserve=HOUR), buffer) == HOUR
    bare = Policy(min_reserve=ZERO)
    assert overhead_of(bare) == timedelta(minutes=2, seconds=32)  # two polls of 1 s, reading twice 1 min, three calls
    assert reserve_for(bare, buffer) == max(timedelta(minutes=2, seconds=32), buffer / 3)
    assert reserve_for(Policy(reserve=ZERO), buffer) == timedelta(minutes=2, seconds=32)


policies = st.builds(
    Policy,
    window=st.timedeltas(HOUR, 48 * HOUR),
    reserve=st.none() | st.timedeltas(ZERO, 6 * HOUR),
    min_reserve=st.timedeltas(ZERO, 2 * HOUR),
    interval=st.none() | st.timedeltas(TICK, 6 * HOUR),
    limits=st.builds(Limits, latency=st.timedeltas(timedelta(seconds=1), timedelta(minutes=10))),
    cancel_settle=st.timedeltas(ZERO, HOUR),
    hedge=st.booleans(),
)


def agrees(policy, sla):
    def chosen(latency):
        return choose_lane(Request(params(), latency=latency), now=NOW, policy=policy)

    decision = chosen(sla)
    if decision.reason is not Reason.LATENCY_TOLERANT:
        with pytest.raises(InfeasibleSLAError) as raised:
            sla_cadence(sla, policy=policy)
        assert chosen(raised.value.shortest).reason is Reason.LATENCY_TOLERANT
        assert chosen(raised.value.shortest - TICK).reason is not Reason.LATENCY_TOLERANT
        return
    cadence = sla_cadence(sla, policy=policy)
    assert decision.lane is Lane.BATCH
    assert decision.deadline - decision.rescue_at == cadence.reserve
    assert cadence.interval == min(decision.submit_by - NOW, policy.interval or timedelta.max)


@given(policies, st.timedeltas(TICK, timedelta(days=5)))
@example(Policy(), 24 * HOUR + timedelta(minutes=14))
@example(Policy(), 24 * HOUR + timedelta(minutes=15))
@example(Policy(), 30 * HOUR)
def test_a_cadence_and_the_router_agree(policy, sla):
    agrees(policy, sla)


@pytest.mark.soak
@settings(max_examples=100_000)
@given(policies, st.timedeltas(TICK, timedelta(days=5)))
def test_a_cadence_and_the_router_agree_at_length(policy, sla):
    agrees(policy, sla)


def test_the_shortest_sla_is_one_that_a_dispatcher_batches():
    shortest = 24 * HOUR + timedelta(minutes=15)
    for policy in (None, Policy()):
        with pytest.raises(InfeasibleSLAError) as raised:
            sla_cadence(24 * HOUR, policy=policy)
        assert raised.value.shortest == shortest
    at_once = sla_cadence(shortest, policy=Policy())
    assert (at_once.interval, at_once.reserve, at_once.per_day) == (ZERO, timedelta(minutes=15), inf)
    assert at_once.check_every == timedelta(minutes=7, seconds=30)
    with pytest.raises(
        InvalidValueError, match=r"^sla=24 h 15 min leaves an interval of zero: submit each request when it arrives$"
    ):
        at_once.submissions(NOW, NOW + HOUR)
    with pytest.raises(NoCronExpressionError):
        at_once.cron(nearest=True)


@pytest.mark.parametrize(
    ("arguments", "reserve", "shortest"),
    [
        ({"overhead": HOUR / 6}, " and an overhead of 10 min", "24 h 25 min"),
        ({}, "", "24 h 15 min"),  # a third of whatever buffer there is: no reserve stands in the way
        ({"reserve": HOUR}, " and a reserve of at least 1 h", "25 h"),
        ({"policy": Policy()}, " and a reserve of at least 15 min", "24 h 15 min"),
    ],
)
def test_an_infeasible_sla_names_all_that_takes_its_time(arguments, reserve, shortest):
    with pytest.raises(InfeasibleSLAError) as raised:
        sla_cadence(24 * HOUR, **arguments)
    assert str(raised.value) == (
        f"sla=24 h leaves no time beside the batch window of 24 h (rounds=1){reserve}. The shortest SLA that a "
        f"dispatcher sends to a batch is {shortest}, plus the interval at which you submit"
    )


@pytest.mark.parametrize(
    ("reserve", "shortest"),
    [
        (None, timedelta(hours=49, minutes=30)),  # with a third of it as the reserve, a buffer of 1.5 h leaves the hour
        (ZERO, timedelta(hours=49, minutes=2, seconds=32)),
        (HOUR, timedelta(hours=50)),
    ],
)
def test_the_shortest_sla_leaves_an_overhead_beside_the_reserve(reserve, shortest):
    with pytest.raises(InfeasibleSLAError) as raised:
        sla_cadence(10 * HOUR, rounds=2, overhead=HOUR, reserve=reserve)
    assert raised.value.shortest == shortest


def test_the_shortest_sla_of_another_window_is_as_much_longer_than_it():
    with pytest.raises(InfeasibleSLAError) as raised:
        sla_cadence(HOUR, window=12 * HOUR)
    assert raised.value.shortest == 12 * HOUR + timedelta(minutes=15)


def test_what_is_said_beside_a_policy_goes_before_it():
    policy = Policy(reserve=HOUR, window=12 * HOUR)
    assert sla_cadence(30 * HOUR, policy=policy).interval == 17 * HOUR
    assert sla_cadence(30 * HOUR, policy=policy, reserve=3 * HOUR, window=24 * HOUR).interval == 3 * HOUR
    assert sla_cadence(30 * HOUR, policy=policy, overhead=HOUR).interval == 16 * HOUR


@pytest.mark.parametrize(
    ("cadence", "words"),
    [
        (
            sla_cadence(30 * HOUR),
            (
                "SLA of 30 h: submit every 4 h; a batch takes at most 24 h, so the worst case is 28 h, and 2 h are "
                "kept to redo on the sync lane what expired."
            ),
        ),
        (
            sla_cadence(60 * HOUR, rounds=2, overhead=HOUR, reserve=ZERO),
            (
                "SLA of 60 h: submit every 5 h 30 min; 2 batches after one another take at most 24 h each, 1 h are "
                "lost on the way, so the worst case is 60 h, and nothing is kept to redo on the sync lane what expired."
            ),
        ),
        (
            sla_cadence(25 * HOUR, reserve=HOUR),
            (
                "SLA of 25 h: submit each request at once; a batch takes at most 24 h, so the worst case is 24 h, and "
                "1 h are kept to redo on the sync lane what expired."
            ),
        ),
    ],
)
def test_a_cadence_in_words(cadence, words):
    assert str(cadence) == words


# Numbers from a notebook


@pytest.mark.parametrize(
    ("cadence", "cells"),
    [
        (sla_cadence(30 * HOUR), ("30 h", "4 h", "24 h", "0 ms", "2 h", "28 h")),
        (
            sla_cadence(60 * HOUR, rounds=2, reserve=ZERO, overhead=12 * HOUR),
            ("60 h", "at once", "2 times 24 h", "12 h", "0 ms", "60 h"),
        ),
    ],
)
def test_a_cadence_as_a_table(cadence, cells):
    names = "SLA", "submit every", "window", "lost on the way", "reserve", "worst case"
    rows = "".join(f"<tr><td>{name}</td><td>{cell}</td></tr>" for name, cell in zip(names, cells, strict=True))
    assert cadence._repr_html_() == f"<table><caption>Cadence</caption><tbody>{rows}</tbody></table>"


@given(instants, instants, st.timedeltas(TICK, 40 * HOUR))
def test_the_first_submission_is_at_the_start_and_the_last_before_the_end(one, other, every):
    start, end = sorted((one, min(one + 20 * every, max(one, other))))
    found = list(sla_cadence(200 * HOUR, reserve=ZERO).with_interval(every).submissions(start, end))
    assert found == [start + every * count for count in range(len(found))]
    assert not found or found[-1] < end
    assert start + every * len(found) >= end


def test_numbers_of_numpy_are_taken_and_become_plain():
    limited = Limits(requests_per_minute=400)
    assert rescue_duration(np.int64(40_000), limited) == timedelta(minutes=100)
    half = {"mean_output_tokens": np.float32(0.5)}
    assert rescue_duration(np.int32(2), Limits(output_tokens_per_minute=60), **half) == timedelta(seconds=1)
    assert type(sla_cadence(60 * HOUR, rounds=np.int64(2)).rounds) is int
    for wrong in (np.float64("nan"), np.float32("inf"), np.bool_(True), np.float16(-1)):
        with pytest.raises(InvalidValueError, match="mean_input_tokens="):
            rescue_duration(1, limited, mean_input_tokens=wrong)


# Looking at running batches


def test_check_every():
    cadence = sla_cadence(timedelta(hours=30))
    assert cadence.check_every == HOUR
    assert cadence.check_every_for(timedelta(minutes=100)) == timedelta(minutes=20)
    assert sla_cadence(timedelta(hours=30), reserve=5 * HOUR).check_every_for(ZERO) == HOUR
    assert sla_cadence(timedelta(hours=30), reserve=5 * HOUR).check_every == HOUR
    assert sla_cadence(timedelta(hours=30), reserve=ZERO).check_every == 6 * HOUR
    with pytest.raises(InvalidValueError) as raised:
        cadence.check_every_for(2 * HOUR)
    assert str(raised.value) == (
        "rescue=2 h leaves nothing of the reserve of 2 h to notice an expiry; ask sla_cadence for a longer reserve"
    )


@given(sla=slas, share=st.fractions(0, Fraction(99, 100)))
def test_an_expiry_is_seen_in_time_for_the_rescue(sla, share):
    cadence = sla_cadence(sla)
    rescue = timedelta(microseconds=int(cadence.reserve // TICK * share))
    assert ZERO < cadence.check_every_for(rescue) <= cadence.reserve - rescue


# Cron


@pytest.mark.parametrize(
    ("minutes", "expression"),
    [
        (1, "* * * * *"),
        (2, "*/2 * * * *"),
        (15, "*/15 * * * *"),
        (30, "*/30 * * * *"),
        (60, "0 * * * *"),
        (2 * 60, "0 */2 * * *"),
        (4 * 60, "0 */4 * * *"),
        (12 * 60, "0 */12 * * *"),
        (24 * 60, "0 0 * * *"),
        (7 * 24 * 60, "0 0 * * 0"),
    ],
)
def test_cron(minutes, expression):
    every = timedelta(minutes=minutes)
    assert sla_cadence(WINDOW + every, reserve=ZERO).cron() == expression


@pytest.mark.parametrize(
    ("every", "nearest"),
    [
        (7 * HOUR, 6 * HOUR),
        (timedelta(minutes=90), HOUR),
        (timedelta(minutes=7), timedelta(minutes=6)),
        (timedelta(minutes=45), timedelta(minutes=30)),
        (4 * HOUR + TICK, 4 * HOUR),
        (4 * HOUR - TICK, 3 * HOUR),
        (timedelta(days=2), timedelta(days=1)),
        (timedelta(days=8), timedelta(days=7)),
    ],
)
def test_no_cron_expression_offers_the_nearest_shorter_interval(every, nearest):
    cadence = sla_cadence(WINDOW + 2 * every, reserve=every)
    with pytest.raises(NoCronExpressionError) as raised:
        cadence.cron()
    assert raised.value.nearest == nearest
    mended = cadence.with_interval(raised.value.nearest)
    assert cadence.cron(nearest=True) == mended.cron()
    assert str(raised.value) == (
        f"interval={exact(every)} has no cron expression; the nearest shorter interval that it can express is "
        f"{exact(nearest)} ({mended.cron()!r}): take cron(nearest=True), or with_interval(nearest)"
    )
    assert mended.worst_case == WINDOW + nearest
    assert mended.worst_case + mended.reserve == mended.sla == cadence.sla


def test_under_a_minute_cron_has_nothing_to_offer():
    with pytest.raises(NoCronExpressionError) as raised:
        sla_cadence(WINDOW + timedelta(seconds=30), reserve=ZERO).cron()
    assert raised.value.nearest == ZERO
    assert str(raised.value) == (
        "interval=30 s has no cron expression; its shortest period is a minute: keep a dispatcher running instead"
    )


@pytest.mark.parametrize("expression", ["* * * * *", "*/20 * * * *", "0 */6 * * *", "0 0 * * *", "0 0 * * 0"])
def test_cron_expressions_fire_once_an_interval(expression):
    def matches(field, value):
        return field == "*" or (value % int(field[2:]) == 0 if field.startswith("*/") else value == int(field))

    minute, hour, _, _, weekday = expression.split()
    start = datetime(2026, 1, 25, tzinfo=timezone.utc)  # a Sunday; the weeks after it cross the end of a month
    ticks = (start + timedelta(minutes=count) for count in range(15 * 24 * 60))
    fired = [
        tick
        for tick in ticks
        if matches(minute, tick.minute) and matches(hour, tick.hour) and matches(weekday, tick.isoweekday() % 7)
    ]
    (gap,) = {later - earlier for earlier, later in pairwise(fired)}
    assert sla_cadence(WINDOW + gap, reserve=ZERO).cron() == expression


def test_with_interval_refuses_what_does_not_fit():
    cadence = sla_cadence(timedelta(hours=30), overhead=HOUR)
    assert cadence.with_interval(5 * HOUR).reserve == ZERO
    with pytest.raises(
        InvalidValueError, match=r"^interval=5 h 0\.000001 s does not fit the SLA of 30 h; give 5 h or less$"
    ):
        cadence.with_interval(5 * HOUR + TICK)


# Rescue


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ({"requests_per_minute": 400}, timedelta(minutes=100)),
        ({"input_tokens_per_minute": 1_000_000}, timedelta(minutes=80)),
        ({"output_tokens_per_minute": 100_000}, timedelta(minutes=200)),
        ({"concurrency": 50, "latency": timedelta(seconds=10)}, timedelta(seconds=8_000)),
        ({"requests_per_minute": 400, "output_tokens_per_minute": 100_000, "concurrency": 50}, timedelta(minutes=200)),
        ({}, ZERO),
    ],
)
def test_the_slowest_resource_rules(limit, expected):
    assert rescue_duration(40_000, Limits(**limit), mean_input_tokens=2_000, mean_output_tokens=500) == expected


def test_rescue_in_the_small():
    slow = Limits(requests_per_minute=7)
    assert rescue_duration(0, slow) == ZERO
    assert rescue_duration(1, slow) == timedelta(microseconds=8_571_429)  # rounded up
    assert largest_rescuable(ZERO, slow) == 0
    assert largest_rescuable(HOUR, Limits()) is None
    thirds = {"mean_input_tokens": Fraction(1, 30_000_000)}  # two microseconds a request, and nothing lost in a float
    assert largest_rescuable(timedelta(days=10**6, microseconds=1), Limits(input_tokens_per_minute=1), **thirds) == (
        864 * 10**14 // 2
    )
    assert largest_rescuable(timedelta(days=10**6, microseconds=2), Limits(input_tokens_per_minute=1), **thirds) == (
        864 * 10**14 // 2 + 1
    )
    assert largest_rescuable(2 * HOUR, Limits(requests_per_minute=400)) == 48_000
    assert rescue_duration(2, Limits(output_tokens_per_minute=60), mean_output_tokens=Fraction(1, 2)) == timedelta(
        seconds=1
    )


@given(
    duration=st.timedeltas(ZERO, timedelta(days=30)),
    limits=limits,
    input_tokens=st.integers(0, 200_000) | st.fractions(0, 1_000),
    output_tokens=st.integers(0, 64_000) | st.floats(0, 1_000),
)
def test_largest_rescuable_is_the_exact_inverse(duration, limits, input_tokens, output_tokens):
    tokens = {"mean_input_tokens": input_tokens, "mean_output_tokens": output_tokens}
    most = largest_rescuable(duration, limits, **tokens)
    if most is None:
        assert rescue_duration(10**6, limits, **tokens) == ZERO
        assert lane_time(limits, input_tokens, output_tokens) == 0
    else:
        assert rescue_duration(most, limits, **tokens) <= duration < rescue_duration(most + 1, limits, **tokens)
        assert most <= (duration // TICK) / lane_time(limits, input_tokens, output_tokens) < most + 1


# Refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sla_cadence(30), "sla=30 is not a timedelta"),
        (lambda: sla_cadence(ZERO), "sla=0 ms is not positive"),
        (lambda: sla_cadence(-HOUR), "sla=-1 h is not positive"),
        (lambda: sla_cadence(HOUR, window=ZERO), "window=0 ms is not positive"),
        (lambda: sla_cadence(30 * HOUR, reserve=-HOUR), "reserve=-1 h is negative"),
        (lambda: sla_cadence(30 * HOUR, reserve=2), "reserve=2 is not a timedelta"),
        (lambda: sla_cadence(30 * HOUR, overhead=-HOUR), "overhead=-1 h is negative"),
        (lambda: sla_cadence(30 * HOUR, rounds=0), "rounds=0 is not a whole number of at least 1"),
        (lambda: sla_cadence(30 * HOUR, rounds=True), "rounds=True is not a whole number"),
        (
            lambda: sla_cadence(30 * HOUR, rounds=10**12),
            ("rounds=1000000000000 times window=24 h is more than Python's datetime can hold; give smaller figures$"),
        ),
        (
            lambda: sla_cadence(30 * HOUR, overhead=timedelta.max),
            "reserve=2 h plus overhead=999999999 d .* is more",
        ),
        (
            lambda: sla_cadence(30 * HOUR, reserve=timedelta.max),
            "reserve=999999999 d .* plus overhead=0 ms is more",
        ),
        (lambda: sla_cadence(TICK, window=timedelta.max), "sla=0.001 ms minus the windows is more"),
        (lambda: worst_case_latency(-HOUR), "interval=-1 h is negative"),
        (lambda: worst_case_latency(HOUR, rounds=10**12), "rounds=1000000000000 times interval . window is more than"),
        (lambda: latest_submission(datetime(2026, 1, 1)), "deadline=2026-01-01T00:00:00 is a naive datetime"),  # noqa: DTZ001
        (
            lambda: latest_submission("soon"),
            "deadline='soon' is not a datetime; give an aware one, e.g. with timezone.utc$",
        ),
        (
            lambda: latest_submission(datetime(1, 1, 1, tzinfo=timezone.utc)),
            "deadline=0001-01-01T00:00:00.00:00 minus window, reserve and overhead is more than",
        ),
        (lambda: latest_submission(NOW, reserve=-HOUR), "reserve=-1 h"),
        (lambda: latest_submission(NOW, overhead=-HOUR), "overhead=-1 h"),
        (lambda: latest_submission(NOW, window=ZERO), "window=0 ms"),
        (lambda: worst_case_latency(HOUR, overhead=-HOUR), "overhead=-1 h"),
        (lambda: worst_case_latency(HOUR, window=ZERO), "window=0 ms"),
        (lambda: worst_case_latency(HOUR, rounds=0), "rounds=0"),
        (lambda: attrs.evolve(sla_cadence(30 * HOUR), sla=ZERO), "sla=0 ms"),
        (lambda: attrs.evolve(sla_cadence(30 * HOUR), reserve=-HOUR), "reserve=-1 h"),
        (lambda: sla_cadence(30 * HOUR).with_interval(ZERO), "interval=0 ms"),
        (lambda: sla_cadence(30 * HOUR).check_every_for(-HOUR), "rescue=-1 h"),
        (lambda: rescue_duration(-1, Limits()), "requests=-1 is not a whole number of at least 0"),
        (lambda: rescue_duration(1.5, Limits()), "requests=1.5 is not a whole number"),
        (lambda: rescue_duration(10**30, Limits(concurrency=1)), "the rescue of requests=1000"),
        (lambda: rescue_duration(1, None), "limits=None is not a Limits; give e.g. Limits.for_tier..start..$"),
        (lambda: rescue_duration(1, Limits(), mean_input_tokens=-1), "mean_input_tokens=-1 is not a number of zero"),
        (lambda: rescue_duration(1, Limits(), mean_output_tokens="9"), "mean_output_tokens='9' is not a number"),
        (
            lambda: rescue_duration(1, Limits(), mean_output_tokens=float("nan")),
            "mean_output_tokens=nan is not a number",
        ),
        (
            lambda: rescue_duration(1, Limits(), mean_output_tokens=float("inf")),
            "mean_output_tokens=inf is not a number",
        ),
        (lambda: largest_rescuable(-HOUR, Limits()), "duration=-1 h is negative"),
        (lambda: sla_cadence(30 * HOUR).submissions(datetime(2026, 1, 1), NOW), "start=.* is a naive datetime"),  # noqa: DTZ001
        (
            lambda: sla_cadence(30 * HOUR).submissions(NOW, NOW - HOUR),
            "end=2026-11-23T11:00:00.* is before start=2026-11-23T12:00:00.*; swap them$",
        ),
        (
            lambda: attrs.evolve(sla_cadence(30 * HOUR), interval=5 * HOUR),
            (
                r"buffer=6 h, worst_case=28 h: not sla - rounds \* window and "
                r"rounds \* \(interval \+ window\) \+ overhead; let sla_cadence compute them$"
            ),
        ),
        (
            lambda: attrs.evolve(sla_cadence(30 * HOUR), buffer=5 * HOUR),
            "buffer=5 h, worst_case=28 h: not",
        ),
        (
            lambda: attrs.evolve(sla_cadence(30 * HOUR), reserve=3 * HOUR),
            r"sla=30 h is shorter than worst_case \+ reserve = 31 h; let sla_cadence compute them$",
        ),
    ],
)
def test_what_is_refused_is_named(call, message):
    with pytest.raises(InvalidValueError, match=f"^{message}"):
        call()


def test_importing_it_is_cheap_for_a_planner():
    code = (
        "import sys; import batchwise.planning.cadence; "
        "heavy = {'anthropic', 'pydantic', 'httpx', 'httpx2', 'genai_prices', 'sqlite3'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_tokens_that_are_not_named_take_no_time():
    for name in ("input_tokens_per_minute", "output_tokens_per_minute"):
        assert rescue_duration(10, Limits(**{name: 60})) == ZERO
        assert largest_rescuable(HOUR, Limits(**{name: 60})) is None
    assert rescue_duration(10, Limits(input_tokens_per_minute=60), mean_input_tokens=1) == timedelta(seconds=10)
    assert rescue_duration(10, Limits(output_tokens_per_minute=60), mean_output_tokens=2) == timedelta(seconds=20)


@pytest.mark.parametrize("window", [HOUR, 30 * HOUR])
@pytest.mark.parametrize("reserve", [ZERO, 2 * HOUR])
def test_without_a_policy_the_shortest_sla_is_that_of_a_default_one_with_what_was_said(window, reserve):
    said = {"window": window, "reserve": reserve}
    shortest = []
    for policy in (None, Policy()):
        with pytest.raises(InfeasibleSLAError) as raised:
            sla_cadence(window / 2, **said, policy=policy)
        shortest.append(raised.value.shortest)
    assert shortest[0] == shortest[1] == window + max(reserve, overhead_of(Policy()))
