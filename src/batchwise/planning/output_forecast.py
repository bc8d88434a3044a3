"""Forecasts how many tokens calls will write, to reserve them before a call. No clock: `now` is a float, in seconds."""

from __future__ import annotations

import math
from collections import deque

__all__ = ["OutputForecast", "Writing"]

_REMEMBERED = 2_000
"""The most calls of a kind that count."""
_SAMPLES = 5
_ERRORS = 2.0
"""So many standard errors are added to the mean, so that few samples with a wide spread do not count much."""
_HOLDS = 0.5
"""Seconds for which an estimate holds."""


class Writing:
    """A call that writes, or has written."""

    __slots__ = ("_kind", "_max_tokens", "began", "took", "used")

    def __init__(self, kind: _Kind, max_tokens: int, began: float) -> None:
        self._kind, self._max_tokens, self.began = kind, max_tokens, began
        self.took: float | None = None
        """Seconds; None while it writes."""
        self.used = 0.0
        """The share of its `max_tokens` that it wrote."""

    def end(self, used: int, now: float) -> None:
        """Note that it wrote so many tokens."""
        self.took, self.used = now - self.began, used / max(1, self._max_tokens)

    def drop(self) -> None:
        """Forget the call, which failed: it says nothing about how much such calls write."""
        if self in self._kind.calls:
            self._kind.calls.remove(self)


class _Kind:
    def __init__(self) -> None:
        self.calls: deque[Writing] = deque(maxlen=_REMEMBERED)
        self.share, self.until = 1.0, -math.inf


class OutputForecast:
    """How much calls write, as a share of their `max_tokens`, by model and size of `max_tokens`.

    Without it a lane of short answers under large `max_tokens` would hold far more than it uses, and start slowly.

    Short answers end first: a mean of what has ended would take all answers for short as long as the long ones are
    being written. So calls that still run count, too (the Kaplan-Meier estimate): whatever share of calls is not
    known to end as early as those that have ended is taken to write its whole `max_tokens`. What is reserved is the
    mean and two standard errors: the wider a model's own spread, and the fewer calls were seen, the more.
    `Pacer.done` corrects what was booked for each call.
    """

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, int], _Kind] = {}

    def expect(self, model: str, max_tokens: int, now: float) -> int:
        """Return the tokens to reserve: `max_tokens` until five calls of the kind have ended."""
        kind = self._kinds.get((model, max_tokens.bit_length()))
        if kind is None:
            return max_tokens
        if now >= kind.until:
            kind.share, kind.until = _share(kind.calls, now), now + _HOLDS
        return min(max_tokens, math.ceil(max_tokens * kind.share))

    def begin(self, model: str, max_tokens: int, now: float) -> Writing:
        """Note that a call begins; `end` it, or `drop` it."""
        kind = self._kinds.setdefault((model, max_tokens.bit_length()), _Kind())
        kind.calls.append(writing := Writing(kind, max_tokens, now))
        return writing


def _share(calls: deque[Writing], now: float) -> float:
    """Return the share of `max_tokens` to reserve."""
    ended = sum(call.took is not None for call in calls)
    if ended < _SAMPLES:
        return 1.0
    spans = sorted(
        ((now - call.began, True, 1.0) if call.took is None else (call.took, False, call.used)) for call in calls
    )
    left, mean, square = 1.0, 0.0, 0.0
    for position, (_, runs, used) in enumerate(spans):
        if not runs:
            weight = left / (len(spans) - position)
            left, mean, square = left - weight, mean + weight * used, square + weight * used * used
    mean, square = mean + left, square + left
    spread = math.sqrt(max(0.0, square - mean * mean))
    return min(1.0, mean + _ERRORS * spread / math.sqrt(ended))
