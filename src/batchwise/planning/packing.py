"""Splits requests into batches, and writes a batch's create body.

The body of a create call is exactly

    {"requests":[{"custom_id":"<id>","params":<body>},{"custom_id":"<id>","params":<body>}]}

so its length is known from the lengths of ids and bodies alone, before a byte of it is made. Limits: API
documentation, Message Batches (100,000 requests, 256 MB a create call).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple, TypeVar

import attrs

from batchwise.errors import RequestTooLargeError, shown

__all__ = [
    "CHUNK_SIZE",
    "MAX_BYTES",
    "MAX_CALL_BYTES",
    "MAX_REQUESTS",
    "Batch",
    "Sizes",
    "body_chunks",
    "body_length",
    "check_entry",
    "deadline_groups",
    "entry_size",
    "grouping_tolerance",
    "may_share",
    "pack",
    "pack_telling",
    "split_telling",
    "telling_count",
]

MAX_REQUESTS = 100_000
"""Requests in one batch."""
MAX_BYTES = 256_000_000
"""Bytes of one create call's body: the documented 256 MB, read as decimal, the smaller reading."""
MAX_CALL_BYTES = 32_000_000
"""Bytes of one Messages call's body: the documented 32 MB, read as decimal."""
CHUNK_SIZE = 256 * 1024
"""Bytes after which `body_chunks` hands a chunk on."""

_OPEN, _CLOSE = b'{"requests":[', b"]}"
_NAME, _PARAMS, _END = b'{"custom_id":"', b'","params":', b"}"
_FIRST, _NEXT = _OPEN + _NAME, _END + b"," + _NAME
_ENTRY_FRAME = len(_NAME) + len(_PARAMS) + len(_END)
_BODY_FRAME = len(_OPEN) + len(_CLOSE)

T = TypeVar("T")


def entry_size(custom_id_length: int, body_length: int) -> int:
    """Bytes of one request's entry in a create body, without the comma that parts it from the next."""
    return _ENTRY_FRAME + custom_id_length + body_length


def body_length(count: int, entry_bytes: int) -> int:
    """Bytes of the create body of `count` requests whose `entry_size`s add up to `entry_bytes`: its Content-Length."""
    return _BODY_FRAME + entry_bytes + max(0, count - 1)


def check_entry(size: int, name: str, *, max_bytes: int = MAX_BYTES) -> None:
    """Refuse a request that no create call can carry.

    Args:
        size: Its `entry_size`.
        name: What to call it in the error.
        max_bytes: The limit of a create call's body.

    Raises:
        RequestTooLargeError: Even alone it exceeds the limit.
    """
    if (length := body_length(1, size)) > max_bytes:
        raise RequestTooLargeError(
            f"{name}: alone in a batch it needs {length:,} bytes, a create call takes {max_bytes:,}; "
            "shorten it, or send large content through the Files API"
        )


class Batch(NamedTuple):
    """How many of the waiting requests form a batch.

    Attributes:
        requests: How many.
        entry_bytes: Their `entry_size`s added up.
        telling: No unfinished batch has this count, so a create of unknown outcome can be found by it.
    """

    requests: int
    entry_bytes: int
    telling: bool = True


class _Open:
    """The batch being filled."""

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.max_requests, self.max_bytes = max_requests, max_bytes
        self.sizes: list[int] = []
        self.length = body_length(0, 0) - 1

    def fits(self, size: int) -> bool:
        return len(self.sizes) < self.max_requests and self.length + size + 1 <= self.max_bytes

    def add(self, size: int) -> None:
        self.sizes.append(size)
        self.length += size + 1

    def take(self, count: int) -> int:
        """Remove the first `count`; returns their bytes."""
        taken = sum(self.sizes[:count])
        del self.sizes[:count]
        self.length -= taken + count
        return taken


