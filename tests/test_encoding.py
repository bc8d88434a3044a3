"""Params as JSON: as the SDK's client puts them on the wire, or a refusal that says where and what to write."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import pathlib
import warnings
from collections import ChainMap, OrderedDict, UserDict, UserList, UserString, deque, namedtuple
from collections.abc import Callable
from datetime import date, datetime, time, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from functools import cache
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any
from uuid import UUID

import anthropic
import httpx2
import orjson
import pydantic
import pytest
from anthropic import NOT_GIVEN, beta_tool, omit
from anthropic.types import ParsedTextBlock, TextBlock
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batchwise import InvalidRequestError, Request
from batchwise.basics.encoding import canonical, encode
from batchwise.basics.jsontext import decode
from batchwise.engine.arguments import retagged
from tests.strategies import params

PICTURE = b"\x89PNG\r\n\x1a\n"
HUGE = 2**70
Point = namedtuple("Point", "x y")  # noqa: PYI024  # one without types, too


class Colour(str, Enum):
    RED = "red"


class Plain(Enum):
    AUTO = "auto"


class Small(IntEnum):
    ONE = 1


class Loud(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "LOUD"


class Aliased(pydantic.BaseModel):
    day: date
    kind: str = pydantic.Field(alias="type")
    left_out: int = 3
    odd: float = 0.5


class Secretive(pydantic.BaseModel):
    __api_exclude__ = {"kept"}  # as the SDK's models have it
    said: str
    kept: str


class Items(pydantic.RootModel[list[int]]):
    pass


@dataclasses.dataclass
class Record:
    x: int = 1


@beta_tool
def add(a: int) -> str:
    """Adds.

    Args:
        a: What to add.
    """
    return str(a)


class _Wire:
    """The SDK's client, and the last body that it sent."""

    def __init__(self) -> None:
        self.body = b""
        answer = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "m", "usage": {}}

        def take(request: httpx2.Request) -> httpx2.Response:
            self.body = request.read()
            return httpx2.Response(200, json=answer)

        self.client = anthropic.Anthropic(
            api_key="k", http_client=anthropic.DefaultHttpxClient(transport=httpx2.MockTransport(take)), max_retries=0
        )

    def sent(self, given: dict[str, Any]) -> bytes | None:
        """The body that these params are sent as; None: the SDK refuses them."""
        self.body = b""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of the model
                self.client.messages.create(**given)
        except (TypeError, ValueError, RecursionError, RuntimeError, OSError):
            return None
        return self.body


@cache
def wire() -> _Wire:
    return _Wire()


def meaning(body: bytes) -> str:
    """What a body says, numbers to the last digit, whatever its order of names."""
    return json.dumps(json.loads(body), sort_keys=True)


def source(data: Any) -> dict[str, Any]:
    return {"type": "base64", "media_type": "image/png", "data": data}


def repeated(value: Any) -> Any:
    """The same value at two places."""
    return [value, value]


TAKEN: dict[str, Callable[[], Any]] = {
    "omit in a dict": lambda: {"a": omit, "b": [{"c": NOT_GIVEN, "d": 1}]},
    "set": lambda: {3},
    "frozenset": lambda: frozenset("x"),
    "dict views": lambda: [{"a": 1}.keys(), {"a": 1}.values(), {"a": 1}.items()],
    "generator": lambda: (each for each in (1, {"a": iter([2])})),
    "map": lambda: map(str, [1, 2]),
    "an iterator twice": lambda: repeated(iter([1, 2])),
    "range": lambda: range(3),
    "deque": lambda: deque([1]),
    "named tuple": lambda: Point(1, 2),
    "user list": lambda: UserList([1, {2}]),
    "mappings": lambda: [OrderedDict(a=1), ChainMap({"a": 1}), UserDict(a=1), MappingProxyType({"a": (1,)})],
    "date": lambda: [date(2026, 11, 27), datetime(2026, 11, 27, 1, 2, 3, 4, timezone.utc)],
    "model with aliases": lambda: Aliased(day=date(2026, 11, 27), type="t"),
    "model that keeps a field back": lambda: [Secretive(said="a", kept="b")],
    "block as parsed": lambda: ParsedTextBlock[dict[str, int]](type="text", text="x", parsed_output={"y": 1}),
    "root model": lambda: Items([1, 2]),
    "huge integers": lambda: [HUGE, -HUGE, 2**63, 2**64 - 1, -(2**63), -(2**63) - 1, 12345678901234567890123],
    "a huge integer beside floats": lambda: [HUGE, 1e16, 5e-324, 1.7976931348623157e308, -0.0, 0.1],
    "digits in a string": lambda: ["9" * 30, 1.5, None],
    "keys that are no strings": lambda: {1: "a", 1.5: "b", False: "c", None: "d", Colour.RED: "f"},
    "keys of the same name": lambda: {"1": "a", 1: "b"},
    "subclasses of scalars": lambda: [Loud("quiet"), Colour.RED, Small.ONE, type("F", (float,), {})(1.5)],
    "text beyond ASCII": lambda: {"é\u2028\x7f\x00": {'😀\\"/'}},
    "bytes of a file": lambda: source(io.BytesIO(PICTURE)),
    "text of a file": lambda: source(io.StringIO("é")),
    "a file twice": lambda: repeated(source(io.BytesIO(PICTURE))),
    "a subclass that says base64": lambda: {"type": Loud("base64"), "data": io.BytesIO(PICTURE)},
}


