"""The SDK's own client in front of a dispatcher, by the SDK's own calls."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from decimal import Decimal

import anthropic
import attrs
import httpx2
import pytest

import batchwise as bw
from batchwise import AsyncDispatcher, Dispatcher, Lane, Policy, Request, ToolUse
from batchwise.client.answering import Repeats
from batchwise.sandbox import Sandbox
from tests.strategies import params

from .world import FAST, HOURS_30

POLICY = Policy(poll_every=FAST, linger=timedelta(seconds=0.3))
TOOLS = [{"name": "read", "description": "Reads.", "input_schema": {"type": "object"}}]


@pytest.fixture
def sandbox():
    with Sandbox(batch_latency=0.01) as made:
        yield made


def asked(text):
    return {**params(text), "model": "claude-haiku-4-5"}


def creates(sandbox):
    return sandbox.books.requests_by_path["POST /v1/messages/batches"]


def calls(sandbox):
    return sandbox.books.requests_by_path["POST /v1/messages"]


async def _gathered(sandbox, path, count):
    async with sandbox.async_client() as inner, AsyncDispatcher(inner, ledger=path, policy=POLICY) as d:
        client = d.client(latency=HOURS_30, job="nightly")
        messages = await asyncio.gather(*[client.messages.create(**asked(f"q-{i}")) for i in range(count)])
        assert (await d.progress("nightly")).total == count
    return [message.content[0].text for message in messages]


def test_200_concurrent_calls_become_few_batches_and_nothing_is_bought_again(sandbox, tmp_path):
    first = asyncio.run(_gathered(sandbox, tmp_path / "ledger.db", 200))
    assert 1 <= creates(sandbox) <= 3
    before = creates(sandbox)
    assert asyncio.run(_gathered(sandbox, tmp_path / "ledger.db", 200)) == first
    assert (creates(sandbox), calls(sandbox)) == (before, 0)


def test_30_threads_become_few_batches(sandbox, tmp_path):
    with sandbox.client() as inner, Dispatcher(inner, ledger=tmp_path / "l.db", policy=POLICY) as d:
        client = d.client(latency=HOURS_30)
        with ThreadPoolExecutor(30) as pool:
            messages = list(pool.map(lambda i: client.messages.create(**asked(f"t-{i}")), range(30)))
        assert len({message.id for message in messages}) == 30
    assert 1 <= creates(sandbox) <= 3
    assert calls(sandbox) == 0


def test_20_agents_of_three_patient_turns(sandbox, tmp_path):
    async def agent(client, name):
        body = {**asked(name), "tools": TOOLS}
        for turn in range(3):
            answer = await client.messages.create(**body)
            said = [block.model_dump(mode="json", exclude_unset=True) for block in answer.content]
            more = [{"role": "assistant", "content": said}, {"role": "user", "content": f"go on {turn}"}]
            body = {**body, "messages": [*body["messages"], *more]}

    async def run():
        async with sandbox.async_client() as inner, AsyncDispatcher(inner, ledger=tmp_path / "l", policy=POLICY) as d:
            client = d.client(latency=HOURS_30, tool_use=ToolUse.PATIENT)
            await asyncio.gather(*(agent(client, f"agent-{i}") for i in range(20)))
            progress = await d.progress()
            assert progress.total == progress.settled == 60

    asyncio.run(run())
    assert calls(sandbox) == 0
    assert 3 <= creates(sandbox) <= 10


def test_samples_of_one_prompt_stay_several_and_are_found_again(sandbox, tmp_path):
    def run():
        with sandbox.client() as inner, Dispatcher(inner, ledger=tmp_path / "l.db", policy=POLICY) as d:
            client = d.client(job="samples")
            return [client.messages.create(**asked("same")).id for _ in range(3)]

    first = run()
    assert len(set(first)) == 3
    assert run() == first
    assert calls(sandbox) == 3


@pytest.mark.filterwarnings("ignore:3 calls in a row")
def test_a_stream_of_a_call_that_may_wait(sandbox, tmp_path):
    with sandbox.client() as inner, Dispatcher(inner, ledger=tmp_path / "l.db", policy=POLICY) as d:
        client = d.client(latency=HOURS_30, job="streams")
        whole = client.messages.create(**asked("streamed"))
        with d.client(latency=HOURS_30).messages.stream(**asked("streamed")) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert text == final.content[0].text == whole.content[0].text
        assert final.stop_reason == whole.stop_reason
        with d.client(latency=HOURS_30).beta.messages.stream(**asked("streamed")) as beta:
            assert beta.get_final_message().content[0].text == text
    assert calls(sandbox) == 0


def test_a_blocking_stream_goes_through_at_once(sandbox, tmp_path):
    with sandbox.client() as inner, Dispatcher(inner, ledger=tmp_path / "l.db", policy=POLICY) as d:
        with d.client().messages.stream(**asked("now")) as stream:
            assert stream.get_final_message().content
        assert d.progress().total == 0
    assert calls(sandbox) == 1


def test_everything_else_goes_to_the_api_as_it_is(sandbox, tmp_path):
    with sandbox.client() as inner, Dispatcher(inner, ledger=tmp_path / "l.db", policy=POLICY) as d:
        client = d.client(latency=HOURS_30)
        assert client.messages.batches.list().data == []
        with pytest.raises(anthropic.NotFoundError):
            client.messages.batches.retrieve("msgbatch_unknown")


def test_a_timeout_of_the_caller_ends_the_wait_once_and_loses_nothing(tmp_path):
    with Sandbox(batch_latency=1.5) as sandbox, sandbox.client() as inner:
        with Dispatcher(inner, ledger=tmp_path / "l.db", policy=POLICY) as d:
            client = d.client(latency=HOURS_30, job="slow")
            with pytest.raises(anthropic.APITimeoutError):
                client.with_options(timeout=0.2, max_retries=1).messages.create(**asked("slow"))
            assert client.messages.create(**asked("slow")).content
            assert d.progress("slow").total == 1
        assert creates(sandbox) == 1


def test_what_batchwise_refuses_is_an_error_of_the_sdk(sandbox, tmp_path):
    with sandbox.client() as inner, Dispatcher(inner, ledger=tmp_path / "l.db", policy=POLICY) as d:
        client = d.client(latency=HOURS_30)
        with bw.tags(key="one", job="keys"):
            client.messages.create(**asked("a"))
            with pytest.raises(anthropic.ConflictError, match="key"):
                client.messages.create(**asked("b"))
        with pytest.raises(anthropic.BadRequestError, match="anthropic-workspace-id"):
            client.messages.create(**asked("c"), extra_headers={"anthropic-workspace-id": "w"})


def test_what_the_api_refuses_is_the_same_error(sandbox, tmp_path):
    body = {**asked("x"), "messages": [{"role": "nobody", "content": "x"}]}
    with sandbox.client() as inner, Dispatcher(inner, ledger=tmp_path / "l.db", policy=POLICY) as d:
        for client in (inner, d.client(), d.client(latency=HOURS_30)):
            with pytest.raises(anthropic.BadRequestError) as caught:
                client.messages.create(**body)
            assert caught.value.type == "invalid_request_error"
            assert caught.value.request_id


def test_a_deadline_that_is_past_means_now(sandbox, tmp_path):
    past = datetime.now(timezone.utc) - timedelta(hours=1)
    with sandbox.client() as inner, Dispatcher(inner, ledger=tmp_path / "l.db", policy=POLICY) as d:
        raw = d.client(latency=past).messages.with_raw_response.create(**asked("late"))
        assert raw.headers["batchwise-lane"] == Lane.SYNC.value


def test_the_third_call_that_waits_alone_warns_once(sandbox, tmp_path):
    with sandbox.client() as inner, Dispatcher(inner, ledger=tmp_path / "l.db", policy=POLICY) as d:
        client = d.client(latency=HOURS_30)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for number in range(4):
                client.messages.create(**asked(f"alone-{number}"))
        (warning,) = [each for each in said if "waited alone" in str(each.message)]
        assert warning.filename == __file__


@pytest.mark.parametrize("latency", [None, HOURS_30])
def test_a_stored_failure_is_the_same_error_after_a_restart(sandbox, tmp_path, latency):
    raised = []
    for text in ("x", "y"):  # of another number of calls before it, so that nothing but the ledger tells them apart
        for _ in range(2):
            with sandbox.client() as inner, Dispatcher(inner, ledger=tmp_path / "l.db", policy=POLICY) as d:
                with pytest.raises(anthropic.BadRequestError) as caught:
                    d.client(latency=latency, job="j").messages.create(
                        **{**asked(text), "messages": [{"role": "nobody", "content": text}]}
                    )
                raised.append(caught.value)
    for first, again in (raised[:2], raised[2:]):
        assert (first.status_code, first.type, first.request_id) == (400, "invalid_request_error", again.request_id)
        assert (again.type, again.body, str(again)) == (first.type, first.body, str(first))
    assert all(one.request_id.startswith("req_") for one in raised)
    assert raised[0].request_id != raised[2].request_id


def test_what_a_spend_limit_ends_is_a_402_as_what_it_refuses_is(sandbox, tmp_path):
    request = Request(asked("x"))
    once = Decimal(request.max_tokens * 5 + len(request.body) * 2) * Decimal("1.1") / 10**6  # as it is reserved
    sandbox.fault("messages.drop_after_billing")
    policy = attrs.evolve(POLICY, max_spend=once * Decimal("1.5"))
    with sandbox.client() as inner, Dispatcher(inner, ledger=tmp_path / "l.db", policy=policy) as d:
        for kind in ("spend_limit", "billing_error"):  # once what was begun has ended, and once before anything begins
            with pytest.raises(anthropic.APIStatusError) as caught:
                d.client().messages.create(**asked("x"))
            assert (caught.value.status_code, caught.value.type) == (402, kind)
        assert calls(sandbox) == 1


def test_a_status_that_no_type_tells_is_kept(tmp_path):
    def answered(request):
        if request.method == "GET":
            return httpx2.Response(200, json={"data": [], "has_more": False, "first_id": None, "last_id": None})
        error = {"type": "error", "error": {"type": "new_error", "message": "no"}}
        return httpx2.Response(422, json=error, headers={"request-id": "req_1"})

    for _ in range(2):
        http = httpx2.Client(transport=httpx2.MockTransport(answered))
        with anthropic.Anthropic(api_key="x", http_client=http) as inner, Dispatcher(inner, ledger=tmp_path / "l") as d:
            with pytest.raises(anthropic.UnprocessableEntityError) as caught:
                d.client(job="j").messages.create(**asked("x"))
            assert (caught.value.type, caught.value.request_id) == ("new_error", "req_1")


def test_calls_that_wait_together_cost_no_thread_each_and_share_their_terms(sandbox, tmp_path):
    async def run():
        async with (
            sandbox.async_client() as inner,
            AsyncDispatcher(inner, ledger=tmp_path / "l.db", policy=POLICY) as d,
        ):
            client = d.client(latency=HOURS_30)
            calls = [asyncio.ensure_future(client.messages.create(**asked(f"w-{i}"))) for i in range(300)]
            most = 0
            while not all(call.done() for call in calls):
                await asyncio.sleep(0.02)
                most = max(most, threading.active_count())
            assert all(call.result().content for call in calls)
            return most

    began = time.monotonic()
    assert asyncio.run(run()) < 150  # those of the dispatcher, its ledger and the sandbox
    seconds = time.monotonic() - began
    with contextlib.closing(sqlite3.connect(tmp_path / "l.db")) as database:
        (terms,) = database.execute("SELECT count(*) FROM terms").fetchone()
    assert 1 <= terms <= seconds + 2


def test_two_threads_that_ask_for_the_first_client_at_once_share_what_clients_share(sandbox, tmp_path):
    """Else the first call of each has the same key, and one answer is given for two purchases."""
    together = threading.Barrier(2)

    def making(frame, event, _):
        if event == "call" and frame.f_code is Repeats.__init__.__code__:
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait(5)

    def asking(_):
        sys.settrace(making)
        try:
            client = d.client(job="j")
        finally:
            sys.settrace(None)
        return client.messages.create(**asked("same")).id

    with sandbox.client() as inner, Dispatcher(inner, ledger=tmp_path / "l.db", policy=POLICY) as d:
        with ThreadPoolExecutor(2) as pool:
            assert len(set(pool.map(asking, range(2)))) == 2
        assert d.progress("j").total == calls(sandbox) == 2
