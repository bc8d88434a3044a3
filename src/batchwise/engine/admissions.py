"""Decides whether a batch can keep the deadline of new work, given all the work that is promised already."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from time import monotonic

import attrs

from batchwise.ledger.ledger import Ledger
from batchwise.models import Lane, Policy
from batchwise.planning.admission import Promises, admit, promises_of
from batchwise.planning.state import Group, Terms

__all__ = ["Admissions"]

_SHORTEST = 0.5
"""The least seconds between two readings of the promised work."""
_READING_SHARE = 20
"""Reading it takes at most 1 in so many parts of a process's time, however much is promised."""


class Admissions:
    """Admits work, and remembers the promised work as far as this process knows it.

    Args:
        ledger: Holds the promised work.
        policy: The rules' figures.
    """

    def __init__(self, ledger: Ledger, policy: Policy) -> None:
        self._ledger, self._policy = ledger, policy
        self._known: tuple[float, Promises] | None = None
        """Until when the reading holds (monotonic), and the promises that it found."""

    def one(self, terms: Terms, size: int, now: datetime) -> Terms:
        """Return the terms on which a request of this size is accepted: `terms`, or others where those are needed.

        Raises:
            AdmissionError: No lane can keep its deadline.
        """
        until, promises = self._promises(now)
        group = Group(terms=terms, requests=1, size=size, since=now)
        admission = admit(group, promises, now, self._policy, at_once=False)
        self._known = until, admission.promises
        if not admission.words:
            return terms
        if admission.sync:
            return _diverted(terms, admission.words)
        return attrs.evolve(admission.terms, explanation=_explained(terms, admission.words))

    def _promises(self, now: datetime) -> tuple[float, Promises]:
        """Return the promises, read anew at most twice a second; in between this process adds its own."""
        begun = monotonic()
        if self._known is None or begun > self._known[0]:
            promises = promises_of(self._ledger.snapshot(), now, self._policy)
            self._known = begun + max(_SHORTEST, _READING_SHARE * (monotonic() - begun)), promises
        return self._known

    def all(self, groups: Iterable[Group], now: datetime) -> dict[Terms, tuple[int, Terms]]:
        """Return, for each of the terms, how many requests go to the sync lane at once, and their terms there.

        Raises:
            AdmissionError: No lane can keep the deadline of some of them.
        """
        dated = [group for group in groups if group.terms.deadline is not None]
        if not dated:
            return {}
        promises = promises_of(self._ledger.snapshot(), now, self._policy)
        moves: dict[Terms, tuple[int, Terms]] = {}
        for group in sorted(dated, key=lambda group: group.terms.deadline or now):
            admission = admit(group, promises, now, self._policy, at_once=True)
            promises = admission.promises
            if admission.sync:
                moves[group.terms] = admission.sync, _diverted(group.terms, admission.words)
        return moves

    def forget(self) -> None:
        """Forget the promises: more was promised, so they have to be read anew."""
        self._known = None


def _diverted(terms: Terms, words: str) -> Terms:
    """Return the terms of work that goes to the sync lane now."""
    return attrs.evolve(terms, lane=Lane.SYNC, submit_by=None, rescue_at=None, explanation=_explained(terms, words))


def _explained(terms: Terms, words: str) -> str:
    """Return an explanation that begins with `words`, and ends with what holds for the work by itself."""
    return f"{words} (by itself: {terms.explanation})"
