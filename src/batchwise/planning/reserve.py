"""The reserve: how much time is kept before a deadline. Routing, admission, rescues and planning functions ask here.

A batch that expires has to be noticed and read, and its unfinished requests have to be sent early enough that the
slowest call ends in time. `overhead_of` adds that up; a reserve is never shorter.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `import batchwise` brings this module, and neither of these
    from batchwise.models import Policy

__all__ = [
    "least_reserve",
    "longest_batch_of",
    "margin_of",
    "noticing_of",
    "overhead_of",
    "reading_of",
    "reserve_for",
]


def reading_of(policy: Policy) -> timedelta:
    """Return the time to read an ended batch's rows: a tenth of the time that its cancel may take."""
    return policy.cancel_settle / 10


def noticing_of(policy: Policy) -> timedelta:
    """Return the time from a batch's expiry to its rows on the sync lane: two polls, and reading its finished rows."""
    return 2 * policy.poll_every[0] + reading_of(policy)


def longest_batch_of(policy: Policy) -> timedelta:
    """Return the longest time of a batch until its end is noticed and its rows are read."""
    return policy.window + noticing_of(policy)


def margin_of(policy: Policy) -> timedelta:
    """Return how long before a deadline the last call has to be sent: its tail, and the reading of a batch."""
    from .capacity import tail_of  # it needs the models, which `import batchwise` does not bring

    return tail_of(policy.limits) + reading_of(policy)


def overhead_of(policy: Policy) -> timedelta:
    """Return the time of a rescue without the calls: from a batch's expiry to the end of the last, slowest call."""
    return noticing_of(policy) + margin_of(policy)


def least_reserve(policy: Policy) -> timedelta:
    """Return the shortest reserve under this policy: the explicit one or the floor, never less than the overhead."""
    return max(policy.min_reserve if policy.reserve is None else policy.reserve, overhead_of(policy))


def reserve_for(policy: Policy, buffer: timedelta) -> timedelta:
    """Return the reserve kept of `buffer` (SLA less windows): the explicit one, else a third, never under the least."""
    least = least_reserve(policy)
    return least if policy.reserve is not None else max(least, buffer / 3)
