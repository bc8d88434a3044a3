"""The books, the control endpoints, the command."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import anthropic
import httpx2
import pytest

import batchwise.sandbox
from batchwise.sandbox import Exponential, Fixed, LogNormal, Sandbox, Uniform
from batchwise.sandbox.latency import draw, from_json, seeded
from tests.waiting import until

from .conftest import params, rows


def test_books_over_both_lanes(make):
    sandbox, client = make(batch_latency=10)
    client.messages.create(**params("r 0"))
    batch = client.messages.batches.create(requests=rows(2))
    books = sandbox.books
    assert books.bought("r 0") == 2
    assert books.bought("r 0", "batch") == 1
    assert books.bought_twice() == {"r 0": 2}
    assert (books.billed(), books.running("batch")) == (1, 2)
    sandbox.finish(batch.id)
    assert (books.billed("batch"), books.running()) == (2, 0)
    sync, *batched = books.purchases
    assert (sync.lane, sync.state, sync.delivered) == ("sync", "succeeded", True)
    assert [(p.custom_id, p.prompt, p.batch_id) for p in batched] == [
        ("r-0", "r 0", batch.id),
        ("r-1", "r 1", batch.id),
    ]
    tokens = books.tokens()
    assert tokens.input == sum(p.input_tokens for p in books.purchases)
    assert tokens.output == sum(p.output_tokens for p in books.purchases)
    full, half = books.tokens("sync"), books.tokens("batch")
    price = books.cost({"*": (3, "15")})
    expected = Decimal(3 * full.input + 15 * full.output) + Decimal(3 * half.input + 15 * half.output) / 2
    assert price == expected / 1_000_000
    assert books.cost({"claude-sonnet-5": (3, 15)}, lane="sync") < price


def test_identify(make):
    sandbox, client = make(identify=lambda body: body.get("metadata", {}).get("user_id", "?"))
    client.messages.create(**params("a", metadata={"user_id": "u1"}))
    client.messages.batches.create(requests=[{"custom_id": "x", "params": params("b", metadata={"user_id": "u1"})}])
    assert sandbox.books.bought_twice() == {"u1": 2}


def test_canceled_rows_are_not_bought(make):
    sandbox, client = make(batch_latency=100)
    batch = client.messages.batches.create(requests=rows(4))
    client.messages.batches.cancel(batch.id)
    assert sandbox.books.bought("r 0") == 0
    assert {purchase.state for purchase in sandbox.books.purchases} == {"canceled"}


def test_control_endpoints(make):
    sandbox, client = make()
    http = httpx2.Client(base_url=sandbox.base_url)
    client.messages.create(**params("p"))
    http.post("/_sandbox/faults", json={"name": "messages.slow", "delay": 0.01}).raise_for_status()
    client.messages.create(**params("p"))
    books = http.get("/_sandbox/books").json()
    assert books["billed"] == {"sync": 2, "batch": 0}
    assert books["bought_twice"] == {"p": 2}
    assert books["faults_fired"] == {"messages.slow": 1}
    assert http.get("/_sandbox/books", params={"prompt": "p"}).json() == {"bought": 2}
    assert http.get("/_sandbox/books", params={"prompts": "1"}).json()["bought"] == {"p": 2}
    settings = {"batch_latency": {"kind": "uniform", "low": 50, "high": 60}, "window": 70, "batch_queue_limit": 5}
    http.post("/_sandbox/settings", json=settings).raise_for_status()
    assert (sandbox.window, sandbox.batch_queue_limit) == (70, 5)
    batch = client.messages.batches.create(requests=rows(1))
    assert client.messages.batches.retrieve(batch.id).processing_status == "in_progress"
    http.post("/_sandbox/advance", json={"seconds": 65}).raise_for_status()
    assert client.messages.batches.retrieve(batch.id).processing_status == "ended"
    foreign = http.post("/_sandbox/foreign", json={"count": 2}).json()["id"]
    http.post("/_sandbox/finish", json={"id": foreign}).raise_for_status()
    assert client.messages.batches.retrieve(foreign).processing_status == "ended"
    http.post("/_sandbox/faults", json={"name": "list.error_500", "times": None})
    http.post("/_sandbox/clear").raise_for_status()
    assert client.messages.batches.list().data
    assert "known faults" in http.post("/_sandbox/faults", json={"name": "x"}).json()["error"]
    assert http.post("/_sandbox/settings", json={"colour": 1}).status_code == 400
    assert "GET /_sandbox/books" in http.get("/_sandbox/nothing").json()["error"]
    http.post("/_sandbox/restart", json={"downtime": 0.1}).raise_for_status()
    http.close()

    def down():
        try:
            client.models.list()
        except anthropic.APIConnectionError:
            return True
        return False

    until(down)
    until(lambda: not down())


def test_command():
    command = [sys.executable, "-m", "batchwise.sandbox", "--batch-latency", "30", "--api-key", "k", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        url = told.pop("base_url")
        assert told == {"command": "sandbox", "exit_code": 0, "needs_key": True}
        with anthropic.Anthropic(base_url=url, api_key="k") as client:
            batch = client.messages.batches.create(requests=rows(1))
            assert client.messages.batches.retrieve(batch.id).processing_status == "in_progress"
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0


def test_close_ends_the_thread_and_running_calls():
    import threading

    with Sandbox(sync_latency=60) as sandbox:
        client = sandbox.client(max_retries=0)

        def ask():
            with pytest.raises(anthropic.APIError):
                client.messages.create(**params())

        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: sandbox.books.running() == 1)
    thread.join(3)
    assert not thread.is_alive()
    sandbox.close()
    assert f"sandbox-{sandbox.port}" not in [t.name for t in threading.enumerate()]
    assert len(sandbox.books.purchases) == 1
    with pytest.raises(RuntimeError, match="closed"):
        sandbox.restart()


def test_raw_http():
    import socket

    with Sandbox() as sandbox, socket.create_connection(("127.0.0.1", sandbox.port)) as raw:
        raw.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-api-key: k\r\n\r\n")
        assert b"anthropic-version" in raw.recv(65536)
        head = b"GET /v1/none HTTP/1.1\r\nhost: x\r\nx-api-key: k\r\nanthropic-version: 2023-06-01\r\n\r\n"
        raw.sendall(head + head.replace(b"GET /v1/none", b"PUT /v1/models"))  # pipelined
        answer = b""
        while b"405" not in answer:
            answer += raw.recv(65536)
        assert b"404" in answer
        raw.sendall(b"nonsense\r\n\r\n")
        assert raw.recv(65536).startswith(b"HTTP/1.1 400")
        assert raw.recv(65536) == b""


def test_the_sandbox_stands_alone():
    """It imports nothing else of batchwise, and the SDK only inside functions."""
    files = list(Path(batchwise.sandbox.__file__).parent.glob("*.py"))
    assert len(files) > 10
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level < 2, file
                assert node.level == 1 or not (node.module or "").startswith("batchwise"), file
            elif isinstance(node, ast.Import):
                assert not [alias.name for alias in node.names if alias.name.startswith("batchwise")], file
    code = "import sys, batchwise.sandbox as s; s.Sandbox().close(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "anthropic" not in loaded


def test_distributions():
    rng = seeded(1)
    assert draw(Fixed(2), rng) == 2
    assert draw(lambda: 3, rng) == 3
    assert draw(-1, rng) == 0
    for distribution in (Uniform(1, 2), Exponential(2), LogNormal(2, 0.5)):
        values = sorted(draw(distribution, rng) for _ in range(999))
        assert values[0] >= 0
        assert 1 < values[499] < 2.3
    own = [draw(Exponential(1, seed=4), seeded(i)) for i in range(2)]
    assert own[0] == own[1]
    assert isinstance(from_json({"kind": "lognormal", "median": 1}), LogNormal)
    with pytest.raises(ValueError, match="unknown latency kind"):
        from_json({"kind": "magic"})


def test_a_body_in_single_bytes():
    """Every boundary of a chunked body falls between two reads."""
    import asyncio

    from batchwise.sandbox.http import Connection, Response

    bodies = []

    async def answer(request):
        bodies.append(bytes(request.body))
        return Response(200, {}, b"")

    class Transport(asyncio.Transport):
        def write(self, data):
            pass

        def is_closing(self):
            return False

    async def feed():
        connection = Connection(answer, lambda path: 100, set())
        connection.connection_made(Transport())
        head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        for byte in head + b"3\r\nabc\r\na\r\n0123456789\r\n0\r\nx: y\r\n\r\n":
            connection.data_received(bytes([byte]))
        await asyncio.sleep(0.01)

    asyncio.run(feed())
    assert bodies == [b"abc0123456789"]


def test_too_large_is_answered_before_the_body_is_sent():
    import socket

    with Sandbox() as sandbox, socket.create_connection(("127.0.0.1", sandbox.port), timeout=5) as raw:
        raw.sendall(
            b"POST /v1/messages/batches HTTP/1.1\r\nhost: x\r\nx-api-key: k\r\ncontent-length: 256000001\r\n\r\n"
        )
        assert raw.recv(65536).startswith(b"HTTP/1.1 413")
