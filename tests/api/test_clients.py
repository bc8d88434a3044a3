from __future__ import annotations

import anthropic
import pytest

from batchwise.api.clients import base_url, check_client, must_stream
from batchwise.errors import InvalidValueError


def client(**options):
    return anthropic.Anthropic(api_key="k", **options)


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("https://api.anthropic.com", "https://api.anthropic.com"),
        ("https://API.Anthropic.com:443/", "https://api.anthropic.com"),
        ("http://127.0.0.1:8080//", "http://127.0.0.1:8080"),
        ("https://user:secret@proxy.test/anthropic/?x=1", "https://proxy.test/anthropic"),
    ],
)
def test_base_url(given, normal):
    assert base_url(client(base_url=given)) == normal


def test_the_right_clients_pass():
    check_client(client(), async_=False)
    check_client(anthropic.AsyncAnthropic(api_key="k"), async_=True)
    check_client(client().with_options(max_retries=5), async_=False)
    aws = anthropic.AnthropicAWS(api_key="k", aws_region="us-east-1", workspace_id="w")
    check_client(aws, async_=False)


def test_a_sync_client_in_place_of_an_async_one_is_refused_with_the_remedy():
    with pytest.raises(
        InvalidValueError, match=r"is an AsyncAnthropic; Dispatcher needs an anthropic\.Anthropic .*Async"
    ):
        check_client(anthropic.AsyncAnthropic(api_key="k"), async_=False)
    with pytest.raises(InvalidValueError, match=r"is an Anthropic; AsyncDispatcher needs an anthropic\.AsyncAnthropic"):
        check_client(client(), async_=True)


@pytest.mark.parametrize("thing", ["sk-key", None, object(), anthropic.Anthropic])
def test_a_value_that_is_no_client_is_refused(thing):
    with pytest.raises(InvalidValueError, match=r"client is a \w+; give an anthropic\.Anthropic, or leave it out"):
        check_client(thing, async_=False)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AnthropicBedrock", {"aws_region": "us-east-1"}),
        ("AnthropicVertex", {"region": "us-east5", "project_id": "p", "access_token": "x"}),
        ("AnthropicFoundry", {"api_key": "k", "resource": "r"}),
        ("AnthropicBedrockMantle", {"api_key": "k", "aws_region": "us-east-1"}),
    ],
)
@pytest.mark.parametrize("prefix", ["", "Async"])
def test_platforms_without_batches(name, options, prefix):
    made = getattr(anthropic, prefix + name)(**options)
    with pytest.raises(InvalidValueError, match=f"{prefix}{name}'s platform has no Message Batches API"):
        check_client(made, async_=bool(prefix))


def test_a_client_that_signs_whole_bodies_is_refused():
    aws = anthropic.AnthropicAWS(aws_access_key="a", aws_secret_key="s", aws_region="us-east-1", workspace_id="w")
    with pytest.raises(InvalidValueError, match="give it an api_key instead"):
        check_client(aws, async_=False)


@pytest.mark.parametrize(
    ("model", "max_tokens", "streams"),
    [
        ("claude-opus-4-8", 21_333, False),
        ("claude-opus-4-8", 21_334, True),
        ("claude-opus-4-0", 8_192, False),
        ("claude-opus-4-0", 8_193, True),
    ],
)
def test_what_the_sdk_refuses_unstreamed_is_streamed(model, max_tokens, streams):
    made = client()
    assert must_stream(made, model, max_tokens) is streams
    if streams:
        with pytest.raises(ValueError, match="Streaming is required"):
            made.messages.create(model=model, max_tokens=max_tokens, messages=[{"role": "user", "content": "x"}])


def test_an_sdk_without_the_calculation_of_timeouts_streams_long_calls():
    assert must_stream(object(), "m", 21_334)
    assert not must_stream(object(), "m", 21_333)
