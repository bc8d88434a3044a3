"""`python -m batchwise advance|progress` as real processes against the sandbox."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchwise.__main__ import main
from batchwise.sandbox import Sandbox

SUBMIT = """
import sys
from datetime import timedelta
import batchwise as bw

def request(n):
    params = {"model": "claude-sonnet-5", "max_tokens": 64, "messages": [{"role": "user", "content": f"night {n}"}]}
    return bw.Request(params, key=f"module-{n}")

with bw.Dispatcher(ledger=sys.argv[1]) as d:
    d.dispatch_all(map(request, range(7)), job="nightly", latency=timedelta(hours=30))
"""


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(batch_latency=0.5) as sandbox:
        yield sandbox


@pytest.fixture
def environment(sandbox, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_BASE_URL", sandbox.base_url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sandbox")
    for name in ("ANTHROPIC_AUTH_TOKEN", "BATCHWISE_LEDGER"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=120, cwd=cwd, env={**os.environ, **env}
    )


def batchwise(*arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return run("-m", "batchwise", *arguments, cwd=cwd, **env)


def submit(ledger: Path) -> None:
    done = run("-c", SUBMIT, str(ledger))
    assert (done.returncode, done.stderr) == (0, "")


def advance_until(text: str, ledger: Path, **env: str) -> str:
    end = time.monotonic() + 100
    while True:
        done = batchwise("advance", "--ledger", str(ledger), **env)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        if text in done.stdout:
            return done.stdout
        assert time.monotonic() < end, done.stdout
        time.sleep(0.5)


@pytest.mark.usefixtures("environment")
def test_one_process_submits_and_cron_advances_until_done(sandbox, tmp_path):
    ledger = tmp_path / "ledger.db"
    sandbox.batch_latency = 3600.0
    submit(ledger)
    (batch,) = sandbox.books.batches
    early = batchwise("progress", "--ledger", str(ledger), "--job", "nightly")
    assert early.returncode == 0
    assert "7 requests: 7 in_flight" in early.stdout
    assert f"batch {batch.id}: 7 requests, in_progress" in early.stdout
    assert "next due: " in early.stdout

    assert "7 in_flight" in advance_until("7 in_flight", ledger)  # nothing is ready: it says so and exits 0
    sandbox.finish(batch.id)
    said = advance_until("7 settled", ledger)
    assert "outcomes: 7 succeeded" in said
    assert "next due" not in said

    submit(ledger)  # the script again, the next morning: nothing is bought
    assert sandbox.books.billed() == 7
    assert sandbox.books.bought_twice() == {}


@pytest.mark.usefixtures("environment")
def test_the_ledger_of_the_environment(tmp_path):
    ledger = tmp_path / "ledger.db"
    submit(ledger)
    done = batchwise("progress", cwd=tmp_path, BATCHWISE_LEDGER=str(ledger))
    assert done.stdout.startswith("7 requests: ")


@pytest.mark.usefixtures("environment")
def test_an_empty_ledger_has_nothing_to_do(sandbox, tmp_path):
    for command in ("advance", "progress"):
        done = batchwise(command, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "0 requests: none\n", "")
    assert not sandbox.books.requests_by_path


@pytest.mark.usefixtures("environment")
def test_looking_makes_no_ledger(tmp_path):
    done = batchwise("progress", "--ledger", str(tmp_path / "some" / "ledger.db"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no ledger" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("environment")
def test_an_unknown_job_says_where_it_was_looked_for(tmp_path):
    ledger = tmp_path / "ledger.db"
    submit(ledger)
    done = batchwise("progress", "--ledger", str(ledger), "--job", "nihgtly")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("batchwise: ")
    assert "nihgtly" in done.stderr
    assert str(ledger) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("environment")
def test_a_file_that_is_no_ledger(tmp_path):
    ledger = tmp_path / "notes.txt"
    ledger.write_text("my notes, not a database; " * 100)
    done = batchwise("advance", "--ledger", str(ledger))
    assert done.returncode == 1
    assert done.stderr.startswith("batchwise: ")
    assert str(ledger) in done.stderr
    assert "Traceback" not in done.stderr
    assert ledger.read_text().startswith("my notes")


@pytest.mark.usefixtures("environment")
def test_the_ledger_of_another_endpoint_is_left_alone(tmp_path):
    ledger = tmp_path / "ledger.db"
    submit(ledger)
    with Sandbox() as other:
        done = batchwise("advance", "--ledger", str(ledger), ANTHROPIC_BASE_URL=other.base_url)
        assert done.returncode == 1
        assert done.stderr.startswith("batchwise: ")
        assert "Traceback" not in done.stderr
        assert not other.books.requests_by_path


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("key", ["wrong", None])
def test_a_refused_or_missing_key_is_said_and_keeps_the_work(sandbox, tmp_path, monkeypatch, key):
    ledger = tmp_path / "ledger.db"
    sandbox.api_keys = frozenset({"right"})
    if key is None:
        monkeypatch.delenv("ANTHROPIC_API_KEY")
        monkeypatch.setenv("HOME", str(tmp_path))  # no login of the developer's
    else:
        monkeypatch.setenv("ANTHROPIC_API_KEY", key)
    done = run("-c", SUBMIT, str(ledger))
    assert done.returncode == 0
    assert "7 requests stay queued" in done.stderr
    assert "the batch lane is suspended (authentication_error" in done.stderr
    said = batchwise("advance", "--ledger", str(ledger))
    assert said.returncode == 3
    assert "suspended: the batch lane: authentication_error" in said.stdout
    assert "Traceback" not in said.stderr
    assert sandbox.books.billed() + sandbox.books.running() == 0

    advance_until("7 settled", ledger, ANTHROPIC_API_KEY="right")
    assert sandbox.books.billed() == 7
    assert sandbox.books.bought_twice() == {}


@pytest.mark.parametrize("arguments", [(), ("advnace",), ("advance", "--job", "nightly")])
def test_wrong_usage(arguments):
    done = batchwise(*arguments)
    assert done.returncode == 2
    assert "usage: python -m batchwise" in done.stderr


@pytest.mark.usefixtures("environment")
def test_main_in_this_process(capsys, tmp_path):
    ledger = str(tmp_path / "ledger.db")
    assert main(["advance", "--ledger", ledger]) == 0
    assert main(["progress", "--ledger", ledger, "--job", "none"]) == 1
    said = capsys.readouterr()
    assert said.out == "0 requests: none\n"
    assert said.err.startswith("batchwise: ")
