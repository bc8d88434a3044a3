"""Deadlines on the wall clock: windows of seconds, real sockets, and the sandbox's books for what was bought."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

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


def sandbox_of(**settings: Any) -> Sandbox:
    """An account whose limits are out of the way; else they, too, are planned with, and rescues begin earlier."""
    ample = {f"{kind}_per_minute": 10**9 for kind in ("requests", "input_tokens", "output_tokens")}
    return Sandbox(rate_limits=ample, **settings)


def requests(count: int) -> list[bw.Request]:
    return [bw.Request(params(f"prompt {number}"), key=f"key {number}") for number in range(count)]


def test_a_late_batch_is_cancelled_at_its_last_safe_moment_and_only_the_rest_is_bought_again(tmp_path: Path) -> None:
    with sandbox_of(batch_latency=30, sync_latency=0.05, window=60) as sandbox:
        with bw.Dispatcher(sandbox.client(), ledger=tmp_path / "ledger.db", policy=policy()) as dispatcher:
            assert dispatcher.dispatch(params("the sync lane works, so no row has to try it")).result().ok
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
        assert lanes[bw.Lane.SYNC] == sandbox.books.summary()["billed"]["sync"] - 1 == 60 - lanes[bw.Lane.BATCH]
        assert sandbox.books.bought_twice() == {}
        assert (report.met, report.missed, report.wasted, report.possible_doubles) == (60, 0, 0, 0)


def test_one_row_goes_ahead_to_a_sync_lane_that_was_silent_and_the_cancel_follows_its_answer(tmp_path: Path) -> None:
    canceled: list[bool] = []

    def reply(_params: dict[str, Any]) -> str:
        canceled.append(any(batch.cancel is not None for batch in sandbox.books.batches))
        return "fine"

    with sandbox_of(batch_latency=30, sync_latency=0.05, window=60, reply=reply) as sandbox:
        with bw.Dispatcher(sandbox.client(), ledger=tmp_path / "ledger.db", policy=policy()) as dispatcher:
            job = dispatcher.dispatch_all(requests(20), job="late", latency=8 * SECOND)
            assert {(result.ok, result.met_deadline) for result in job.results(timeout=20)} == {(True, True)}
            report = dispatcher.report()
        assert canceled[:2] == [False, True]
        assert canceled.count(False) == 1
        assert report.possible_doubles == 1
        assert len(sandbox.books.bought_twice()) == (report.wasted > 0) <= 1


@pytest.mark.parametrize("fault", ["unauthorized_401", "billing_402", "spend_cap", "error_500"])
def test_a_batch_is_not_cancelled_into_a_sync_lane_that_does_not_work(tmp_path: Path, fault: str) -> None:
    # The moment to cancel comes some two seconds before the last one, at 7.65 s, and the batch ends in between.
    early = policy(cancel_settle=2 * SECOND)
    with sandbox_of(batch_latency=6.0, window=60) as sandbox:
        sandbox.fault(f"messages.{fault}", times=None)
        with bw.Dispatcher(sandbox.client(), ledger=tmp_path / "ledger.db", policy=early) as dispatcher:
            job = dispatcher.dispatch_all(requests(20), job="late", latency=8 * SECOND)
            results = list(job.results(timeout=20))
            report, suspended = dispatcher.report(), dispatcher.progress().suspended
        (batch,) = sandbox.client().messages.batches.list().data
        assert batch.cancel_initiated_at is None
        assert sandbox.faults_fired[f"messages.{fault}"] > 0
        lanes = Counter(result.lane for result in results if result.ok)
        if fault == "error_500":  # rows that went ahead used their attempts up, but for one that its batch overtook
            assert 0 < 20 - lanes[bw.Lane.BATCH] <= report.possible_doubles < 6
        else:
            assert lanes[bw.Lane.BATCH] == 20, "the row that went ahead came with its batch"
            assert list(suspended) == [bw.Lane.SYNC]
            assert (report.possible_doubles, report.wasted) == (1, 0)


def test_sixty_calls_left_two_seconds_before_the_deadline_are_all_in_time(tmp_path: Path) -> None:
    with (
        sandbox_of(batch_latency=600, sync_latency=0.05, window=2) as sandbox,
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
    with sandbox_of(batch_latency=30, sync_latency=0.05, window=60) as sandbox:
        sandbox.fault("cancel.hang", times=None, delay=6)
        # Calls said to be slower than they are: what is kept for the slowest is all the room that a busy machine has.
        slow = policy(limits=bw.Limits(concurrency=10, latency=SECOND / 5))
        with bw.Dispatcher(sandbox.client(), ledger=tmp_path / "ledger.db", policy=slow) as dispatcher:
            job = dispatcher.dispatch_all(requests(20), job="hang", latency=8 * SECOND)
            results = list(job.results(timeout=20))
            assert {(result.ok, result.met_deadline) for result in results} == {(True, True)}
            report = dispatcher.report()
        assert report.missed == 0
        assert report.possible_doubles == 20


def test_a_hedge_uses_the_batch_that_ends_early_and_breaks_off_the_one_that_does_not(tmp_path: Path) -> None:
    hedging = policy(hedge=True, window=3600 * SECOND, min_reserve=SECOND)
    with sandbox_of(batch_latency=0.3, sync_latency=0.05) as sandbox:
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
