from __future__ import annotations

import time
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from batchwise.api.lines import LineSplitter

words = [b"a", b"bc", b"\r", b"\n", b"\r\n", b"{}", b"\n\n", b"\x00", b"\xff", b" ", b"long" * 250]
bits = st.lists(st.sampled_from(words))


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def reference(data: bytes) -> tuple[list[bytes], bytes]:
    *lines, rest = data.split(b"\n")
    whole = [line[:-1] if line[-1:] == b"\r" else line for line in lines]
    return [line for line in whole if line], rest


@given(bits.map(b"".join), st.lists(st.integers(0, 10_000), max_size=30))
def test_any_cutting_of_the_stream_gives_the_same_lines(data, places):
    splitter = LineSplitter()
    lines = [line for chunk in cut(data, places) for line in splitter.feed(chunk)]
    assert (lines, splitter.rest()) == reference(data)


def test_a_crlf_that_lies_in_two_chunks_is_one_line_end():
    splitter = LineSplitter()
    assert splitter.feed(b"one\r") == []
    assert splitter.feed(b"\ntwo\r\n\r\n") == [b"one", b"two"]
    assert splitter.rest() == b""


def test_an_unterminated_last_line_is_the_rest():
    splitter = LineSplitter()
    assert splitter.feed(b"one\ntw") == [b"one"]
    assert splitter.feed(b"o") == []
    assert splitter.rest() == b"two"


def test_speed_of_100_000_lines_is_printed():
    data = b"".join(b'{"custom_id":"%06d"' % i + b"x" * 1_000 + b"}\n" for i in range(100_000))
    for size in (1_024, 65_536):
        chunks = [data[at : at + size] for at in range(0, len(data), size)]
        splitter, start = LineSplitter(), time.process_time()
        count = sum(len(splitter.feed(chunk)) for chunk in chunks)
        print(f"100,000 lines of 1 KB in chunks of {size}: {time.process_time() - start:.3f} s CPU")
        assert count == 100_000
