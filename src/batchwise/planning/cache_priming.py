"""Decides when one request writes a shared prefix of prompts to the prompt cache before the others are sent.

Rows of a batch run at the same time, so many of them write a prefix that they could have read. If a batch of one
request has written the prefix under a 1-hour block, the rows of the next batch read it. Which way is cheapest follows
from the model's rates and from how often rows have hit the cache, by the ledger's own record. A deadline always comes
first: a batch that primes may take its whole window, and the batch behind it needs a window and its rescue, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import Enum
from fractions import Fraction
from typing import NamedTuple

import attrs

from .pricing import Tariff
from .prompt_prefix import minimum_tokens

__all__ = [
    "LIFE",
    "Caching",
    "Hits",
    "Primed",
    "Step",
    "cheapest",
    "expected_cost",
    "next_step",
]

LIFE = timedelta(hours=1)
"""For so long after its last use a prefix under a 1-hour block is kept (API documentation, prompt caching, 2026)."""


class Caching(str, Enum):
    """How a batch treats the prompt cache."""

    AS_IS = "as_is"
    """Breakpoints stay as the caller wrote them."""
    HOUR = "hour"
    """Breakpoints without a lifetime ask for an hour."""
    PRIMER = "primer"
    """One request writes the prefix for the others, for an hour."""
    PRIMED = "primed"
    """The requests after a primer; their breakpoints ask for an hour."""


# -- what is cheapest -------------------------------------------------------------------------------------------------

_PRIOR_WEIGHT = 4
"""So many rows of the ledger's record weigh as much as the assumed rate: our choice."""
_ASSUMED = {Caching.AS_IS: Fraction(30, 100), Caching.HOUR: Fraction(40, 100), Caching.PRIMED: Fraction(95, 100)}
"""How often rows are assumed to hit the cache before there is a record.

The documentation of the Message Batches API (2026) names 30 % to 98 %, and recommends a batch of one request that
writes the prefix. Users have measured both ends: none of 138 rows in five batches read what others of the same batch
wrote, and all of 25 rows read what a batch before theirs had written. So primed rows are assumed near the upper end,
and others at the lower one; a lifetime of an hour helps a little.
"""


@attrs.frozen
class Hits:
    """How often rows of batches have hit the cache, by how the batch treated it: (rows that did, all rows)."""

    counts: Mapping[Caching, tuple[int, int]] = attrs.field(factory=dict)

    def rate(self, caching: Caching) -> Fraction:
        """Return the share of rows that are expected to hit the cache."""
        hit, rows = self.counts.get(caching, (0, 0))
        return (_ASSUMED[caching] * _PRIOR_WEIGHT + hit) / (_PRIOR_WEIGHT + rows)


def expected_cost(
    caching: Caching, requests: int, tokens: int, tariff: Tariff, hits: Hits, *, warm: bool = False
) -> Fraction:
    """Return the expected pico-USD for the prefixes of so many requests whose breakpoints have no lifetime.

    One request always writes the prefix, unless it is in the cache.
    """
    rates = tariff.at_length(tokens)
    write = rates.cache_write_5m if caching is Caching.AS_IS else rates.cache_write_1h
    share = hits.rate(caching)
    writers = 0 if warm and caching is Caching.PRIMED else 1
    each = share * rates.cache_read + (1 - share) * write
    return tokens * (writers * write + (requests - writers) * each)


def cheapest(
    requests: int, tokens: int, tariff: Tariff, hits: Hits, *, primes: bool = True, warm: bool = False
) -> Caching:
    """Return how to send so many requests that share a prefix of so many tokens for the least expected cost.

    `primes`: whether there is time to prime it; `warm`: whether it is in the cache for an hour, so that nothing has to.
    """
    primed = warm or (primes and requests > 1)
    ways = [Caching.AS_IS, Caching.HOUR, *([Caching.PRIMED] if primed else [])]
    return min(ways, key=lambda way: expected_cost(way, requests, tokens, tariff, hits, warm=warm))


# -- what comes next --------------------------------------------------------------------------------------------------


@attrs.frozen
class Primed:
    """The record of a prefix.

    Attributes:
        tried_at: When a batch that primes it was last sealed; None: never.
        used_at: When a row of a batch last read or wrote it; None: never.
        kept_until: Until when it is in the cache for those that ask for an hour; None: it never was.
    """

    tried_at: datetime | None = None
    used_at: datetime | None = None
    kept_until: datetime | None = None

    def warm(self, now: datetime) -> bool:
        """Whether a request that is sent now finds it in the cache, if it asks for an hour."""
        return self.kept_until is not None and now < self.kept_until

    @property
    def in_vain(self) -> bool:
        """Whether the last batch that should have primed it has not."""
        return self.tried_at is not None and (self.used_at is None or self.used_at < self.tried_at)


class Step(NamedTuple):
    """The next step for requests that share a prefix: they are sent, one goes ahead, or they wait for it."""

    caching: Caching
    waits: bool = False


def next_step(
    requests: int,
    tokens: int,
    *,
    model: str,
    tariff: Tariff | None,
    hits: Hits,
    known: Primed,
    primed_by: datetime | None,
    now: datetime,
    asked_next: datetime,
    last: datetime | None,
    takes: timedelta,
) -> Step:
    """Return the next step for queued requests that share a prefix, once their batch is due.

    Args:
        requests: How many there are.
        tokens: Of the prefix.
        model: Their model.
        tariff: What the batch lane charges; None: unknown.
        hits: The record of hits.
        known: The record of the prefix.
        primed_by: When a batch under way that primes it is over at the latest; None: there is none.
        now: The moment.
        asked_next: When this may be asked again, at the latest.
        last: Until when they have to be sealed to keep their deadlines; None: whenever.
        takes: The time that priming may take: a window, and noticing its end.
    """
    if known.warm(now):
        return Step(Caching.PRIMED if tariff is None else cheapest(requests, tokens, tariff, hits, warm=True))
    if primed_by is not None and asked_next < (primed_by if last is None else min(primed_by, last)):
        return Step(Caching.PRIMED, waits=True)
    if tokens < minimum_tokens(model) or tariff is None:
        return Step(Caching.AS_IS)
    noticed = asked_next - now < LIFE / 2  # else the prefix has gone before the end of its batch is seen
    in_time = noticed and (last is None or asked_next + takes <= last)
    in_time = in_time and primed_by is None and not known.in_vain
    way = cheapest(requests, tokens, tariff, hits, primes=in_time)
    return Step(Caching.PRIMER) if way is Caching.PRIMED else Step(way)
