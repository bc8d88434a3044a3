"""The gateway as other programs meet it: over HTTP, by the SDK's client and by bare requests."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import anthropic
import httpx2
import pytest

import batchwise as bw
from batchwise import gateway
from batchwise.cli import main
from batchwise.sandbox import Sandbox
from tests.strategies import params as body_of

POLICY = bw.Policy(
    poll_every=(timedelta(milliseconds=20), timedelta(milliseconds=100)), linger=timedelta(milliseconds=300)
)


def params(text):
    return {**body_of(text), "model": "claude-haiku-4-5"}


@pytest.fixture
def sandbox(monkeypatch):
    with Sandbox(batch_latency=0.05) as made:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", made.base_url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sandbox")
        for name in ("ANTHROPIC_AUTH_TOKEN", "BATCHWISE_LEDGER"):
            monkeypatch.delenv(name, raising=False)
        yield made


@contextmanager
def serving(**options: object) -> Iterator[str]:
    """A gateway in a thread of its own; gives its URL."""
    told: list[str] = []
    ready = threading.Event()
    stop: list[object] = []

    async def run() -> None:
        def started(url: str) -> None:
            told.append(url)
            ready.set()

        task = asyncio.ensure_future(gateway.serve(port=0, policy=POLICY, started=started, **options))
        stop.extend((asyncio.get_running_loop(), task))
        try:
            await task
        except asyncio.CancelledError:
            pass
        finally:
            ready.set()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        assert ready.wait(20)
        yield told[0]
    finally:
        loop, task = stop
        loop.call_soon_threadsafe(task.cancel)
        thread.join(20)
        assert not thread.is_alive()


def creates(sandbox):
    return sandbox.books.requests_by_path["POST /v1/messages/batches"]


def calls(sandbox):
    return sandbox.books.requests_by_path["POST /v1/messages"]


def test_a_program_that_makes_its_own_client_is_answered_from_few_batches(sandbox, tmp_path):
    with serving(ledger=str(tmp_path / "l"), latency=timedelta(hours=30)) as url:
        client = anthropic.Anthropic(base_url=url, api_key="anything")
        with ThreadPoolExecutor(20) as threads:
            messages = list(threads.map(lambda n: client.messages.create(**params(f"p-{n}")), range(20)))
        assert {message.content[0].text for message in messages} == {f"echo: p-{n}" for n in range(20)}
    assert 1 <= creates(sandbox) <= 3
    assert calls(sandbox) == 0


def test_headers_say_what_a_call_can_wait_for_and_its_job(sandbox, tmp_path):
    with serving(ledger=str(tmp_path / "l")) as url:
        now = httpx2.post(f"{url}/v1/messages", json=params("now"), timeout=20)
        assert (now.status_code, calls(sandbox)) == (200, 1)
        headers = {"batchwise-within": "30h", "batchwise-job": "night", "batchwise-tool-use": "none"}
        later = httpx2.post(f"{url}/v1/messages", json=params("later"), headers=headers, timeout=20)
        assert later.json()["content"][0]["text"] == "echo: later"
        for name, value in (("within", "soon"), ("tool-use", "sometimes"), ("weight", "1")):
            wrong = httpx2.post(f"{url}/v1/messages", json=params("x"), headers={f"batchwise-{name}": value})
            assert wrong.status_code == 400
            assert wrong.headers["x-should-retry"] == "false"
            assert name in wrong.json()["error"]["message"].replace("tool_use", "tool-use")
    assert calls(sandbox) == 1
    with bw.Dispatcher(sandbox.client(), ledger=tmp_path / "l") as d:
        assert d.progress("night").by_outcome == {bw.Outcome.SUCCEEDED: 1}


@pytest.mark.filterwarnings("ignore:3 calls in a row")
def test_a_wait_that_outlasts_the_callers_timeout_is_found_again_by_the_repeat(sandbox, tmp_path):
    sandbox.batch_latency = 3.0
    with serving(ledger=str(tmp_path / "l"), latency=timedelta(hours=30), job="night") as url:
        client = anthropic.Anthropic(base_url=url, api_key="anything", max_retries=0)
        with pytest.raises(anthropic.APITimeoutError):
            client.messages.create(**params("slow"), timeout=1.0)
        with pytest.raises(anthropic.APITimeoutError), client.messages.stream(**params("slow"), timeout=0.5):
            pass
        assert client.messages.create(**params("slow"), timeout=30).content[0].text == "echo: slow"
    assert sandbox.books.bought_by_prompt() == {"slow": 1}


def test_what_is_no_messages_call_goes_to_the_api(sandbox, tmp_path):
    with serving(ledger=str(tmp_path / "l")) as url:
        client = anthropic.Anthropic(base_url=url, api_key="anything")
        assert list(client.messages.batches.list()) == []
        with pytest.raises(anthropic.NotFoundError):
            client.messages.batches.retrieve("msgbatch_unknown")


def test_a_stream_that_waits_is_kept_alive_and_ends_whole(sandbox, tmp_path, monkeypatch):
    monkeypatch.setattr(gateway, "_PING_SECONDS", 0.2)
    sandbox.batch_latency = 2.5
    with serving(ledger=str(tmp_path / "l"), latency=timedelta(hours=30)) as url:
        client = anthropic.Anthropic(base_url=url, api_key="anything", timeout=httpx2.Timeout(60, read=1.9))
        with client.messages.stream(**params("slow")) as stream:
            assert stream.get_final_message().content[0].text == "echo: slow"


def test_a_stream_that_waits_ends_with_the_error_that_came(sandbox, tmp_path):
    sandbox.batch_latency = 1.5
    sandbox.fault("batch.row_error", times=None, type="invalid_request_error", message="too strange")
    with serving(ledger=str(tmp_path / "l"), latency=timedelta(hours=30)) as url:
        client = anthropic.Anthropic(base_url=url, api_key="anything")
        with pytest.raises(anthropic.APIStatusError, match="too strange"), client.messages.stream(**params("x")) as s:
            s.get_final_message()


def test_only_who_knows_the_token_is_answered(sandbox, tmp_path):
    with serving(ledger=str(tmp_path / "l"), token="tökén") as url:
        for headers in ({}, {"x-api-key": "wrong"}, {"authorization": "Bearer wrong"}):
            assert httpx2.post(f"{url}/v1/messages", json=params("x"), headers=headers).status_code == 401
        for headers in ({"x-api-key": "tökén".encode()}, {"authorization": "Bearer tökén".encode()}):
            assert httpx2.post(f"{url}/v1/messages", json=params("x"), headers=headers, timeout=20).status_code == 200
    assert calls(sandbox) == 2


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.test"])  # noqa: S104
def test_other_machines_need_a_token(sandbox, tmp_path, host):
    with pytest.raises(bw.errors.InvalidValueError, match="--token"):
        asyncio.run(gateway.serve(host=host, ledger=str(tmp_path / "l")))
    assert not (tmp_path / "l").exists()


def test_a_command_that_cannot_serve_says_so_as_json(sandbox, tmp_path, capsys):
    assert main(["gateway", "--json", "--host", "0.0.0.0", "--ledger", str(tmp_path / "l")]) == 2  # noqa: S104
    told, noted = capsys.readouterr()
    error = json.loads(told).pop("error")
    assert error["type"] == "InvalidValueError"
    assert noted == f"batchwise: {error['message']}\n"


def test_the_command_serves_and_ends_on_sigterm_with_what_waits_in_the_ledger(sandbox, tmp_path: Path):
    sandbox.batch_latency = 3_600
    command = [sys.executable, "-m", "batchwise", "gateway", "--json", "--port", "0", "--within", "30h", "--ledger"]
    process = subprocess.Popen([*command, str(tmp_path / "l")], stdout=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        url = told.pop("base_url")
        assert told == {"command": "gateway", "exit_code": 0, "needs_key": False}
        with pytest.raises(httpx2.TimeoutException):
            httpx2.post(f"{url}/v1/messages", json=params("night"), timeout=3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert sandbox.books.bought_by_prompt("batch") == {"night": 1}
    with bw.Dispatcher(sandbox.client(), ledger=tmp_path / "l") as d:
        assert d.progress().by_status == {bw.Status.IN_FLIGHT: 1}
        d.close(finish=False)
