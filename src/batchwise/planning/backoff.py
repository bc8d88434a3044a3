"""When what failed is tried again, whoever is to blame: soon at first, then less and less often."""

from __future__ import annotations

from datetime import timedelta

__all__ = ["pause_after"]

_SHORTEST = timedelta(milliseconds=250)
_LONGEST = timedelta(seconds=15)
"""A disk that has room again, or a database that is free again, is noticed within this."""


def pause_after(failures: int) -> timedelta:
    """How long to wait after so many failures in a row (one or more): it doubles, from 250 ms to 15 s."""
    return min(_LONGEST, _SHORTEST * (1 << min(failures - 1, 10)))
