"""Times as callers give them, checked, and the one that the API sets. Light: a cadence needs no more than this."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from .errors import InvalidValueError

__all__ = ["WINDOW", "ZERO", "check_aware", "check_duration", "check_positive"]

WINDOW = timedelta(hours=24)
"""The Message Batches API's processing window, counted from a batch's `created_at` (API documentation)."""
ZERO = timedelta(0)


def check_aware(value: datetime, field: str) -> datetime:
    """`value` in UTC.

    Raises:
        InvalidValueError: It is naive.
    """
    if value.tzinfo is None or value.utcoffset() is None:
        raise InvalidValueError(
            f"{field}={value.isoformat()} is a naive datetime; give it a time zone, "
            "e.g. datetime(..., tzinfo=timezone.utc) or .astimezone()"
        )
    return value.astimezone(timezone.utc)


def check_positive(value: timedelta, field: str) -> timedelta:
    """`value` if it is a positive `timedelta`.

    Raises:
        InvalidValueError: It is no timedelta, zero or negative.
    """
    if not isinstance(value, timedelta):
        raise InvalidValueError(f"{field}={value!r} is not a timedelta; write e.g. timedelta(hours=30)")
    if value <= ZERO:
        raise InvalidValueError(f"{field}={value} is not positive; give a duration above zero")
    return value


def check_duration(value: object, field: str) -> timedelta:
    """`value` if it is a `timedelta` of zero or more.

    Raises:
        InvalidValueError: It is not.
    """
    if not isinstance(value, timedelta):
        raise InvalidValueError(f"{field}={value!r} is not a timedelta; write e.g. timedelta(minutes=15)")
    if value < ZERO:
        raise InvalidValueError(f"{field}={value} is negative; give a duration of zero or more")
    return value
