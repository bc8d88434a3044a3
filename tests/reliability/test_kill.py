"""A real process is killed at every crossing in turn, and a second one finishes. The sandbox counts what was bought."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

import batchwise as bw
from batchwise.sandbox import Sandbox
from tests.reliability.conftest import Store
from tests.reliability.crossing import POLICY, run, run_job

REQUESTS = 5
PROMPTS = {f"prompt {number}": 1 for number in range(REQUESTS)}
NAMED = {
    "before commit intake accept",
    "after commit seal",
    "before commit posting",
    "after commit posting",
    "before send POST /v1/messages/batches",
    "after send POST /v1/messages/batches",
    "before commit created",
    "after commit created",
    "before commit settle",
    "after commit settle",
}


def killed_at(crossing: int | str, ledger: str, folder: Path, *, dated: bool) -> tuple[str, Counter[str], int]:
    """Kill a run at this crossing and let another finish.

    Returns where it died, how often each prompt was bought, and how many possible doubles the books admit.
    """
    folder.mkdir()
    log = folder / "log"
    with Sandbox(batch_latency=0.15, sync_latency=0.02) as sandbox:
        code = run(run_job, sandbox.base_url, ledger, crossing, str(log), REQUESTS, dated)
        where = log.read_text()
        assert code == (0 if where.startswith("done") else -signal.SIGKILL), (where, code)
        assert run(run_job, sandbox.base_url, ledger, None, str(log), REQUESTS, dated) == 0, where
        with bw.Dispatcher(sandbox.client(), ledger=ledger, policy=POLICY) as dispatcher:
            outcomes = Counter(result.outcome for result in dispatcher.results())
            doubles = dispatcher.report().possible_doubles
        assert outcomes == {bw.Outcome.SUCCEEDED: REQUESTS + dated}, (where, outcomes)
        return where, sandbox.books.bought_by_prompt(), doubles


def kill_at(crossings: Iterable[str], store: Store, folder: Path) -> None:
    for crossing in crossings:
        where, bought, _ = killed_at(crossing, store.ledger(), folder / crossing.replace("/", "-"), dated=False)
        assert where == crossing
        assert bought == PROMPTS, where


@pytest.mark.parametrize("store", ["sqlite", pytest.param("postgres", marks=pytest.mark.soak)], indirect=True)
def test_a_kill_at_every_crossing_loses_nothing_and_buys_nothing_twice(store: Store, tmp_path: Path) -> None:
    seen: list[str] = []
    while not seen or not seen[-1].startswith("done"):
        assert len(seen) < 200, "no run completed"
        where, bought, _ = killed_at(len(seen) + 1, store.ledger(), tmp_path / str(len(seen)), dated=False)
        assert bought == PROMPTS, where
        seen.append(where)
    kill_at(sorted(NAMED - set(seen)), store, tmp_path)  # threads take turns: a crossing may have another number


@pytest.mark.parametrize("store", ["postgres"], indirect=True)
def test_a_kill_at_the_worst_crossings_in_postgres(store: Store, tmp_path: Path) -> None:
    kill_at(
        [
            "before commit intake accept",
            "after commit posting",
            "after send POST /v1/messages/batches",
            "after commit settle",
        ],
        store,
        tmp_path,
    )


@pytest.mark.soak
def test_with_a_sync_call_beside_the_batch_only_that_call_can_be_bought_twice_and_the_books_say_so(
    store: Store, tmp_path: Path
) -> None:
    for crossing in range(1, 200):
        where, bought, doubles = killed_at(crossing, store.ledger(), tmp_path / str(crossing), dated=True)
        twice = {prompt: times for prompt, times in bought.items() if times != 1}
        assert set(twice) <= {"soon"}, (where, twice)
        assert sum(times - 1 for times in twice.values()) <= doubles, (where, twice)
        if where.startswith("done"):
            return
    pytest.fail("no run completed")
