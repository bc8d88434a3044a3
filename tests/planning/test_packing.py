from __future__ import annotations

from datetime import datetime, timedelta
from itertools import chain, pairwise

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.strategies import NOW

from batchwise.errors import RequestTooLargeError
from batchwise.planning.packing import (
    MAX_REQUESTS,
    Sizes,
    body_chunks,
    body_length,
    check_entry,
    deadline_groups,
    entry_size,
    grouping_tolerance,
    may_share,
    pack,
    pack_telling,
    split_telling,
    telling_count,
)

ids = st.from_regex(r"[a-zA-Z0-9_-]{1,64}", fullmatch=True).map(str.encode)
bodies = st.dictionaries(st.text(max_size=5), st.text(max_size=30) | st.integers(-5, 5), max_size=4).map(orjson.dumps)
entries = st.lists(st.tuples(ids, bodies), min_size=1, max_size=40)
sizes = st.lists(st.integers(30, 300), max_size=60)
counts = st.frozensets(st.integers(1, 12), max_size=12)
MAX_BYTES = 400


def naive_body(pairs: list[tuple[bytes, bytes]]) -> bytes:
    return b'{"requests":[' + b",".join(b'{"custom_id":"' + i + b'","params":' + b + b"}" for i, b in pairs) + b"]}"


def length(chosen: list[int]) -> int:
    return body_length(len(chosen), sum(chosen))


@given(entries, st.integers(1, 500))
def test_chunks_join_to_the_naive_body(pairs: list[tuple[bytes, bytes]], chunk_size: int) -> None:
    chunks = list(body_chunks(iter(pairs), chunk_size))
    body = b"".join(chunks)
    assert body == naive_body(pairs)
    assert all(chunks)
    assert len(body) == body_length(len(pairs), sum(entry_size(len(i), len(b)) for i, b in pairs))
    expected = [{"custom_id": i.decode(), "params": orjson.loads(b)} for i, b in pairs]
    assert orjson.loads(body) == {"requests": expected}
    assert all(len(chunk) >= chunk_size for chunk in chunks[:-1])
    largest = max(entry_size(len(i), len(b)) for i, b in pairs)
    assert all(len(chunk) <= chunk_size + 2 * largest + 40 for chunk in chunks)


def test_no_entries_make_an_empty_list() -> None:
    assert b"".join(body_chunks([])) == b'{"requests":[]}'
    assert body_length(0, 0) == len(b'{"requests":[]}')


@given(entries, st.integers(1, 500))
def test_the_last_chunk_is_asked_for_and_completes_the_body(pairs: list[tuple[bytes, bytes]], chunk_size: int) -> None:
    seen: list[bytes] = []
    asked: list[int] = []
    for chunk in body_chunks(pairs, chunk_size, before_last=lambda: asked.append(len(seen))):
        assert not asked or len(seen) == asked[0]
        seen.append(chunk)
    assert asked == [len(seen) - 1]

    def refuse() -> None:
        raise RuntimeError

    cut = []
    with pytest.raises(RuntimeError):
        cut.extend(body_chunks(pairs, chunk_size, before_last=refuse))
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(b"".join(cut))


def test_chunks_are_streamed() -> None:
    taken = 0

    def source():
        nonlocal taken
        while True:
            taken += 1
            yield b"id", b'{"a":1}'

    chunks = body_chunks(source(), 1_000)
    for number in range(1, 20):
        next(chunks)
        assert taken <= number * 30


@given(sizes, st.integers(1, 9))
def test_packing_loses_duplicates_and_reorders_nothing_and_is_greedy(chosen: list[int], most: int) -> None:
    batches = list(pack(iter(chosen), lambda size: size, max_requests=most, max_bytes=MAX_BYTES))
    assert list(chain.from_iterable(batches)) == chosen
    assert all(1 <= len(batch) <= most and length(batch) <= MAX_BYTES for batch in batches)
    for batch, following in pairwise(batches):
        assert len(batch) == most or length([*batch, following[0]]) > MAX_BYTES


@pytest.mark.parametrize("spare", [0, 1])
def test_packing_counts_to_the_byte(spare: int) -> None:
    two = body_length(2, 200)
    assert [len(batch) for batch in pack([100, 100], int, max_bytes=two - spare)] == ([1, 1] if spare else [2])
    assert [each.requests for each in pack_telling([100, 100], (), max_bytes=two - spare)] == ([1, 1] if spare else [2])


def test_packing_is_lazy() -> None:
    def source():
        yield from range(4)
        raise AssertionError("read ahead")

    assert next(pack(source(), lambda _: 10, max_requests=3)) == [0, 1, 2]


def test_one_request_over_the_limit_is_named() -> None:
    just = MAX_BYTES - body_length(1, 0)
    assert list(pack([just], int, max_bytes=MAX_BYTES)) == [[just]]
    check_entry(just, "fits", max_bytes=MAX_BYTES)
    items = [("small", 50), ("the large\none", just + 1)]
    with pytest.raises(RequestTooLargeError, match=r"'the large\\none': .* 401 bytes.* takes 400"):
        list(pack(items, lambda item: item[1], name=lambda item: item[0], max_bytes=MAX_BYTES))
    with pytest.raises(RequestTooLargeError, match="#1"):
        list(pack_telling([50, just + 1], (), max_bytes=MAX_BYTES))


