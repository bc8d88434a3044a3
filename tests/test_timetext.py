"""Durations and moments as people write them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchwise.basics.timetext import parse_duration, parse_moment, write_duration
from batchwise.errors import InvalidValueError
from tests.strategies import NOW, instants

UNITS = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Auckland", "Australia/Lord_Howe"]


@given(st.dictionaries(st.sampled_from(sorted(UNITS)), st.integers(0, 500), min_size=1))
def test_a_duration_is_the_sum_of_its_parts(parts):
    text, total = "".join(f"{n}{unit}" for unit, n in parts.items()), sum(n * UNITS[unit] for unit, n in parts.items())
    if total:
        assert parse_duration(text, "within") == timedelta(seconds=total)
    else:
        assert parse_duration(text, "within", zero=True) == timedelta(0)
        with pytest.raises(InvalidValueError, match="within"):
            parse_duration(text, "within")


@given(st.timedeltas(timedelta(0), timedelta(days=36_525)))
def test_what_is_written_is_read_as_the_same(duration):
    assert parse_duration(write_duration(duration), "window", zero=True) == duration


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("30h", timedelta(hours=30)),
        ("1.5h", timedelta(minutes=90)),
        ("1d12h", timedelta(hours=36)),
        ("0.25s", timedelta(milliseconds=250)),
    ],
)
def test_durations(text, duration):
    assert parse_duration(text, "within") == duration


@pytest.mark.parametrize(("hours", "text"), [(30, "1d6h"), (24, "1d"), (1.5, "1h30m"), (0, "0s"), (1 / 7200, "0.5s")])
def test_durations_are_written_shortly(hours, text):
    assert write_duration(timedelta(hours=hours)) == text


@pytest.mark.parametrize(
    "text", ["", "30", "h", "30 h", "-1h", "30h now", "1e3h", "٣h", "9" * 400 + "h", "9" * 12 + "w", "0s"]
)
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(InvalidValueError, match="within"):
        parse_duration(text, "within")


@given(now=instants, day=st.none() | st.sampled_from(DAYS), hour=st.integers(0, 23), minute=st.integers(0, 59),
       zone=st.sampled_from(ZONES))  # fmt: skip
def test_a_time_of_day_is_the_next_one_that_the_zone_s_clock_shows(now, day, hour, minute, zone):
    found = parse_moment(f"{day or ''} {hour}:{minute:02} {zone}", "by", now=now)
    shown = found.astimezone(ZoneInfo(zone))
    assert found.tzinfo is timezone.utc
    assert now < found <= now + timedelta(days=8 if day else 2)
    naive = datetime(shown.year, shown.month, shown.day, hour, minute, tzinfo=ZoneInfo(zone))
    skipped = naive.astimezone(timezone.utc).astimezone(ZoneInfo(zone)).replace(tzinfo=None) != naive.replace(
        tzinfo=None
    )
    if not skipped:  # the clock shows such a time
        assert (shown.hour, shown.minute) == (hour, minute)
        assert day is None or DAYS[shown.weekday()] == day
    # No such moment lies in between: a day, or a week, before is not after now.
    wall = shown.replace(tzinfo=None) - timedelta(days=7 if day else 1)
    assert skipped or wall.replace(tzinfo=ZoneInfo(zone)).astimezone(timezone.utc) <= now


@given(instants)
def test_a_moment_in_iso_is_itself(moment):
    for text in (moment.isoformat(), moment.isoformat(" "), moment.isoformat().replace("+00:00", "Z")):
        assert parse_moment(text, "by", now=NOW) == moment


@pytest.mark.parametrize(
    ("text", "moment"),
    [  # it is Monday, 23 November 2026, 12:00 UTC
        ("mon 08:00 Europe/Berlin", "2026-11-30T07:00"),
        ("Mon 13:00 UTC", "2026-11-23T13:00"),
        ("mon 12:00 utc", "2026-11-30T12:00"),
        ("tomorrow 8:00 Europe/Berlin", "2026-11-24T07:00"),
        ("today 08:00 UTC", "2026-11-23T08:00"),
        ("8:00 America/New_York", "2026-11-23T13:00"),
        ("2027-07-01T08:00 Europe/Berlin", "2027-07-01T06:00"),
        ("2026-11-30 08:00+01:00", "2026-11-30T07:00"),
        ("2027-03-28 02:30 Europe/Berlin", "2027-03-28T01:30"),  # skipped: the clock goes from 2:00 to 3:00
        ("2027-10-31 02:30 Europe/Berlin", "2027-10-31T00:30"),  # shown twice
    ],
)
def test_moments(text, moment):
    assert parse_moment(text, "by", now=NOW) == datetime.fromisoformat(f"{moment}+00:00")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mon 08:00", "no time zone"),
        ("2026-11-30T08:00", "no time zone"),
        ("2026-11-30T08:00Z Europe/Berlin", "an offset and a time zone"),
        ("mon 08:00 Europe/Bremen", "no time zone 'Europe/Bremen' is known"),
        ("mon 08:00 ../../etc/passwd", "no time zone"),
        ("moon 25:00 UTC", "not a moment"),
        ("moon 08:00 UTC", "names no day"),
        ("2026-13-30T08:00Z", "not a moment"),
        ("9999-12-31T23:00-12:00", "years"),
        ("soon", "not a moment"),
        ("", "not a moment"),
    ],
)
def test_what_is_no_moment_is_refused(text, words):
    with pytest.raises(InvalidValueError, match=words):
        parse_moment(text, "by", now=NOW)
