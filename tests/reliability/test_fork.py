"""Processes that fork with a ledger open: nothing that anybody accepted is lost or bought twice, and nobody hangs."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

import batchwise as bw
from batchwise.ledger.sqlite import SqliteLedger
from batchwise.sandbox import Sandbox
from tests.waiting import until

_OFTEN = (timedelta(milliseconds=20), timedelta(milliseconds=200))
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


KEYS = {
    "pool": 10,
    "busy": 42,
    "servers": 10,
    "iterable": 2_510,
    "going_on": 2_500,
    "reading": 4,
    "loops": 2,
    "memory": 8,
    "daemon": 3,
}
"""How many each round of a case accepts."""


def check(sandbox: Sandbox, path: Path, keys: list[str]) -> None:
    """The ledger is whole, and each of these succeeds."""
    with sandbox.client() as client, bw.Dispatcher(client, ledger=path, policy=bw.Policy(poll_every=_OFTEN)) as d:
        assert all(d.ticket(key).result(60).ok for key in keys)
    with closing(SqliteLedger(path)) as ledger:
        assert ledger.database.connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def _all_bought(sandbox: Sandbox, keys: list[str]) -> bool:
    return len(sandbox.books.purchases) == len(keys)


@pytest.mark.parametrize("case", KEYS)
@pytest.mark.parametrize("rounds", [2, pytest.param(40, marks=pytest.mark.soak)])
@pytest.mark.timeout(900)
def test_whatever_was_accepted_beside_a_fork_is_done(case: str, rounds: int, tmp_path: Path) -> None:
    with Sandbox(batch_latency=0.05) as sandbox:
        environment = {**os.environ, "ANTHROPIC_BASE_URL": sandbox.base_url, "ANTHROPIC_API_KEY": "sandbox"}
        # A daemon's first process ends with each round.
        earlier: list[str] = []
        processes, each = (rounds, 1) if case == "daemon" else (1, rounds)
        for number in range(processes):
            path = tmp_path / f"ledger-{number}.db"
            command = [sys.executable, "-m", "tests.reliability.forking", case, str(path), str(each)]
            # Its output ends when the last of its children has: a daemon outlives it.
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800, check=False)
            assert done.returncode == 0, done.stderr
            assert "Traceback" not in done.stderr
            keys = done.stdout.splitlines()
            assert len(keys) == each * KEYS[case]
            if case == "memory":
                assert not path.exists()
                until(partial(_all_bought, sandbox, keys), "a batch was lost")
            else:
                check(sandbox, path, keys)
            bought = [purchase.prompt for purchase in sandbox.books.purchases]
            assert sorted(bought) == sorted([*earlier, *keys])
            earlier = bought
