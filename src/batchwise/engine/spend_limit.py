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
from batchwise.ledger.values import MaxSpend
from batchwise.models import Policy
from batchwise.planning import agenda
from batchwise.planning.outcomes import Fault
from batchwise.planning.pricing import PICO
from batchwise.planning.state import Group, Snapshot, Terms

from .routes import Router
from .setbacks import Setbacks

__all__ = ["SpendLimit"]

_UNRESERVED = "unreserved"
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
        self._sent_without_limit = 0
        """The most pico-USD that running work costs which was sent without a spend limit, if there is one now."""
        if policy.max_spend is not None:
            self._count_sent_without_limit(ledger.snapshot(), now())

    def max_spend(self) -> MaxSpend | None:
        """Return the spend limit as of now; None: there is none."""
        if self._policy.max_spend is None:
            return None
        period = self._policy.max_spend_period
        limit = int(self._policy.max_spend * PICO) - self._sent_without_limit
        return MaxSpend(limit=limit, since=None if period is None else self._now() - period)

    def with_max_cost(self, terms: Terms, body: bytes) -> Terms:
        """Return the terms with the most that their request with this body can cost, or as they are without a bound."""
        return self._with_max_cost(terms, body, self._now()) or terms

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
        self._count_sent_without_limit(known, now)
        max_spend = self.max_spend()
        if max_spend is not None and self._reserve(known, max_spend, now):
            known = read_again()
        right, held = self._without_unreserved(known, now)
        if not held:
            self._setbacks.resolved(_UNRESERVED)
            return right, ()
        pause = self._policy.poll_every[1]
        fault = Fault(None, "spend_limit", _NO_ROOM.format(held))
        self._setbacks.refused(_UNRESERVED, "sending what was accepted without Policy.max_spend", fault, pause)
        return right, (agenda.WaitUntil(now + pause),)

    def _count_sent_without_limit(self, known: Snapshot, now: datetime) -> None:
        """Sum up the most that running requests cost for which nothing is reserved; unbounded tools aside."""
        running = [(SYNC, known.sync_running), *((BATCH, batch.groups) for batch in known.batches)]
        self._sent_without_limit = sum(
            cost_to_reserve(terms, group.requests, group.size, lane=lane)
            for lane, groups in running
            for group, terms in self._unreserved(groups, now)
            if terms is not None
        )

    def _reserve(self, known: Snapshot, max_spend: MaxSpend, now: datetime) -> int:
        """Reserve the cost of queued requests for which nothing is reserved, while there is room; returns how many."""

        def with_max_cost(terms: Terms, body: bytes) -> Terms | None:
            return self._with_max_cost(terms, body, now)

        queued = self._unreserved((*known.sync_queue, *known.batch_queue), now)
        return sum(
            self._ledger.reserve_cost(number, with_max_cost, max_spend=max_spend)
            for number in {group.terms.id for group, _ in queued}
        )

    def _with_max_cost(self, terms: Terms, body: bytes, now: datetime) -> Terms | None:
        """Return the terms with the most that their request with this body can cost; None: nothing bounds that."""
        try:
            return self._router.with_max_cost_of(terms, body, now=now)
        except BatchwiseError:
            return None

    def _without_unreserved(self, known: Snapshot, now: datetime) -> tuple[Snapshot, int]:
        """Return the snapshot without queued requests for which nothing is reserved, and how many those are."""
        queued = (*known.sync_queue, *known.batch_queue)
        unreserved = {group.terms.id for group, _ in self._unreserved(queued, now)}
        if not unreserved:
            return known, 0
        right = attrs.evolve(
            known,
            sync_queue=tuple(group for group in known.sync_queue if group.terms.id not in unreserved),
            batch_queue=tuple(group for group in known.batch_queue if group.terms.id not in unreserved),
        )
        return right, sum(group.requests for group in queued if group.terms.id in unreserved)

    def _unreserved(self, groups: Iterable[Group], now: datetime) -> Iterator[tuple[Group, Terms | None]]:
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
