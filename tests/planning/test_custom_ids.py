from __future__ import annotations

import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchwise.errors import InvalidValueError
from batchwise.planning.custom_ids import (
    MAX_LENGTH,
    MAX_NUMBER,
    UNSEALED,
    Parsed,
    _plain,
    _slug,
    custom_id,
    custom_id_length,
    new_nonce,
    opener,
    parse,
    sealer,
)

VALID = re.compile(r"[a-zA-Z0-9_-]{1,64}", re.ASCII)
NONCE = new_nonce(bytes(range(16)))

texts = st.text(st.characters(codec=None), max_size=1_024)  # any code point, lone surrogates and NULs too
nonces = st.just(UNSEALED) | st.builds(new_nonce, st.binary(min_size=8, max_size=32))
numbers = st.integers(0, MAX_NUMBER) | st.integers(0, 300) | st.sampled_from([MAX_NUMBER, 2**32, 15, 16])


@given(texts, nonces, numbers)
def test_ids_are_valid_for_any_key_and_parse_back(key: str, nonce: str, number: int) -> None:
    name = custom_id(key, nonce, number)
    assert VALID.fullmatch(name)
    assert parse(name) == Parsed(nonce, number)
    assert opener(nonce)(name.encode()) == number
    assert sealer(nonce)(key, number) == name.encode()
    assert len(name) == custom_id_length(len(key), number)


@given(st.tuples(texts, nonces, numbers), st.tuples(texts, nonces, numbers))
def test_ids_are_injective(one: tuple[str, str, int], two: tuple[str, str, int]) -> None:
    assert custom_id(*one) != custom_id(*two) or one[1:] == two[1:]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("src/app.py", "src-app-py"),
        ("Été à Ω.txt", "Ete-a---txt"),
        ("日本語", "---"),
        ("\ud800\0", "--"),
        ("_bw000000000000-00", "_bw000000000000-00"),
        ("", ""),
        ("x" * 100, "x" * 100),
    ],
)
def test_slugs_are_readable(key: str, expected: str) -> None:
    assert _slug(key).decode() == expected
    assert VALID.fullmatch(custom_id(key, NONCE, 7))
    assert parse(custom_id(key, NONCE, 7)) == (NONCE, 7)


@given(texts)
def test_a_slug_has_the_length_of_its_key(key: str) -> None:
    assert len(_slug(key).decode()) == len(key)


def test_a_long_key_keeps_its_end() -> None:
    name = custom_id("very/long/" * 100 + "app.py", NONCE, 10_000)
    assert len(name) == 64
    assert name.partition("_bw")[0].endswith("long-app-py")


@given(st.binary(min_size=8, max_size=64))
def test_a_nonce_is_never_the_unsealed_one(entropy: bytes) -> None:
    assert re.fullmatch("[0-9a-z]{12}", new_nonce(entropy))
    assert new_nonce(entropy) != UNSEALED


def test_nonces_use_the_entropy() -> None:
    assert new_nonce(bytes(16)) != UNSEALED
    assert new_nonce((36**12 - 1).to_bytes(8, "big")) != UNSEALED
    assert len({new_nonce(os.urandom(16)) for _ in range(10_000)}) == 10_000
    assert len({new_nonce(number.to_bytes(8, "big")) for number in range(10_000)}) == 10_000


@given(st.from_regex(VALID, fullmatch=True))
def test_foreign_ids_do_not_parse(name: str) -> None:
    assert parse(name) is None
    assert opener(NONCE)(name.encode()) == -1


@given(st.text(max_size=70))
def test_other_text_does_not_parse(text: str) -> None:
    assert parse(text) is None
    assert opener(NONCE)(text.encode(errors="replace")) == -1


def _with_check(tail: str) -> list[str]:
    return [f"key_bw{tail}{check}" for check in "0123456789abcdefghijklmnopqrstuvwxyz"]


