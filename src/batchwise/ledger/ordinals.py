"""The ordinal of a request in its job: how many requests of the job were accepted before it."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence

from .database import Connection

__all__ = ["Ordinals"]

_FEW = 8
"""For fewer requests than this the ordinals are counted; for more, the numbers of the whole job are read once."""
_JOBS = 32
"""Jobs whose numbers are remembered at most."""
_BEFORE = "SELECT count(*) FROM request WHERE job = ? AND id < ?"
_UP_TO = "SELECT id FROM request WHERE job = ? AND id <= ?"
_BETWEEN = "SELECT id FROM request WHERE id > ? AND id <= ? AND +job = ? ORDER BY id"  # not by the index of keys


class Ordinals:
    """Remembers the numbers of jobs whose results are read: as a range where they follow each other."""

    def __init__(self) -> None:
        self._known: dict[int, Sequence[int]] = {}

    def of(self, db: Connection, job: int, requests: Sequence[int]) -> list[int]:
        """The ordinals, from 0, of these requests of a job. What was purged before this was called is not counted."""
        known = self._known.get(job, ())
        if not known and len(requests) < _FEW:
            return [int(db.execute(_BEFORE, (job, number)).fetchone()[0]) for number in requests]
        last = max(requests)
        if not known:
            known = _joined(known, sorted(number for (number,) in db.execute(_UP_TO, (job, last))))
        elif known[-1] < last:
            known = _joined(known, [number for (number,) in db.execute(_BETWEEN, (known[-1], last, job))])
        if job not in self._known and len(self._known) >= _JOBS:
            self._known.pop(next(iter(self._known)), None)
        self._known[job] = known
        if isinstance(known, range):
            return [number - known.start for number in requests]
        return [bisect_left(known, number) for number in requests]


def _joined(known: Sequence[int], more: Sequence[int]) -> Sequence[int]:
    first = known[0] if known else more[0]
    if more[-1] - first + 1 == len(known) + len(more):
        return range(first, more[-1] + 1)
    return array("q", [*known, *more])
