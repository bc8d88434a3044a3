"""A handler that closes the dispatcher which its signal has interrupted: nothing hangs, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import batchwise as bw
from batchwise.sandbox import Sandbox
from tests.reliability.crossing import POLICY

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers of the system")


@pytest.mark.parametrize("rounds", [3, pytest.param(100, marks=pytest.mark.soak)])
@pytest.mark.timeout(900)
def test_a_signals_handler_may_close_what_the_signal_interrupted(rounds: int, tmp_path: Path) -> None:
    with Sandbox(batch_latency=0.05) as sandbox:
        ledger = tmp_path / "ledger.db"
        done = subprocess.run(
            [sys.executable, "-m", "tests.reliability.signalled", str(ledger), str(rounds)],
            env={**os.environ, "ANTHROPIC_BASE_URL": sandbox.base_url, "ANTHROPIC_API_KEY": "sandbox"},
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        accepted = done.stdout.splitlines()
        assert len(accepted) >= 2 * rounds
        with sandbox.client() as client, bw.Dispatcher(client, ledger=ledger, policy=POLICY) as d:
            assert all(d.ticket(key).result(60).ok for key in accepted)
        assert sandbox.books.bought_twice() == {}