WALKS = find_spec("anthropic._utils._prepare") is not None
"""Whether this SDK makes plain values of params by what they are: older ones go by annotations, and take less."""


@pytest.mark.parametrize("kind", TAKEN)
@pytest.mark.parametrize("place", ["metadata", "system"])
def test_what_the_sdk_takes_is_encoded_the_same(kind: str, place: str) -> None:
    sent = wire().sent(params(**{place: TAKEN[kind]()}))
    body = Request(params(**{place: TAKEN[kind]()})).body
    if WALKS:
        assert sent is not None, "the SDK refuses it; it is no example"
        assert meaning(body) == meaning(sent)


def test_a_path_is_read_where_the_sdk_reads_it(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PICTURE)
    given = params(messages=[{"role": "user", "content": [{"type": "image", "source": source(path)}]}])
    sent = wire().sent(given)
    assert sent is not None
    body = Request(given).body
    assert meaning(body) == meaning(sent)
    assert base64.b64encode(PICTURE) in body


def test_a_tool_of_the_tool_runner_is_its_definition() -> None:
    request = Request(params(tools=[add]))
    assert request.params["tools"] == [add.to_dict()]
    assert request.traits.tool_types == ("custom",)


def test_top_level_values_that_say_nothing_are_left_out() -> None:
    request = Request(params(system=omit, tools=NOT_GIVEN, timeout=NOT_GIVEN, stream=False))
    assert request == Request(params())
    assert request.traits == Request(params()).traits
    with pytest.raises(InvalidRequestError, match=r"Request\(\.\.\., stream=True\)"):
        Request(params(stream=True))


def test_the_callers_params_stay_as_they_are() -> None:
    given = params(system=omit, stream=False, metadata={"user_id": NOT_GIVEN, "x": [{1}]})
    Request(given)
    assert given == params(system=omit, stream=False, metadata={"user_id": NOT_GIVEN, "x": [{1}]})


def _closed() -> io.BytesIO:
    file = io.BytesIO()
    file.close()
    return file


def _circle() -> dict[str, Any]:
    circle: dict[str, Any] = {"a": []}
    circle["a"].append(circle)
    return circle


def _deep(levels: int) -> Any:
    value: Any = "secret"
    for _ in range(levels):
        value = [value]
    return value


REFUSED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "omit in a list": (lambda: [1, omit], "[1] is a Omit", "leave it out of the list"),
    "class": (lambda: {"schema": Aliased}, "['schema'] is a ModelMetaclass", "model_json_schema()"),
    "bytes": (lambda: [{"a": b"x"}], "[0]['a'] is a bytes", "base64.b64encode"),
    "dataclass": (Record, " is a Record", "dataclasses.asdict"),
    "time": (time, " is a time", "convert it"),
    "decimal": (lambda: Decimal(1), " is a Decimal", "convert it"),
    "user string": (lambda: UserString("x"), " is a UserString", "convert it"),
    "path elsewhere": (lambda: {"data": pathlib.Path("x")}, "['data'] is a PosixPath", "'type': 'base64'"),
    "file elsewhere": (lambda: [io.BytesIO()], "[0] is a BytesIO", "'type': 'base64'"),
    "path that is not there": (lambda: [source(pathlib.Path("/no/x"))], "[0]['data'] is a file that cannot", "No such"),
    "closed file": (lambda: source(_closed()), "['data'] is a file that cannot be read", "open"),
    "nan": (lambda: {"a": [float("nan")]}, "['a'][0] is NaN or an infinity", "remove it"),
    "infinity beside a set": (lambda: [{1}, float("-inf")], "[1] is NaN or an infinity", "remove it"),
    "nan of an enum": (lambda: [Enum("E", {"A": float("nan")}).A], "[0] is NaN or an infinity", "remove it"),
    "surrogate": (lambda: {"a": "\ud800"}, "['a'] holds half of a surrogate pair", "text.encode"),
    "surrogate as a name": (lambda: {"a": {"\ud800": 1}}, "['a'] holds half", "text.encode"),
    "tuple as a name": (lambda: {"a": {(1, 2): 1}}, "['a'] has a tuple among its keys", "str(key)"),
    "nan as a name": (lambda: {float("nan"): 1}, " is NaN or an infinity", "remove it"),
    "more digits than Python writes": (lambda: [10**5_000], "[0] has more digits", "string"),
    "itself": (_circle, "['a'][0]['a'][0]['a'][0]['a'][...] goes on", "holds itself"),
    "deep": (lambda: _deep(300), "[0][0][0][0][0][0][0][...] goes on for over 254", "fewer levels"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_names_the_place_and_the_mend(kind: str) -> None:
    make, where, mend = REFUSED[kind]
    with pytest.raises(InvalidRequestError) as raised:
        Request(params(metadata=make()), key="k")
    said = str(raised.value)
    assert said.startswith(f"request 'k': params['metadata']{where}"), said
    assert mend in said
    assert "secret" not in said
    assert len(said) < 400


def test_as_many_levels_as_the_fast_encoder_takes_are_taken_by_the_walk() -> None:
    for levels in (252, 253, 254):
        outcomes = set()
        for value in (_deep(levels), {"a": _deep(levels - 1), "b": {1}}):
            try:
                Request(params(metadata=value))
                outcomes.add("taken")
            except InvalidRequestError:
                outcomes.add("refused")
        assert outcomes == {"taken" if levels <= 253 else "refused"}, levels


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**80), 2**80),
    st.floats(),
    st.text(max_size=4),
    st.characters(categories=["Cs"]),
    st.dates(),
    st.datetimes(timezones=st.none() | st.just(timezone.utc)),
    st.sampled_from([omit, NOT_GIVEN, Colour.RED, Small.ONE, Plain.AUTO, b"x", Decimal(1), UUID(int=1), object()]),
).map(lambda value: lambda: value)
blocks = st.sampled_from(list(TAKEN)).map(lambda kind: TAKEN[kind])
names = st.one_of(st.text(max_size=3), st.integers(), st.sampled_from([None, True, 0.5, "type", "data", Colour.RED]))


