"""The Message Batches endpoints, by the SDK's own calls."""

from __future__ import annotations

import random
import re
import time
from datetime import timedelta

import anthropic
import anyio
import orjson
import pytest

from batchwise.sandbox import Fixed, Reply, Uniform
from batchwise.sandbox.batches import Batch, Cancel

from .conftest import params, raw_results, results, rows


def test_life(make):
    sandbox, client = make(batch_latency=0.15)
    created = client.messages.batches.create(requests=rows(5))
    assert created.processing_status == "in_progress"
    assert created.request_counts.processing == 5
    assert abs(created.expires_at - created.created_at - timedelta(hours=24)) < timedelta(milliseconds=1)
    assert created.results_url is None
    assert client.messages.batches.retrieve(created.id).request_counts.succeeded == 0
    with pytest.raises(anthropic.AnthropicError, match="results_url"):
        client.messages.batches.results(created.id)
    time.sleep(0.16)
    ended = client.messages.batches.retrieve(created.id)
    assert ended.processing_status == "ended"
    assert (ended.request_counts.processing, ended.request_counts.succeeded) == (0, 5)
    assert abs(ended.ended_at - ended.created_at - timedelta(seconds=0.15)) < timedelta(milliseconds=1)
    assert ended.archived_at is None
    found = results(client, created.id)
    assert {name: result.message.content[0].text for name, result in found.items()} == {
        f"r-{i}": f"echo: r {i}" for i in range(5)
    }
    assert found["r-0"].message.usage.service_tier == "batch"
    assert sandbox.books.billed("batch") == 5


def test_results_are_shuffled_by_the_seed_and_reread_alike(make):
    _, client = make()
    batch = client.messages.batches.create(requests=rows(50))
    first = raw_results(client, batch.id)
    assert raw_results(client, batch.id) == first
    order = [orjson.loads(line)["custom_id"] for line in first.splitlines()]
    assert order != [f"r-{i}" for i in range(50)]
    assert sorted(order) == sorted(f"r-{i}" for i in range(50))


def test_async_client(make):
    sandbox, _ = make()

    async def run():
        async with sandbox.async_client() as client:
            batch = await client.messages.batches.create(requests=rows(3))
            beta = await client.beta.messages.batches.retrieve(batch.id)
            found = [row.custom_id async for row in await client.messages.batches.results(batch.id)]
            return beta.id == batch.id, sorted(found)

    assert anyio.run(run) == (True, ["r-0", "r-1", "r-2"])


def test_chunked_body(make):
    sandbox, client = make()
    body = orjson.dumps({"requests": rows(500)})

    def pieces():
        generator = random.Random(1)
        at = 0
        while at < len(body):
            step = generator.choice((1, 7, 100, 5000))
            yield body[at : at + step]
            at += step

    batch = client.post(
        "/v1/messages/batches",
        cast_to=object,
        content=pieces(),
        options={"headers": {"content-type": "application/json"}},
    )
    assert sandbox.books.running() + sandbox.books.billed() == 500
    assert batch["request_counts"]["processing"] == 500


_PATTERN = re.escape("\"requests.0.custom_id: String should match pattern '^[a-zA-Z0-9_-]{1,64}$'\"")


@pytest.mark.parametrize(
    ("requests", "words"),
    [
        ([], "at least 1 item"),
        ([{"custom_id": "a b", "params": params()}], _PATTERN),
        ([{"custom_id": "a\n", "params": params()}], _PATTERN),
        (
            [{"custom_id": "x" * 65, "params": params()}],
            "'requests.0.custom_id: String should have at most 64 characters'",
        ),
        ([*rows(3), *rows(1)], "'r-0' is used more than once"),
        ([{"custom_id": "a"}], "requests.0.params: Field required"),
        ([{"params": params()}], "requests.0.custom_id: Field required"),
        ([{"custom_id": "a", "params": params(), "tag": 1}], "requests.0.tag: Extra inputs"),
        ([{"custom_id": f"r{i}", "params": {}} for i in range(100_001)], "at most 100000"),
    ],
)
def test_create_refused_as_a_whole(make, requests, words):
    sandbox, client = make()
    with pytest.raises(anthropic.BadRequestError, match=words):
        client.messages.batches.create(requests=requests)
    assert sandbox.books.purchases == []
    assert list(client.messages.batches.list()) == []


@pytest.mark.parametrize("chunked", [False, True])
def test_over_256_megabytes(make, chunked):
    sandbox, client = make()
    block = b" " * 1_000_000

    def body():
        for _ in range(257):
            yield block

    content = body() if chunked else block * 257
    with pytest.raises(anthropic.APIStatusError) as caught:
        client.post("/v1/messages/batches", cast_to=object, content=content)
    assert caught.value.status_code == 413
    assert caught.value.body["error"]["type"] == "request_too_large"
    assert sandbox.books.purchases == []


