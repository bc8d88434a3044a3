"""Who takes up the sync lane's calls, and when."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

import batchwise as bw
from batchwise.drivers import changes
from batchwise.engine import actions
from batchwise.engine.queue import Slot
from batchwise.sandbox import Sandbox
from tests.reliability.crossing import POLICY
from tests.strategies import params
from tests.waiting import until

from .world import World, many


def test_a_call_that_comes_while_a_worker_takes_another_up_gets_a_worker_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sandbox(sync_latency=60.0) as sandbox, ThreadPoolExecutor(1) as threads:
        d = bw.Dispatcher(sandbox.client(), ledger=tmp_path / "ledger.db", policy=POLICY)
        queue = d._engine.queue
        take, second = queue.next, list[Future[Any]]()

        def meanwhile(*now: float) -> Any:
            taken = take(*now)
            if isinstance(taken, Slot) and not second:
                second.append(threads.submit(d.dispatch, params("second")))
                wait(second, timeout=0.5)  # with the fault, it has been dispatched by now
            return taken

        monkeypatch.setattr(queue, "next", meanwhile)
        try:
            d.dispatch(params("first"))
            until(
                lambda: sandbox.books.requests_by_path["POST /v1/messages"] == 2,
                "the second call waits for the first",
                5.0,
            )
        finally:
            d.close(finish=False)


async def test_whoever_plans_hands_out_more_as_soon_as_the_calls_run_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "_BACKLOG", 4)
    monkeypatch.setattr(changes, "WATCH", 60.0)  # else it would look again by itself
    async with world.open(limits=bw.Limits(concurrency=4)) as d:
        job = await d.dispatch_all(many(40))
        assert len([result async for result in job.results(10.0)]) == 40
