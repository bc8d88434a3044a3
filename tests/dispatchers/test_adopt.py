"""`adopt`: a batch made by the bare SDK is taken in by its id, once, and every row of it ends under its own name."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import Any

import pytest

from batchwise import (
    InvalidValueError,
    KeyConflictError,
    Latency,
    Outcome,
    Request,
    RequestFailedError,
    SpendLimitError,
    Status,
    WrongWorkspaceError,
)
from batchwise.sandbox import Reply
from tests.strategies import params

from .world import PATIENCE, World, listed, many


async def made_elsewhere(world: World, count: int, prefix: str = "row", client: Any = None) -> str:
    """The id of a batch of `<prefix>-0`, `<prefix>-1`, ..., whose prompts are their custom_ids."""
    requests = [{"custom_id": f"{prefix}-{i}", "params": params(f"{prefix}-{i}")} for i in range(count)]
    inner = (client or world.client())._inner if world.colour.name == "sync" else client or world.client()
    made = inner.messages.batches.create(requests=requests)
    return (made if world.colour.name == "sync" else await made).id


async def until_settled(world: World, job: Any) -> Any:
    async def settled() -> bool:
        return (await job.progress()).by_status.get(Status.SETTLED, 0) == await size(job)

    await world.until(settled)


async def size(job: Any) -> int:
    return sum((await job.progress()).by_status.values())


async def test_each_row_is_found_under_its_custom_id(world: World):
    remote = await made_elsewhere(world, 40)
    async with world.open() as d:
        job = await d.adopt(remote)
        assert job.name == remote
        results = {r.key: r for r in await listed(job.results(timeout=PATIENCE))}
        assert {key: r.text for key, r in results.items()} == {f"row-{i}": f"echo: row-{i}" for i in range(40)}
        assert all(r.custom_id == key and r.job == remote for key, r in results.items())
        assert sum(r.cost for r in results.values()) == (await job.report()).cost > Decimal(0)
        ticket = await d.ticket("row-7", job=remote)
        assert (await ticket.result()).text == "echo: row-7"
        assert ticket.custom_id == "row-7"
    assert world.creates == 1
    assert world.calls == 0


async def test_while_it_runs_its_size_is_known_and_another_process_goes_on(world: World):
    world.sandbox.batch_latency = 3600
    remote = await made_elsewhere(world, 3)
    async with world.open() as d:
        job = await d.adopt(remote, job="moved", keys={"row-0": "src/a.py", "row-1": "src/b.py", "row-9": "none"})
        assert await size(job) == 3
        (running,) = (await job.progress()).batches
        assert running.remote_id == remote
    world.sandbox.finish(remote)
    out = world.ran(
        f"""
        with bw.Dispatcher(policy=policy) as d:
            print(sorted((r.key, r.text) for r in d.job("moved").results(timeout={PATIENCE})))
            print(d.adopt({remote!r}).name)
        """
    )
    rows = [("row-2", "echo: row-2"), ("src/a.py", "echo: row-0"), ("src/b.py", "echo: row-1")]
    assert out.splitlines() == [str(rows), "moved"]


async def test_again_gives_the_same_job_and_counts_nothing_twice(world: World):
    remote = await made_elsewhere(world, 5)
    async with world.open() as d:
        jobs = await world.together(*[lambda: d.adopt(remote)] * 3)
        assert [job.name for job in jobs] == [remote] * 3
        await listed(jobs[0].results(timeout=PATIENCE))
        again = await d.adopt(remote, job=remote)
        assert len(await listed(again.results(timeout=PATIENCE))) == await size(again) == 5
        with pytest.raises(InvalidValueError, match="was adopted into the job"):
            await d.adopt(remote, job="other")


async def test_what_it_cost_counts_against_the_spend_limit(world: World):
    remote = await made_elsewhere(world, 5)
    more = Request(params("more"), key="more")
    async with world.open() as d:
        await listed((await d.adopt(remote)).results(timeout=PATIENCE))
        spent = (await d.report()).cost
        # A token for each byte, written to the cache for an hour, in the region that costs most.
        most = Decimal(1_024 * 10 + len(more.body) * 4) * Decimal("1.1") / 10**6
    async with world.open(max_spend=most + spent / 2) as d:
        with pytest.raises(SpendLimitError):
            await d.dispatch(more)
    async with world.open(max_spend=most + spent) as d:
        assert (await (await d.dispatch(more)).result(timeout=PATIENCE)).ok


@pytest.mark.parametrize(
    "fault",
    [
        ("results.duplicate_row", {}),
        ("results.drop", {"after_rows": 7}),
        ("results.garbage_line", {"replace": True}),
        ("results.crlf", {}),
    ],
    ids=lambda fault: fault[0],
)
async def test_broken_reads_are_read_again_and_change_nothing(world: World, fault: tuple[str, dict[str, Any]]):
    world.sandbox.fault(fault[0], **fault[1])
    remote = await made_elsewhere(world, 20)
    async with world.open() as d:
        results = await listed((await d.adopt(remote)).results(timeout=PATIENCE))
        report = await d.report()
    assert Counter(r.key for r in results) == {f"row-{i}": 1 for i in range(20)}
    assert all(r.text == f"echo: {r.key}" for r in results)
    assert report.requests == 20
    assert report.wasted == 0
    assert world.creates == 1


@pytest.mark.parametrize("step", ["adopt", "name_adopted", "settle"])
async def test_a_process_that_dies_on_the_way_leaves_nothing_lost_and_nothing_twice(world: World, step: str):
    rows = 3_000  # they settle in several transactions
    remote = await made_elsewhere(world, rows)
    dying = f"""
        import os
        from batchwise.ledger.sqlite_database import SqliteDatabase
        from batchwise.ledger.sqlite import SqliteLedger

        class Dying(SqliteDatabase):
            left = 1 if {step!r} == "adopt" else 2
            def commit(self, name):
                super().commit(name)
                self.left -= name == {step!r}
                if not self.left:
                    os._exit(9)

        with bw.Dispatcher(ledger=SqliteLedger(Dying({str(world.path)!r})), policy=policy) as d:
            list(d.adopt({remote!r}).results(timeout=60))
        """
    with world.script(dying) as process:
        assert process.wait(60) == 9, process.communicate()
    async with world.open() as d:
        job = await d.adopt(remote)
        results = await listed(job.results(timeout=60))
        report = await d.report()
    assert {r.key: r.text for r in results} == {f"row-{i}": f"echo: row-{i}" for i in range(rows)}
    assert len(results) == report.requests == rows
    assert report.wasted == 0


@pytest.mark.parametrize(
    ("fault", "outcome", "kind"),
    [
        ("batch.row_expired", Outcome.EXPIRED, "expired"),
        ("batch.row_error", Outcome.FAILED, "api_error"),
        ("batch.all_rows_error", Outcome.FAILED, "invalid_request_error"),
    ],
)
async def test_rows_without_an_answer_end_as_they_ended_and_are_not_sent_again(
    world: World, fault: str, outcome: Outcome, kind: str
):
    world.sandbox.fault(fault, times=None)
    remote = await made_elsewhere(world, 4)
    async with world.open() as d:
        job = await d.adopt(remote)
        results = await listed(job.results(timeout=PATIENCE))
        assert {(r.key, r.custom_id) for r in results} == {(f"row-{i}", f"row-{i}") for i in range(4)}
        assert {(r.outcome, r.error.type) for r in results} == {(outcome, kind)}
        with pytest.raises(InvalidValueError, match="does not have their prompts"):
            await job.retry()
        assert not (await d.progress()).suspended
    assert world.creates == 1
    assert world.calls == 0


async def test_a_paused_turn_is_an_answer_since_nobody_here_can_continue_it(world: World):
    world.sandbox.reply = lambda _request: Reply.pause_turn("so far")
    remote = await made_elsewhere(world, 2)
    async with world.open() as d:
        results = await listed((await d.adopt(remote)).results(timeout=PATIENCE))
    assert [(r.ok, r.text, r.message.stop_reason) for r in results] == [(True, "so far", "pause_turn")] * 2
    assert world.creates == 1


async def test_rows_that_never_come_fail_under_a_placeholder(world: World):
    world.sandbox.fault("results.missing_row", times=None, every=3)
    remote = await made_elsewhere(world, 6)
    async with world.open() as d:
        results = await listed((await d.adopt(remote)).results(timeout=PATIENCE))
    assert sorted(r.key for r in results if r.ok) == ["row-1", "row-2", "row-4", "row-5"]
    lost = [r for r in results if not r.ok]
    assert [r.error.type for r in lost] == ["missing_row"] * 2
    assert all(r.key.startswith(f"{remote}#") for r in lost)
    assert world.creates == 1


async def test_cancelling_its_job_cancels_it_and_a_single_row_is_left(world: World):
    world.sandbox.batch_latency = 3600
    remote = await made_elsewhere(world, 3)
    async with world.open() as d:
        job = await d.adopt(remote)
        assert await d.cancel(f"{remote}#0", job=remote) == 0
        assert await size(job) == (await job.progress()).by_status[Status.IN_FLIGHT] == 3
        await job.cancel()
        results = await listed(job.results(timeout=PATIENCE))
    assert {(r.key, r.outcome) for r in results} == {(f"row-{i}", Outcome.CANCELED) for i in range(3)}


async def test_a_key_of_the_job_stays_with_the_request_that_has_it(world: World):
    remote = await made_elsewhere(world, 2)
    async with world.open() as d:
        await (await d.dispatch(Request(params("own"), key="row-0"), job="both")).result(timeout=PATIENCE)
        results = await listed((await d.adopt(remote, job="both")).results(timeout=PATIENCE))
        assert sorted((r.text, r.key.partition("#")[0]) for r in results) == [
            ("echo: own", "row-0"),
            ("echo: row-0", remote),
            ("echo: row-1", "row-1"),
        ]
        with pytest.raises(KeyConflictError, match="of an adopted batch"):
            await d.dispatch(Request(params("row-1"), key="row-1"), job="both")
        with pytest.raises(KeyConflictError, match="of an adopted batch"):
            await d.dispatch_all([Request(params("row-1"), key="row-1")], job="both")


async def test_what_cannot_be_adopted_is_said_and_leaves_nothing(world: World):
    async with world.open() as d:
        with pytest.raises(RequestFailedError, match="no such batch") as unknown:
            await d.adopt("msgbatch_unknown")
        assert unknown.value.error_type == "not_found_error"
        job = await d.dispatch_all(many(2), latency=Latency.FLEXIBLE)
        await listed(job.results(timeout=PATIENCE))
        own = world.books.batches[0].id
        with pytest.raises(InvalidValueError, match="one of this ledger's own"):
            await d.adopt(own)
        old = await made_elsewhere(world, 2)
        world.sandbox.advance(30 * 86_400)
        with pytest.raises(InvalidValueError, match="archived"):
            await d.adopt(old)
        for wrong in ({"no custom id!": "key"}, {"a": ""}, {"a": "same", "b": "same"}):
            with pytest.raises(InvalidValueError):
                await d.adopt(old, keys=wrong)
        assert (await d.progress()).by_status.get(Status.SETTLED, 0) == 2


async def test_another_workspace_is_refused(world: World):
    world.sandbox.api_keys = {"one": "wrkspc_one", "two": "wrkspc_two"}
    remote = await made_elsewhere(world, 2, client=world.client(api_key="two"))
    async with world.open(client=world.client(api_key="one")) as d:
        await listed((await d.dispatch_all(many(2), latency=Latency.FLEXIBLE)).results(timeout=PATIENCE))
    async with world.open(client=world.client(api_key="two")) as d:
        with pytest.raises(WrongWorkspaceError):
            await d.adopt(remote)


async def test_a_batch_that_may_be_our_own_is_not_taken_for_a_foreign_one(world: World):
    world.sandbox.fault("create.drop_after")
    world.sandbox.batch_latency = 3600
    async with world.open() as d:
        job = await d.dispatch_all(many(3), latency=Latency.FLEXIBLE)
        await world.until(lambda: world.books.batches)
        doubtful = world.books.batches[0].id
        with pytest.raises(InvalidValueError, match="this ledger's own"):
            await d.adopt(doubtful)
        world.sandbox.finish(doubtful)
        assert len([r for r in await listed(job.results(timeout=PATIENCE)) if r.ok]) == 3
    assert world.books.bought_twice() == {}
