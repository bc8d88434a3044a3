"""Numbers in order, stored as few ranges."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain

__all__ = ["Ranges"]


class Ranges:
    """Numbers in order; consecutive ones are stored as one range, and nearly always all are."""

    def __init__(self, numbers: range | None = None) -> None:
        self.ranges = [] if numbers is None else [numbers]

    def __len__(self) -> int:
        return sum(map(len, self.ranges))

    def add(self, numbers: range) -> None:
        """Append these numbers."""
        if self.ranges and self.ranges[-1].stop == numbers.start:
            numbers = range(self.ranges.pop().start, numbers.stop)
        self.ranges.append(numbers)

    def all(self) -> Sequence[int]:
        """Return all numbers."""
        return self.ranges[0] if len(self.ranges) == 1 else array("q", chain.from_iterable(self.ranges))
