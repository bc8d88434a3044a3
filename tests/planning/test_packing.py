from __future__ import annotations

from datetime import timedelta

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import NOW

from batchwise.errors import RequestTooLargeError
from batchwise.planning import packing
from batchwise.planning.packing import (
    MAX_REQUESTS,
    Sizes,
    body_chunks,
    body_length,
    check_entry,
    entry_size,
    may_share,
    telling_count,
)

ids = st.from_regex(r"[a-zA-Z0-9_-]{1,64}", fullmatch=True).map(str.encode)
bodies = st.dictionaries(st.text(max_size=5), st.text(max_size=30) | st.integers(-5, 5), max_size=4).map(orjson.dumps)
entries = st.lists(st.tuples(ids, bodies), min_size=1, max_size=40)
MAX_BYTES = 400


def naive_body(pairs: list[tuple[bytes, bytes]]) -> bytes:
    return b'{"requests":[' + b",".join(b'{"custom_id":"' + i + b'","params":' + b + b"}" for i, b in pairs) + b"]}"


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


def test_one_request_over_the_limit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MAX_BYTES", MAX_BYTES)
    just = MAX_BYTES - body_length(1, 0)
    check_entry(just, "fits")
    with pytest.raises(RequestTooLargeError) as raised:
        check_entry(just + 1, "request 'k'")
    assert str(raised.value) == (
        "request 'k': alone in a batch it needs 401 bytes, a create call takes 400; shorten it, or send large content "
        "through the Files API"
    )


@given(st.integers(1, 30), st.frozensets(st.integers(1, 30)))
def test_the_telling_count_is_the_largest_free_one(count: int, taken: frozenset[int]) -> None:
    free = [each for each in range(1, count + 1) if each not in taken]
    assert telling_count(count, taken) == max(free, default=None)
    assert telling_count(count, sorted(taken)) == max(free, default=None)


def test_deadlines_share_within_the_tolerance_only() -> None:
    minutes = timedelta(minutes=5)
    assert may_share(NOW, NOW + minutes, tolerance=minutes)
    assert may_share(NOW + minutes, NOW, tolerance=minutes)
    assert not may_share(NOW, NOW + minutes + timedelta(microseconds=1), tolerance=minutes)
    assert may_share(None, None, tolerance=minutes)
    assert not may_share(None, NOW, tolerance=minutes)
    assert not may_share(NOW, None, tolerance=minutes)


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


def test_what_a_create_that_worked_lets_grow() -> None:
    sizes = Sizes(largest=100, portion=50, room=10)
    assert sizes.worked(9) == Sizes(largest=100, portion=100, room=10)
    assert sizes.worked(10) == Sizes(largest=100, portion=100, room=20)
    assert sizes.worked(99).largest == 100
    assert sizes.worked(100) == Sizes(largest=126, portion=100, room=20)
    assert Sizes(portion=MAX_REQUESTS, room=MAX_REQUESTS).worked(MAX_REQUESTS) == Sizes()
    assert Sizes(portion=MAX_REQUESTS - 1).worked(1).portion == 2 * (MAX_REQUESTS - 1)


def test_what_a_refused_create_halves() -> None:
    assert Sizes().too_large(9) == Sizes(largest=4)
    assert Sizes().spoiled(9) == Sizes(portion=4)
    assert Sizes().full(1) == Sizes(room=1)
    assert [Sizes(largest=3, portion=2, room=5).most(asked) for asked in (9, 1)] == [2, 1]


def test_a_chunk_is_handed_on_as_soon_as_it_is_full() -> None:
    pairs = [(b"a", b"{}"), (b"b", b"{}"), (b"c", b"{}")]
    each = entry_size(1, 2)
    assert [len(list(body_chunks(pairs, size))) for size in (each, each + 1, 2 * each, 2 * each + 1)] == [4, 2, 2, 2]
    assert len(list(body_chunks(pairs, 3 * each + 1))) == 1


def test_what_was_too_large_grows_by_a_quarter_and_one() -> None:
    assert [Sizes(largest=most).worked(most).largest for most in (1, 5, 8)] == [2, 7, 11]
