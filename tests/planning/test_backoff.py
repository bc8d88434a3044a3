"""Pauses between tries of what failed."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from batchwise.planning.retries import pause_after


@given(st.integers(1, 10**9))
def test_pauses_grow_up_to_a_limit(failures: int):
    pause, longer = pause_after(failures), pause_after(failures + 1)
    assert timedelta(milliseconds=250) <= pause <= longer <= timedelta(seconds=15)
    assert longer == min(2 * pause, timedelta(seconds=15))
    assert pause_after(1) == timedelta(milliseconds=250)


def test_pauses_double_from_a_quarter_of_a_second() -> None:
    pauses = [pause_after(failures) / timedelta(milliseconds=250) for failures in (1, 2, 3, 6, 7, 100)]
    assert pauses == [1, 2, 4, 32, 60, 60]
