"""Several processes on one ledger: one at a time acts on batches, and one that stands still is not dead."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

import batchwise as bw
from batchwise.sandbox import Sandbox
from tests.reliability.conftest import Store
from tests.reliability.crossing import JOB, POLICY, context, run, run_and_stop, run_beside, run_job, short_window
from tests.strategies import params
from tests.waiting import until

REQUESTS = 5
PROMPTS = {f"prompt {number}": 1 for number in range(REQUESTS)}
CREATE, CALL = "POST /v1/messages/batches", "POST /v1/messages"


def stands_still(process: BaseProcess) -> bool:
    assert process.is_alive(), f"it ended with {process.exitcode}"
    return Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "T"


def started(target: Callable[..., None], *arguments: object) -> BaseProcess:
    process = context().Process(target=target, args=arguments)
    process.start()
    return process


def go_on(process: BaseProcess) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGCONT)


def ended(process: BaseProcess) -> None:
    process.join(60)
    assert process.exitcode == 0


def end(process: BaseProcess) -> None:
    process.kill()
    process.join()


def test_processes_side_by_side_send_nothing_twice_and_lose_nothing(store: Store, tmp_path: Path) -> None:
    ledger = store.ledger()
    with Sandbox(batch_latency=0.1, sync_latency=0.01) as sandbox:
        logs = [tmp_path / f"log {worker}" for worker in range(4)]
        workers = [
            started(run_beside, sandbox.base_url, ledger, worker, 20, str(log)) for worker, log in enumerate(logs)
        ]
        for worker in workers:
            worker.join(90)
        assert [worker.exitcode for worker in workers] == [0] * 4
        assert all(log.read_text() == "done" for log in logs)
        bought = sandbox.books.bought_by_prompt()
        assert set(bought.values()) == {1}
        assert len(bought) == 4 * 20 + 20 + 4 * 3
        with bw.Dispatcher(sandbox.client(), ledger=ledger, policy=POLICY) as dispatcher:
            assert Counter(result.ok for result in dispatcher.results()) == {True: len(bought)}
            assert dispatcher.report().possible_doubles == 0


SOAK = pytest.mark.soak


@pytest.mark.parametrize(
    ("store", "fault"),
    [
        ("sqlite", "create.slow"),
        ("sqlite", "create.hang"),
        ("sqlite", None),
        ("postgres", None),
        pytest.param("postgres", "create.slow", marks=SOAK),
        pytest.param("postgres", "create.hang", marks=SOAK),
    ],
    indirect=["store"],
)
def test_an_owner_that_stands_still_in_a_create_is_left_alone(fault: str | None, store: Store, tmp_path: Path) -> None:
    ledger, log = store.ledger(), tmp_path / "log"
    with Sandbox(batch_latency=0.1) as sandbox:
        if fault is not None:
            sandbox.fault(fault, **({"delay": 1.0} if fault == "create.slow" else {}))
        where = "after commit posting" if fault is None else "never"
        owner = started(run_and_stop, sandbox.base_url, ledger, where, str(log), REQUESTS, None)
        try:
            if fault is not None:
                until(lambda: sandbox.books.requests_by_path[CREATE] == 1, "it never sent")
                os.kill(owner.pid or 0, signal.SIGSTOP)
            until(lambda: stands_still(owner), "it never stopped")
            creates = 0 if fault is None else 1
            with bw.Dispatcher(sandbox.client(), ledger=ledger, policy=POLICY) as other:
                mine = other.dispatch(params("mine")).result(timeout=20)
                assert mine.ok, "the sync lane waits for nobody's lease"
                time.sleep(2 * POLICY.create_grace.total_seconds())
                assert sandbox.books.requests_by_path[CREATE] == creates, "sent again behind a living owner's back"
                assert other.progress(JOB).by_status == {bw.Status.IN_FLIGHT: REQUESTS}
                assert {batch.status for batch in other.progress().batches} == {"posting"}
                go_on(owner)
                results = list(other.job(JOB).results(timeout=30))
                assert len(results) == REQUESTS
                assert other.report().possible_doubles == 0
            ended(owner)
        finally:
            end(owner)
        assert sandbox.books.bought_by_prompt() == {**PROMPTS, "mine": 1}
        assert sandbox.books.requests_by_path[CREATE] == 1


@pytest.mark.parametrize(
    ("store", "sent"),
    [("sqlite", False), ("sqlite", True), ("postgres", True), pytest.param("postgres", False, marks=SOAK)],
    indirect=["store"],
)
def test_at_the_last_safe_moment_a_stopped_owners_requests_go_to_the_sync_lane(
    sent: bool, store: Store, tmp_path: Path
) -> None:
    ledger, log, sla = store.ledger(), tmp_path / "log", 8.0
    with Sandbox(batch_latency=60.0) as sandbox:
        where = "after send POST /v1/messages/batches" if sent else "after commit posting"
        owner = started(run_and_stop, sandbox.base_url, ledger, where, str(log), REQUESTS, sla)
        try:
            until(lambda: stands_still(owner), "it never stopped")
            with bw.Dispatcher(sandbox.client(), ledger=ledger, policy=short_window(sla)) as other:
                results = list(other.job(JOB).results(timeout=20))
                assert {(result.ok, result.lane, result.met_deadline) for result in results} == {
                    (True, bw.Lane.SYNC, True)
                }
                assert other.report().possible_doubles == REQUESTS
                go_on(owner)
                ended(owner)
                if sent:  # it is still known, so it is found out that its rows are wanted no more
                    until(lambda: other.progress().batches == (), "the batch was never cleared away")
        finally:
            end(owner)
        assert sandbox.books.bought_by_prompt("sync") == PROMPTS
        if sent:
            assert sandbox.books.requests_by_path[CREATE + "/{id}/cancel"] >= 1
        # Not sent: the check before the last chunk broke the create off, and nothing was bought.
        assert sandbox.books.bought_twice() == {}
        assert len(sandbox.books.batches) == int(sent)


def killed_at_random(ledger: str, folder: Path, chance: random.Random) -> int:
    """One round: a process with a slow create is killed at some moment, another finishes. Returns the creates."""
    folder.mkdir()
    log = folder / "log"
    with Sandbox(batch_latency=0.05) as sandbox:
        sandbox.fault("create.slow", times=None, delay=0.25)
        process = started(run_job, sandbox.base_url, ledger, None, str(log), REQUESTS, False)
        try:
            until(lambda: sandbox.books.requests_by_path["GET /v1/messages/batches"] > 0, "it never began")
            time.sleep(chance.uniform(0.0, 0.45))  # between acceptance and record lie 0.25 s of it
        finally:
            end(process)
        assert run(run_job, sandbox.base_url, ledger, None, str(log), REQUESTS, False) == 0
        with bw.Dispatcher(sandbox.client(), ledger=ledger, policy=POLICY) as dispatcher:
            outcomes = Counter(result.outcome for result in dispatcher.results())
            # Killed just before the POST: given up after the grace, though nothing was bought.
            assert dispatcher.report().possible_doubles in {0, REQUESTS}
        assert outcomes == {bw.Outcome.SUCCEEDED: REQUESTS}
        assert sandbox.books.bought_by_prompt() == PROMPTS
        return sandbox.books.requests_by_path[CREATE]


def test_kills_at_random_under_a_slow_create(store: Store, tmp_path: Path) -> None:
    chance = random.Random(11)
    for number in range(5 if store.local else 2):
        killed_at_random(store.ledger(), tmp_path / str(number), chance)


@pytest.mark.soak
def test_two_hundred_kills_at_random_under_a_slow_create(store: Store, tmp_path: Path) -> None:
    chance = random.Random()
    for number in range(200):
        killed_at_random(store.ledger(), tmp_path / str(number), chance)


def test_whoever_waits_goes_on_with_what_a_dead_process_left(store: Store, tmp_path: Path) -> None:
    ledger, log = store.ledger(), tmp_path / "log"
    with Sandbox(batch_latency=2.0) as sandbox:
        sandbox.fault("messages.slow", delay=60.0)  # its process will not see the answer
        owner = started(run_job, sandbox.base_url, ledger, None, str(log), REQUESTS, True)
        until(lambda: len(sandbox.books.batches) == 1 and sandbox.books.requests_by_path[CALL] == 1, "it never sent")
        with bw.Dispatcher(sandbox.client(), ledger=ledger, policy=POLICY) as other, ThreadPoolExecutor() as threads:
            batched = threads.submit(lambda: list(other.job(JOB).results(timeout=20)))
            called = threads.submit(lambda: other.ticket("soon").result(timeout=20))
            time.sleep(1.0)
            assert {batch.status for batch in other.progress().batches} == {"in_progress"}
            end(owner)
            assert [result.ok for result in batched.result()] == [True] * REQUESTS
            assert called.result().ok
        assert sandbox.books.bought_by_prompt("batch") == PROMPTS


def test_a_lease_is_free_as_soon_as_its_holder_is_dead(store: Store, tmp_path: Path) -> None:
    ledger, log = store.ledger(), tmp_path / "log"
    with Sandbox(batch_latency=0.1) as sandbox:
        owner = started(run_and_stop, sandbox.base_url, ledger, "after commit posting", str(log), REQUESTS, None)
        until(lambda: stands_still(owner), "it never stopped")
        with bw.Dispatcher(sandbox.client(), ledger=ledger, policy=POLICY) as other:
            job = other.job(JOB)
            with pytest.raises(bw.ResultTimeoutError):
                list(job.results(timeout=0.5))
            end(owner)
            assert len(list(job.results(timeout=timedelta(seconds=20)))) == REQUESTS
            assert other.report().possible_doubles == REQUESTS, "it could not be known whether the POST had left"
        assert sandbox.books.bought_by_prompt() == PROMPTS
