"""Checks of durations and moments that callers give, and the window that the API sets.

The results are of `timedelta` and `datetime` themselves. Subclasses (pendulum's, pandas') and numpy's durations have an
arithmetic of their own, so only their length or their moment is kept.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TypeVar

from batchwise.errors import InvalidValueError, shown

from .wording import exact

__all__ = [
    "LONGEST",
    "WINDOW",
    "ZERO",
    "check_aware",
    "check_duration",
    "check_positive",
    "check_reach",
    "from_numpy",
]

_T = TypeVar("_T", datetime, timedelta)

WINDOW = timedelta(hours=24)
"""The Message Batches API's processing window, counted from a batch's `created_at` (API documentation)."""
ZERO = timedelta(0)
LONGEST = timedelta(days=36_525)
"""A hundred years: the longest duration that `check_reach` takes."""
_FIRST = datetime(1000, 1, 1, tzinfo=timezone.utc)
_LAST = datetime(3000, 1, 1, tzinfo=timezone.utc)


def check_aware(value: object, field: str) -> datetime:
    """Return a moment as a plain `datetime` in UTC.

    Raises:
        InvalidValueError: The value is not a datetime, has no time zone, or is in UTC outside the years 1 to 9999.
    """
    if not isinstance(value, datetime):
        raise InvalidValueError(f"{field}={shown(value)} is not a datetime; give an aware one, e.g. with timezone.utc")
    if value.tzinfo is None or value.utcoffset() is None:
        raise InvalidValueError(
            f"{field}={value.isoformat()} is a naive datetime; give it a time zone, "
            "e.g. datetime(..., tzinfo=timezone.utc) or .astimezone()"
        )
    if type(value) is not datetime:
        value = datetime(
            value.year,
            value.month,
            value.day,
            value.hour,
            value.minute,
            value.second,
            value.microsecond,
            tzinfo=value.tzinfo,
            fold=value.fold,
        )
    try:
        return value.astimezone(timezone.utc)
    except OverflowError:
        raise InvalidValueError(f"{field}={value.isoformat()} is in UTC outside the years 1 to 9999") from None


def check_positive(value: object, field: str) -> timedelta:
    """Return a duration above zero as a plain `timedelta`.

    Raises:
        InvalidValueError: The value is not a timedelta, or is zero or negative.
    """
    duration = _plain(value, field, "timedelta(hours=30)")
    if duration <= ZERO:
        raise InvalidValueError(f"{field}={exact(duration)} is not positive; give a duration above zero")
    return duration


def check_duration(value: object, field: str) -> timedelta:
    """Return a duration of zero or more as a plain `timedelta`.

    Raises:
        InvalidValueError: The value is not a timedelta, or is negative.
    """
    duration = _plain(value, field, "timedelta(minutes=15)")
    if duration < ZERO:
        raise InvalidValueError(f"{field}={exact(duration)} is negative; give a duration of zero or more")
    return duration


def from_numpy(value: object) -> object:
    """Return a `numpy.timedelta64` of fixed length as a `timedelta`, cut to microseconds; other values as they are."""
    kind = type(value)
    if (kind.__module__, kind.__name__) != ("numpy", "timedelta64"):  # without importing numpy
        return value
    item: object = value.item()  # type: ignore[attr-defined]
    if isinstance(item, int) and str(value.dtype) == "timedelta64[ns]":  # type: ignore[attr-defined]
        return timedelta(microseconds=item // 1_000)
    return item if isinstance(item, timedelta) else value


def _plain(value: object, field: str, example: str) -> timedelta:
    value = from_numpy(value)
    if not isinstance(value, timedelta):
        raise InvalidValueError(f"{field}={shown(value)} is not a timedelta; write e.g. {example}")
    if type(value) is not timedelta:  # by the properties of the base class: pendulum gives them another meaning
        days, seconds, rest = (
            part.__get__(value) for part in (timedelta.days, timedelta.seconds, timedelta.microseconds)
        )
        value = timedelta(days, seconds, rest)
    return value


def check_reach(value: _T, field: str) -> _T:
    """Return a duration or a moment, if sums of such values always stay within what `datetime` can hold.

    Raises:
        InvalidValueError: It is a duration over a hundred years, or a moment outside the years 1000 to 2999.
    """
    if isinstance(value, datetime):
        if not _FIRST <= value < _LAST:
            raise InvalidValueError(f"{field}={value.isoformat()} is outside the years 1000 to 2999")
    elif value > LONGEST:
        raise InvalidValueError(f"{field}={exact(value)} is over a hundred years; give a shorter one")
    return value
