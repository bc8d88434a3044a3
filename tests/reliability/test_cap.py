"""A spend limit is never passed, in random worlds where answers cost the most they can, are lost and bought again."""

from __future__ import annotations

import json
import random
import time
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import anthropic
import attrs
import pytest

import batchwise as bw
from batchwise.ledger.values import Which
from batchwise.sandbox import Reply, Sandbox
from tests.postgres import Schemas
from tests.reliability.conftest import Store
from tests.reliability.crossing import POLICY, context
from tests.reliability.simulation import HOUR, MINUTE, World
from tests.strategies import params

LOSSES = (
    ("call", "dropped after"),
    ("call", "500"),
    ("create", "dropped after"),
    ("create", "dropped before"),
    ("create", "late"),
    ("create", "500 after"),
    ("read", "missing"),
    ("read", "empty"),
    ("read", "unknown"),
    ("cancel", "no effect"),
    ("retrieve", "404"),
)
"""Faults after which something may have been billed that nobody saw."""
LATENCIES = (bw.Latency.BLOCKING, bw.Latency.FLEXIBLE, 2 * HOUR, 26 * HOUR, 30 * HOUR)
SPANS = (MINUTE, HOUR, 6 * HOUR, 25 * HOUR)


def live_through(seed: int, path: str = ":memory:") -> str:
    """A world of this seed, checked after each thing that happens; returns what went on in it, for the log."""
    chance = random.Random(seed)
    cap = chance.choice(["0.015", "0.02", "0.04", "0.07"])
    policy = bw.Policy(
        max_spend=cap,
        exclusive_workspace=chance.random() < 0.5,
        hedge=chance.random() < 0.5,
        max_attempts=chance.choice([2, 3, 5]),
    )
    world = World(policy, path=path)
    world.random.seed(seed)
    refused = accepted = 0
    try:
        for step in range(25):
            world.api.duration = chance.choice([0, 1, 20, 30]) * HOUR
            for _ in range(chance.randint(0, 3)):
                world.api.order(*chance.choice(LOSSES))
            for number in range(chance.randint(0, 4)):
                try:
                    world.dispatch(f"{seed} {step} {number}", chance.choice(LATENCIES))
                    accepted += 1
                except bw.SpendLimitError:
                    refused += 1
            with suppress(bw.LedgerError):
                world.pass_time(chance.choice(SPANS), wakes=10)
            if chance.random() < 0.3:
                world.run(chance.randint(0, 8))
                world.crash(done=chance.random() < 0.5)
            if chance.random() < 0.2:
                world.ledger.conditions.resume()
            world.check()
        world.settle_all()
        report = world.ledger.statistics.report(job=None)
    finally:
        world.close()
    assert accepted, "the limit leaves room for something"
    return f"{accepted} accepted, {refused} refused, {report.possible_doubles} in doubt, {report.cost} of {cap}"


@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(n, marks=pytest.mark.soak) for n in range(12, 212))])
def test_the_spend_limit_is_passed_in_no_world(seed: int) -> None:
    print(live_through(seed))


@pytest.mark.parametrize("seed", [12, *(pytest.param(n, marks=pytest.mark.soak) for n in range(13, 212))])
def test_the_spend_limit_is_passed_in_no_world_in_postgres(seed: int, schemas: Schemas) -> None:
    print(live_through(seed, schemas.url()))


@pytest.mark.parametrize("latency", [bw.Latency.FLEXIBLE, 2 * HOUR, 30 * HOUR])
def test_a_limit_that_comes_later_holds_for_what_was_accepted_before(tmp_path: Path, latency: Any) -> None:
    """One dispatcher without a limit accepts and sends; another one with a limit goes on with the ledger."""
    path = str(tmp_path / "ledger.db")
    before = World(path=path)
    after = World(bw.Policy(max_spend="0.06"), path=path, beside=before)
    try:
        before.dispatch("sent", bw.Latency.FLEXIBLE)
        before.ledger.flush()
        before.run()
        assert len(before.api.batches) == 1
        for number in range(20):
            before.dispatch(f"{number}", latency)
        before.engine.close()
        after.accepted = before.accepted
        for _ in range(100):
            after.pass_time(HOUR, wakes=10)
            after.check()  # the limit among it
        counts = after.ledger.statistics.counts(job=None)
        answered = sum(number for (_, _, outcome), number in counts.items() if outcome is bw.Outcome.SUCCEEDED)
        assert 1 < answered < 21
        assert sum(number for (_, _, outcome), number in counts.items() if outcome is None) == 21 - answered
        assert "Policy.max_spend" in (after.engine.setbacks.last or "")
        with pytest.raises(bw.SpendLimitError):
            after.dispatch("more", latency)
    finally:
        after.close()
        before.close()


