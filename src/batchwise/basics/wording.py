"""Writes durations, amounts and counts in explanations and errors."""

from __future__ import annotations

from datetime import timedelta
from decimal import Context, Decimal

__all__ = ["dollars", "dollars_apart", "exact", "human", "human_apart", "in_requests", "in_results"]

_UNITS = (("d", 86_400_000_000), ("h", 3_600_000_000), ("min", 60_000_000), ("s", 1_000_000), ("ms", 1_000))
_SECOND = 1_000_000


def human(duration: timedelta) -> str:
    """Write a duration, rounded to its two largest units: "30 h", "1 h 30 min", "2.5 s"; in days only from three on."""
    micros = duration // timedelta.resolution
    return f"-{human(-duration)}" if micros < 0 else exact(timedelta(microseconds=_rounded(micros)))


def human_apart(one: timedelta, other: timedelta) -> tuple[str, str]:
    """Write two durations for a sentence that compares them: if they differ, their texts differ, too."""
    if one != other and human(one) == human(other):
        return exact(one), exact(other)
    return human(one), human(other)


def _units(micros: int) -> tuple[tuple[str, int], ...]:
    return _UNITS if micros >= 3 * _UNITS[0][1] else _UNITS[1:]


def _rounded(micros: int) -> int:
    """Round to a multiple of the second largest unit, or under a minute to three digits."""
    if micros < 60 * _SECOND:
        grain = int(10 ** max(0, len(str(micros)) - 3))
    else:
        units = _units(micros)
        largest = next(index for index, (_, size) in enumerate(units) if micros >= size)
        grain = units[largest + 1][1]
    return (micros + grain // 2) // grain * grain


def exact(duration: timedelta) -> str:
    """Write a duration to the microsecond, for errors: "24 h 15 min", "5 h 0.000001 s", "-1 h"."""
    micros = duration // timedelta.resolution
    if micros < 0:
        return f"-{exact(-duration)}"
    if micros < _SECOND:
        return f"{_plain(Decimal(micros) / 1_000)} ms"
    parts = []
    for name, size in _units(micros)[:-2]:
        whole, micros = divmod(micros, size)
        if whole:
            parts.append(f"{whole} {name}")
    if micros:
        parts.append(f"{_plain(Decimal(micros) / _SECOND)} s")
    return " ".join(parts)


def dollars(amount: Decimal) -> str:
    """Write US dollars to the cent, below a dollar to three digits: "$3,186.00", "$0.0000123", "$0"."""
    return _dollars(amount, 3)


def dollars_apart(one: Decimal, other: Decimal) -> tuple[str, str]:
    """Write two amounts for a sentence that compares them: if they differ, their texts differ, too."""
    digits = 3
    while one != other and _dollars(one, digits) == _dollars(other, digits):
        digits *= 2
    return _dollars(one, digits), _dollars(other, digits)


def _dollars(amount: Decimal, digits: int) -> str:
    if amount < 0:
        return f"-{_dollars(-amount, digits)}"
    if amount >= 1:
        return f"${round(amount, digits - 1):,f}"
    return f"${_plain(Context(prec=digits).plus(amount))}"


def in_results(count: int) -> str:
    """Write a number of results: "1 result", "2,000 results"."""
    return "1 result" if count == 1 else f"{count:,} results"


def in_requests(count: int) -> str:
    """Write a number of requests: "1 request", "2,000 requests"."""
    return "1 request" if count == 1 else f"{count:,} requests"


def _plain(number: Decimal) -> str:
    """Write a number without an exponent, and without zeros at its end."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
