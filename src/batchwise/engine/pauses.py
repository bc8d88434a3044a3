"""Pauses before refused calls are tried again, drawn at random so that many do not come at once."""

from __future__ import annotations

import random
from datetime import timedelta

from batchwise.models import Policy
from batchwise.planning.retries import pause_after

__all__ = ["backoff", "overload_pause"]

_SECOND = timedelta(seconds=1)


def backoff(failures: int, policy: Policy) -> timedelta:
    """Return a pause that doubles from the shortest to the longest poll gap, and up to the shortest gap more."""
    shortest, longest = policy.poll_every
    return pause_after(max(1, failures), shortest, longest) + _share() * shortest


def overload_pause(refusals: int) -> timedelta:
    """Return the pause of a call after so many 529s: a random part of 1 s, 2 s, 4 s, ... 16 s."""
    return _share() * pause_after(max(1, refusals), _SECOND, 16 * _SECOND)


def _share() -> float:
    return random.random()  # noqa: S311  # it protects nothing
