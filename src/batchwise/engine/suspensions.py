"""Suspended lanes, which take no work until they are resumed, as this process knows them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence

from batchwise import events
from batchwise.basics.wording import in_requests
from batchwise.ledger.ledger import Ledger
from batchwise.models import Lane, Status
from batchwise.planning.state import Snapshot

from .event_emitter import EventEmitter

__all__ = ["MAX_FAILURES", "Suspensions"]

_log = logging.getLogger("batchwise")
MAX_FAILURES = 10
"""So many failures in a row suspend the batch lane, without proof of a lasting cause: of creates, or of looks."""


class Suspensions:
    """Thread-safe. The ledger holds the truth, for all processes.

    Args:
        ledger: Where the suspensions are recorded.
        emitter: Announces each suspension, and its end.
    """

    def __init__(self, ledger: Ledger, emitter: EventEmitter) -> None:
        self._ledger, self._emitter, self._lock = ledger, emitter, threading.Lock()
        self.lanes: Mapping[Lane, str] = {}
        """The reasons of the suspended lanes, as last seen."""
        self.resumes = 0
        """How often lanes were resumed, as last seen: a failure of work that began before a resume proves nothing."""
        self.used = False
        """Whether this dispatcher has begun to work; see `resume_on_first_use`."""

    def read(self) -> Snapshot:
        """Return the ledger's snapshot, and remember its suspensions."""
        with self._lock:  # else an older snapshot could undo a resume
            snapshot = self._ledger.snapshot()
            self.lanes, self.resumes = snapshot.suspended, snapshot.resumes
        return snapshot

    def resume_on_first_use(self) -> bool:
        """Lift the suspensions of an earlier process; returns whether this was the first use.

        To dispatch, flush, wait or advance is to restart the work, so each of these calls this first. Read-only calls
        and an idle pump do not.
        """
        lanes: Sequence[Lane] | None = None
        if not self.used:
            with self._lock:  # no work begins before it is done: a later suspension stays
                if not self.used:
                    lanes = self._ledger.conditions.resume(afresh=False)
                    self._lift()
                    self.used = True
        if lanes is not None:
            self._emit_resumed(lanes)
        return lanes is not None

    def suspend(self, lane: Lane, reason: str, *, resumes: int | None = None) -> bool:
        """Suspend a lane until `resume`.

        Args:
            lane: The lane.
            reason: The reason that waiting callers are told.
            resumes: The value of `self.resumes` when the failed work began: after another resume it proves nothing.

        Returns:
            Whether the lane is suspended; False if it was resumed in between.
        """
        with self._lock:
            found = self._ledger.conditions.suspend(lane, reason, resumes=resumes)
            self.resumes = found.resumes
            if found.done:
                self.lanes = {**self.lanes, lane: reason}
        if found.news:
            self._emitter.emit(events.Suspended(at=self._emitter.now(), lane=lane, reason=reason))
        return found.done

    def resume(self) -> None:
        """Let both lanes take work again."""
        with self._lock:
            lanes = self._ledger.conditions.resume()
            self._lift()
        self._emit_resumed(lanes)

    def warn_of_rest(self) -> None:
        """Log how much work stays queued because its lane is suspended: perhaps no caller waits for it."""
        for lane, reason in self.read().suspended.items():
            left = sum(
                number
                for (where, status, _), number in self._ledger.statistics.counts(job=None).items()
                if where is lane and status is Status.QUEUED
            )
            if left:
                _log.warning(
                    "batchwise: %s %s queued in %s: the %s lane is suspended (%s)",
                    in_requests(left),
                    "stays" if left == 1 else "stay",
                    self._ledger.name,
                    lane.value,
                    reason,
                )

    def _lift(self) -> None:
        self.lanes = {}
        self.resumes += 1

    def _emit_resumed(self, lanes: Sequence[Lane]) -> None:
        if lanes:
            self._emitter.emit(events.Resumed(at=self._emitter.now(), lanes=tuple(lanes)))
