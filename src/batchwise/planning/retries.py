"""Retries: what a failed try costs a request, where the request goes on, and after which pause."""

from __future__ import annotations

from datetime import datetime, timedelta

from batchwise.models import Lane, Policy

from .reserve import reserve_for
from .state import Terms

__all__ = ["call_costs", "may_call_again", "next_attempt", "pause_after", "pause_after_failures"]

_SHORTEST = timedelta(milliseconds=250)
_LONGEST = timedelta(seconds=15)
"""The longest pause: within it a disk with room again, or a free database, is noticed."""

_FREE_REFUSALS = 40
"""How many refusals for load (429, 529) are free for a request without a deadline; later ones cost attempts."""


def _may_meet(terms: Terms, now: datetime) -> bool:
    """Whether the deadline can still be met on the sync lane."""
    return terms.due is not None and terms.due > now


def next_attempt(
    terms: Terms, attempts: int, now: datetime, policy: Policy, *, costs: bool, sync_works: bool
) -> tuple[Lane, bool] | None:
    """Return where a request goes on whose batch gave no answer: to another batch if time allows, else the sync lane.

    `attempts`: those used before; `costs`: this try counts, too. The last attempt is kept for the sync lane, as long
    as that takes work (`sync_works`). A request without attempts that can still meet its deadline goes there all the
    same, and that try costs nothing.

    Returns:
        The lane, and whether the try counts; None: no attempt is left, or it was adopted, so it ends.
    """
    if terms.adopted:
        return None
    spent, due = attempts + costs, terms.due
    if spent >= policy.max_attempts:
        return (Lane.SYNC, False) if _may_meet(terms, now) else None
    if due is None:
        return Lane.BATCH, costs
    left = due - now
    fits = left >= policy.window + reserve_for(policy, left - policy.window)
    last = costs and spent == policy.max_attempts - 1
    return (Lane.BATCH if fits and not (last and sync_works) else Lane.SYNC), costs


def may_call_again(terms: Terms, *, attempts: int, calls: int, now: datetime, policy: Policy) -> bool:
    """Whether a request whose call failed may be called again.

    `attempts`: those used, with this call if it counts; `calls`: how many of them were calls. If the deadline can still
    be met, only calls count: attempts in batches say nothing about the sync lane.
    """
    return (calls if _may_meet(terms, now) else attempts) < policy.max_attempts


def call_costs(terms: Terms, now: datetime, *, unpaid: int, refused: bool, costs: bool) -> bool:
    """Whether a failed call counts among its request's attempts.

    While its deadline can be met, a call that was refused for load or never sent costs nothing. Otherwise refusals for
    load cost from the 41st on, and a call that was never sent costs what its kind does (`costs`).

    `unpaid`: how many of its calls were refused for load or never sent, this one included; 0: this one was neither.
    `refused`: whether this one was refused for load.
    """
    if unpaid and _may_meet(terms, now):
        return False
    return unpaid > _FREE_REFUSALS if refused else costs


def pause_after(failures: int, shortest: timedelta = _SHORTEST, longest: timedelta = _LONGEST) -> timedelta:
    """Return the pause after so many failures in a row (one or more): it doubles each time."""
    return min(longest, shortest * (1 << min(failures - 1, 16)))


def pause_after_failures(failures: int, policy: Policy) -> timedelta:
    """Return the pause after so many failed looks at a batch in a row."""
    return pause_after(failures + 1, *policy.poll_every)
