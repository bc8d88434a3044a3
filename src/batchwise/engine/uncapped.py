"""Work that was accepted without a spend limit, under a dispatcher that has one: the limit holds for it, too.

Nothing is kept for such work. What is queued is not sent before so much as it can cost is kept for it, and waits until
there is room for that. What was sent already counts with the most that it can cost while it is under way. What may have
been billed and was never seen counts for good, whether or not there was a limit when it was lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime

import attrs

from batchwise.errors import BatchwiseError, SpendLimitError, UnknownPriceError
from batchwise.ledger.books import reserved_cost
from batchwise.ledger.ledger import Ledger
from batchwise.ledger.rows import BATCH, SYNC
from batchwise.ledger.values import Cap
from batchwise.planning.state import Group, Snapshot, Terms

from .routes import Router

__all__ = ["bounded", "kept_for", "most_under_way", "withheld"]


def _bare(groups: Iterable[Group], router: Router, now: datetime) -> Iterator[tuple[Group, Terms | None]]:
    """Those for which nothing is kept, with the terms that say what has to be; None: nothing bounds what they cost."""
    for group in groups:
        if not group.terms.max_cost_each:
            terms: Terms | None = None
            with suppress(SpendLimitError, UnknownPriceError):
                terms = router.with_max_cost(group.terms, now=now)
            if terms is None or terms.max_cost_each:  # what costs nothing needs nothing
                yield group, terms


def most_under_way(snapshot: Snapshot, router: Router, now: datetime) -> int:
    """pico-USD that requests under way may cost at most for which nothing is kept; tools that are unbounded aside."""
    running = [(SYNC, snapshot.sync_running), *((BATCH, batch.groups) for batch in snapshot.batches)]
    return sum(
        reserved_cost(terms, group.requests, group.size, lane=lane)
        for lane, groups in running
        for group, terms in _bare(groups, router, now)
        if terms is not None
    )


def bounded(terms: Terms, body: bytes, router: Router, now: datetime) -> Terms:
    """Terms with the most that their request with this body can cost; as they are where nothing bounds that."""
    with suppress(BatchwiseError):
        return router.with_max_cost_of(terms, body, now=now)
    return terms


def kept_for(snapshot: Snapshot, ledger: Ledger, router: Router, cap: Cap, now: datetime) -> int:
    """Keep what queued requests can cost for which nothing is kept, as far as there is room; returns for how many."""

    def with_max_cost(terms: Terms, body: bytes) -> Terms | None:
        try:
            return router.with_max_cost_of(terms, body, now=now)
        except BatchwiseError:
            return None

    queued = _bare((*snapshot.sync_queue, *snapshot.batch_queue), router, now)
    return sum(
        ledger.reserve_cost(number, with_max_cost, cap=cap) for number in {group.terms.id for group, _ in queued}
    )


def withheld(snapshot: Snapshot, router: Router, now: datetime) -> tuple[Snapshot, int]:
    """The snapshot without what is queued and has nothing kept for it, and how many requests that is."""
    queued = (*snapshot.sync_queue, *snapshot.batch_queue)
    bare = {group.terms.id for group, _ in _bare(queued, router, now)}
    if not bare:
        return snapshot, 0
    right = attrs.evolve(
        snapshot,
        sync_queue=tuple(group for group in snapshot.sync_queue if group.terms.id not in bare),
        batch_queue=tuple(group for group in snapshot.batch_queue if group.terms.id not in bare),
    )
    return right, sum(group.requests for group in queued if group.terms.id in bare)
