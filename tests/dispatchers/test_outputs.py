"""Answers that keep to a JSON schema: asked for as the SDK asks, read as a type, and none if they were cut off."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

import anthropic
import httpx2
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter
from typing_extensions import TypedDict

from batchwise import Dispatcher, InvalidRequestError, Lane, Outcome, Policy, Request, RequestFailedError
from batchwise.basics.jsontext import decode
from batchwise.sandbox import Reply, Sandbox, turns
from tests.strategies import params

from .world import FAST, HOURS_30, LATENCIES, World, listed


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Verdict(BaseModel):
    """Whether the change may be merged."""

    merge: bool
    why: str = Field(description="One sentence.", max_length=300)


class Tree(BaseModel):
    name: str
    children: list[Tree] = []


@dataclass
class Point:
    x: int
    y: float


class Row(TypedDict, total=False):
    when: datetime
    amount: Decimal


TYPES: list[Any] = [
    Verdict, Tree, Point, Row, Colour, int, str, bool, list[Verdict], dict[str, int], Optional[Verdict],
    Union[int, str], Literal["yes", "no"], Annotated[int, Field(ge=1, le=5)],
    tuple[int, str], pydantic.RootModel[list[Point]], list[Union[Point, Tree]], type(None),
]  # fmt: skip
FIELDS = [(each, ...) for each in TYPES] + [(Optional[int], None), (str, Field("x", min_length=2, pattern="a+"))]


def sent_by_the_sdk(type_: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The body that the SDK's `messages.parse` sends."""
    bodies: list[bytes] = []
    answer = {"id": "m", "type": "message", "role": "assistant", "content": [], "model": "m", "usage": {}}

    def answered(request: httpx2.Request) -> httpx2.Response:
        bodies.append(request.read())
        return httpx2.Response(200, json=answer)

    with httpx2.Client(transport=httpx2.MockTransport(answered)) as http:
        client = anthropic.Anthropic(api_key="k", http_client=http)
        client.messages.parse(**given, output_format=type_)
    (body,) = bodies
    sent: dict[str, Any] = json.loads(body)
    sent.pop("stream", None)
    return sent


def asked(**others: Any) -> dict[str, Any]:
    return params(model="claude-haiku-4-5", **others)


@pytest.mark.parametrize("type_", TYPES, ids=str)
@pytest.mark.parametrize("config", [{}, {"output_config": {"effort": "low"}}], ids=["bare", "beside effort"])
def test_the_body_is_the_one_that_the_sdk_sends(type_: Any, config: dict[str, Any]) -> None:
    made = Request(asked(**config), output_format=type_)
    assert made.params == sent_by_the_sdk(type_, asked(**config))
    assert made.traits.structured


@given(st.dictionaries(st.sampled_from("abcde"), st.sampled_from(FIELDS), max_size=4))
@settings(max_examples=60, deadline=None)
def test_the_body_of_any_model_is_the_one_that_the_sdk_sends(fields: dict[str, Any]) -> None:
    model = pydantic.create_model("Model", **fields)
    assert Request(asked(), output_format=model).params == sent_by_the_sdk(model, asked())


def test_types_that_are_equal_have_each_its_own_schema() -> None:
    for one, other in ((Union[int, str], Union[str, int]), (Literal["yes", "no"], Literal["no", "yes"])):
        assert one == other
        for type_ in (one, other):
            schema = Request(asked(), output_format=type_).params["output_config"]["format"]["schema"]
            assert schema == anthropic.transform_schema(TypeAdapter(type_).json_schema())


class Strange:
    pass


class Holder(BaseModel):
    model_config = {"arbitrary_types_allowed": True}
    held: Strange


@pytest.mark.parametrize(
    ("type_", "given_", "match"),
    [
        (Holder, {}, "output_format=Holder has no JSON schema"),
        (object, {}, "output_format=object has no JSON schema"),
        (Strange, {}, "Strange is not a type that pydantic's TypeAdapter takes"),
        (3, {}, "int is not a type"),
        ("Verdict", {}, "str is not a type"),
        (lambda: 3, {}, "<lambda> is not a type"),
        ({"type": "object"}, {}, r"params\['output_config'\] = "),
        (
            Verdict,
            {"output_config": {"format": {"type": "json_schema", "schema": {}}}},
            r"\['output_config'\]\['format'\]",
        ),
        (Verdict, {"output_format": {"type": "json_schema", "schema": {}}}, r"params\['output_format'\]"),
        (Verdict, {"output_config": 3}, r"params\['output_config'\] is a int"),
    ],
    ids=lambda each: each if isinstance(each, str) else getattr(each, "__name__", ""),
)
def test_what_cannot_be_asked_for_is_refused_before_anything_is_sent(type_: Any, given_: Any, match: str) -> None:
    with pytest.raises(InvalidRequestError, match=match) as caught:
        Request(asked(**given_), key="k", output_format=type_)
    assert str(caught.value).startswith("request 'k': ")


def test_the_format_belongs_to_the_content() -> None:
    plain, one, other = (Request(asked(), output_format=each) for each in (None, Verdict, Tree))
    assert len({plain.digest, one.digest, other.digest}) == 3
    assert not plain.traits.structured
    assert one == Request(one.params)
    assert Request(asked(output_config={"format": None})).traits.structured is False
    legacy = {"type": "json_schema", "schema": {"type": "object"}}
    assert Request(asked(output_format=legacy), betas=["structured-outputs-2025-11-13"]).traits.structured


# -- end to end ------------------------------------------------------------------------------------------------------


