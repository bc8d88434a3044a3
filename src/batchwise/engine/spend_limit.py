"""`Policy.max_spend`: how much may be spent now, and which work has to wait for room under the limit.

Nothing is reserved for work that was accepted without a spend limit. Such work that is queued waits until the limit has
room for the most that it can cost; that is reserved before it is sent. Such work that was sent counts with the most
that it can cost while it is under way. Work that may have been billed without an answer counts for good, whether or
not there was a limit when the answer was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime

import attrs

from batchwise.errors import BatchwiseError, SpendLimitError, UnknownPriceError
from batchwise.ledger.books import cost_to_reserve
from batchwise.ledger.ledger import Ledger
from batchwise.ledger.rows import BATCH, SYNC
from batchwise.ledger.values import Cap
from batchwise.models import Policy
from batchwise.planning import agenda
from batchwise.planning.outcomes import Fault
from batchwise.planning.pricing import PICO
from batchwise.planning.state import Group, Snapshot, Terms

from .routes import Router
from .setbacks import Setbacks

__all__ = ["SpendLimit"]

_UNKEPT = "unkept"
"""The setback's name when work waits for room under the spend limit."""
_NO_ROOM = (
    "the limit has no room for what {} of these requests can cost, or nothing bounds that; they wait. Raise the limit, "
    "cancel them, or run them without one"
)


class SpendLimit:
    """Says how much may be spent now, and holds back work for which there is no room.

    Args:
        policy: The limit, and the period that it holds for.
        ledger: Reserves what each request can cost, and refuses requests that could pass the limit.
        router: Computes the most that a request can cost.
        setbacks: Notes that work waits.
        now: The wall clock.
    """

    def __init__(
        self, policy: Policy, ledger: Ledger, router: Router, setbacks: Setbacks, now: Callable[[], datetime]
    ) -> None:
        self._policy, self._ledger, self._router, self._setbacks, self._now = policy, ledger, router, setbacks, now
        self._sent_uncapped = 0
        """The most pico-USD that running work costs which was sent without a spend limit, if there is one now."""
        if policy.max_spend is not None:
            self._count_uncapped(ledger.snapshot(), now())

    def cap(self) -> Cap | None:
        """Return the spend limit as of now; None: there is none."""
        if self._policy.max_spend is None:
            return None
        period = self._policy.max_spend_period
        limit = int(self._policy.max_spend * PICO) - self._sent_uncapped
        return Cap(limit=limit, since=None if period is None else self._now() - period)

    def bounded(self, terms: Terms, body: bytes) -> Terms:
        """Return the terms with the most that their request with this body can cost, or as they are without a bound."""
        return self._bounded(terms, body, self._now()) or terms

    def sendable(
        self, known: Snapshot, now: datetime, read_again: Callable[[], Snapshot]
    ) -> tuple[Snapshot, tuple[agenda.WaitUntil, ...]]:
        """Return the snapshot without work that has no room under the limit, and when to look again for room.

        Args:
            known: The snapshot.
            now: The time.
            read_again: Returns a new snapshot, after costs were reserved.
        """
        if self._policy.max_spend is None:
            return known, ()
        self._count_uncapped(known, now)
        cap = self.cap()
        if cap is not None and self._keep(known, cap, now):
            known = read_again()
        right, held = self._without_unkept(known, now)
        if not held:
            self._setbacks.mended(_UNKEPT)
            return right, ()
        pause = self._policy.poll_every[1]
        fault = Fault(None, "spend_limit", _NO_ROOM.format(held))
        self._setbacks.refused(_UNKEPT, "sending what was accepted without Policy.max_spend", fault, pause)
        return right, (agenda.WaitUntil(now + pause),)

    def _count_uncapped(self, known: Snapshot, now: datetime) -> None:
        """Sum up the most that running requests cost for which nothing is reserved; unbounded tools aside."""
        running = [(SYNC, known.sync_running), *((BATCH, batch.groups) for batch in known.batches)]
        self._sent_uncapped = sum(
            cost_to_reserve(terms, group.requests, group.size, lane=lane)
            for lane, groups in running
            for group, terms in self._unkept(groups, now)
            if terms is not None
        )

    def _keep(self, known: Snapshot, cap: Cap, now: datetime) -> int:
        """Reserve the cost of queued requests for which nothing is reserved, while there is room; returns how many."""

        def bounded(terms: Terms, body: bytes) -> Terms | None:
            return self._bounded(terms, body, now)

        queued = self._unkept((*known.sync_queue, *known.batch_queue), now)
        return sum(
            self._ledger.reserve_cost(number, bounded, cap=cap) for number in {group.terms.id for group, _ in queued}
        )

    def _bounded(self, terms: Terms, body: bytes, now: datetime) -> Terms | None:
        """Return the terms with the most that their request with this body can cost; None: nothing bounds that."""
        try:
            return self._router.with_max_cost_of(terms, body, now=now)
        except BatchwiseError:
            return None

    def _without_unkept(self, known: Snapshot, now: datetime) -> tuple[Snapshot, int]:
        """Return the snapshot without queued requests for which nothing is reserved, and how many those are."""
        queued = (*known.sync_queue, *known.batch_queue)
        unkept = {group.terms.id for group, _ in self._unkept(queued, now)}
        if not unkept:
            return known, 0
        right = attrs.evolve(
            known,
            sync_queue=tuple(group for group in known.sync_queue if group.terms.id not in unkept),
            batch_queue=tuple(group for group in known.batch_queue if group.terms.id not in unkept),
        )
        return right, sum(group.requests for group in queued if group.terms.id in unkept)

    def _unkept(self, groups: Iterable[Group], now: datetime) -> Iterator[tuple[Group, Terms | None]]:
        """Yield the groups for which nothing is reserved, with terms that say how much has to be.

        None in place of terms: nothing bounds their cost.
        """
        for group in groups:
            if not group.terms.max_cost_each:
                terms: Terms | None = None
                with suppress(SpendLimitError, UnknownPriceError):
                    terms = self._router.with_max_cost(group.terms, now=now)
                if terms is None or terms.max_cost_each:  # else they cost nothing
                    yield group, terms
