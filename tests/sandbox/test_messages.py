"""The Messages endpoints, by the SDK's own calls."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

import anthropic
import pytest

from batchwise.sandbox import RateLimits, Reply, Uniform, turns
from tests.waiting import until

from .conftest import params


def test_echo_usage_and_headers(make):
    sandbox, client = make()
    answer = client.messages.with_raw_response.create(**params("hello"))
    message = answer.parse()
    assert message.content[0].text == "echo: hello"
    assert message.stop_reason == "end_turn"
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens == len("echo: hello") // 4
    assert message.usage.service_tier == "standard"
    assert answer.headers["request-id"].startswith("req_")
    assert answer.headers["anthropic-workspace-id"] == "wrkspc_sandbox"
    assert answer.headers["anthropic-organization-id"]
    assert int(answer.headers["anthropic-ratelimit-requests-limit"]) > 0
    assert abs(parsedate_to_datetime(answer.headers["date"]).timestamp() - time.time()) < 2
    assert sandbox.books.requests_by_path == {"POST /v1/messages": 1}


async def _ask(sandbox):
    async with sandbox.async_client() as client:
        return await client.messages.create(**params("later"))


def test_async_client(make):
    import anyio

    sandbox, _ = make()
    assert anyio.run(_ask, sandbox).content[0].text == "echo: later"


def test_streamed(make):
    sandbox, client = make()
    with client.messages.stream(**params("a longer text to be cut into pieces")) as stream:
        pieces = list(stream.text_stream)
        message = stream.get_final_message()
    assert len(pieces) > 1
    assert message.content[0].text == "echo: a longer text to be cut into pieces"
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens > 1
    events = [event.type for event in client.messages.create(**params(), stream=True)]
    assert events[0] == "message_start"
    assert events[-1] == "message_stop"
    sandbox.reply = lambda _: Reply.tool_use("get", {"city": "Oslo"})
    with client.messages.stream(**params()) as stream:
        assert stream.get_final_message().content[0].input == {"city": "Oslo"}
    assert sandbox.books.bought("hi") == 2


def test_count_tokens_and_models(make):
    _, client = make()
    count = client.messages.count_tokens(model="claude-sonnet-5", messages=params("x" * 400)["messages"])
    assert count.input_tokens == client.messages.create(**params("x" * 400)).usage.input_tokens
    models = list(client.models.list(limit=3))
    assert len(models) > 3
    assert client.models.retrieve(models[0].id).max_tokens
    assert list(client.beta.models.list())


def test_beta_messages(make):
    _, client = make()
    message = client.beta.messages.create(**params("b"), betas=["some-beta"])
    assert message.content[0].text == "echo: b"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": None}, "model: Field required"),
        ({"max_tokens": None}, "max_tokens: Field required"),
        ({"messages": []}, "at least one message"),
        ({"max_tokens": 1_000_000}, "maximum allowed number of output tokens"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"colour": "blue"}, "'colour: Extra inputs are not permitted'"),
        ({"context_management": {"edits": []}}, "'context_management: Extra inputs are not permitted'"),
        ({"temperature": 1.01}, "'temperature: range: 0..1'"),
        ({"temperature": "0"}, "'temperature: Input should be a valid number'"),
        ({"top_p": -0.1}, "'top_p: range: 0..1'"),
        ({"system": 7}, "'system: Input should be a valid string'"),
        ({"stop_sequences": [1]}, "stop_sequences"),
        ({"tool_choice": {"type": "perhaps"}}, "tool_choice"),
        ({"tools": [{"name": "look"}]}, "'tools.0.input_schema: Field required'"),
        (
            {"thinking": {"type": "enabled", "budget_tokens": "1"}},
            "thinking.budget_tokens: Input should be a valid int",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "'messages.0.content.0.text: Field required'",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": [7]}]}, "messages.0.content.0"),
    ],
)
def test_invalid_params(make, change, words):
    sandbox, client = make()
    body = {name: value for name, value in {**params(), **change}.items() if value is not None}
    with pytest.raises(anthropic.BadRequestError, match=words) as caught:
        client.post("/v1/messages", body=body, cast_to=object)
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    assert caught.value.body["request_id"] == caught.value.request_id
    assert sandbox.books.purchases == []


def test_what_the_api_takes_is_taken(make):
    """All of it at once: blocks with everything that an answer of the SDK's brings along, tools, and the rest."""
    _, client = make()
    asked = client.messages.create(
        **params(), tools=[{"name": "look", "input_schema": {"type": "object"}}], tool_choice={"type": "any"}
    )
    image = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    result = {"type": "tool_result", "tool_use_id": asked.content[1].id, "content": [{"type": "text", "text": "x"}]}
    messages = [
        *params()["messages"],
        {"role": "assistant", "content": [block.model_dump() for block in asked.content]},
        {"role": "user", "content": [result, {"type": "image", "source": image}]},
    ]
    more = {
        "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        "tools": [
            {"name": "look", "input_schema": {"type": "object"}},
            {"type": "web_search_20250305", "name": "web_search"},
        ],
        "thinking": {"type": "enabled", "budget_tokens": 1_024},
        "stop_sequences": ["x"],
        "metadata": {"user_id": "u"},
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
        "service_tier": "auto",
        "temperature": 1,
        "top_p": 0.5,
        "top_k": 40,
        "inference_geo": "us",
    }
    body = {**params(), **more, "messages": messages, "max_tokens": 2_048}
    for betas in ({}, {"anthropic-beta": "some-beta"}):
        message = client.post("/v1/messages", body=body, cast_to=anthropic.types.Message, options={"headers": betas})
        assert message.usage.inference_geo == "us"
    beta = client.beta.messages.create(**params(), betas=["b"], context_management={"edits": []})
    assert beta.content


