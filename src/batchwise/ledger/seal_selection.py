"""Which queued requests are sealed into one batch, and how long its create body becomes."""

# ruff: noqa: S608 (statements are made of constants and question marks)

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from batchwise.planning.custom_ids import MAX_LENGTH, custom_id_length
from batchwise.planning.packing import body_length, entry_size, telling_count

from .database import Connection
from .rows import decode_key

__all__ = ["Selection", "first_fitting"]

_NO_ENTRIES = body_length(0, 0) - 1
"""Each entry counts its comma; the first one has none."""


@attrs.frozen
class Selection:
    """The rows that go into one body, how many they are, and its length."""

    first: int
    last: int
    count: int
    length: int
    by_terms: Mapping[int, Sequence[int]]
    """Counts of requests and bytes, by their terms."""

    @property
    def close(self) -> bool:
        """Whether their numbers lie so close together that walking over all between them costs little."""
        return self.last - self.first < 2 * self.count


def _framing(number: int) -> tuple[int, int, int]:
    """Return the figures that depend on the length of a request's number.

    Returns:
        The next number whose id needs one more hex digit; the bytes of an entry without its key and its body; the
        characters that are left for the key.
    """
    nameless = custom_id_length(0, number)
    return 16 ** len(f"{number:x}"), entry_size(nameless, 0) + 1, MAX_LENGTH - nameless


def first_fitting(
    db: Connection,
    queued: str,
    values: Sequence[Any],
    taken: frozenset[int],
    max_requests: int,
    max_bytes: int,
    *,
    sort: bool,
) -> Selection:
    """Return the queued rows that fit into a body, with a count that is not in `taken` if there is one."""
    rows = _first_of(db, queued, (*values, max_requests), max_bytes, sort=sort)
    telling = telling_count(rows.count, taken) or rows.count
    return rows if telling == rows.count else _first_of(db, queued, (*values, telling), max_bytes, sort=sort)


def _first_of(db: Connection, queued: str, values: Sequence[Any], max_bytes: int, *, sort: bool) -> Selection:
    """Return the queued rows that fit into a body, in order."""
    # Those of one terms come out of their index in order, and reading them ends at the limit. Others are sorted
    # without their keys, which are looked up in that order, one page after the other.
    inner = f"SELECT id FROM request WHERE {queued} ORDER BY id LIMIT ?"
    rows = f"id IN ({inner}) ORDER BY id" if sort else f"{queued} ORDER BY id LIMIT ?"
    found = db.execute(f"SELECT id, key, size, terms FROM request WHERE {rows}", values)
    return _cut_off(found, max_bytes)


def _cut_off(rows: Iterable[tuple[int, bytes, int, int]], max_bytes: int) -> Selection:
    """Return the first rows (number, key, body size, terms; in the order of numbers) that fit into a body."""
    by_terms: dict[int, list[int]] = {}
    current, sums = -1, [0, 0]
    first = last = count = length = same = frame = room = 0
    whole = _NO_ENTRIES
    for number, key, size, terms in rows:
        if number >= same:
            same, frame, room = _framing(number)
        # Most keys are ASCII, where a character is a byte.
        name = len(key) if key.isascii() else len(decode_key(key))
        whole += frame + size + min(room, name)
        if whole > max_bytes:
            break
        if terms != current:
            current = terms
            sums = by_terms.setdefault(terms, [0, 0])
        sums[0] += 1
        sums[1] += size
        count += 1
        first, last, length = first or number, number, whole
    return Selection(first, last, count, length, by_terms)
