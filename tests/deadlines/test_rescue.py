"""Deadlines on the wall clock: windows of seconds, real sockets, the sandbox's books as witness."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from pathlib import Path

import batchwise as bw
from batchwise.sandbox import Sandbox
from tests.strategies import params

SECOND = timedelta(seconds=1)


def policy(**others: object) -> bw.Policy:
    settings = {
        "window": 5 * SECOND,
        "min_reserve": SECOND / 2,
        "cancel_settle": SECOND / 2,
        "poll_every": (SECOND / 50, SECOND / 5),
        "limits": bw.Limits(concurrency=10, latency=SECOND / 20),
        **others,
    }
    return bw.Policy(**settings)  # type: ignore[arg-type]


def requests(count: int) -> list[bw.Request]:
    return [bw.Request(params(f"prompt {number}"), key=f"key {number}") for number in range(count)]


def test_a_late_batch_is_cancelled_at_its_last_safe_moment_and_only_the_rest_is_bought_again(tmp_path: Path) -> None:
    with Sandbox(batch_latency=30, sync_latency=0.05, window=60) as sandbox:
        with bw.Dispatcher(sandbox.client(), ledger=tmp_path / "ledger.db", policy=policy()) as dispatcher:
            job = dispatcher.dispatch_all(requests(60), job="late", latency=8 * SECOND)
            results = list(job.results(timeout=20))
            report = dispatcher.report()
        (batch,) = sandbox.client().messages.batches.list().data
        assert batch.cancel_initiated_at is not None
        assert results[0].deadline is not None
        # Three mean calls (0.15 s), 60 of 50 ms ten at a time (0.3 s), 0.5 s for the cancel to end, some overhead.
        left = results[0].deadline - batch.cancel_initiated_at
        assert timedelta(seconds=0.7) < left < timedelta(seconds=2), left
        assert all(result.ok and result.met_deadline for result in results)
        lanes = Counter(result.lane for result in results)
        assert lanes[bw.Lane.BATCH] == sandbox.books.summary()["billed"]["batch"] > 5
        assert lanes[bw.Lane.SYNC] == sandbox.books.summary()["billed"]["sync"] == 60 - lanes[bw.Lane.BATCH]
        assert sandbox.books.bought_twice() == {}
        assert (report.met, report.missed, report.wasted, report.possible_doubles) == (60, 0, 0, 0)


def test_sixty_calls_left_two_seconds_before_the_deadline_are_all_in_time(tmp_path: Path) -> None:
    with (
        Sandbox(batch_latency=600, sync_latency=0.05, window=2) as sandbox,
        bw.Dispatcher(sandbox.client(), ledger=tmp_path / "ledger.db", policy=policy(window=2 * SECOND)) as dispatcher,
    ):
        job = dispatcher.dispatch_all(requests(60), job="expired", latency=4 * SECOND)
        results = list(job.results(timeout=20))
        assert len(results) == 60
        assert {(result.ok, result.lane, result.met_deadline) for result in results} == {(True, bw.Lane.SYNC, True)}
        assert {result.attempts for result in results} == {2}
        assert sandbox.books.bought_twice() == {}


def test_a_cancel_that_hangs_does_not_cost_the_deadline_and_the_books_say_what_it_may_have_cost(
    tmp_path: Path,
) -> None:
    with Sandbox(batch_latency=30, sync_latency=0.05, window=60) as sandbox:
        sandbox.fault("cancel.hang", times=None, delay=6)
        with bw.Dispatcher(sandbox.client(), ledger=tmp_path / "ledger.db", policy=policy()) as dispatcher:
            job = dispatcher.dispatch_all(requests(20), job="hang", latency=8 * SECOND)
            results = list(job.results(timeout=20))
            assert {(result.ok, result.met_deadline) for result in results} == {(True, True)}
            report = dispatcher.report()
        assert report.missed == 0
        assert report.possible_doubles == 20


def test_a_hedge_uses_the_batch_that_ends_early_and_breaks_off_the_one_that_does_not(tmp_path: Path) -> None:
    hedging = policy(hedge=True, window=3600 * SECOND, min_reserve=SECOND)
    with Sandbox(batch_latency=0.3, sync_latency=0.05) as sandbox:
        with bw.Dispatcher(sandbox.client(), ledger=tmp_path / "early.db", policy=hedging) as dispatcher:
            job = dispatcher.dispatch_all(requests(10), job="early", latency=600 * SECOND)
            assert {result.lane for result in job.results(timeout=20)} == {bw.Lane.BATCH}
            assert dispatcher.ticket("key 0", job="early").decision.reason is bw.Reason.HEDGED
        sandbox.batch_latency = 600
        sooner = policy(hedge=True, window=60 * SECOND, min_reserve=SECOND)
        with bw.Dispatcher(sandbox.client(), ledger=tmp_path / "late.db", policy=sooner) as dispatcher:
            job = dispatcher.dispatch_all(requests(10), job="late", latency=6 * SECOND)
            results = list(job.results(timeout=20))
        assert {result.met_deadline for result in results} == {True}
        assert bw.Lane.SYNC in {result.lane for result in results}
        twice = [purchase for purchase in sandbox.books.purchases if purchase.billed]
        assert len(twice) == 20, "each bought once, whatever the lane"
