"""Counts and means as callers give them: Python's numbers, decimals, fractions and numpy's scalars, taken exactly."""

from __future__ import annotations

from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Real
from operator import index
from typing import Union

from batchwise.errors import InvalidValueError, shown

__all__ = ["Number", "check_whole", "to_number"]

Number = Union[float, Decimal, Fraction]
"""A count or a mean; taken exactly, whatever its type."""


def check_whole(value: object, field: str, least: int) -> int:
    """`value` as a plain whole number of at least `least`.

    Raises:
        InvalidValueError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:  # numpy's integers are Integral
        raise InvalidValueError(f"{field}={shown(value)} is not a whole number of at least {least}")
    return index(value)


def to_number(value: object, field: str) -> Fraction:
    """`value` (int, float, Decimal, Fraction, or a scalar of numpy) as an exact fraction.

    Raises:
        InvalidValueError: It is no finite number of zero or more.
    """
    if not isinstance(value, bool) and isinstance(value, (Real, Decimal)):
        with suppress(ValueError, OverflowError):  # not a number, infinite
            ratio = getattr(value, "as_integer_ratio", None)
            number = Fraction(check_whole(value, field, 0)) if ratio is None else Fraction(*ratio())
            if number >= 0:
                return number
    raise InvalidValueError(f"{field}={shown(value)} is not a number of zero or more")
