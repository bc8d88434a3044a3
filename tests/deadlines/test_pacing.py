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


def test_a_busy_api_costs_no_promised_deadline(tmp_path: Path) -> None:
    """A batch of 120 requests expires whole, and each tenth call of its rescue meets a 529."""
    second = timedelta(seconds=1)
    policy = bw.Policy(
        window=2 * second,
        max_attempts=2,
        min_reserve=second,
        cancel_settle=second / 2,
        poll_every=(second / 50, second / 5),
        limits=bw.Limits(concurrency=10, latency=second),  # calls are planned as slow as a busy machine may make them
    )
    with Sandbox(batch_latency=600, sync_latency=0.2, window=2, seed=7) as sandbox:
        busy = sandbox.fault("messages.overloaded_529", times=None, probability=0.1)
        with bw.Dispatcher(sandbox.client(), ledger=tmp_path / "ledger.db", policy=policy) as d:
            requests = [bw.Request(params(f"p{number}")) for number in range(120)]
            job = d.dispatch_all(requests, job="expired", latency=20 * second)
            results = list(job.results(timeout=60))
            report = d.report()
        assert busy.fired > 3
        assert {(result.ok, result.lane) for result in results} == {(True, bw.Lane.SYNC)}
        assert (report.met, report.missed) == (120, 0)
        assert sandbox.books.bought_twice() == {}
