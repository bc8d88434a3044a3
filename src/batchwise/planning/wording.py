"""How figures are worded in explanations and errors."""

from __future__ import annotations

from datetime import timedelta

__all__ = ["human"]

_UNITS = (("d", 86_400_000_000), ("h", 3_600_000_000), ("min", 60_000_000), ("s", 1_000_000))


def human(duration: timedelta) -> str:
    """`duration` in its two largest units: "30 h", "1 h 30 min", "45 s", "250 ms"; days only from three on."""
    micros = duration // timedelta(microseconds=1)
    if micros < 0:
        return f"-{human(-duration)}"
    if micros < 1_000_000:
        return f"{micros / 1_000:g} ms"
    units = _UNITS if micros >= 3 * _UNITS[0][1] else _UNITS[1:]
    index = next(index for index, (_, size) in enumerate(units) if micros >= size)
    name, size = units[index]
    whole, rest = divmod(micros, size)
    if index + 1 == len(units):
        return f"{micros / size:.3g} {name}"
    smaller, small = units[index + 1]
    part = rest // small
    return f"{whole} {name} {part} {smaller}" if part else f"{whole} {name}"
