"""Queues settled requests anew, for `Job.retry`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from functools import partial

from batchwise.ledger.values import Which
from batchwise.models import LatencyTag, Outcome
from batchwise.planning.state import Group, Terms

from .core import Engine

__all__ = ["reopen"]

_PAGE = 500
"""Results that are read at a time."""


def reopen(engine: Engine, job: int, outcomes: Sequence[Outcome], latency: LatencyTag | None = None) -> int:
    """Queue settled requests anew; returns how many. With a latency, which counts from now, they are routed again.

    Raises:
        AdmissionError: No lane can keep their new deadline; none of them is queued.
        SpendLimitError: They could pass the spend limit; none of them is queued.
        UnknownPriceError: There is a spend limit, and the price of a model is unknown.
    """
    max_spend, now = engine.spend_limit.max_spend(), engine.now()
    with_max_cost = None if max_spend is None else partial(engine.router.with_max_cost, now=now)
    routed = None if latency is None else _routed(engine, job, outcomes, latency, now)
    return engine.ledger.reopen(
        job=job, outcomes=outcomes, now=now, max_spend=max_spend, with_max_cost=with_max_cost, routed=routed
    )


def _routed(
    engine: Engine, job: int, outcomes: Sequence[Outcome], latency: LatencyTag, now: datetime
) -> dict[int, Terms]:
    """Return new terms for settled requests by their numbers, as a bulk dispatch would give them."""
    routed, sums, after = {}, Counter[Terms](), 0
    while rows := engine.ledger.results(job=job, after=after, limit=_PAGE):
        after = rows[-1].cursor
        ended = [row.request for row in rows if row.how.outcome in outcomes]
        for number, known in engine.ledger.rows(Which(requests=ended)).items():
            routed[number] = terms = known.terms
            if not terms.adopted:  # else there is no body, and the ledger refuses
                body = engine.ledger.body(number)
                routed[number] = terms = engine.router.reroute(terms, body, latency, now)
                sums[terms] += len(body)
    counts = Counter(routed.values())
    groups = [Group(terms=terms, requests=counts[terms], size=size, since=now) for terms, size in sums.items()]
    left = engine.admissions.all(groups, now)
    for number, terms in routed.items():
        count, diverted = left.get(terms, (0, terms))
        if count:
            left[terms] = count - 1, diverted
            routed[number] = diverted
    engine.admissions.forget()
    return routed
