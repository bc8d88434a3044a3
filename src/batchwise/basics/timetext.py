"""Reads durations and moments as people write them: `30h`, `1d12h`, `mon 08:00 Europe/Berlin`.

It never guesses a time zone: a moment has to have an offset or to name a zone. The present moment is an argument.
"""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta, timezone, tzinfo

from batchwise.errors import InvalidValueError, shown

from .times import ZERO, check_aware, check_positive, check_reach

__all__ = ["parse_duration", "parse_moment", "write_duration"]

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[smhdw])+", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhdw])", re.ASCII)
_WRITTEN = (("d", timedelta(days=1)), ("h", timedelta(hours=1)), ("m", timedelta(minutes=1)))
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_CLOCK = re.compile(r"(?:(?P<day>[A-Za-z]+) )?(?P<hour>\d{1,2}):(?P<minute>\d{2})(?: (?P<zone>\S+))?", re.ASCII)
_DATE = re.compile(r"(?P<iso>\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}\S*)(?: (?P<zone>\S+))?", re.ASCII)
_HOW = "write e.g. mon 08:00 Europe/Berlin, 08:00 UTC, or 2026-11-30T08:00+01:00"


def parse_duration(text: str, field: str, *, zero: bool = False) -> timedelta:
    """Read a duration as people write it: `30h`, `90m`, `1d12h`.

    Args:
        text: Numbers, each with a unit: s, m, h, d or w.
        field: The name of the value in an error.
        zero: Whether a duration of zero is taken, too.

    Raises:
        InvalidValueError: The text is not such a duration, or it is zero, or longer than a `timedelta` can be.
    """
    if not _DURATION.fullmatch(text):
        raise InvalidValueError(f"{field}={shown(text)} is not a duration; write e.g. 30h, 90m or 2d")
    try:
        parts = [timedelta(**{_UNITS[unit]: float(number)}) for number, unit in _PART.findall(text)]
        total = sum(parts, ZERO)
    except OverflowError:
        raise InvalidValueError(f"{field}={shown(text)} is longer than any deadline; write e.g. 30h") from None
    return total if zero else check_positive(total, field)


def write_duration(duration: timedelta) -> str:
    """Write a duration of zero or more exactly, so that `parse_duration` reads the same: `1d6h`, `1h30m0.5s`, `0s`."""
    written = ""
    for unit, length in _WRITTEN:
        count, duration = divmod(duration, length)
        written += f"{count}{unit}" if count else ""
    if not duration and written:
        return written
    seconds = f"{duration.seconds}.{duration.microseconds:06}".rstrip("0").rstrip(".")
    return f"{written}{seconds}s"


def parse_moment(text: str, field: str, *, now: datetime) -> datetime:
    """Read a moment as people write it; returns it in UTC.

    A time of day means the next such time: `08:00 UTC` is today or tomorrow, `mon 08:00 Europe/Berlin` within a week.
    Of a time that the clock shows twice (at the end of summer time), the first is meant. A time that the clock skips
    (at its beginning) is moved later by as much as the clock skips.

    Args:
        text: `[mon..sun|today|tomorrow] HH:MM ZONE`, or ISO 8601 with an offset or followed by a zone.
        field: The name of the value in an error.
        now: The present moment.

    Raises:
        InvalidValueError: The text is not such a moment, its zone is missing or unknown, or it is outside the years
            1000 to 2999.
    """
    words = " ".join(text.split())
    clock, iso = _CLOCK.fullmatch(words), _DATE.fullmatch(words)
    try:
        if clock is not None:
            found = _next(clock, field, text, now)
        elif iso is not None:
            found = _iso(iso, field, text)
        else:
            raise InvalidValueError(f"{field}={shown(text)} is not a moment; {_HOW}")
    except (ValueError, OverflowError) as error:
        if isinstance(error, InvalidValueError):
            raise
        raise InvalidValueError(f"{field}={shown(text)} is not a moment ({error}); {_HOW}") from None
    return check_reach(check_aware(found, field), field)


def _iso(iso: re.Match[str], field: str, text: str) -> datetime:
    found = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", iso["iso"]))  # Python 3.10 does not know Z
    if iso["zone"] is None:
        if found.tzinfo is None:
            raise InvalidValueError(f"{field}={shown(text)} has no time zone; {_HOW}")
        return found
    if found.tzinfo is not None:
        raise InvalidValueError(f"{field}={shown(text)} has an offset and a time zone; leave one of them out")
    return found.replace(tzinfo=_zone(iso["zone"], field))


def _next(clock: re.Match[str], field: str, text: str, now: datetime) -> datetime:
    if clock["zone"] is None:
        raise InvalidValueError(f"{field}={shown(text)} has no time zone; {_HOW}")
    zone = _zone(clock["zone"], field)
    at = time(int(clock["hour"]), int(clock["minute"]))
    today = now.astimezone(zone).date()
    word = (clock["day"] or "").lower()
    if word in {"today", "tomorrow"}:
        return _at(today + timedelta(days=word == "tomorrow"), at, zone)
    if word and word[:3] not in _WEEKDAYS:
        raise InvalidValueError(f"{field}={shown(text)} names no day; write mon, tue, ... sun, today or tomorrow")
    wait, step = 0, 1
    if word:
        wait, step = (_WEEKDAYS.index(word[:3]) - today.weekday()) % 7, 7
    found = _at(today + timedelta(days=wait), at, zone)
    return found if found > now else _at(today + timedelta(days=wait + step), at, zone)


def _at(day: date, at: time, zone: tzinfo) -> datetime:
    """Return the moment in UTC: Python compares times of one zone by the clock's face, which goes back once a year."""
    return datetime.combine(day, at, zone).astimezone(timezone.utc)


def _zone(name: str, field: str) -> tzinfo:
    from zoneinfo import ZoneInfo

    if name.upper() in {"UTC", "Z"}:
        return timezone.utc
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        raise InvalidValueError(
            f"{field}: no time zone {shown(name)} is known here; write e.g. UTC or Europe/Berlin"
        ) from None
