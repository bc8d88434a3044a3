"""When a shared prefix of prompts is written to the prompt cache by one request before the others are sent.

Rows of a batch run at the same time, so many of them write what they could have read. A prefix that a batch of one
request has written under a 1-hour block is read by those of the next batch. What is cheapest follows from the model's
rates and from how often rows hit the cache, by the ledger's own record. A deadline always comes first: a batch that
primes may take its whole window, and the batch behind it needs a window and its rescue, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from enum import Enum
from fractions import Fraction
from hashlib import sha256
from typing import Any, NamedTuple

import attrs
import orjson

from batchwise.basics.wording import human_apart

from .pricing import Tariff

__all__ = [
    "BREAKPOINT",
    "GROWTH",
    "HOUR",
    "LIFE",
    "Caching",
    "Hits",
    "Prefix",
    "Prefixes",
    "Primed",
    "Step",
    "cheapest",
    "expected_cost",
    "is_never_cached",
    "minimum_tokens",
    "next_step",
    "prefix_of",
    "prefix_words",
    "under_an_hour",
]

LIFE = timedelta(hours=1)
"""For so long after its last use a prefix under a 1-hour block is kept (API documentation, prompt caching, 2026)."""
BREAKPOINT, HOUR = b'"cache_control":{"type":"ephemeral"}', b'"cache_control":{"type":"ephemeral","ttl":"1h"}'
"""A breakpoint as the encoder writes it that names no life, and one that asks for an hour."""
GROWTH = len(HOUR) - len(BREAKPOINT)
_FIVE_MINUTES = b'"ttl":"5m"'
_BYTES_PER_TOKEN = 4
_MINIMA = {"claude-opus": 4_096, "claude-haiku": 4_096, "claude-sonnet": 2_048}
_LEAST, _MOST = 1_024, 4_096
"""The fewest tokens that are cached, by family: the most that any current model of it asks for, and over all models
(API documentation, prompt caching, 2026)."""


class Caching(str, Enum):
    """How a batch treats the prompt cache."""

    AS_IS = "as_is"
    """Breakpoints are the caller's."""
    HOUR = "hour"
    """Breakpoints that name no life ask for an hour."""
    PRIMER = "primer"
    """One request that writes the prefix for the others, under an hour."""
    PRIMED = "primed"
    """What follows a primer, under an hour."""


class Prefix(NamedTuple):
    """The part of a prompt that requests share, up to the breakpoint that says so.

    Attributes:
        digest: Of the model and the blocks, without the breakpoints themselves, as hexadecimal digits.
        tokens: How many, estimated.
        breakpoints: How many breakpoints of the whole prompt name no life.
    """

    digest: str
    tokens: int
    breakpoints: int


def prefix_of(model: str, body: bytes) -> Prefix | None:
    """The prefix that a request declares cacheable; None: it has no breakpoint at a block, or asks for five minutes.

    Five minutes are over before a batch that wrote the prefix is seen to have ended, and the API refuses an hour behind
    them, so nothing of such a request is asked for an hour.

    Its last breakpoint in the tools and the system prompt, which requests of a kind share; without one there, the
    first in its messages.
    """
    if b'"cache_control"' not in body or _FIVE_MINUTES in body:
        return None
    params: Mapping[str, Any] = orjson.loads(body)
    digest, size, found = sha256(model.encode()), 0, None
    for in_messages, block in _blocks(params):
        if in_messages and found is not None:
            break
        control = block.get("cache_control") if isinstance(block, dict) else None
        bare = {name: value for name, value in block.items() if name != "cache_control"} if control else block
        encoded = orjson.dumps(bare, option=orjson.OPT_SORT_KEYS)
        digest.update(encoded)
        size += len(encoded)
        if control:
            found = digest.hexdigest()[:32], size // _BYTES_PER_TOKEN
            if in_messages:
                break
    return None if found is None else Prefix(*found, body.count(BREAKPOINT))


class Prefixes:
    """Tells the prefixes of many requests. Those of a bulk mostly begin with the same bytes, which are read once."""

    def __init__(self) -> None:
        self._known: tuple[str, bytes, Prefix] | None = None  # at once, for several threads may ask

    def of(self, model: str, body: bytes) -> Prefix | None:
        """As `prefix_of`."""
        known = self._known
        if known is not None and known[0] == model and body.startswith(known[1]) and _is_over(body, len(known[1])):
            return known[2]
        found = prefix_of(model, body)
        start = body.find(b'"messages":')
        if found is not None and start > 0 and _is_over(body, start):
            self._known = model, body[:start], found
        return found


def _is_over(body: bytes, start: int) -> bool:
    """Whether nothing that a prefix is made of stands behind this place."""
    return all(body.find(name, start) < 0 for name in (b'"cache_control"', b'"tools":', b'"system":'))


def _blocks(params: Mapping[str, Any]) -> Iterator[tuple[bool, Any]]:
    """The blocks of a prompt in its order, and whether they are in its messages."""
    for name in ("tools", "system"):
        part = params.get(name) or ()
        yield from ((False, block) for block in ([part] if isinstance(part, str) else part))
    for message in params.get("messages") or ():
        yield True, str(message.get("role"))
        content = message.get("content") or ()
        yield from ((True, block) for block in ([content] if isinstance(content, str) else content))