@given(st.integers(1, 30), st.frozensets(st.integers(1, 30)))
def test_the_telling_count_is_the_largest_free_one(count: int, taken: frozenset[int]) -> None:
    free = [each for each in range(1, count + 1) if each not in taken]
    assert telling_count(count, taken) == max(free, default=None)
    assert telling_count(count, sorted(taken)) == max(free, default=None)


@given(st.integers(1, 20), counts)
def test_the_rest_is_split_into_as_few_telling_batches_as_can_be(count: int, taken: frozenset[int]) -> None:
    parts = split_telling(count, taken)
    assert sum(parts) == count
    pairs = [(a, count - a) for a in range(1, count) if a > count - a and not {a, count - a} & taken]
    if count not in taken:
        assert parts == (count,)
    elif pairs:
        assert parts == max(pairs)
    else:
        assert parts == (count,)


@given(sizes, counts, st.integers(1, 9))
@example([30] * 20, frozenset({9, 8}), 9)
def test_telling_batches_keep_the_limits_and_the_order(chosen: list[int], taken: frozenset[int], most: int) -> None:
    batches = list(pack_telling(iter(chosen), taken, max_requests=most, max_bytes=MAX_BYTES))
    assert sum(batch.requests for batch in batches) == len(chosen)
    position, used = 0, set(taken)
    for batch in batches:
        part = chosen[position : position + batch.requests]
        position += batch.requests
        assert 1 <= len(part) <= most
        assert length(part) <= MAX_BYTES
        assert sum(part) == batch.entry_bytes
        assert batch.telling == (batch.requests not in used)
        used.add(batch.requests)


@given(sizes, counts)
def test_a_full_telling_batch_gives_up_only_what_its_count_asks_for(chosen: list[int], taken: frozenset[int]) -> None:
    batches = list(pack_telling(chosen, taken, max_requests=9, max_bytes=MAX_BYTES))
    position, used = 0, set(taken)
    for batch in batches[:-2]:  # the last two may be a split rest
        full = len(next(pack(chosen[position:], int, max_requests=9, max_bytes=MAX_BYTES)))
        assert batch.requests == (telling_count(full, used) or full)
        used.add(batch.requests)
        position += batch.requests


def test_equal_full_batches_get_different_counts() -> None:
    batches = list(pack_telling([10] * 35, {10, 8}, max_requests=10))
    assert [batch.requests for batch in batches] == [9, 7, 6, 5, 8]
    assert [batch.telling for batch in batches] == [True, True, True, True, False]  # 8 is taken, so are 7, 6 and 5
    assert [batch.requests for batch in pack_telling([10] * 30, {10, 8}, max_requests=10)] == [9, 7, 6, 5, 3]


def test_deadlines_share_within_the_tolerance_only() -> None:
    minutes = timedelta(minutes=5)
    assert may_share(NOW, NOW + minutes, tolerance=minutes)
    assert may_share(NOW + minutes, NOW, tolerance=minutes)
    assert not may_share(NOW, NOW + minutes + timedelta(microseconds=1), tolerance=minutes)
    assert may_share(None, None, tolerance=minutes)
    assert not may_share(None, NOW, tolerance=minutes)
    assert not may_share(NOW, None, tolerance=minutes)


def test_the_tolerance_is_5_percent_and_at_most_5_minutes() -> None:
    assert grouping_tolerance(timedelta(hours=1)) == timedelta(minutes=3)
    assert grouping_tolerance(timedelta(hours=20)) == timedelta(minutes=5)


@given(
    st.lists(st.none() | st.integers(0, 100).map(lambda minutes: NOW + timedelta(minutes=minutes)), max_size=30),
    st.integers(0, 30).map(lambda minutes: timedelta(minutes=minutes)),
)
def test_deadline_groups_hold_each_deadline_once_and_are_few(
    deadlines: list[datetime | None], tolerance: timedelta
) -> None:
    groups = deadline_groups(deadlines, tolerance=tolerance)
    dated = [(first, last) for first, last in groups if first is not None and last is not None]
    for deadline in deadlines:
        homes = [pair for pair in dated if deadline is not None and pair[0] <= deadline <= pair[1]]
        assert len(homes) == (deadline is not None)
    assert all(first in deadlines and last in deadlines for first, last in groups)
    assert all(may_share(first, last, tolerance=tolerance) for first, last in groups)
    assert all(not may_share(one[0], two[0], tolerance=tolerance) for one, two in pairwise(dated))
    assert groups.count((None, None)) == (None in deadlines)
    assert groups[: len(dated)] == dated


@given(st.integers(2, MAX_REQUESTS), st.integers(1, MAX_REQUESTS), st.sampled_from(["too_large", "spoiled", "full"]))
def test_batches_shrink_to_what_is_taken_and_grow_again(requests: int, places: int, why: str) -> None:
    sizes, size, refused, sent = Sizes(), requests, 0, 0
    while size > places:
        sizes = getattr(sizes, why)(size)
        assert sizes.most(requests) == size // 2
        size, refused = sizes.most(requests), refused + 1
    assert refused <= 17
    while sizes.most(requests) < requests:
        before = sizes.most(requests)
        sizes, sent = sizes.worked(before), sent + 1
        assert sizes.most(requests) > before
    assert sent <= 60
    assert sizes.worked(1).most(1) == 1


def test_a_small_batch_that_is_taken_says_nothing_of_larger_ones() -> None:
    assert Sizes().full(100).worked(3).most(1_000) == 50
    assert Sizes().full(100).worked(50).most(1_000) == 100
