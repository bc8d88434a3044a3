"""Setbacks: failures that are tried again, when that is, and what waiting callers are told of them meanwhile."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Hashable
from datetime import datetime, timedelta
from time import monotonic

import attrs

from batchwise.errors import (
    BatchwiseError,
    ClosedDispatcherError,
    ForkedDispatcherError,
    LedgerError,
    WrongWorkspaceError,
)
from batchwise.ledger.ledger import Ledger
from batchwise.planning.outcomes import Fault
from batchwise.planning.retries import pause_after
from batchwise.planning.state import Setback, Snapshot

__all__ = ["Setbacks", "lasting", "passing"]

_log = logging.getLogger("batchwise")
_OVER = 600.0
"""Seconds after its next try until an API failure counts as over that was not tried again."""
_RENEWED = timedelta(minutes=1)
"""After its next try a process has so long to store a setback again; then other processes take it for over."""
_LASTING = (WrongWorkspaceError, ForkedDispatcherError, ClosedDispatcherError)


def lasting(error: Exception) -> bool:
    """Whether a dispatcher that meets this error can never go on."""
    return isinstance(error, _LASTING)


def passing(error: Exception) -> bool:
    """Whether the ledger failed in a way that may end by itself: the same ledger call is worth repeating."""
    return isinstance(error, LedgerError) and error.passing


@attrs.frozen
class _Setback:
    words: str
    cause: str
    error: Exception | None
    """None: the API failed, and the caller of the API decides what follows."""
    times: int
    since: float
    """When it began to fail, by the monotonic clock."""
    retry_at: float
    """When it is tried again, by the monotonic clock."""
    next_try: datetime

    def __str__(self) -> str:
        times = "once" if self.times == 1 else f"{self.times} times in a row"
        return f"{self.words} failed {times}: {self.cause}. Next try: {self.next_try:%Y-%m-%d %H:%M:%S} UTC"


def _cause(error: Exception) -> str:
    """Return the cause in words; of a foreign error only the type, because its message may hold secrets."""
    if isinstance(error, BatchwiseError):
        return str(error)
    return f"{type(error).__name__} within batchwise; the log says where"


class Setbacks:
    """Thread-safe.

    Args:
        now: The wall clock.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now, self._lock = now, threading.Lock()
        self._open: dict[Hashable, _Setback] = {}

    def failed(self, what: Hashable, words: str, error: Exception) -> float:
        """Note that something failed (again); returns the seconds until it is tried again.

        Args:
            what: A key that is the same each time that it fails.
            words: What failed, in words: the subject of a sentence.
            error: The cause.
        """
        with self._lock:
            times = self._times(what)
            pause = pause_after(times)
            found = self._note(what, words, _cause(error), error, times, pause)
        if isinstance(error, BatchwiseError):
            _log.warning("batchwise: %s", found)
        else:
            _log.error("batchwise: %s", found, exc_info=error)
        return pause / timedelta(seconds=1)

    def refused(self, what: str, words: str, fault: Fault, pause: timedelta) -> None:
        """Note that the API refused something (again), or did not answer; the caller tries it again after `pause`.

        Args:
            what: As for `failed`; a string, so that it is no action's key.
            words: As for `failed`.
            fault: What the API said.
            pause: How long until it is tried again.
        """
        with self._lock:
            times = self._times(what)
            found = self._note(what, words, fault.summary, None, times, pause)
        if times & (times - 1) == 0:  # once, twice, four times, ...: an outage does not fill the log
            _log.warning("batchwise: %s", found)

    def _times(self, what: Hashable) -> int:
        return self._open[what].times + 1 if what in self._open else 1

    def _note(
        self, what: Hashable, words: str, cause: str, error: Exception | None, times: int, pause: timedelta
    ) -> _Setback:
        before, clock = self._open.pop(what, None), monotonic()
        since = clock if before is None else before.since
        retry_at, next_try = clock + pause / timedelta(seconds=1), self._now() + pause
        self._open[what] = found = _Setback(words, cause, error, times, since, retry_at, next_try)
        return found

    def resolved(self, what: Hashable) -> None:
        """Note that it worked, or that nobody needs it any more."""
        if self._open:
            with self._lock:
                self._open.pop(what, None)

    def forget(self, kind: type, but: Collection[Hashable]) -> None:
        """Forget the setbacks whose keys are of this type, `but` not these: the others are no longer to be done."""
        if self._open:
            with self._lock:
                self._open = {what: it for what, it in self._open.items() if not isinstance(what, kind) or what in but}

    def pause(self, what: Hashable) -> float:
        """Return the seconds until it may be tried again; 0: now."""
        found = self._open.get(what)
        return 0.0 if found is None else max(0.0, found.retry_at - monotonic())

    @property
    def last(self) -> str | None:
        """The last failure that has not been resolved: what failed, how often, and when it is tried again."""
        found = self._last()
        return None if found is None else str(found)

    def to_store(self, run: int) -> Setback | None:
        """Return the last setback as the ledger stores it for other processes; `run`: this process's."""
        found = self._last()
        return None if found is None else Setback(run, found.next_try, str(found))

    def store(self, ledger: Ledger, run: int, known: Snapshot | None = None) -> None:
        """Store the last setback, for other processes to see; drop a stored one that was not renewed in time.

        Args:
            ledger: The durable record.
            run: The ledger's number of this run.
            known: The ledger's snapshot; None: it is read.
        """
        try:
            kept = (ledger.snapshot() if known is None else known).setback
            ours = self.to_store(run)
            over = kept is not None and (kept.run == run or self._now() > kept.next_try + _RENEWED)
            if ours != kept and (ours is not None or over):
                ledger.conditions.note_setback(ours)
        except LedgerError:  # the ledger itself fails; this process knows that
            _log.debug("batchwise: a setback could not be stored yet", exc_info=True)

    def _last(self) -> _Setback | None:
        clock = monotonic()
        with self._lock:
            found = [it for it in self._open.values() if it.error is not None or clock < it.retry_at + _OVER]
        return found[-1] if found else None

    def stuck(self, seconds: float) -> BatchwiseError | None:
        """Return the error of something that has been failing for so many seconds; None: nothing has."""
        with self._lock:
            found = [it for it in self._open.values() if it.error is not None and monotonic() - it.since >= seconds]
        if not found:
            return None
        kind = LedgerError if isinstance(found[0].error, LedgerError) else BatchwiseError
        error = kind(str(found[0]))
        error.__cause__ = found[0].error
        return error
