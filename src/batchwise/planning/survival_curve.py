"""A distribution of durations: a survival curve over fixed buckets, which learns from samples, cut off or not."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from datetime import timedelta
from itertools import accumulate, pairwise
from math import ceil

import attrs

from batchwise.basics.times import WINDOW

__all__ = ["Curve"]

_MICROSECOND = timedelta(microseconds=1)
_MINUTE = timedelta(minutes=1)


@attrs.frozen
class Curve:
    """Shares still running at the `edges` (microseconds, from 0): 1 at the first, 0 at the last, never rising."""

    edges: tuple[int, ...]
    survival: tuple[float, ...]

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]], minutes: Sequence[float], window: timedelta) -> Curve:
        """Return a curve through points (minutes, share), read at bucket ends, and scaled from 24 h to `window`."""
        at = [point[0] for point in points]
        survival = [1.0]
        for end in minutes:
            right = bisect_left(at, end)
            (start, high), (stop, low) = points[right - 1], points[right]
            survival.append(high + (low - high) * (end - start) / (stop - start))
        unit = window / WINDOW * (_MINUTE // _MICROSECOND)
        edges = accumulate((round(end * unit) for end in minutes), lambda last, edge: max(last + 1, edge), initial=0)
        return cls(tuple(edges), tuple(survival))

    def running(self, time: int) -> float:
        """Return the share that still runs at `time`."""
        if time <= 0:
            return 1.0
        right = bisect_right(self.edges, time)
        if right == len(self.edges):
            return 0.0
        start, stop = self.edges[right - 1], self.edges[right]
        high, low = self.survival[right - 1], self.survival[right]
        return max(low, high + (low - high) * ((time - start) / (stop - start)))

    def quantile(self, p: float, elapsed: int) -> int:
        """Return the first time by which a share `p` of those that run at `elapsed` has ended, rounded up."""
        left = self.running(elapsed)
        if left <= 0:  # overdue: as if it had just entered the last bucket
            return elapsed + ceil(p * (self.edges[-1] - self.edges[-2]))
        target = (1 - p) * left
        right = bisect_left(self.survival, -target, key=lambda share: -share)
        if right == 0:
            return elapsed
        high, low = self.survival[right - 1], self.survival[right]
        start, stop = self.edges[right - 1], self.edges[right]
        return max(elapsed, min(stop, start + ceil((high - target) / (high - low) * (stop - start))))

    def area(self, cap: int) -> float:
        """Return the mean duration, cut at `cap`."""
        points = [(edge, share) for edge, share in zip(self.edges, self.survival, strict=True) if edge < cap]
        points.append((cap, self.running(cap)))
        return sum((stop - start) * (high + low) / 2 for (start, high), (stop, low) in pairwise(points))

    def learn(self, seen: Iterable[tuple[timedelta, bool]], strength: int) -> Curve:
        """Return the curve after samples (duration, whether it ended then or was cut off); it weighs `strength`."""
        buckets = len(self.edges) - 1
        ends, entered, watched = [0] * buckets, [0] * buckets, [0.0] * buckets
        for duration, ended in seen:
            time = min(duration // _MICROSECOND, self.edges[-1])
            bucket = max(0, bisect_left(self.edges, time) - 1)  # a bucket holds its end and not its start
            entered[bucket] += 1
            if ended:
                ends[bucket] += 1
            else:
                start, stop = self.edges[bucket], self.edges[bucket + 1]
                watched[bucket] += (time - start) / (stop - start) - 1
        reached = [*accumulate(reversed(entered))][::-1]
        survival = [1.0]
        for bucket in range(buckets):
            high, low = self.survival[bucket], self.survival[bucket + 1]
            there = reached[bucket] + watched[bucket] + strength * high
            gone = ends[bucket] + strength * (high - low)
            survival.append(survival[-1] * max(0.0, 1 - gone / there))
        return Curve(self.edges, (*survival[:-1], 0.0))