def minimum_tokens(model: str) -> int:
    """The fewest tokens of a prefix that a model caches, to be on the safe side."""
    return next((least for family, least in _MINIMA.items() if model.startswith(family)), _MOST)


def is_never_cached(tokens: int) -> bool:
    """Whether no model caches so short a prefix."""
    return tokens < _LEAST


def under_an_hour(body: bytes, breakpoints: int) -> bytes:
    """A body whose breakpoints that name no life ask for an hour; it grows by `GROWTH` for each.

    One that was continued since may have fewer of them: then it is filled up with spaces, which JSON passes over.
    """
    made = body.replace(BREAKPOINT, HOUR, breakpoints)
    missing = len(body) + breakpoints * GROWTH - len(made)
    return made if not missing else b"%b%b%b" % (made[:1], b" " * missing, made[1:])


# -- what is cheapest -------------------------------------------------------------------------------------------------

_PRIOR_WEIGHT = 4
"""So many rows of one's own record weigh as much as what is assumed before: our choice."""
_ASSUMED = {Caching.AS_IS: Fraction(30, 100), Caching.HOUR: Fraction(40, 100), Caching.PRIMED: Fraction(95, 100)}
"""How often rows hit the cache before anything is known.

The documentation of the Message Batches API (2026) names 30 % to 98 %, and recommends a batch of one request that
writes the prefix. Users have measured both ends: none of 138 rows in five batches read what others of the same batch
wrote, and all of 25 rows read what a batch before theirs had written. So what is primed is taken to be near the upper
end, and what is not at the lower one; an hour of life helps a little.
"""


@attrs.frozen
class Hits:
    """How often rows of batches have hit the cache, by how the batch treated it: (rows that did, all rows)."""

    counts: Mapping[Caching, tuple[int, int]] = attrs.field(factory=dict)

    def rate(self, caching: Caching) -> Fraction:
        """The share of rows that are expected to."""
        hit, rows = self.counts.get(caching, (0, 0))
        return (_ASSUMED[caching] * _PRIOR_WEIGHT + hit) / (_PRIOR_WEIGHT + rows)


def expected_cost(
    caching: Caching, requests: int, tokens: int, tariff: Tariff, hits: Hits, *, warm: bool = False
) -> Fraction:
    """pico-USD that the prefixes of so many requests are expected to cost, their breakpoints naming no life.

    Whatever is done, one request writes the prefix, unless it is in the cache.
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
    """How so many requests that share a prefix are sent for the least money that is to be expected.

    Args:
        requests: How many.
        tokens: Of the prefix.
        tariff: What the batch lane charges.
        hits: The record.
        primes: Whether there is time to prime.
        warm: Whether it is in the cache for an hour, so that nothing has to prime it.
    """
    primed = warm or (primes and requests > 1)
    ways = [Caching.AS_IS, Caching.HOUR, *([Caching.PRIMED] if primed else [])]
    return min(ways, key=lambda way: expected_cost(way, requests, tokens, tariff, hits, warm=warm))


# -- what comes next --------------------------------------------------------------------------------------------------


@attrs.frozen
class Primed:
    """What is known of a prefix.

    Attributes:
        tried_at: When a batch that primes it was last sealed; None: never.
        used_at: When a row of a batch last read or wrote it; None: never.
        kept_until: Until when it is in the cache for those that ask for an hour; None: it never was.
    """

    tried_at: datetime | None = None
    used_at: datetime | None = None
    kept_until: datetime | None = None

    def warm(self, now: datetime) -> bool:
        """Whether what is sent now finds it in the cache, if it asks for an hour."""
        return self.kept_until is not None and now < self.kept_until

    @property
    def in_vain(self) -> bool:
        """Whether the last batch that should have primed it did not."""
        return self.tried_at is not None and (self.used_at is None or self.used_at < self.tried_at)


class Step(NamedTuple):
    """What is done with requests that share a prefix: they are sent, or one goes ahead, or they wait for it."""

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
    """What comes next for queued requests that share a prefix, once their batch is due.

    Args:
        requests: How many there are.
        tokens: Of the prefix.
        model: Their model.
        tariff: What the batch lane charges; None: unknown.
        hits: The record of hits.
        known: What is known of the prefix.
        primed_by: By when a batch that is under way will have primed it, or be over; None: there is none.
        now: The moment.
        asked_next: When this may be asked again, at the latest.
        last: Until when they have to be sealed to keep their deadlines; None: whenever.
        takes: What priming may take: a window, and noticing its end.
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


def prefix_words(tokens: int, model: str, left: timedelta | None, needed: timedelta) -> str:
    """What the explanation of a decision for a batch says of a prefix.

    Args:
        tokens: How long the prefix is.
        model: Its model.
        left: The time until the deadline; None: there is none.
        needed: How much of it two batches, one after the other, and the reserve take.
    """
    about = f"a prefix of about {tokens:,} tokens"
    least = minimum_tokens(model)
    if tokens < least:
        return f"{about} is under the {least:,} from which on it is cached, so nothing is sent ahead"
    if left is not None and left < needed:
        has, takes = human_apart(left, needed)
        return f"{about} is not primed: that takes a window more, {takes} in all, and the deadline is in {has}"
    return f"{about} is written to the cache by one request ahead, where enough of them share it"
