"""`Request`: what is refused, with which words; what identity goes by; what is kept as it was."""

from __future__ import annotations

import copy
import pickle
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

import orjson
import pytest
from anthropic.types import TextBlock
from hypothesis import given
from hypothesis import strategies as st

from batchwise import InvalidRequestError, Latency, ToolUse
from batchwise.request import Request
from tests.strategies import keys, params

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": None}, "model"),
        ({"model": "claude\0"}, "model"),
        ({"model": ""}, "model"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"tools": {"name": "x"}}, "tools"),
        ({"stream": True}, "Request(..., stream=True)"),
        ({"betas": ["x"]}, "Request(..., betas=[...])"),
        ({"timeout": 3}, "client"),
        ({"extra_headers": {}}, "client"),
        ({"extra_query": {}}, "client"),
        ({"extra_body": {}}, "params"),
        ({"workspace_id": "w"}, "client of that workspace"),
        ({"user_profile_id": "u"}, "client"),
        ({"temperature": float("nan")}, "params['temperature'] is NaN"),
        ({"metadata": object()}, "params['metadata'] is a object, which has no JSON form"),
    ],
)
def test_bad_params_are_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        Request(params(**changes), key="k\x1b[31m1")
    assert words in str(raised.value)
    assert "request 'k\\x1b[31m1'" in str(raised.value)
    assert "Hello" not in str(raised.value), "no content in errors"


@pytest.mark.parametrize("missing", ["model", "max_tokens", "messages"])
def test_a_missing_field_is_named(missing: str) -> None:
    body = params()
    del body[missing]
    with pytest.raises(InvalidRequestError, match=f"lack '{missing}'"):
        Request(body)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"key": ""}, "0 characters"),
        ({"key": "x" * 1_025}, "1025 characters"),
        ({"key": 5}, "not a string"),
        ({"latency": datetime(2026, 1, 1)}, "naive"),  # noqa: DTZ001
        ({"latency": timedelta(0)}, "not positive"),
        ({"latency": timedelta(hours=-1)}, "not positive"),
        ({"latency": "soon"}, "says nothing about how long"),
        ({"latency": 30}, "says nothing about how long"),
        ({"tool_use": "sometimes"}, "'none', 'single', 'server', 'iterative'"),
        ({"betas": "one"}, "betas=['one']"),
        ({"betas": ["a b"]}, "anthropic-beta"),
        ({"betas": ["a\r\nX-Api-Key: b"]}, "anthropic-beta"),
        ({"stream": "yes"}, "neither True nor False"),
        ({"expected_output_tokens": 0}, "at least 1"),
        ({"expected_output_tokens": True}, "at least 1"),
    ],
)
def test_bad_tags_are_refused_with_the_mend(tags: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        Request(params(), **tags)
    assert words in str(raised.value)


def test_params_have_to_be_a_mapping() -> None:
    with pytest.raises(InvalidRequestError, match="list"):
        Request([("model", "x")])  # type: ignore[arg-type]


def test_max_tokens_of_zero_warms_a_cache_now_or_not_at_all() -> None:
    assert Request(params(max_tokens=0)).max_tokens == 0
    with pytest.raises(InvalidRequestError, match="cache warm-up"):
        Request(params(max_tokens=0), latency=Latency.FLEXIBLE)


def test_strings_stand_for_enums() -> None:
    request = Request(params(), latency="flexible", tool_use="single")  # type: ignore[arg-type]
    assert (request.latency, request.tool_use) == (Latency.FLEXIBLE, ToolUse.SINGLE)


def test_no_latency_means_blocking() -> None:
    assert Request(params()).latency is Latency.BLOCKING
    assert Request(params()) == Request(params(), latency=Latency.BLOCKING)


def test_changing_params_afterwards_changes_nothing() -> None:
    body = params()
    request = Request(body)
    before = request.body
    body["messages"].append({"role": "user", "content": "more"})
    assert request.body == before
    request.params["model"] = "other"
    assert request.params["model"] == "claude-sonnet-5"


def test_sdk_blocks_are_taken_as_they_are() -> None:
    block = TextBlock(type="text", text="earlier answer")
    request = Request(params(messages=[{"role": "user", "content": "q"}, {"role": "assistant", "content": [block]}]))
    assert request.params["messages"][1]["content"] == [{"type": "text", "text": "earlier answer"}]


def test_it_is_frozen_and_shows_no_content() -> None:
    request = Request(params("top secret"), key="k")
    with pytest.raises(AttributeError):
        request.key = "other"  # type: ignore[misc]
    assert "secret" not in repr(request)
    assert "'k'" in repr(request)


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=4))
def test_the_body_is_what_was_given(metadata: dict[str, Any]) -> None:
    body = params(metadata=metadata)
    request = Request(body)
    assert orjson.loads(request.body) == body
    assert list(request.params) == list(body), "the caller's order of names is kept"


@given(st.dictionaries(st.text(max_size=5), json_values, min_size=1, max_size=4), keys)
def test_the_order_of_names_is_not_content(metadata: dict[str, Any], key: str) -> None:
    one = Request(params(metadata=metadata), key=key)
    other = Request(dict(reversed(params(metadata=dict(reversed(metadata.items()))).items())), key=key)
    assert one.digest == other.digest
    assert one == other
    assert hash(one) == hash(other)


@given(st.text(max_size=20), st.text(max_size=20))
def test_other_content_is_another_request(one: str, other: str) -> None:
    assert (Request(params(one)) == Request(params(other))) == (one == other)


def test_betas_and_stream_are_content_and_tags_are_identity() -> None:
    base = Request(params())
    assert Request(params(), betas=["x"]).digest != base.digest
    assert Request(params(), betas=["x", "y"]).digest == Request(params(), betas=["y", "x", "x"]).digest
    assert Request(params(), stream=True).digest != base.digest
    assert Request(params(), latency=Latency.FLEXIBLE).digest == base.digest
    assert Request(params(), latency=Latency.FLEXIBLE) != base
    assert base != "something else"


def test_it_copies_and_pickles() -> None:
    request = Request(params(), key="k", latency=timedelta(hours=30), betas=["b"])
    assert copy.copy(request) == request
    assert pickle.loads(pickle.dumps(request)) == request  # noqa: S301


@given(
    wraps=st.lists(
        st.sampled_from(
            [lambda v: [1, v], lambda v: {"a": "x", "b": v}, lambda v: (None, v), lambda v: MappingProxyType({"c": v})]
        ),
        max_size=5,
    ),
    value=st.sampled_from([float("nan"), float("inf"), float("-inf")]),
)
def test_no_number_that_json_cannot_carry_however_deep(wraps: list[Any], value: Any) -> None:
    for wrap in wraps:
        value = wrap(value)
    with pytest.raises(InvalidRequestError, match="NaN or an infinity"):
        Request({**params("x"), "metadata": value})


@pytest.mark.parametrize("name", ["model", "max_tokens", "messages"])
def test_parameters_one_by_one_are_refused_in_words(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"Request was given {name}= by itself; .* as one dict: Request"):
        Request(**{name: "x"})
    with pytest.raises(InvalidRequestError, match=f"Request was given {name}= by itself"):
        Request(params(), **{name: "x"})


def test_what_is_no_argument_is_refused_as_python_does() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'job'"):
        Request(params(), job="nightly")
    with pytest.raises(TypeError, match="lacks its params"):
        Request()