REFUSED = [
    {"stream": True},
    {"speed": "fast"},
    {"store": False},
    {"previous_thread_event_id": "x"},
    {"cache_hint": {}},
    {"context_hint": {}},
    {"thread": {"type": "thread"}},
    {"fallbacks": []},
    {"billing_policy": {"bill_to": "user_profile"}},
    {"temperature": 1.5},
    {"colour": "blue"},
    {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
    {"max_tokens": 0},
    {"max_tokens": 300_000},
    {"model": ""},
    {"messages": []},
    {"model": "claude-unheard-of"},
]


@pytest.mark.parametrize("lives", [["1h", "5m"], ["1h", None], [None, "5m"], ["5m", "1h"], [None, "1h"]])
def test_an_hour_may_not_stand_behind_five_minutes(make, lives):
    _, client = make()
    blocks = [
        {"type": "text", "text": "x", "cache_control": {"type": "ephemeral", **({"ttl": life} if life else {})}}
        for life in lives
    ]
    batch = client.messages.batches.create(requests=[{"custom_id": "a", "params": {**params(), "system": blocks}}])
    assert (results(client, batch.id)["a"].type == "errored") == (lives[-1] == "1h")


def test_refused_params_are_errored_rows(make):
    sandbox, client = make()
    requests = rows(1)
    requests += [{"custom_id": f"bad-{i}", "params": {**params(), **extra}} for i, extra in enumerate(REFUSED)]
    requests += [
        {"custom_id": f"no-{name}", "params": {k: v for k, v in params().items() if k != name}} for name in params()
    ]
    batch = client.messages.batches.create(requests=requests)
    counts = client.messages.batches.retrieve(batch.id).request_counts
    assert (counts.succeeded, counts.errored) == (1, len(requests) - 1)
    found = results(client, batch.id)
    bad = [result for result in found.values() if result.type == "errored"]
    unheard_of = [result.error.error for result in bad if result.error.error.type == "not_found_error"]
    assert [error.message for error in unheard_of] == ["model: claude-unheard-of"]
    assert {result.error.error.type for result in bad} == {"invalid_request_error", "not_found_error"}
    assert "speed" in found["bad-1"].error.error.message
    assert found["no-model"].error.error.message == "model: Field required"
    assert sandbox.books.billed() == 1
    assert sandbox.books.tokens("batch").output > 0


def test_300k_output_with_the_beta(make):
    _, client = make()
    requests = [{"custom_id": "long", "params": {**params(), "max_tokens": 300_000}}]
    batch = client.beta.messages.batches.create(requests=requests, betas=["output-300k-2026-03-24"])
    assert [row.result.type for row in client.beta.messages.batches.results(batch.id)] == ["succeeded"]


def test_replies_in_rows(make):
    def reply(asked):
        index = int(asked["messages"][0]["content"].split()[1])
        return [Reply.pause_turn("wait"), Reply.error("api_error", "boom"), "text"][index % 3]

    sandbox, client = make(reply=reply)
    batch = client.messages.batches.create(requests=rows(3))
    found = results(client, batch.id)
    assert found["r-0"].message.stop_reason == "pause_turn"
    assert found["r-1"].error.error.message == "boom"
    assert found["r-2"].message.content[0].text == "text"
    assert sandbox.books.billed() == 2


def test_cursors(make):
    _, client = make()
    ids = [client.messages.batches.create(requests=rows(1)).id for _ in range(7)][::-1]
    page = client.messages.batches.list(limit=3)
    assert ([b.id for b in page.data], page.has_more) == (ids[:3], True)
    assert (page.first_id, page.last_id) == (ids[0], ids[2])
    assert [b.id for b in client.messages.batches.list(limit=2)] == ids  # every page, by after_id
    last = client.messages.batches.list(limit=3, after_id=ids[4])
    assert ([b.id for b in last.data], last.has_more) == (ids[5:], False)
    before = client.messages.batches.list(limit=2, before_id=ids[5])
    assert ([b.id for b in before.data], before.has_more) == (ids[3:5], True)
    newest = client.messages.batches.list(limit=1000, before_id=ids[2])
    assert ([b.id for b in newest.data], newest.has_more) == (ids[:2], False)
    for wrong in ({"limit": 0}, {"limit": 1001}, {"after_id": "msgbatch_none"}):
        with pytest.raises(anthropic.BadRequestError):
            client.messages.batches.list(**wrong)


def test_delete(make):
    sandbox, client = make(batch_latency=60)
    batch = client.messages.batches.create(requests=rows(2))
    with pytest.raises(anthropic.BadRequestError, match="being processed"):
        client.messages.batches.delete(batch.id)
    sandbox.finish(batch.id)
    assert client.messages.batches.delete(batch.id).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.retrieve(batch.id)
    assert list(client.messages.batches.list()) == []
    assert sandbox.books.billed() == 2


def test_cancel_leaves_what_is_done(make):
    sandbox, client = make(batch_latency=1000, cancel_latency=100)
    batch = client.messages.batches.create(requests=rows(10))
    sandbox.advance(420)
    canceling = client.messages.batches.cancel(batch.id)
    assert canceling.processing_status == "canceling"
    assert canceling.cancel_initiated_at is not None
    assert canceling.request_counts.processing == 10
    assert client.messages.batches.cancel(batch.id).cancel_initiated_at == canceling.cancel_initiated_at
    assert sandbox.books.running("batch") == 10
    sandbox.advance(101)
    ended = client.messages.batches.retrieve(batch.id)
    assert ended.processing_status == "ended"
    assert (ended.request_counts.succeeded, ended.request_counts.canceled) == (4, 6)
    kinds = [result.type for result in results(client, batch.id).values()]
    assert (kinds.count("succeeded"), kinds.count("canceled")) == (4, 6)
    assert sandbox.books.billed() == 4
    with pytest.raises(anthropic.BadRequestError, match="already ended"):
        client.messages.batches.cancel(batch.id)


def test_cancel_without_latency_answers_canceling(make):
    _, client = make(batch_latency=10)
    batch = client.messages.batches.create(requests=rows(2))
    assert client.messages.batches.cancel(batch.id).processing_status == "canceling"
    assert client.messages.batches.retrieve(batch.id).request_counts.canceled == 2


def test_window_expires_the_rest(make):
    sandbox, client = make(batch_latency=200, window=timedelta(seconds=50))
    batch = client.messages.batches.create(requests=rows(8))
    assert abs(batch.expires_at - batch.created_at - timedelta(seconds=50)) < timedelta(milliseconds=1)
    sandbox.advance(49)
    assert client.messages.batches.retrieve(batch.id).processing_status == "in_progress"
    sandbox.advance(2)
    counts = client.messages.batches.retrieve(batch.id).request_counts
    assert (counts.succeeded, counts.expired) == (2, 6)
    kinds = [result.type for result in results(client, batch.id).values()]
    assert kinds.count("expired") == 6
    assert sandbox.books.billed() == 2


def test_retention(make):
    sandbox, client = make()
    batch = client.messages.batches.create(requests=rows(2))
    url = client.messages.batches.retrieve(batch.id).results_url
    sandbox.advance(timedelta(days=29, seconds=1))
    archived = client.messages.batches.retrieve(batch.id)
    assert archived.archived_at is not None
    assert archived.results_url is None
    assert archived.request_counts.succeeded == 2
    assert [b.id for b in client.messages.batches.list()] == [batch.id]
    with pytest.raises(anthropic.NotFoundError, match="no longer available"):
        client.get(url, cast_to=object)


def test_queue_limit_counts_the_whole_account(make):
    sandbox, client = make(batch_latency=60, batch_queue_limit=10)
    batch = client.messages.batches.create(requests=rows(6))
    sandbox.add_foreign_batch(3)
    with pytest.raises(anthropic.RateLimitError):
        client.messages.batches.create(requests=rows(2, "x"))
    client.messages.batches.create(requests=rows(1, "y"))
    sandbox.finish(batch.id)
    client.messages.batches.create(requests=rows(5, "z"))
    assert sandbox.books.running() == 6


def test_calls_of_batch_endpoints_can_be_limited(make):
    _, client = make(rate_limits={"batch_calls_per_minute": 1})
    client.messages.batches.list()
    with pytest.raises(anthropic.RateLimitError):
        client.messages.batches.list()


def test_batches_run_apart_with_drawn_durations(make):
    sandbox, client = make(batch_latency=Uniform(10, 20), seed=3)
    for _ in range(3):
        client.messages.batches.create(requests=rows(1))
    durations = [batch.duration for batch in sandbox.books.batches]
    assert len(set(durations)) == 3
    assert all(10 <= duration <= 20 for duration in durations)
    again, other = make(batch_latency=Uniform(10, 20), seed=3)
    other.messages.batches.create(requests=rows(1))
    assert again.books.batches[0].duration == durations[0]
    sandbox.batch_latency = Fixed(0)
    assert client.messages.batches.create(requests=rows(1)).processing_status == "in_progress"


def test_progress_is_a_pure_function_of_time():
    batch = Batch("id", 1, "w", [{}] * 100, 1000.0, 50.0, 80.0, 500.0, "seed")
    done = []
    for elapsed in (0, 10, 25, 49, 50, 70):
        batch.cancel = Cancel(1000.0 + elapsed, 2000.0)
        done.append(batch.finished_rows())
    assert done == [0, 20, 50, 98, 100, 100]
    batch.cancel = None
    assert [batch.status(1000.0 + t) for t in (0, 49.9, 50)] == ["in_progress", "in_progress", "ended"]
    assert batch.archived_at(1499.9) is None
    assert batch.archived_at(1500.0) == 1500.0
