"""How long a wait lets others join."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from batchwise.planning.linger import MOST_LINGERS, Gathering

START = datetime(2026, 11, 27, 8, tzinfo=timezone.utc)
LINGERS = st.timedeltas(min_value=timedelta(0), max_value=timedelta(minutes=1))
STEPS = st.lists(st.timedeltas(min_value=timedelta(0), max_value=timedelta(seconds=90)), max_size=20)


def test_a_wait_alone_ends_after_one_linger():
    gathering, linger = Gathering(START, START), timedelta(seconds=1)
    assert not gathering.over(START, linger)
    assert not gathering.over(START + timedelta(seconds=0.999), linger)
    assert gathering.over(START + linger, linger)


def test_what_joins_extends_it_to_five_lingers_at_most():
    gathering, linger = Gathering(START, START), timedelta(seconds=1)
    for tenth in range(1, 50):
        gathering = gathering.joined(START + timedelta(seconds=tenth / 10))
    assert gathering.ends(linger) == START + MOST_LINGERS * linger


def test_a_clock_set_back_ends_it():
    assert Gathering(START, START).over(START - timedelta(hours=1), timedelta(seconds=1))


@given(LINGERS, STEPS)
def test_it_ends_a_linger_after_the_last_that_joined_or_at_the_most(linger, steps):
    gathering, now = Gathering(START, START), START
    for step in steps:
        now += step
        if gathering.over(now, linger):
            break
        gathering = gathering.joined(now)
    assert gathering.ends(linger) == min(gathering.last + linger, START + MOST_LINGERS * linger)
    assert gathering.over(gathering.ends(linger), linger)
