"""The planner's actions that are under way in this process, so that none is begun twice."""

from __future__ import annotations

import threading

from batchwise.planning import agenda

__all__ = ["UnderWay"]


class UnderWay:
    """The actions that have begun and not ended, by tokens. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: set[object] = set()
        self._sealing: object | None = None

    def try_begin(self, action: agenda.Action) -> object | None:
        """Mark an action as begun; returns the token for `end`, or None if the action is under way already."""
        match action:
            case agenda.Seal():
                token: object = object()
            case agenda.WaitUntil():
                return None
            case agenda.Run() | agenda.Move() | agenda.FailLate():
                token = (type(action), action.terms)
            case agenda.MoveFromBatch() | agenda.Probe():
                token = ("move", action.batch)
            case _:
                token = ("batch", action.batch)
        with self._lock:
            if isinstance(action, agenda.Seal):  # one at a time: each seals what the ones before have left
                if self._sealing is not None:
                    return None
                self._sealing = token
            elif token in self._tokens or (isinstance(action, agenda.Unseal) and self._sealing is not None):
                return None  # it may be the batch that is being sealed now: the same action sends it
            else:
                self._tokens.add(token)
        return token

    def sealed(self, batch: int) -> object:
        """Note that the seal under way made this batch, so that the next may begin; returns a token for its sending."""
        with self._lock:
            token = ("batch", batch)
            self._tokens.add(token)
            self._sealing = None
        return token

    def sends(self, batch: int) -> bool:
        """Whether an action on this batch is under way in this process."""
        with self._lock:
            return ("batch", batch) in self._tokens

    def end(self, token: object) -> None:
        """Note that the action of this token has ended."""
        with self._lock:
            self._tokens.discard(token)
            if token is self._sealing:
                self._sealing = None
