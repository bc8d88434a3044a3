"""The lanes against the sandbox, which shares no code with them."""

from __future__ import annotations

import time

import orjson
import pytest

from batchwise.api.lines import LineSplitter
from batchwise.sandbox import Sandbox
from tests.api.test_faults import caught


@pytest.fixture
def sandbox():
    with Sandbox(batch_latency=0.05) as sandbox:
        yield sandbox


@pytest.fixture
def lanes(make_lanes, sandbox):
    return make_lanes(base_url=sandbox.base_url, api_key="sandbox")


def params(text="hello", max_tokens=16):
    return {"model": "claude-opus-4-8", "max_tokens": max_tokens, "messages": [{"role": "user", "content": text}]}


def bulk(count):
    rows = [orjson.dumps({"custom_id": f"r-{i}", "params": params(f"p {i}")}) for i in range(count)]
    pieces = [b'{"requests":[', b",".join(rows), b"]}"]
    return pieces, sum(map(len, pieces))


def ended(lanes, remote_id):
    for _ in range(200):
        info = lanes.batch("retrieve", remote_id)
        if info.status == "ended":
            return info
        time.sleep(0.02)
    raise AssertionError("the batch does not end")


def test_a_batchs_life(lanes):
    pieces, length = bulk(500)
    created = lanes.create(pieces, length)
    assert created.counts.processing == created.counts.total == 500
    info = ended(lanes, created.id)
    assert (info.counts.succeeded, info.counts.total) == (500, 500)
    assert info.server_time is not None
    assert info.workspace
    chunks, error = lanes.results(info.id)
    assert error is None
    splitter = LineSplitter()
    rows = [orjson.loads(line) for one in chunks for line in splitter.feed(one)]
    assert {row["custom_id"] for row in rows} == {f"r-{i}" for i in range(500)}
    assert splitter.rest() == b""


def test_pages_of_the_list(lanes):
    ids = [lanes.create(*bulk(1)).id for _ in range(3)]
    first = lanes.batch("list", limit=2)
    assert [batch.id for batch in first.batches] == [ids[2], ids[1]]
    assert first.has_more
    second = lanes.batch("list", limit=2, after_id=first.last_id)
    assert [batch.id for batch in second.batches] == [ids[0]]
    assert not second.has_more


def test_cancel(lanes, sandbox):
    sandbox.batch_latency = 30
    remote_id = lanes.create(*bulk(3)).id
    info = lanes.batch("cancel", remote_id)
    assert info.status in {"canceling", "ended"}
    assert ended(lanes, remote_id).counts.total == 3


@pytest.mark.parametrize("max_tokens", [16, 64_000])
def test_a_message_and_a_long_one(max_tokens, lanes):
    body = orjson.dumps(params("good morning", max_tokens))
    reply = lanes.call(body, model="claude-opus-4-8", max_tokens=max_tokens)
    message = orjson.loads(reply.body)
    assert message["type"] == "message"
    assert "good morning" in message["content"][0]["text"]
    assert message["stop_reason"] == "end_turn"
    assert any(name.startswith("anthropic-ratelimit-") for name in reply.headers)


@pytest.mark.parametrize(
    ("name", "status", "sent"),
    [
        ("create.drop_after", None, True),
        ("create.error_500_after", 500, True),
        ("create.overloaded_529", 529, True),
        ("create.too_large_413", 413, True),
        ("create.rate_limited_429", 429, True),
    ],
)
def test_ordered_faults_of_a_create(name, status, sent, lanes, sandbox):
    sandbox.fault(name, times=1)
    fault = caught(lanes.create, *bulk(2)).fault
    assert (fault.status, fault.request_sent) == (status, sent)


def test_the_monthly_cap(lanes, sandbox):
    sandbox.fault("messages.spend_cap", times=1)
    fault = caught(lanes.call, orjson.dumps(params()), model="claude-opus-4-8", max_tokens=16).fault
    assert (fault.status, fault.error_code) == (429, "enforced_spend_limit_reached")
    assert fault.retry_after is None


def test_ordered_faults_of_results(lanes, sandbox):
    remote_id = lanes.create(*bulk(50)).id
    ended(lanes, remote_id)
    sandbox.fault("results.drop", times=1)
    sandbox.fault("results.crlf", times=2)
    chunks, error = lanes.results(remote_id)
    assert error is not None
    splitter = LineSplitter()
    partial = [line for one in chunks for line in splitter.feed(one)]
    assert 0 < len(partial) < 50
    chunks, error = lanes.results(remote_id)
    splitter = LineSplitter()
    whole = [line for one in chunks for line in splitter.feed(one)]
    assert (error, len(whole)) == (None, 50)
    assert set(partial) <= set(whole)
