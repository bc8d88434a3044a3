"""Checks of numbers that callers give: Python's numbers, decimals, fractions and numpy's scalars, converted exactly."""

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
"""A number as callers may give it; it is converted exactly."""


def check_whole(value: object, field: str, least: int) -> int:
    """Return a whole number as a plain int.

    Raises:
        InvalidValueError: The value is not a whole number, or less than `least`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:  # numpy's integers are Integral
        raise InvalidValueError(f"{field}={shown(value)} is not a whole number of at least {least}")
    return index(value)


def to_number(value: object, field: str) -> Fraction:
    """Return an int, a float, a Decimal, a Fraction or a scalar of numpy as an exact fraction.

    Raises:
        InvalidValueError: The value is not a finite number of zero or more.
    """
    if not isinstance(value, bool) and isinstance(value, (Real, Decimal)):
        with suppress(ValueError, OverflowError):  # not a number, infinite
            ratio = getattr(value, "as_integer_ratio", None)
            number = Fraction(check_whole(value, field, 0)) if ratio is None else Fraction(*ratio())
            if number >= 0:
                return number
    raise InvalidValueError(f"{field}={shown(value)} is not a number of zero or more")