def test_models_old_and_new(make):
    sandbox, client = make()
    found = {
        name: client.post("/v1/messages", body={**params(), "model": name}, cast_to=anthropic.types.Message)
        for name in ("claude-sonnet-5", "claude-opus-5-5", "claude-haiku-4-5", "claude-sonnet-4-5-20250929")
    }
    assert {name: message.model for name, message in found.items()} == {
        "claude-sonnet-5": "claude-sonnet-5",
        "claude-opus-5-5": "claude-opus-5-5",
        "claude-haiku-4-5": "claude-haiku-4-5-20251001",
        "claude-sonnet-4-5-20250929": "claude-sonnet-4-5-20250929",
    }
    geos = [found[name].usage.inference_geo for name in ("claude-sonnet-5", "claude-haiku-4-5")]
    assert geos == ["global", "not_available"]
    with pytest.raises(anthropic.NotFoundError, match="'model: claude-unheard-of'"):
        client.messages.create(**{**params(), "model": "claude-unheard-of"})
    with pytest.raises(anthropic.NotFoundError):
        client.messages.count_tokens(model="claude-unheard-of", messages=params()["messages"])
    old = client.models.retrieve("claude-sonnet-4-5")
    assert (old.id, old.lifecycle) == ("claude-sonnet-4-5-20250929", "deprecated")
    # The oldest SDK does not know the field: it hands on what JSON has.
    assert old.to_dict(mode="json")["retires_at"] == "2026-11-30T00:00:00Z"
    assert client.models.retrieve("claude-sonnet-5").retires_at is None
    sandbox.models = ["claude-unheard-of"]
    assert client.messages.create(**{**params(), "model": "claude-unheard-of"}).model == "claude-unheard-of"
    assert [model.id for model in client.models.list()] == ["claude-unheard-of"]
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**params())


@pytest.mark.parametrize(
    ("fault", "again"),
    [
        ("messages.overloaded_529", "true"),
        ("messages.error_500", "true"),
        ("messages.rate_limited_429", "true"),
        ("messages.unauthorized_401", "false"),
        ("messages.billing_402", "false"),
    ],
)
def test_an_error_says_whether_to_try_again(make, fault, again):
    sandbox, client = make()
    sandbox.fault(fault)
    with pytest.raises(anthropic.APIStatusError) as caught:
        client.messages.create(**params())
    assert caught.value.response.headers["x-should-retry"] == again
    assert "x-should-retry" not in client.messages.with_raw_response.create(**params()).headers


def test_long_output_is_for_batches_only(make):
    _, client = make()
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.beta.messages.create(**{**params(), "max_tokens": 300_000}, betas=["output-300k-2026-03-24"], timeout=60)


def test_over_32_megabytes(make):
    sandbox, client = make()
    with pytest.raises(anthropic.APIStatusError) as caught:
        client.messages.create(**params("x" * 32_000_000))
    assert caught.value.status_code == 413
    assert caught.value.body["error"]["type"] == "request_too_large"
    assert client.messages.create(**params()).content  # the next call gets a new connection
    assert sandbox.books.bought("hi") == 1


def test_keys_and_workspaces(make):
    sandbox, client = make(api_keys={"k1": "wrkspc_one", "k2": "wrkspc_two"})
    other = sandbox.client(api_key="k2")
    batch = client.messages.batches.create(requests=[{"custom_id": "a", "params": params()}])
    assert [b.id for b in client.messages.batches.list()] == [batch.id]
    assert list(other.messages.batches.list()) == []
    with pytest.raises(anthropic.NotFoundError):
        other.messages.batches.retrieve(batch.id)
    headers = other.messages.with_raw_response.create(**params()).headers
    assert headers["anthropic-workspace-id"] == "wrkspc_two"
    with pytest.raises(anthropic.AuthenticationError):
        sandbox.client(api_key="k3", max_retries=0).messages.create(**params())
    sandbox.api_keys = ["k2"]
    with pytest.raises(anthropic.AuthenticationError):
        client.messages.create(**params())
    token = anthropic.Anthropic(base_url=sandbox.base_url, auth_token="k2")
    assert token.messages.create(**params()).content


