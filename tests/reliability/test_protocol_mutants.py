"""The tests catch wrong variants of the protocol: each scenario passes with the right one, and fails with a wrong one.

A variant is switched on by a patch; the scenario's own check has to raise then.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

import batchwise as bw
from batchwise.engine import actions, reading, reconciliation, submission
from batchwise.engine.core import Engine
from batchwise.engine.effects import store
from batchwise.engine.leadership import Leadership
from batchwise.ledger.batches import Batches
from batchwise.ledger.lease import Lease
from batchwise.ledger.locks import ProcessLock
from batchwise.ledger.values import Which
from batchwise.planning.custom_ids import new_nonce, parse, sealer
from batchwise.planning.state import BatchView
from tests.reliability.simulation import HOUR, MINUTE, World, message_of

Scenario = Callable[[Path], None]
Patch = Callable[[pytest.MonkeyPatch], None]
NAMES = [f"prompt {number}" for number in range(4)]


# -- scenarios --------------------------------------------------------------------------------------------------------


def other_tools_batches(_folder: Path) -> None:
    """A create's answer is lost, and another tool has made a batch of as many rows just then."""
    world = World()
    try:
        world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
        world.api.order("create", "dropped before")
        real = world.api.create

        def create(*arguments: Any) -> Any:
            world.api.add([(f"foreign-{number}", "foreign") for number in range(len(NAMES))], ours=False)
            return real(*arguments)

        world.api.create = create  # type: ignore[method-assign]
        world.pass_time(10 * MINUTE)
        world.api.create = real  # type: ignore[method-assign]
        world.cancel()
        world.run()
        world.settle_all()
        assert world.ledger.statistics.report(job=None).possible_doubles == 0, (
            "waited for by nobody, sent again by nobody"
        )
    finally:
        world.close()


def death_while_creating(_folder: Path) -> None:
    """The process dies after the API took the batch, before it was recorded."""
    world = World()
    try:
        world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
        world.api.deadly = "create", True
        world.run()
        world.check()
        world.settle_all()
        assert len(world.api.batches) == 1
        assert world.ledger.statistics.report(job=None).possible_doubles == 0
    finally:
        world.close()


def stopped_owner(folder: Path) -> None:
    """The owner stands still in the middle of a create; a second process runs on for hours; the owner goes on."""
    owner = World(path=str(folder / "ledger.db"))
    try:
        owner.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
        while owner.api.calls["list"] == 0 or not any(
            batch.state.value == "posting" for batch in owner.ledger.snapshot().batches
        ):
            owner.run(1)
        other = World(path=str(folder / "ledger.db"), beside=owner)
        try:
            other.pass_time(3 * HOUR)
            owner.run()  # SIGCONT
            owner.pass_time(3 * HOUR)
            other.accepted |= owner.accepted
            other.pass_time(HOUR)
            other.check()
        finally:
            other.close()
        owner.settle_all()
        assert len(owner.api.batches) == 1
    finally:
        owner.close()


def short_results(_folder: Path) -> None:
    """The results end early, cleanly, the first time."""
    world = World()
    try:
        world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
        world.api.order("read", "half")
        world.pass_time(3 * HOUR)
        world.settle_all()
        assert {outcome for outcome, _ in world.seen.values()} == {bw.Outcome.SUCCEEDED}
        assert len(world.api.batches) == 1
    finally:
        world.close()


def rows_of_a_copied_ledger(_folder: Path) -> None:
    """The results hold rows under ids of another seal that name our requests' numbers (a restored copy made them)."""
    world = World()
    try:
        world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
        real = world.api.lines

        def lines(batch: Any) -> list[bytes]:
            alien = sealer(new_nonce(b"a restored ledger"))
            number = parse(batch.rows[0][0]).number  # type: ignore[union-attr]
            answer = {"type": "succeeded", "message": message_of("the copy's answer")}
            row = orjson.dumps({"custom_id": alien("key", number).decode(), "result": answer}) + b"\n"
            return [row, *real(batch)]  # of two rows of one request the first counts

        world.api.lines = lines  # type: ignore[method-assign]
        world.settle_all()
    finally:
        world.close()


# -- variants of the protocol -----------------------------------------------------------------------------------------


def adopt_any_equal_count(patch: pytest.MonkeyPatch) -> None:
    async def reconcile(engine: Engine, batch: BatchView) -> None:
        found = await reconciliation._candidates(engine, batch)
        if found:
            await store(submission.record_created, engine, batch, found[0])

    patch.setattr(actions, "reconcile", reconcile)


def blind_resend_after_crash(patch: pytest.MonkeyPatch) -> None:
    real = Leadership.take

    def take(leadership: Leadership) -> bool:
        taken, ledger = real(leadership), leadership._ledger
        for batch in ledger.snapshot().batches if taken else ():
            if batch.state.value == "posting":
                ledger.requeue(Which(batch=batch.id), lane=bw.Lane.BATCH, now=batch.sealed_at)
        return taken

    patch.setattr(Leadership, "take", take)


def no_lock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ProcessLock, "acquire", lambda _lock: True)
    patch.setattr(ProcessLock, "held", property(lambda _lock: True))
    patch.setattr(Lease, "epoch", lambda *_: 0)
    patch.setattr(Batches, "still_posting", lambda _ledger, _batch: True)


def collect_without_ticking_off(patch: pytest.MonkeyPatch) -> None:
    real = reading.Reader.finish

    def finish(reader: Any, *, whole: bool) -> list[int]:
        real(reader, whole=whole)
        return []  # `ended` is taken for the whole truth

    patch.setattr(reading.Reader, "finish", finish)


def no_nonce_check(patch: pytest.MonkeyPatch) -> None:
    def opener(_nonce: str) -> Callable[[bytes], int]:
        def number(custom_id: bytes) -> int:
            found = parse(custom_id.decode())
            return -1 if found is None else found.number

        return number

    patch.setattr(reading, "opener", opener)


def no_watermark_nor_grace(patch: pytest.MonkeyPatch) -> None:
    """What was not listed at once is sent again at once."""
    patch.setattr("batchwise.planning.batch_rules._grace_over", lambda _agenda, batch: not batch.candidates)


def late_listing(_folder: Path) -> None:
    """The batch of a lost answer shows in the listing a few minutes later only."""
    world = World()
    try:
        world.dispatch_all(NAMES, bw.Latency.FLEXIBLE)
        world.api.order("create", "late")
        world.pass_time(3 * HOUR)
        world.settle_all()
        assert len(world.api.batches) == 1
    finally:
        world.close()


VARIANTS: list[tuple[Scenario, Patch]] = [
    (other_tools_batches, adopt_any_equal_count),
    (death_while_creating, blind_resend_after_crash),
    (stopped_owner, no_lock),
    (short_results, collect_without_ticking_off),
    (rows_of_a_copied_ledger, no_nonce_check),
    (late_listing, no_watermark_nor_grace),
]


@pytest.mark.parametrize("scenario", [scenario for scenario, _ in VARIANTS])
def test_the_protocol_passes(scenario: Scenario, tmp_path: Path) -> None:
    scenario(tmp_path)


@pytest.mark.parametrize(("scenario", "variant"), VARIANTS)
def test_a_wrong_protocol_is_caught(
    scenario: Scenario, variant: Patch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant(monkeypatch)
    with pytest.raises((AssertionError, bw.BatchwiseError)):
        scenario(tmp_path)


def test_time_in_the_scenarios_is_virtual() -> None:
    world = World()
    before = world.now()
    world.pass_time(HOUR)
    assert isinstance(before, datetime)
    assert world.now() - before == HOUR
    world.close()
