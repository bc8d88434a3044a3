"""Pauses before refused calls are tried again, drawn at random so that many do not come at once."""

from __future__ import annotations

from datetime import timedelta

import tenacity

from batchwise.models import Policy

__all__ = ["backoff", "overload_pause"]


def backoff(failures: int, policy: Policy) -> timedelta:
    """Return a pause that grows exponentially, with jitter, from the shortest to the longest poll gap."""
    shortest, longest = (gap / timedelta(seconds=1) for gap in policy.poll_every)
    return _drawn(
        tenacity.wait_exponential(multiplier=shortest, max=longest) + tenacity.wait_random(0, shortest), failures
    )


def overload_pause(refusals: int) -> timedelta:
    """Return the pause of a call after so many 529s: full jitter, up to 1 s, 2 s, 4 s, ... 16 s."""
    return _drawn(tenacity.wait_random_exponential(multiplier=1, max=16), refusals)


def _drawn(strategy: tenacity.wait.wait_base, attempt: int) -> timedelta:
    state = tenacity.RetryCallState(retry_object=tenacity.Retrying(), fn=None, args=(), kwargs={})
    state.attempt_number = max(1, attempt)
    return timedelta(seconds=float(strategy(state)))