def pack(
    items: Iterable[T],
    size: Callable[[T], int],
    *,
    name: Callable[[T], object] = lambda item: item,
    max_requests: int = MAX_REQUESTS,
    max_bytes: int = MAX_BYTES,
) -> Iterator[list[T]]:
    """Greedy batches, in order: none could have taken the request that leads the next one.

    Holds one batch's items at a time.

    Args:
        items: The requests, or what stands for them.
        size: An item's `entry_size`.
        name: An item's name for the error.
        max_requests: The most requests in a batch, at least 1.
        max_bytes: The most bytes of its create body.

    Raises:
        RequestTooLargeError: An item alone exceeds `max_bytes`; raised when it is reached, the open batch unyielded.
    """
    batch: list[T] = []
    limit = max_bytes - body_length(0, 0) + 1  # each entry counts its comma, the first one has none
    left, largest = limit, limit - 1
    for item in items:
        needed = size(item)
        if needed > largest:
            check_entry(needed, f"request {shown(name(item))}", max_bytes=max_bytes)
        if needed >= left or len(batch) >= max_requests:
            yield batch
            batch, left = [], limit
        batch.append(item)
        left -= needed + 1
    if batch:
        yield batch


def telling_count(count: int, taken: Collection[int]) -> int | None:
    """The largest number from 1 to `count` that is not in `taken`; None if there is none.

    Args:
        count: How many requests are there to be sealed.
        taken: The counts of all batches that a create of unknown outcome could be confused with: those unfinished in
            the ledger and those that the API lists as unfinished.
    """
    unusable = taken if isinstance(taken, (set, frozenset)) else set(taken)
    return next((candidate for candidate in range(count, 0, -1) if candidate not in unusable), None)


