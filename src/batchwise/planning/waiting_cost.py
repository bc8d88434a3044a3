"""The cost of waiting: how long an interval pays, and whether a hedge pays, a batch with an early cancel.

A longer latency must never cost more. So an interval is no longer than it pays, and a hedge is cancelled when that is
worth most, even if its deadline is much later.
"""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

import attrs

from batchwise.basics.times import LONGEST
from batchwise.errors import InvalidValueError

from .forecast import Forecast, check_share

__all__ = ["Hedge", "best_hedge", "delay_cost", "hedge_gain", "longest_worthwhile"]

_TICK = timedelta.resolution
_HOUR = timedelta(hours=1)


def delay_cost(wait: timedelta, cost_per_hour: Decimal) -> Decimal:
    """Return the cost of a wait, in USD."""
    return Decimal(wait // _TICK) * cost_per_hour / (_HOUR // _TICK)


def longest_worthwhile(saving: Decimal, cost_per_hour: Decimal, run: timedelta) -> timedelta:
    """Return the longest interval whose mean wait costs no more than a batch saves: `2 * (saving / cost - run)`.

    A request waits for half an interval on average, then for its batch to end.

    Args:
        saving: The batch's saving against the sync lane, in USD a request.
        cost_per_hour: The cost of an hour of waiting, in USD a request; more than 0.
        run: The mean time that a batch takes.

    Returns:
        The interval, at most a hundred years; negative if the run alone costs more than is saved.
    """
    worth = Fraction(saving) / Fraction(cost_per_hour) * (_HOUR // _TICK)
    ticks = 2 * (worth - run // _TICK) // 1
    return min(ticks, LONGEST // _TICK) * _TICK


def hedge_gain(*, p: float, saving: Decimal, hang: float, share_done: float, delay_cost: Decimal) -> Fraction:
    """Return the USD that a batch before a rescue saves against the sync lane: `p*s - (1-p)*h*f*s - delay cost`.

    Finished rows of a cancelled batch are used and unfinished ones are not billed, so only a cancel that hangs costs
    twice. Computed exactly. It says nothing about deadlines: those are `sync_schedule.fits`' business.

    Args:
        p: The chance that the batch ends by the safe moment.
        saving: s, what the batch saves against the sync lane, in USD.
        hang: h, the chance that its cancel does not end in time.
        share_done: f, the share of its rows done by then, which would be paid twice.
        delay_cost: What the wait costs, in USD.

    Raises:
        InvalidValueError: A share is not between 0 and 1, or the delay cost is negative or no number.
    """
    chance = Fraction(check_share(p, "p"))
    twice = (1 - chance) * Fraction(check_share(hang, "hang")) * Fraction(check_share(share_done, "share_done"))
    for name, amount in (("saving", saving), ("delay_cost", delay_cost)):
        if not amount.is_finite() or (name == "delay_cost" and amount < 0):
            raise InvalidValueError(f"{name}={amount} is not an amount of US dollars that a hedge can be weighed with")
    return (chance - twice) * Fraction(saving) - Fraction(delay_cost)


@attrs.frozen(kw_only=True)
class Hedge:
    """A batch that is cancelled before its window may be over.

    Attributes:
        run: How long it may run.
        chance: The chance that it ends by then.
        delay_cost: The mean cost of the wait, in USD a request.
        gain: The USD a request that it is expected to save against the sync lane.
        pays: Whether it saves anything.
    """

    run: timedelta
    chance: float
    delay_cost: Decimal
    gain: Fraction
    pays: bool


def best_hedge(
    room: timedelta, *, saving: Decimal, cost_per_hour: Decimal, settle: timedelta, forecast: Forecast
) -> Hedge:
    """Return the hedge that is worth most, of those that run for at most `room`.

    The gain is convex between two ends of the forecast's buckets, so it is highest at one of them or at `room`. With
    more room the best hedge is never worth less.

    Args:
        room: The longest that it may run; more than 0.
        saving: What a batch saves against the sync lane, in USD a request.
        cost_per_hour: What an hour of waiting costs, in USD a request.
        settle: How long a cancel may take; one that takes longer counts as hanging.
        forecast: How long batches and cancels take.
    """
    hang = 1 - forecast.p_cancel_within(settle)

    def hedge(run: timedelta) -> Hedge:
        chance, wait = forecast.p_end_within(run), delay_cost(forecast.expected(run), cost_per_hour)
        # share_done: the worst case, a hanging cancel's rows were all done and are all bought again
        gain = hedge_gain(p=chance, saving=saving, hang=hang, share_done=1.0, delay_cost=wait)
        return Hedge(run=run, chance=chance, delay_cost=wait, gain=gain, pays=saving > 0 and gain > 0)

    runs = forecast.steps(room) if cost_per_hour else [room]  # without a cost of waiting the longest is the best
    return max(map(hedge, reversed(runs)), key=lambda found: found.gain)
