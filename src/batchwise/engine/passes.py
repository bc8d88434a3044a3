"""How often an action may recur while one caller works off all that is due (`advance`, `close`)."""

from __future__ import annotations

from collections.abc import Mapping

from batchwise.planning import planner

__all__ = ["QUICK", "once", "repeats"]

QUICK = (planner.Run, planner.Move, planner.FailLate, planner.Release)
"""Actions that only move rows; they are carried out within the planner's pass, in its order."""

_SENDING = (planner.Seal, planner.Post, planner.Run, planner.Move, planner.Release)
_REPEATS: Mapping[type, int] = {
    planner.WaitUntil: 0,
    planner.Collect: 6,  # a short read is read again
    planner.Seal: 1_000,
    planner.Run: 10_000,
}


def once(action: planner.Action) -> object:
    """What counts as the same action again."""
    terms = action.terms if isinstance(action, (planner.Move, planner.FailLate)) else None
    return type(action), getattr(action, "batch", None), terms


def repeats(action: planner.Action, *, only_sending: bool) -> int:
    """How often it may be carried out in one go."""
    if only_sending and not isinstance(action, _SENDING):
        return 0
    return _REPEATS.get(type(action), 1)