def split_telling(count: int, taken: Collection[int]) -> tuple[int, ...]:
    """`count` last requests as few batches whose counts tell them from `taken` and from each other.

    One batch where its count is free, else two (the first as large as possible); where neither exists, one batch
    that does not tell: it is still proved by its nonce once it ended.
    """
    unusable = frozenset(taken)
    if count not in unusable:
        return (count,)
    for first in range(count - 1, count // 2, -1):
        if first not in unusable and count - first not in unusable:
            return first, count - first
    return (count,)


def pack_telling(
    sizes: Iterable[int], taken: Collection[int], *, max_requests: int = MAX_REQUESTS, max_bytes: int = MAX_BYTES
) -> Iterator[Batch]:
    """Like `pack`, over `entry_size`s, with counts that are in none of `taken` and differ from each other.

    A full batch passes its last requests on to the next one until its count is free; the requests left at the end
    are split in two if that helps. Nothing is padded, dropped or reordered: the counts add up to the input. The
    batches are to be cut from the same sequence in order. Holds the sizes of one batch at a time.

    Args:
        sizes: Each request's `entry_size`; check them with `check_entry` on acceptance.
        taken: See `telling_count`.
        max_requests: The most requests in a batch, at least 1.
        max_bytes: The most bytes of its create body.

    Yields:
        Batches; `telling` is False where every smaller count was taken too.

    Raises:
        RequestTooLargeError: A size alone exceeds `max_bytes`; the error names its position.
    """
    used = set(taken)
    batch = _Open(max_requests, max_bytes)
    for position, size in enumerate(sizes):
        check_entry(size, f"request #{position}", max_bytes=max_bytes)
        while not batch.fits(size):
            count = telling_count(len(batch.sizes), used)
            yield _close(batch, count or len(batch.sizes), used)
        batch.add(size)
    if batch.sizes:
        for count in split_telling(len(batch.sizes), used):
            yield _close(batch, count, used)


@attrs.frozen(kw_only=True)
class Sizes:
    """How many requests a batch may have, by what became of the creates before; None: as many as are there.

    Each refusal of more than that halves one of the figures; creates that work let it grow again.

    Attributes:
        largest: More were too large for one create call.
        portion: More hold one that spoils their create, and the API does not say which.
        room: More did not fit into the account's processing queue.
    """

    largest: int | None = None
    portion: int | None = None
    room: int | None = None

    def most(self, asked: int) -> int:
        """How many requests the next batch may have, of `asked`."""
        return min(each for each in (asked, self.largest, self.portion, self.room) if each is not None)

    def too_large(self, requests: int) -> Sizes:
        """A create of so many was too large."""
        return attrs.evolve(self, largest=_half(requests))

    def spoiled(self, requests: int) -> Sizes:
        """One request spoiled a create of so many."""
        return attrs.evolve(self, portion=_half(requests))

    def full(self, requests: int) -> Sizes:
        """The account's queue had no room for so many."""
        return attrs.evolve(self, room=_half(requests))

    def worked(self, requests: int) -> Sizes:
        """A create of so many was answered."""
        largest = self.largest
        if largest is not None and requests >= largest:
            largest += largest // 4 + 1
        room = self.room if self.room is not None and requests < self.room else _twice(self.room)
        return Sizes(largest=largest, portion=_twice(self.portion), room=room)


def _half(requests: int) -> int:
    return max(1, requests // 2)


def _twice(most: int | None) -> int | None:
    return None if most is None or most >= MAX_REQUESTS else 2 * most


def _close(batch: _Open, count: int, used: set[int]) -> Batch:
    telling = count not in used
    used.add(count)
    return Batch(count, batch.take(count), telling)


def grouping_tolerance(sla: timedelta) -> timedelta:
    """How far apart the deadlines of hedged requests in one batch may lie: 5 % of the SLA, at most 5 minutes.

    A hedged batch is cancelled at the last safe moment of its earliest deadline, so each later one loses that much
    of its chance to end by itself.
    """
    return min(sla / 20, timedelta(minutes=5))


def may_share(first: datetime | None, second: datetime | None, *, tolerance: timedelta) -> bool:
    """Whether requests with these deadlines may be in one batch, so that a rescue of one takes little from the other.

    Args:
        first: A deadline, aware; None for `Latency.FLEXIBLE`, which shares only with its like: nothing may cancel it.
        second: The other one.
        tolerance: How far apart they may lie: `grouping_tolerance` for hedged requests; the SLA's interval for others,
            whose rescue comes after the window, when the batch has ended anyway.
    """
    if first is None or second is None:
        return first is second
    return abs(first - second) <= tolerance


def deadline_groups(
    deadlines: Iterable[datetime | None], *, tolerance: timedelta
) -> list[tuple[datetime | None, datetime | None]]:
    """The fewest groups in which all may share: (earliest, latest) of each, by time, `FLEXIBLE` (None, None) last.

    Requests that differ in their betas never share a create call (one set of headers for the whole call): group by
    betas first.
    """
    distinct = set(deadlines)
    groups: list[tuple[datetime | None, datetime | None]] = []
    earliest = latest = None
    for deadline in sorted(each for each in distinct if each is not None):
        if earliest is None:
            earliest = deadline
        elif not may_share(earliest, deadline, tolerance=tolerance):
            groups.append((earliest, latest))
            earliest = deadline
        latest = deadline
    if earliest is not None:
        groups.append((earliest, latest))
    if None in distinct:
        groups.append((None, None))
    return groups


def body_chunks(
    entries: Iterable[tuple[bytes, bytes]],
    chunk_size: int = CHUNK_SIZE,
    *,
    before_last: Callable[[], None] | None = None,
) -> Iterator[bytes]:
    """The create body of (custom_id, encoded params) pairs, streamed.

    Holds about `chunk_size` bytes and one request. No chunk is empty.

    Args:
        entries: Ids (made by `custom_ids`: nothing in them needs escaping) and JSON bodies.
        chunk_size: Bytes after which a chunk is handed on.
        before_last: Called when all but the last chunk have been taken, before the last one is given. What it raises
            ends the body unfinished, and a create call whose body is unfinished creates nothing.
    """
    parts: list[bytes] = []
    lead, size = _FIRST, 0
    for name, body in entries:
        parts += lead, name, _PARAMS, body  # joined once: a body is copied no more than it must
        lead = _NEXT
        size += _ENTRY_FRAME + len(name) + len(body)
        if size >= chunk_size:
            yield b"".join(parts)
            parts.clear()
            size = 0
    parts.append(_OPEN if lead is _FIRST else _END)
    if before_last is not None:
        before_last()
    yield b"".join(parts) + _CLOSE
