"""The sync lane: serves at its limit, less what pacing leaves unused; the last call of a stretch has a long tail."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from .traffic import HOUR, INPUT_TOKENS, LATENCY

Done = Callable[[int, int, float, float], None]
"""(terms, how many, the first one's end, the last one's end)."""


class SyncLane:
    """Claims in the order of `CallQueue`: the earliest deadline first, whatever was urgent when it was claimed."""

    def __init__(self, tokens_per_minute: float, seed: int, done: Done) -> None:
        self.limit = tokens_per_minute / INPUT_TOKENS / 60
        self._rng, self._done = random.Random(seed), done
        self._heap: list[tuple[int, float, int, int]] = []
        self._left: dict[int, float] = {}
        self._sequence, self._now = 0, 0.0
        self._hour, self._filled = -1.0, 1.0

    @property
    def busy(self) -> int:
        return round(sum(self._left.values()))

    def waiting(self) -> dict[int, int]:
        """By terms."""
        found: dict[int, int] = {}
        for _, _, sequence, terms in self._heap:
            found[terms] = found.get(terms, 0) + max(1, round(self._left[sequence]))
        return found

    def push(self, terms: int, count: int, *, priority: int, due: float) -> None:
        self._sequence += 1
        self._left[self._sequence] = float(count)
        heapq.heappush(self._heap, (0, due, self._sequence, terms))

    def empty_at(self) -> float | None:
        """When it runs dry."""
        return self._now + sum(self._left.values()) / (self.limit * 0.97) if self._heap else None

    def serve(self, until: float) -> None:
        while self._heap and self._now < until:
            if self._now // HOUR != self._hour:
                self._hour, self._filled = self._now // HOUR, self._rng.uniform(0.955, 1.0)
            rate = self.limit * self._filled
            stop = min(until, (self._hour + 1) * HOUR)
            _, _, sequence, terms = self._heap[0]
            left = self._left[sequence]
            end = min(stop, self._now + left / rate)
            served = left if end < stop or end >= self._now + left / rate else (end - self._now) * rate
            tail = LATENCY.total_seconds() * self._rng.uniform(1, 3)
            before = round(left)
            self._left[sequence] = left - served
            if self._left[sequence] < 1e-6:
                heapq.heappop(self._heap)
                del self._left[sequence]
                after = 0
            else:
                after = round(self._left[sequence])
            if before > after:
                self._done(terms, before - after, self._now + tail, end + tail)
            self._now = end
        self._now = max(self._now, until)