def test_replies(make):
    sandbox, client = make()
    sandbox.reply = turns(
        Reply.tool_use("look", {"at": 1}, text="hm"),
        Reply.pause_turn("working"),
        Reply.refusal("no", category="bio"),
        {"content": [{"type": "text", "text": "done"}], "usage": {"output_tokens": 77}},
    )
    history = params()["messages"]
    seen = []
    for _ in range(5):
        message = client.messages.create(**{**params(), "messages": history})
        seen.append(message)
        history = [*history, {"role": "assistant", "content": "x"}, {"role": "user", "content": "go on"}]
    assert [m.stop_reason for m in seen] == ["tool_use", "pause_turn", "refusal", "end_turn", "end_turn"]
    assert seen[0].content[1].input == {"at": 1}
    assert seen[0].content[1].to_dict()["caller"] == {"type": "direct"}
    assert seen[2].stop_details.category == "bio"
    assert seen[3].usage.output_tokens == 77
    sandbox.reply = lambda p: Reply.error("overloaded_error", "busy") if p["max_tokens"] == 7 else "fine"
    assert client.messages.create(**params()).content[0].text == "fine"
    with pytest.raises(anthropic.APIStatusError) as caught:
        client.messages.create(**{**params(), "max_tokens": 7})
    assert caught.value.status_code == 529
    sandbox.reply = lambda _: Reply.text("x").with_usage(input_tokens=5, cache_read_input_tokens=9)
    assert client.messages.create(**params()).usage.cache_read_input_tokens == 9
    sandbox.reply = lambda p: 1 / 0
    with pytest.raises(anthropic.InternalServerError, match="ZeroDivisionError"):
        client.messages.create(**params())


def test_forced_tool_is_called(make):
    _, client = make()
    tool = {"name": "extract", "input_schema": {"type": "object"}}
    message = client.messages.create(**params("z"), tools=[tool], tool_choice={"type": "tool", "name": "extract"})
    assert message.stop_reason == "tool_use"
    assert message.content[-1].input == {"echo": "z"}


def test_latency_and_running_calls(make):
    sandbox, client = make(sync_latency=Uniform(0.15, 0.2, seed=1))
    with ThreadPoolExecutor() as pool:
        started = time.monotonic()
        answers = [pool.submit(client.messages.create, **params("p")) for _ in range(4)]
        until(lambda: sandbox.books.running("sync") == 4)
        assert sandbox.books.bought("p") == 4
        assert sandbox.books.billed() == 0
        for answer in answers:
            answer.result()
    assert 0.15 <= time.monotonic() - started < 1
    assert sandbox.books.billed("sync") == 4
    assert sandbox.books.bought_twice() == {"p": 4}


def test_rate_limits(make):
    sandbox, client = make(rate_limits=RateLimits(requests_per_minute=2))
    headers = client.messages.with_raw_response.create(**params()).headers
    assert headers["anthropic-ratelimit-requests-limit"] == "2"
    assert headers["anthropic-ratelimit-requests-remaining"] == "1"
    limits = [int(headers[f"anthropic-ratelimit-{kind}-limit"]) for kind in ("input-tokens", "output-tokens", "tokens")]
    assert limits[2] == limits[0] + limits[1] > 0
    client.messages.create(**params())
    with pytest.raises(anthropic.RateLimitError) as caught:
        client.messages.create(**params())
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 30
    sandbox.rate_limits = {"input_tokens_per_minute": 10}
    client.messages.create(**params("x" * 400))
    with pytest.raises(anthropic.RateLimitError, match="input-tokens"):
        client.messages.create(**params())
    sandbox.rate_limits = {"requests_per_minute": 60, "burst": 2}
    for _ in range(2):
        client.messages.create(**params())
    with pytest.raises(anthropic.RateLimitError, match="limit of 60 requests") as caught:
        client.messages.create(**params())
    assert caught.value.response.headers["anthropic-ratelimit-requests-limit"] == "60"
    assert caught.value.response.headers["retry-after"] == "1"
    sandbox.rate_limits = None
    assert client.messages.create(**params()).content
    sandbox.rate_limits = {"concurrency": 1}
    sandbox.sync_latency = timedelta(seconds=0.1)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(client.messages.create, **params())
        until(lambda: sandbox.books.running() == 1)
        with pytest.raises(anthropic.RateLimitError, match="concurrent"):
            client.messages.create(**params())
        first.result()


def test_clock_skew(make):
    sandbox, client = make(clock_skew=timedelta(hours=3))
    expected = datetime.now(timezone.utc) + timedelta(hours=3)
    answer = client.messages.batches.with_raw_response.create(requests=[{"custom_id": "a", "params": params()}])
    assert abs(parsedate_to_datetime(answer.headers["date"]) - expected) < timedelta(seconds=3)
    assert abs(answer.parse().created_at - expected) < timedelta(seconds=3)
    sandbox.clock_skew = -3600
    assert client.messages.batches.retrieve(answer.parse().id).created_at < datetime.now(timezone.utc)
