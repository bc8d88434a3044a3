"""The sync lane against limits over real sockets: too high a `Policy.limits` costs some refusals, and nothing else."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

import batchwise as bw
from batchwise.sandbox import Sandbox
from tests.strategies import params


@pytest.mark.parametrize(
    ("account", "configured", "most"),
    [
        ({"requests_per_minute": 1_800, "burst": 0.2}, {"requests_per_minute": 5_400, "concurrency": 16}, 30),
        ({"concurrency": 4}, {"concurrency": 12}, 40),
    ],
    ids=["requests", "concurrency"],
)
def test_limits_configured_three_times_too_high_make_no_storm(
    tmp_path: Path, account: dict[str, float], configured: dict[str, int], most: int
) -> None:
    limits = bw.Limits(latency=timedelta(seconds=0.05), **configured)
    with Sandbox(sync_latency=0.05, rate_limits=account) as sandbox:
        with bw.Dispatcher(sandbox.client(), ledger=tmp_path / "ledger.db", policy=bw.Policy(limits=limits)) as d:
            requests = [bw.Request(params(f"p{number}"), latency=timedelta(hours=1)) for number in range(90)]
            results = list(d.dispatch_all(requests, job="job").results(timeout=60))
        assert {(result.ok, result.lane, result.attempts) for result in results} == {(True, bw.Lane.SYNC, 1)}
        refused = sandbox.books.requests_by_path["POST /v1/messages"] - 90
        assert 0 < refused <= most
        assert sandbox.books.bought_twice() == {}
