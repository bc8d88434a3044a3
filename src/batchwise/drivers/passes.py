"""Figures that both drivers share: how many actions at once, how often they look, how often they repeat an action."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta, timezone

from batchwise.planning import agenda

__all__ = [
    "CLOCK_LOOK",
    "END_GRACE",
    "IDLE_SWEEP",
    "MAX_ACTIONS",
    "NEVER",
    "PASS_SHARE",
    "QUICK",
    "SWEEP",
    "WATCH",
    "action_key",
    "concurrency_group",
    "describe",
    "one_by_one",
    "repeats",
    "seconds_until",
]

MAX_ACTIONS = 8
"""The most batch actions of one `concurrency_group` under way at once."""
NEVER = datetime.max.replace(tzinfo=timezone.utc)
"""When nothing falls due."""
CLOCK_LOOK = 0.5
"""The most seconds between two looks at the wall clock while something is due: it may be set, or the machine slept."""
WATCH = 0.25
"""The least seconds between two looks for changes that other processes made to the ledger."""
SWEEP, IDLE_SWEEP = 1.0, 60.0
"""Seconds between two questions to a server whether a process has died: while work is due or waited for, and while
none is."""
PASS_SHARE = 10
"""Planning takes at most 1 in so many parts of the time, however much is queued, unless something is due."""
END_GRACE = 60.0
"""Seconds that running calls get after an exception, and the storing of answers gets at every end."""
QUICK = (agenda.Run, agenda.Move, agenda.FailLate, agenda.MoveFromBatch, agenda.Probe)
"""Actions that only move rows; they are carried out within the planner's pass, in its order."""

_SENDING = (agenda.Seal, agenda.Unseal, agenda.Run, agenda.Move, agenda.MoveFromBatch)
_WORDS: Mapping[type, str] = {
    agenda.Seal: "sending a batch",
    agenda.Unseal: "queueing the requests of an unsent batch again",
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


def concurrency_group(action: agenda.Action) -> object:
    """Return the group that shares `MAX_ACTIONS`: slow uploads and reads delay no poll, and nothing delays a cancel."""
    return type(action) if isinstance(action, (agenda.Seal, agenda.Collect, agenda.Cancel)) else None


def one_by_one(actions: Iterable[agenda.Action]) -> list[agenda.Action]:
    """Return actions in the order in which to begin them one by one: those that may take minutes come last."""
    return sorted(actions, key=lambda action: isinstance(action, (agenda.Seal, agenda.Collect)))


def action_key(action: agenda.Action) -> object:
    """Return a key that is equal for two orders of the same action."""
    terms = action.terms if isinstance(action, (agenda.Move, agenda.FailLate)) else None
    return type(action), getattr(action, "batch", None), terms


def describe(action: agenda.Action) -> str:
    """Return what messages call the action: the subject of a sentence."""
    return _WORDS.get(type(action), "moving requests")


def repeats(action: agenda.Action, *, only_sending: bool) -> int:
    """Return how often an action may be carried out in one `advance` or `close`."""
    if only_sending and not isinstance(action, _SENDING):
        return 0
    return _REPEATS.get(type(action), 1)


def seconds_until(moment: datetime, now: datetime) -> float:
    """Return how many seconds are left until a moment; 0 if it has passed."""
    return max(0.0, (moment - now) / timedelta(seconds=1))
