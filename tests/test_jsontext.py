"""Whatever Python's `json` reads is read the same, and kept on one line."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchwise.basics.jsontext import UnreadableError, decode, encode, kept, one_line

ODD: dict[str, bytes] = {
    "an integer of 65 bits": b"18446744073709551616",
    "a negative integer of 65 bits": b"-9223372036854775809",
    "the largest that orjson takes": b"18446744073709551615",
    "thirty digits": b'{"id": 123456789012345678901234567890}',
    "out of range": b"[1e400, -1e400]",
    "infinities": b"[Infinity, -Infinity]",
    "long fraction": b"0.1000000000000000055511151231257827021181583404541015625",
    "lone surrogate": rb'"\ud800"',
    "surrogates the wrong way round": rb'"\udc00\ud800"',
    "raw surrogate": b'"\xed\xa0\x80"',
    "byte order mark": b'\xef\xbb\xbf{"a":1}',
    "utf-16": '{"a": "é"}'.encode("utf-16"),
    "utf-16 without a mark": '{"a": 1}'.encode("utf-16-le"),
    "a key twice": b'{"a":1,"a":2}',
    "nesting": b"[" * 500 + b"]" * 500,
    "indented": b'{\r\n  "a": [\n\t1,\n 2\n]\r\n}\n',
    "line separators": '"\u2028\u2029\u0085"'.encode(),
}
texts = st.text(st.characters(), max_size=8)  # lone surrogates among them
numbers = st.integers() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def json_texts(draw: st.DrawFn) -> bytes:
    """Any value in any of the forms in which `json.loads` reads it."""
    indent = draw(st.sampled_from([None, 1, "\t"]))
    text = json.dumps(draw(values), indent=indent, ensure_ascii=draw(st.booleans()))
    if draw(st.booleans()):
        text = text.replace("\n", "\r\n")
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32"]))
    return text.encode(encoding, "surrogatepass")


@pytest.mark.parametrize("digits", [19, 20, 25])
def test_a_long_integer_is_found_wherever_it_stands(digits: int) -> None:
    number = 1 - 10**digits
    assert [decode(b" " * before + b"%d " % number) for before in range(24)] == [number] * 24


@pytest.mark.parametrize("name", ODD)
def test_odd_json_is_read_as_python_reads_it(name: str) -> None:
    data = ODD[name]
    assert repr(decode(data)) == repr(json.loads(data))
    check_kept(data)


def test_not_a_number_is_read_too() -> None:
    assert repr(decode(b"[NaN]")) == "[nan]"
    assert repr(decode(encode(float("nan")))) == "nan"


@given(json_texts())
@example(b'{"big": -9223372036854775809}')
def test_whatever_python_reads_is_read_the_same(data: bytes) -> None:
    assert repr(decode(data)) == repr(json.loads(data))
    assert decode(encode(decode(data))) == json.loads(data)
    check_kept(data)


def check_kept(data: bytes) -> None:
    line, value = kept(data)
    assert repr(value) == repr(json.loads(data))
    assert repr(json.loads(line)) == repr(value)
    assert len(line.decode().splitlines()) == 1
    assert one_line(line) == line
    if data.isascii() and not {0, 10} & set(data):
        assert line == data


@given(json_texts())
def test_a_line_inside_a_line_is_read_the_same(data: bytes) -> None:
    assert repr(decode(b'{"message":' + kept(data)[0] + b"}")) == repr({"message": json.loads(data)})


@pytest.mark.parametrize(
    "data", [b"", b"<html>\n\xff\x1b[2J</html>", b'{"a":', b"\xff", b"1" * 5_000, b"[" * 200_000, b'"\n"'], ids=repr
)
def test_what_is_no_json_is_kept_as_text(data: bytes) -> None:
    with pytest.raises(UnreadableError):
        decode(data)
    line, value = kept(data)
    assert isinstance(value, str)
    assert orjson.loads(line) == value
    assert b"\n" not in line
    assert value == data.decode("utf-8", "backslashreplace")


@given(st.binary(max_size=60))
def test_any_bytes_are_kept_on_one_line(data: bytes) -> None:
    line, value = kept(data)
    assert repr(decode(line)) == repr(value)
    assert len(line.splitlines()) == 1


def test_numbers_and_escapes_stay_as_they_were_written() -> None:
    data = b'{\n "a": 1.50, "b": 1E2, "c": "\\u00e9\\/", "d": 10000000000000000000000\n}'
    assert one_line(data) == b'{"a": 1.50, "b": 1E2, "c": "\\u00e9\\/", "d": 10000000000000000000000}'


def test_an_infinity_is_written_as_json() -> None:
    value: Any = {"Infinity": [float("inf"), -float("inf"), 'say "Infinity"']}
    assert encode(value) == b'{"Infinity":[1e999,-1e999,"say \\"Infinity\\""]}'
    assert decode(encode(value)) == value