@pytest.mark.parametrize(
    ("losses", "latency"),
    [
        ([("call", "dropped after")] * 5, bw.Latency.BLOCKING),
        ([("read", "missing")] * 20, bw.Latency.FLEXIBLE),
        ([], bw.Latency.FLEXIBLE),  # a whole batch
    ],
)
def test_a_limit_that_comes_later_counts_what_was_lost_before(tmp_path: Path, losses: Any, latency: Any) -> None:
    """Answers that were billed are lost, one by one or with a whole batch, and bought again; then there is a limit."""
    path = str(tmp_path / "ledger.db")
    before = World(path=path)
    for loss in losses:
        before.api.order(*loss)
    for number in range(6):
        before.dispatch(f"lost {number}", latency)
    before.ledger.flush()
    before.run()
    if not losses:
        (batch,) = before.ledger.snapshot().batches
        before.ledger.requeue(Which(batch=batch.id), lane=bw.Lane.SYNC, now=before.now(), keep=True, maybe_billed=True)
        before.api.batches[0].gone = True
    before.pass_time(30 * HOUR, wakes=1_000)
    before.settle_all()
    assert before.ledger.statistics.report(job=None).possible_doubles > 0
    paid = before.paid()
    after = World(bw.Policy(max_spend=Decimal(paid * 3).scaleb(-12)), path=path, beside=before)
    try:
        before.engine.close()
        after.accepted, after.seen = before.accepted, before.seen
        assert after.cost_on_the_books() >= paid
        refused = False
        while not refused:
            try:
                after.dispatch(f"more {len(after.accepted)}", bw.Latency.BLOCKING)
            except bw.SpendLimitError:
                refused = True
            after.pass_time(MINUTE)
            after.check()  # the limit among it
    finally:
        after.close()
        before.close()


def test_a_limit_with_room_keeps_nobody_waiting(tmp_path: Path) -> None:
    path = str(tmp_path / "ledger.db")
    before = World(path=path)
    after = World(bw.Policy(max_spend=5), path=path, beside=before)
    try:
        before.dispatch_all([str(number) for number in range(10)], 30 * HOUR, "job")
        for number in range(3):
            before.dispatch(f"single {number}", 2 * HOUR)
        before.engine.close()
        after.accepted = before.accepted
        after.settle_all()
        assert after.ledger.statistics.report(job=None).met == 13
        with after.ledger.database.read() as db:
            assert after.ledger.books.reserved_cost(db) == 0
    finally:
        after.close()
        before.close()


def spend(base_url: str, ledger: str, cap: str, number: int) -> None:
    """A process that dispatches until the limit refuses."""
    policy = attrs.evolve(POLICY, max_spend=cap, max_attempts=3)
    client = anthropic.Anthropic(base_url=base_url, api_key="sandbox", timeout=5.0)
    with bw.Dispatcher(client, ledger=ledger, policy=policy) as d:
        refused = 0
        for index in range(40):
            latency = bw.Latency.FLEXIBLE if index % 2 else bw.Latency.BLOCKING
            try:
                d.dispatch(params(f"{number} {index}"), key=f"{number} {index}", latency=latency)
            except bw.SpendLimitError:
                refused += 1
                time.sleep(0.05)
            if refused > 5:
                break
        d.flush()
        with suppress(bw.ResultTimeoutError):
            for index in range(40):
                with suppress(bw.TicketNotFoundError):
                    d.ticket(f"{number} {index}").result(timeout=20)


def drawn(params: dict[str, Any]) -> Reply:
    """An answer that is billed as high as it may be, or less: of its input a part is read, a part written."""
    size = len(json.dumps(params, separators=(",", ":")))
    chance = random.Random(size + len(params["messages"][0]["content"]))
    read, five = (chance.choice([0, 0, size // 3]) for _ in range(2))
    hour = chance.choice([size - read - five, 0])
    split = {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": hour}
    return Reply.text("x").with_usage(
        input_tokens=size - read - five - hour,
        cache_read_input_tokens=read,
        cache_creation_input_tokens=five + hour,
        cache_creation=split,
        output_tokens=params["max_tokens"],
        inference_geo="us",
    )


def test_several_processes_on_one_ledger_keep_one_limit(store: Store) -> None:
    cap, ledger = "0.2", store.ledger()
    with Sandbox(reply=drawn, batch_latency=0.2, sync_latency=0.02) as sandbox:
        sandbox.fault("messages.drop_after_billing", times=4)
        sandbox.fault("create.error_500_after", times=2)
        sandbox.fault("results.missing_row", times=None, probability=0.3)
        processes = [context().Process(target=spend, args=(sandbox.base_url, ledger, cap, n)) for n in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
        with bw.Dispatcher(sandbox.client(), ledger=ledger) as d:
            report = d.report()
        spent = sandbox.books.cost({"*": (Decimal("2.2"), Decimal(11))})
    assert report.possible_doubles > 0, "answers were lost"
    assert Decimal(cap) / 4 < spent <= Decimal(cap)