@pytest.mark.parametrize(
    "tail",
    [
        f"{NONCE}-01f",  # leading zero
        f"{NONCE}-1F",
        f"{NONCE}-1_f",
        f"{NONCE}-0x1f",
        f"{NONCE}-+1f",
        f"{NONCE}- 1f",
        f"{NONCE}-",
        f"{NONCE}-8000000000000000",  # over 2**63-1
        f"{NONCE}-10000000000000000",
        f"{NONCE[:-1]}-1f",
        f"{NONCE.upper()}-1f",
        f"{NONCE}_1f",
    ],
)
def test_only_the_canonical_tail_parses_whatever_its_check_character(tail: str) -> None:
    assert [parse(name) for name in _with_check(tail)] == [None] * 36
    assert [opener(NONCE)(name.encode()) for name in _with_check(tail)] == [-1] * 36


@given(numbers)
def test_one_check_character_of_36_fits(number: int) -> None:
    names = _with_check(f"{NONCE}-{number:x}")
    assert sum(parse(name) is not None for name in names) == 1
    assert sum(opener(NONCE)(name.encode()) >= 0 for name in names) == 1


def test_what_follows_or_leads_too_long_is_refused() -> None:
    name, long = custom_id("x", NONCE, 5), custom_id("x" * 1_024, NONCE, 5)
    for other in (name + "\n", name + " ", name + "0 ", "x" + long):
        assert parse(other) is None
        assert opener(NONCE)(other.encode()) == -1


@given(nonces, nonces, numbers)
def test_an_opener_knows_its_own_seal_only(nonce: str, other: str, number: int) -> None:
    assert (opener(nonce)(sealer(other)("key", number)) >= 0) == (nonce == other)


def test_bad_input_is_named() -> None:
    with pytest.raises(InvalidValueError, match="at least 8"):
        new_nonce(b"1234567")
    for nonce in ("", "short", "x" * 13, "ABCDEFGHIJKL", "abcdefghijk-", "\u0661" * 12):
        with pytest.raises(InvalidValueError, match="nonce="):
            custom_id("key", nonce, 1)
        with pytest.raises(InvalidValueError, match="nonce="):
            opener(nonce)
    for number in (-1, 2**63):
        with pytest.raises(InvalidValueError, match="number="):
            custom_id("key", NONCE, number)


def test_an_id_of_just_the_longest_length_is_ours_and_a_longer_one_is_not() -> None:
    name = custom_id("x" * 100, NONCE, 10_000)
    assert len(name) == MAX_LENGTH
    assert opener(NONCE)(name.encode()) == 10_000
    assert parse(name) == Parsed(NONCE, 10_000)
    assert opener(NONCE)(f"x{name}".encode()) == -1
    assert parse(f"x{name}") is None


def test_a_key_has_all_the_room_that_the_tail_leaves() -> None:
    room = MAX_LENGTH - len(custom_id("", NONCE, 10_000))
    assert custom_id("y" + "x" * (room - 1), NONCE, 10_000).startswith("yx")
    assert custom_id("y" + "x" * room, NONCE, 10_000).startswith("xx")


def test_the_last_head_counts() -> None:
    key = f"_bw{NONCE}-1x"
    assert opener(NONCE)(custom_id(key, NONCE, 5).encode()) == 5


@pytest.mark.parametrize(
    ("rest", "nonce"),
    [(0, "000000000001"), (35, "000000000010"), (36**12 - 2, "zzzzzzzzzzzz"), (36**12 - 1, "000000000001")],
)
def test_a_nonce_is_the_entropy_in_36_digits(rest: int, nonce: str) -> None:
    assert new_nonce(rest.to_bytes(16, "big")) == nonce


def test_each_character_stands_for_itself_or_its_base_letter() -> None:
    assert "".join(chr(_plain(ord(each))) for each in "aZ9_-./éÜﬁ日\0") == "aZ9_---eUf--"
