"""Packs batches: how many requests fit, which count distinguishes the batch from others, and the create call's body.

The body of a create call is exactly

    {"requests":[{"custom_id":"<id>","params":<body>},{"custom_id":"<id>","params":<body>}]}

so its length is known from the lengths of ids and bodies alone, before a byte of it is made. Limits: API
documentation, Message Batches (100,000 requests, 256 MB a create call).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime, timedelta

import attrs

from batchwise.errors import RequestTooLargeError

__all__ = [
    "BYTES_PER_TOKEN",
    "CHUNK_SIZE",
    "MAX_BYTES",
    "MAX_CALL_BYTES",
    "MAX_REQUESTS",
    "Sizes",
    "body_chunks",
    "body_length",
    "check_entry",
    "entry_size",
    "may_share",
    "telling_count",
]

MAX_REQUESTS = 100_000
"""Requests in one batch."""
MAX_BYTES = 256_000_000
"""Bytes of one create call's body: the documented 256 MB, read as decimal, the smaller reading."""
MAX_CALL_BYTES = 32_000_000
"""Bytes of one Messages call's body: the documented 32 MB, read as decimal."""
BYTES_PER_TOKEN = 4
"""A rough mean for English text and code; used where input tokens have to be estimated."""
CHUNK_SIZE = 256 * 1024
"""Bytes after which `body_chunks` hands a chunk on."""

_OPEN, _CLOSE = b'{"requests":[', b"]}"
_NAME, _PARAMS, _END = b'{"custom_id":"', b'","params":', b"}"
_FIRST, _NEXT = _OPEN + _NAME, _END + b"," + _NAME
_ENTRY_FRAME = len(_NAME) + len(_PARAMS) + len(_END)
_BODY_FRAME = len(_OPEN) + len(_CLOSE)


def entry_size(custom_id_length: int, body_length: int) -> int:
    """Return the bytes of one request's entry in a create body, without the comma after it."""
    return _ENTRY_FRAME + custom_id_length + body_length


def body_length(count: int, entry_bytes: int) -> int:
    """Return the bytes of a create body with `count` entries of `entry_bytes` in all: its Content-Length."""
    return _BODY_FRAME + entry_bytes + max(0, count - 1)


def check_entry(size: int, name: str) -> None:
    """Refuse a request whose entry is of a size that no create call can carry.

    Raises:
        RequestTooLargeError: Even alone it exceeds the limit.
    """
    if (length := body_length(1, size)) > MAX_BYTES:
        raise RequestTooLargeError(
            f"{name}: alone in a batch it needs {length:,} bytes, a create call takes {MAX_BYTES:,}; "
            "shorten it, or send large content through the Files API"
        )


def telling_count(count: int, taken: Collection[int]) -> int | None:
    """Return the largest number from 1 to `count` that is not in `taken`; None if there is none.

    Args:
        count: How many requests are there to be sealed.
        taken: The counts of all batches that a create of unknown outcome could be confused with: those unfinished in
            the ledger and those that the API lists as unfinished.
    """
    return next((candidate for candidate in range(count, 0, -1) if candidate not in taken), None)


@attrs.frozen(kw_only=True)
class Sizes:
    """How many requests a batch may have, after the outcomes of earlier creates; None: all queued ones.

    Each refusal of more than that halves one of the figures; creates that work let it grow again.

    Attributes:
        largest: More were too large for one create call.
        portion: More hold a request that makes the create invalid, and the API does not say which.
        room: More did not fit into the account's processing queue.
    """

    largest: int | None = None
    portion: int | None = None
    room: int | None = None

    def most(self, asked: int) -> int:
        """Return how many requests the next batch may have, of `asked`."""
        return min(each for each in (asked, self.largest, self.portion, self.room) if each is not None)

    def too_large(self, requests: int) -> Sizes:
        """Return the sizes after a create of so many that was too large."""
        return attrs.evolve(self, largest=_half(requests))

    def spoiled(self, requests: int) -> Sizes:
        """Return the sizes after a create of so many that one request made invalid."""
        return attrs.evolve(self, portion=_half(requests))

    def full(self, requests: int) -> Sizes:
        """Return the sizes after the account's queue had no room for so many."""
        return attrs.evolve(self, room=_half(requests))

    def worked(self, requests: int) -> Sizes:
        """Return the sizes after a create of so many that was answered."""
        largest = self.largest
        if largest is not None and requests >= largest:
            largest += largest // 4 + 1
        room = self.room if self.room is not None and requests < self.room else _twice(self.room)
        return Sizes(largest=largest, portion=_twice(self.portion), room=room)


def _half(requests: int) -> int:
    return max(1, requests // 2)


def _twice(most: int | None) -> int | None:
    return None if most is None or most >= MAX_REQUESTS else 2 * most


def may_share(first: datetime | None, second: datetime | None, *, tolerance: timedelta) -> bool:
    """Whether requests with these deadlines may share a batch, so that a rescue of one costs the other little.

    Args:
        first: A deadline, aware; None for `Latency.FLEXIBLE`, which shares only with its like: nothing may cancel it.
        second: The other one.
        tolerance: How far apart they may lie: their interval. A rescue after the window comes when the batch has ended
            anyway; hedged requests, whose batch is cancelled for the earliest of them, have a short one.
    """
    if first is None or second is None:
        return first is second
    return abs(first - second) <= tolerance


def body_chunks(
    entries: Iterable[tuple[bytes, bytes]],
    chunk_size: int = CHUNK_SIZE,
    *,
    before_last: Callable[[], None] | None = None,
) -> Iterator[bytes]:
    """Yield the create body of (custom_id, encoded params) pairs in chunks.

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
        parts += lead, name, _PARAMS, body  # joined once, so that bodies are copied as little as possible
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
