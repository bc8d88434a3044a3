"""The figures of both drivers: how much at once, how often, and how often again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone

from batchwise.planning import agenda

__all__ = [
    "CLOCK_LOOK",
    "IDLE_SWEEP",
    "MAX_ACTIONS",
    "NEVER",
    "PASS_SHARE",
    "QUICK",
    "SPARED",
    "SWEEP",
    "WATCH",
    "gate",
    "once",
    "one_by_one",
    "repeats",
    "words_for",
]

MAX_ACTIONS = 8
"""Batch actions of one gate under way at once."""
NEVER = datetime.max.replace(tzinfo=timezone.utc)
"""When nothing falls due."""
CLOCK_LOOK = 0.5
"""Seconds between two looks at the wall clock while something is due, at most: it may be set, or the machine slept."""
WATCH = 0.25
"""Seconds between two looks for what other processes did to the ledger, at least."""
SWEEP, IDLE_SWEEP = 1.0, 60.0
"""Seconds between two questions to a server whether a process has died: while something is waited for or falls due,
and while nothing is."""
PASS_SHARE = 10
"""Planning takes one part in so many of the time at most, however much is queued, unless something is due."""
SPARED = 60.0
"""Seconds that calls which run are given after an exception, and the storing of answers at any end."""
QUICK = (agenda.Run, agenda.Move, agenda.FailLate, agenda.Release, agenda.Probe)
"""Actions that only move rows; they are carried out within the planner's pass, in its order."""

_SENDING = (agenda.Seal, agenda.Post, agenda.Run, agenda.Move, agenda.Release)
_WORDS: Mapping[type, str] = {
    agenda.Seal: "sending a batch",
    agenda.Post: "sending a batch",
    agenda.Reconcile: "looking for a batch",
    agenda.GiveUp: "giving up a batch",
    agenda.Poll: "asking about a batch",
    agenda.Cancel: "cancelling a batch",
    agenda.Collect: "collecting a batch's results",
}
_REPEATS: Mapping[type, int] = {
    agenda.WaitUntil: 0,
    agenda.Collect: 6,  # a short read is read again
    agenda.Seal: 1_000,
    agenda.Run: 10_000,
}


def gate(action: agenda.Action) -> object:
    """Which actions share `MAX_ACTIONS` places: slow uploads and reads hold up no poll, nothing holds up a cancel."""
    return type(action) if isinstance(action, (agenda.Seal, agenda.Collect, agenda.Cancel)) else None


def one_by_one(actions: Iterable[agenda.Action]) -> list[agenda.Action]:
    """The order in which to begin actions where each may have to be done in turn: what may take minutes comes last."""
    return sorted(actions, key=lambda action: isinstance(action, (agenda.Seal, agenda.Collect)))


def once(action: agenda.Action) -> object:
    """What counts as the same action again."""
    terms = action.terms if isinstance(action, (agenda.Move, agenda.FailLate)) else None
    return type(action), getattr(action, "batch", None), terms


def words_for(action: agenda.Action) -> str:
    """What it is called in messages: the subject of a sentence."""
    return _WORDS.get(type(action), "moving requests")


def repeats(action: agenda.Action, *, only_sending: bool) -> int:
    """How often it may be carried out in one go."""
    if only_sending and not isinstance(action, _SENDING):
        return 0
    return _REPEATS.get(type(action), 1)
