"""What failed and is tried again: when that is, and what whoever waits may be told meanwhile."""

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
from batchwise.planning.backoff import pause_after

__all__ = ["Setbacks", "lasting", "passing"]

_log = logging.getLogger("batchwise")
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
    error: Exception
    times: int
    since: float
    """Of the monotonic clock, as `again`."""
    again: float
    next_try: datetime

    def __str__(self) -> str:
        cause = str(self.error) if isinstance(self.error, BatchwiseError) else _unexpected(self.error)
        times = "once" if self.times == 1 else f"{self.times} times in a row"
        return f"{self.words} failed {times}: {cause}. Next try: {self.next_try:%Y-%m-%d %H:%M:%S} UTC"


def _unexpected(error: Exception) -> str:
    """Not its message: nobody knows what stands in it."""
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
        """It failed (again); returns the seconds until it is tried again.

        Args:
            what: What counts as the same thing again.
            words: The same for people, as the subject of a sentence.
            error: Why.
        """
        with self._lock:
            before = self._open.pop(what, None)
            times, clock = 1 if before is None else before.times + 1, monotonic()
            pause = pause_after(times)
            seconds = pause / timedelta(seconds=1)
            since = clock if before is None else before.since
            self._open[what] = found = _Setback(words, error, times, since, clock + seconds, self._now() + pause)
        if isinstance(error, BatchwiseError):
            _log.warning("batchwise: %s", found)
        else:
            _log.error("batchwise: %s", found, exc_info=error)
        return seconds

    def mended(self, what: Hashable) -> None:
        """It worked, or nobody needs it any more."""
        if self._open:
            with self._lock:
                self._open.pop(what, None)

    def forget(self, kind: type, but: Collection[Hashable]) -> None:
        """What of this kind is not to be done any more is mended."""
        if self._open:
            with self._lock:
                self._open = {what: it for what, it in self._open.items() if not isinstance(what, kind) or what in but}

    def pause(self, what: Hashable) -> float:
        """Seconds until it may be tried again; 0: now."""
        found = self._open.get(what)
        return 0.0 if found is None else max(0.0, found.again - monotonic())

    @property
    def last(self) -> str | None:
        """What failed last and has not worked since, how often, and when it is tried again."""
        with self._lock:
            return str(next(reversed(self._open.values()))) if self._open else None

    def stuck(self, seconds: float) -> BatchwiseError | None:
        """The error for whoever will not wait longer for something that has been failing for so long."""
        with self._lock:
            found = [it for it in self._open.values() if monotonic() - it.since >= seconds]
        if not found:
            return None
        kind = LedgerError if isinstance(found[0].error, LedgerError) else BatchwiseError
        error = kind(str(found[0]))
        error.__cause__ = found[0].error
        return error