def _containers(inner: st.SearchStrategy[Callable[[], Any]]) -> st.SearchStrategy[Callable[[], Any]]:
    lists = st.tuples(
        st.lists(inner, max_size=3),
        st.sampled_from([list, tuple, iter, deque, UserList, lambda items: (each for each in items)]),
    ).map(lambda drawn: lambda: drawn[1]([make() for make in drawn[0]]))
    dicts = st.tuples(
        st.dictionaries(names, inner, max_size=3), st.sampled_from([dict, OrderedDict, MappingProxyType, UserDict])
    ).map(lambda drawn: lambda: drawn[1]({name: make() for name, make in drawn[0].items()}))
    return lists | dicts


@settings(max_examples=400, deadline=None)
@given(st.recursive(scalars | blocks, _containers, max_leaves=8))
def test_as_the_sdk_or_a_refusal_that_helps(make: Callable[[], Any]) -> None:
    sent = wire().sent(params(metadata=make())) if WALKS else None
    try:
        request = Request(params(metadata=make()))
    except InvalidRequestError as error:
        assert sent is None, "the SDK takes it"
        said = str(error)
    else:
        assert sent is None or meaning(request.body) == meaning(sent)
        assert meaning(json.dumps(request.params).encode()) == meaning(request.body)
        return
    assert "params['metadata']" in said
    assert ";" in said, "what to write instead"


whole = st.recursive(
    st.integers() | st.integers(2**63, 2**80) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(whole, st.text(max_size=5))
@example({"a": 2**70, "b": 1e16}, "k")
def test_no_number_changes_in_reading_copying_or_comparing(value: Any, key: str) -> None:
    body = encode({"b": value, "a": key})[0]
    assert repr(decode(body)) == repr({"b": value, "a": key})
    assert canonical(body) == canonical(encode({"a": key, "b": value})[0])
    request = Request(params(metadata=value), key="one")
    other = retagged(request, {"key": "two"})
    assert (other.body, other.digest, other.key) == (request.body, request.digest, "two")


def test_huge_integers_that_differ_are_other_content() -> None:
    one, other = (Request(params(metadata={"user_id": HUGE + more})) for more in (0, 1))
    assert one.digest != other.digest
    assert one.params["metadata"] == {"user_id": HUGE}


def test_routing_sees_plain_strings() -> None:
    class Model(Enum):
        SONNET = "claude-sonnet-5"

    given = params(model=Model.SONNET, max_tokens=Small.ONE, tools=[{"type": Plain.AUTO}])
    given.update(tool_choice={"type": Plain.AUTO}, speed=Plain.AUTO)
    for others in ({}, {"metadata": {1}}):
        traits = Request({**given, **others}).traits
        assert (traits.model, traits.max_tokens, traits.tool_types) == ("claude-sonnet-5", 1, ("auto",))
        assert (traits.tool_choice, traits.speed) == ("auto", "auto")
        flat = [traits.model, *traits.parameters, *traits.tool_types, traits.tool_choice, traits.speed]
        assert {type(each) for each in flat} == {str}
        assert type(traits.max_tokens) is int


def test_what_an_iterator_raises_comes_through() -> None:
    def broken() -> Any:
        yield 1
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        Request(params(metadata=broken()))


def test_plain_params_are_encoded_as_they_were() -> None:
    given = params(system=[{"type": "text", "text": "x" * 10}], temperature=0.5)
    assert Request(given).body == orjson.dumps(given)


def test_a_block_of_an_answer_goes_back_as_it_came() -> None:
    block = TextBlock(type="text", text="earlier answer", citations=None)
    history = [{"role": "user", "content": "q"}, {"role": "assistant", "content": [block]}]
    sent = wire().sent(params(messages=history))
    assert sent is not None
    assert meaning(Request(params(messages=history)).body) == meaning(sent)
