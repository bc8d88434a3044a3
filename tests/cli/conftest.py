"""What the tests of the command line share: a sandbox that the environment points to, and verbs run in this process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from batchwise import Dispatcher, Request
from batchwise.cli import main
from batchwise.sandbox import Sandbox
from tests.strategies import params

HOURS_30 = timedelta(hours=30)


class Said(NamedTuple):
    """What a verb said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Shell:
    """Runs verbs in this process, on one ledger."""

    def __init__(self, capsys: pytest.CaptureFixture[str], ledger: Path) -> None:
        self._capsys, self.ledger = capsys, ledger

    def __call__(self, *arguments: str) -> Said:
        self._capsys.readouterr()
        code = main([*arguments, "--ledger", str(self.ledger)])
        return Said(code, *self._capsys.readouterr())


def process(*arguments: str) -> Said:
    """Run a verb as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "batchwise", *arguments],
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Sandbox]:
    with Sandbox(batch_latency=3600.0) as sandbox:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", sandbox.base_url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sandbox")
        for name in ("ANTHROPIC_AUTH_TOKEN", "BATCHWISE_LEDGER"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.chdir(tmp_path)
        yield sandbox


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def batchwise(sandbox: Sandbox, ledger: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys, ledger)


def submit(ledger: Path, count: int = 3, job: str | None = "nightly") -> None:
    """Dispatch `module-0`, `module-1`, ... and leave."""
    with Dispatcher(ledger=ledger) as d:
        d.dispatch_all((Request(params(f"n {i}"), key=f"module-{i}") for i in range(count)), job=job, latency=HOURS_30)


def submit_too_much(ledger: Path, sandbox: Sandbox) -> str:
    """Accept 100 requests for the next hour; returns the file of a policy whose sync lane takes one a minute."""
    sandbox.sync_latency = 3600.0
    d = Dispatcher(ledger=ledger)
    d.dispatch_all((Request(params(f"n {i}")) for i in range(100)), job="nightly", latency=timedelta(hours=1))
    d.close(finish=False)
    tight = ledger.with_name("tight.toml")
    tight.write_text("[limits]\nrequests_per_minute = 1\n")
    return str(tight)