def answering(body: dict[str, Any]) -> Any:
    text = body["messages"][0]["content"]
    good = json.dumps({"merge": True, "why": text})
    if "cut" in text:
        return Reply.text(good[:9], stop_reason=text.split()[-1])
    if "refuse" in text:
        return Reply.refusal()
    return "no JSON at all" if "odd" in text else good


@pytest.mark.parametrize("lane", Lane)
async def test_answers_are_read_as_the_type_and_cut_ones_fail(world: World, lane: Lane):
    world.sandbox.reply = answering
    texts = ["good", "cut max_tokens", "cut model_context_window_exceeded", "refuse", "odd"]
    async with world.open() as d:
        requests = [Request(asked(text=text), key=text, output_format=Verdict) for text in texts]
        requests.append(Request(asked(text="cut max_tokens"), key="plain"))
        job = await d.dispatch_all(requests, job="j", latency=LATENCIES[lane])
        found = {result.key: result for result in await listed(job.results())}
        assert found["good"].parse(Verdict) == Verdict(merge=True, why="good")
        for text in texts[1:3]:
            cut = found[text]
            assert (cut.outcome, cut.error.type, cut.met_deadline) == (Outcome.FAILED, "truncated", False)
            assert cut.cost > 0
            assert cut.usage.output_tokens > 0
            with pytest.raises(RequestFailedError, match="failed, truncated") as caught:
                cut.parse(Verdict)
            assert caught.value.error_type == "truncated"
        assert found["refuse"].outcome is Outcome.REFUSED
        with pytest.raises(RequestFailedError, match="refused"):
            found["refuse"].parse(Verdict)
        assert found["odd"].ok
        with pytest.raises(RequestFailedError, match=r"not a Verdict \(json_invalid\)"):
            found["odd"].parse(Verdict)
        assert (found["plain"].outcome, found["plain"].text) == (Outcome.SUCCEEDED, '{"merge":')
        report = await job.report()
        assert (report.possible_doubles, report.refused) == (0, 1)
        assert report.cost == sum(result.cost for result in found.values())
    async with world.open() as d:  # a later process
        ticket = await d.ticket("good", job="j")
        assert (await ticket.result()).parse(Verdict).merge is True


async def test_dispatch_and_dispatch_all_take_the_type(world: World):
    seen: list[dict[str, Any]] = []
    world.sandbox.reply = lambda body: seen.append(body) or answering(body)
    async with world.open() as d:
        ticket = await d.dispatch(asked(text="a"), output_format=Verdict)
        again = await d.dispatch(Request(asked(text="b"), key="b"), output_format=Verdict, latency=HOURS_30)
        own = Request(asked(text="own"), key="own", output_format=Tree)
        job = await d.dispatch_all(
            [Request(asked(text="c"), key="c", betas=["x"]), own], output_format=Verdict, latency=HOURS_30
        )
        assert (await ticket.result()).parse(Verdict).why == "a"
        assert (await again.result()).parse(Verdict).why == "b"
        found = {result.key: result for result in await listed(job.results())}
        assert found["c"].parse(Verdict).why == "c"
        (sent,) = [body for body in seen if body["messages"][0]["content"] == "own"]
        assert sent["output_config"] == own.params["output_config"]
        with pytest.raises(InvalidRequestError, match="request 'k': Strange is not a type"):
            await d.dispatch_all([Request(asked(), key="k")], output_format=Strange)
        with pytest.raises(InvalidRequestError, match="both say"):
            await d.dispatch(own, output_format=Verdict)


@pytest.mark.parametrize("lane", Lane)
async def test_a_turn_that_stops_for_compaction_goes_on(world: World, lane: Lane):
    summary = {"type": "compaction", "content": "what was said"}
    world.sandbox.reply = turns({"content": [summary], "stop_reason": "compaction"}, json.dumps({"x": 1, "y": 2}))
    async with world.open() as d:
        ticket = await d.dispatch(asked(), latency=LATENCIES[lane], betas=["compact-2026-01-12"], output_format=Point)
        result = await ticket.result()
        assert (result.ok, result.attempts) == (True, 1)
        assert [block.type for block in result.message.content] == ["compaction", "text"]
        assert result.parse(Point) == Point(1, 2)


async def test_a_turn_that_stops_for_compaction_for_ever_ends(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("batchwise.planning.continuation.MAX_TURNS", 2)
    summary = {"type": "compaction", "content": "what was said"}
    world.sandbox.reply = lambda _body: {"content": [summary], "stop_reason": "compaction"}
    betas = ["compact-2026-01-12"]
    async with world.open() as d:
        plain = await (await d.dispatch(asked(text="a"), betas=betas)).result()
        structured = await (await d.dispatch(asked(text="b"), betas=betas, output_format=Point)).result()
        assert (plain.outcome, decode(plain.raw)["result"]["message"]["stop_reason"]) == (
            Outcome.SUCCEEDED,
            "compaction",
        )
        assert (structured.outcome, structured.error.type) == (Outcome.FAILED, "truncated")


def test_the_sdk_sees_a_cut_answer_as_the_api_gave_it(tmp_path: Path):
    config = Request(asked(), output_format=Verdict).params["output_config"]
    with (
        Sandbox(batch_latency=0.01, reply=answering) as sandbox,
        sandbox.client() as inner,
        Dispatcher(inner, ledger=tmp_path / "l.db", policy=Policy(poll_every=FAST)) as d,
    ):
        for client in (inner, d.client(), d.client(latency=HOURS_30)):
            message = client.messages.create(**asked(text="cut max_tokens"), output_config=config)
            assert (message.stop_reason, message.content[0].text) == ("max_tokens", '{"merge":')
            assert client.messages.parse(**asked(text="good"), output_format=Verdict).parsed_output.merge
        assert d.report().requests == 4
