"""Durations as people write them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchwise.errors import InvalidValueError
from batchwise.times import parse_duration

UNITS = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}


@given(st.dictionaries(st.sampled_from(sorted(UNITS)), st.integers(0, 500), min_size=1))
def test_a_duration_is_the_sum_of_its_parts(parts):
    text, total = "".join(f"{n}{unit}" for unit, n in parts.items()), sum(n * UNITS[unit] for unit, n in parts.items())
    if total:
        assert parse_duration(text, "within") == timedelta(seconds=total)
    else:
        with pytest.raises(InvalidValueError, match="within"):
            parse_duration(text, "within")


def test_fractions():
    assert parse_duration("1.5h", "within") == timedelta(minutes=90)


@pytest.mark.parametrize(
    "text", ["", "30", "h", "30 h", "-1h", "30h now", "1e3h", "٣h", "9" * 400 + "h", "9" * 12 + "w"]
)
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(InvalidValueError, match="within"):
        parse_duration(text, "within")
