"""The open rows of a batch: which of its requests are not ticked off yet, in three bytes for each, or five.

Five where a body of 64 KB or more is among them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Union

import attrs

from batchwise.planning.state import Terms

__all__ = ["Answer", "Cached", "Kind", "OpenRows"]

_ABSENT = 255
_WIDEST = 10_000_000
"""How far apart the first and the last number may be: a few requests that are retried together gain nothing by this."""

Cached = tuple[int, int, int]
"""Tokens read from the prompt cache, tokens written to it, and what it saved (pico-USD; negative: it cost more)."""
Answer = tuple[int, bytes, Union[int, None], Union[int, None], int, Union[Cached, None]]
"""A request's number, its result line, cost and saving (pico-USD), tokens sent, and its use of the cache, if any.

A plain tuple of plain values: the garbage collector has nothing to follow in it.
"""


class Kind(NamedTuple):
    """What requests of a batch have in common."""

    terms: Terms
    attempts: int


@attrs.frozen(eq=False)
class OpenRows:
    """The requests of a batch that had not been ticked off when it was read, less those ticked off since.

    To look each request up when its answer comes takes 1.8 times the CPU of a bulk job (20,000 requests of 1 KB).

    Attributes:
        batch: The batch's number.
        kinds: What its requests have in common.
    """

    batch: int
    kinds: Sequence[Kind]
    _left: list[int]
    """Requests not ticked off, by kind."""
    _first: int
    _codes: bytearray
    _sizes: array[int]

    @classmethod
    def of(
        cls,
        batch: int,
        first: int,
        last: int,
        runs: Iterable[tuple[int, Sequence[int], int, int]],
        terms: Callable[[int], Terms],
    ) -> OpenRows | None:
        """Make it from runs of requests that follow each other; None: it would be too large.

        Args:
            batch: The batch's number.
            first: Its first request's.
            last: Its last request's.
            runs: Of each the number of its first request, the sizes of all their bodies, the number of their terms,
                and their attempts.
            terms: Gives the terms of a number.
        """
        if last - first >= _WIDEST:
            return None
        seen: dict[tuple[int, int], int] = {}
        width = last - first + 1
        codes, sizes = bytearray([_ABSENT]) * width, array("H", [0]) * width
        for number, run, which, attempts in runs:
            code = seen.setdefault((which, attempts), len(seen))
            if code == _ABSENT:
                return None
            places = slice(number - first, number - first + len(run))
            codes[places] = bytes([code]) * len(run)
            try:
                sizes[places] = array(sizes.typecode, run)
            except OverflowError:  # a body of 64 KB or more
                sizes = array("I", sizes)
                sizes[places] = array("I", run)
        kinds = [Kind(terms(which), attempts) for which, attempts in seen]
        return cls(batch, kinds, list(map(codes.count, range(len(kinds)))), first, codes, sizes)

    @property
    def left(self) -> dict[int, int]:
        """How many are not ticked off, by the number of their terms."""
        left: dict[int, int] = {}
        for kind, count in zip(self.kinds, self._left, strict=True):
            if count:
                left[kind.terms.id] = left.get(kind.terms.id, 0) + count
        return left

    def kind(self, number: int) -> int | None:
        """Which of the kinds a request is of; None: it is not open (any more)."""
        index = number - self._first
        if not 0 <= index < len(self._codes):
            return None
        code = self._codes[index]
        return None if code == _ABSENT else code

    def parts(self, answers: Sequence[Answer]) -> list[tuple[Kind, Sequence[Answer]]] | None:
        """Answers, in the order of their numbers, by kinds of requests; None: one of the requests is not open."""
        first, codes = self._first, self._codes
        if not first <= answers[0][0] <= answers[-1][0] < first + len(codes):
            return None
        found = [codes[answer[0] - first] for answer in answers]
        if _ABSENT in found:
            return None
        if len(self.kinds) == 1:
            return [(self.kinds[0], answers)]
        parts: dict[int, list[Answer]] = {}
        for code, answer in zip(found, answers, strict=True):
            parts.setdefault(code, []).append(answer)
        return [(self.kinds[code], part) for code, part in parts.items()]

    def size(self, numbers: Iterable[int]) -> int:
        """Bytes of the bodies of these requests."""
        first, sizes = self._first, self._sizes
        return sum([sizes[number - first] for number in numbers])

    def tick(self, numbers: Iterable[int]) -> None:
        """Tick these off; those that are not open are passed over."""
        first, codes, left = self._first, self._codes, self._left
        last = first + len(codes) - 1
        for number in numbers:
            if first <= number <= last and (code := codes[number - first]) != _ABSENT:
                left[code] -= 1
                codes[number - first] = _ABSENT
