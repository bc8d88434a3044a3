"""Cancelling, retrying, purging."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from batchwise import (
    AdmissionError,
    InvalidValueError,
    Lane,
    Latency,
    Limits,
    Outcome,
    RequestFailedError,
    Status,
    TicketNotFoundError,
)
from batchwise.sandbox import Reply
from tests.strategies import params

from .world import HOURS_30, PATIENCE, World, listed, many

FLEXIBLE = Latency.FLEXIBLE
WRONG = Reply.error("invalid_request_error", "no")
REMOTE = "POST /v1/messages/batches/{id}/cancel"


async def test_what_is_queued_is_cancelled_at_once(world: World):
    async with world.open() as d:
        ticket = await d.dispatch(params("x"), key="k", latency=HOURS_30)
        other = await d.dispatch(params("y"), key="o", latency=HOURS_30)
        assert await ticket.cancel() == 1
        result = await ticket.result(timeout=PATIENCE)
        assert (result.outcome, result.ok, result.cost) == (Outcome.CANCELED, False, 0)
        assert result.error.type == "canceled"
        with pytest.raises(RequestFailedError):
            _ = result.text
        assert await ticket.cancel() == 0
        assert await d.cancel("k") == 0
        assert (await other.result()).ok
    assert world.books.bought_by_prompt() == {"y": 1}


async def test_by_key_by_job_and_all(world: World):
    async with world.open() as d:
        for key in ("a", "b"):
            await d.dispatch(params(key), key=key, latency=HOURS_30)
            await d.dispatch(params(key), key=key, job="j", latency=HOURS_30)
        assert await d.cancel("a") == 1
        assert await d.cancel("a", job="j") == 1
        assert await d.cancel(job="j") == 1
        assert {(r.job, r.key) for r in await listed(d.results())} == {(None, "a"), ("j", "a"), ("j", "b")}
        assert await d.cancel() == 1
        assert (await d.progress()).by_outcome == {Outcome.CANCELED: 4}
        with pytest.raises(TicketNotFoundError):
            await d.cancel("nobody")
    assert (world.creates, world.calls) == (0, 0)


async def test_a_running_batch_is_cancelled_and_finished_rows_are_delivered(world: World):
    world.sandbox.batch_latency = 1.0
    async with world.open() as d:
        job = await d.dispatch_all(many(20), job="j", latency=FLEXIBLE)
        await world.until(lambda: world.creates)
        await world.colour.sleep(0.3)

        async def cancelled():
            await job.cancel()
            return world.paths[REMOTE]

        await world.until(cancelled)
        results = await listed(job.results())
        outcomes = [r.outcome for r in results]
        assert len(results) == 20
        assert set(outcomes) == {Outcome.SUCCEEDED, Outcome.CANCELED}
        assert all(r.text == f"echo: {r.key}" for r in results if r.ok)
        assert {r.error.type for r in results if not r.ok} == {"canceled"}
    assert outcomes.count(Outcome.SUCCEEDED) == world.books.billed()


async def in_flight(world: World, *tickets):
    async def check():
        for ticket in tickets:
            await ticket.refresh()
        return all(ticket.status is Status.IN_FLIGHT for ticket in tickets) and world.creates

    await world.until(check)


async def test_rows_of_a_shared_batch(world: World):
    world.sandbox.batch_latency = 60
    async with world.open() as d:
        mine = [await d.dispatch(params(f"m{n}"), job="mine", latency=FLEXIBLE) for n in range(2)]
        theirs = [await d.dispatch(params(f"t{n}"), job="theirs", latency=FLEXIBLE) for n in range(2)]
        await d.flush()
        await in_flight(world, *mine, *theirs)
        assert len(world.books.batches) == 1
        assert await d.cancel(job="mine") == 2
        assert (await mine[0].result(timeout=PATIENCE)).outcome is Outcome.CANCELED
        assert world.paths[REMOTE] == 0
        assert await theirs[0].cancel() == 1
        world.sandbox.finish(world.books.batches[0].id)
        assert (await theirs[1].result()).text == "echo: t1"
        report = await d.report()
        assert report.requests == 4
        await world.until(lambda: world.paths["GET /v1/messages/batches/{id}/results"])

        async def wasted():
            return (await d.report()).wasted > 0

        await world.until(wasted)


async def test_a_ticket_alone_in_its_batch_cancels_it(world: World):
    world.sandbox.batch_latency = 60
    async with world.open() as d:
        ticket = await d.dispatch(params("x"), latency=FLEXIBLE)
        await d.flush()
        await in_flight(world, ticket)

        async def asked():
            await ticket.cancel()
            return world.paths[REMOTE]

        await world.until(asked)
        assert (await ticket.result()).outcome is Outcome.CANCELED
    assert world.paths[REMOTE] == 1
    assert world.creates == 1  # nobody wants it any more, so it is not tried again


async def test_a_call_that_runs_ends_by_itself(world: World):
    world.sandbox.sync_latency = 0.3
    async with world.open() as d:
        ticket = await d.dispatch(params("x"))
        await world.until(lambda: world.calls)
        assert await ticket.cancel() == 0
        assert (await ticket.result()).text == "echo: x"


async def test_a_waiting_caller_learns_of_the_cancel(world: World):
    async with world.open(late="run") as d:
        world.sandbox.batch_latency = 60
        ticket = await d.dispatch(params("x"), key="k", latency=FLEXIBLE)

        async def cancel():
            await in_flight(world, await d.ticket("k"))
            await d.cancel("k")

        result, _ = await world.together(lambda: ticket.result(timeout=15), cancel)
        assert result.outcome is Outcome.CANCELED


async def test_retry_with_a_new_latency_is_routed_anew(world: World):
    world.sandbox.reply = lambda params: WRONG if params["messages"][0]["content"] == "r-1" else "fine"
    async with world.open() as d:
        job = await d.dispatch_all(many(3, labels={"team": "search"}), job="j", latency=HOURS_30)
        await job.wait(PATIENCE)
        first = await (await d.ticket("r-1", job="j")).refresh()
        with pytest.raises(InvalidValueError, match="latency"):
            await job.retry(latency="soon")
        before = datetime.now(timezone.utc)
        world.sandbox.reply = lambda params: "fine"
        assert await job.retry(latency=timedelta(hours=2)) == 1
        result = await (await d.ticket("r-1", job="j")).result(PATIENCE)
        assert (result.ok, result.lane, result.labels) == (True, Lane.SYNC, {"team": "search"})
        assert before + timedelta(hours=2) <= result.deadline <= datetime.now(timezone.utc) + timedelta(hours=2)
        assert result.deadline < first.decision.deadline
        assert (world.creates, world.calls) == (1, 1)


async def test_a_retry_whose_new_deadline_no_lane_can_keep_queues_nothing(world: World):
    world.sandbox.reply = lambda params: WRONG if int(params["messages"][0]["content"][2:]) < 50 else "fine"
    async with world.open() as d:
        job = await d.dispatch_all(many(60), job="j", latency=HOURS_30)
        await job.wait(PATIENCE)
    async with world.open(limits=Limits(requests_per_minute=1, latency=timedelta(seconds=1))) as d:
        job = await d.job("j")
        with pytest.raises(AdmissionError, match="50 requests"):
            await job.retry(latency=timedelta(minutes=30))
        assert (await job.progress()).by_outcome[Outcome.FAILED] == 50


async def test_retry_takes_the_outcomes_asked_for(world: World):
    good = many(3)
    world.sandbox.reply = lambda params: (
        Reply.error("invalid_request_error", "no") if "r-1" in str(params["messages"]) else "fine"
    )
    async with world.open() as d:
        job = await d.dispatch_all(good, job="j", latency=FLEXIBLE)
        assert {r.key: r.ok for r in await listed(job.results())} == {"r-0": True, "r-1": False, "r-2": True}
        world.sandbox.reply = lambda _: "mended"
        assert await job.retry(outcomes=[Outcome.EXPIRED]) == 0
        assert await job.retry() == 1
        assert {r.key: r.text for r in await listed(job.results())} == {"r-0": "fine", "r-1": "mended", "r-2": "fine"}
        assert await job.retry() == 0
        assert await job.retry(outcomes=[Outcome.SUCCEEDED]) == 3
        assert {r.text for r in await listed(job.results())} == {"mended"}


async def test_retry_submits_without_anybody_waiting(world: World):
    async with world.open() as d:
        job = await d.dispatch_all(many(2), job="j", latency=FLEXIBLE)
        await job.wait()
        assert await job.retry([Outcome.SUCCEEDED]) == 2
        await world.until(lambda: world.creates == 2)


async def test_retry_of_a_bulk_without_a_name_leaves_other_requests_alone(world: World):
    async with world.open() as d:
        other = await d.dispatch(params("other"), key="other", latency=FLEXIBLE)
        assert await other.cancel() == 1
        world.sandbox.fault("batch.row_error", type="invalid_request_error", message="no", probability=0.5)
        job = await d.dispatch_all(many(6), latency=FLEXIBLE)
        failed = {r.key for r in await listed(job.results()) if not r.ok}
        assert 0 < len(failed) < 6
        assert await job.retry() == len(failed)
        results = await listed(job.results(timeout=PATIENCE))
        assert {r.key: r.ok for r in results} == {f"r-{n}": True for n in range(6)}
        assert (await other.result(timeout=PATIENCE)).outcome is Outcome.CANCELED
        assert (await job.progress()).by_outcome == {Outcome.SUCCEEDED: 6}
        assert (await job.report()).requests in {6, 7}


async def test_cancelling_a_bulk_without_a_name_leaves_the_others(world: World):
    world.sandbox.batch_latency = 60
    async with world.open() as d:
        other = await d.dispatch(params("other"), key="other", latency=HOURS_30)
        job = await d.dispatch_all(many(3), latency=timedelta(days=30))
        await in_flight(world, await d.ticket("r-0"))

        async def cancelled():
            await job.cancel()
            return world.paths[REMOTE]

        await world.until(cancelled)
        assert {r.outcome for r in await listed(job.results())} == {Outcome.CANCELED}
        await other.refresh()
        assert other.status is Status.QUEUED
        await other.cancel()


async def test_purge_deletes_what_settled_before(world: World):
    async with world.open() as d:
        await (await d.dispatch_all(many(3), job="old", latency=FLEXIBLE)).wait()
        moment = datetime.now(timezone.utc)
        assert await d.purge(before=moment - timedelta(hours=1)) == 0
        new = await d.dispatch(params("new"), key="new")
        assert (await new.result()).ok
        assert await d.purge(before=moment) == 3
        assert [r.key for r in await listed(d.results())] == ["new"]
        with pytest.raises(TicketNotFoundError):
            await d.ticket("r-0", job="old")
        spent = await d.report()
        assert spent.requests == 4  # the books keep their sums
        again = await d.dispatch_all(many(1), job="old", latency=FLEXIBLE)
        assert [r.text for r in await listed(again.results())] == ["echo: r-0"]
    assert b"r-1" not in world.path.read_bytes() or world.path.with_name("ledger.db-wal").exists()


async def test_a_ticket_whose_request_was_purged_says_so(world: World):
    async with world.open() as d:
        job = await d.dispatch_all(many(2), job="old", latency=FLEXIBLE)
        await job.wait()
        ticket = await d.ticket("r-0", job="old")
        ticket._found = None  # as one that has not looked since
        assert await d.purge(before=datetime.now(timezone.utc)) == 2
        with pytest.raises(TicketNotFoundError, match=r"'r-0'.*purged"):
            await ticket.result(timeout=PATIENCE)
        with pytest.raises(TicketNotFoundError, match=r"'r-0'.*purged"):
            await ticket.refresh()
        assert (await job.wait(timeout=PATIENCE)).total == 0
        new = await d.dispatch_all(many(2), latency=FLEXIBLE)
        await new.wait(timeout=PATIENCE)
        assert sorted([r.text for r in await listed(new.results(timeout=PATIENCE))]) == ["echo: r-0", "echo: r-1"]


@pytest.mark.parametrize("name", ["j", None])
async def test_what_is_left_of_a_job_that_was_purged_in_part_still_comes(world: World, name: str | None):
    async with world.open() as d:
        await (await d.dispatch_all(many(3), job=name, latency=FLEXIBLE)).wait()
        gone = [await d.ticket(f"r-{n}", job=name) for n in range(3)]
        world.sandbox.batch_latency = 1.0
        job = await d.dispatch_all(many(5), job=name, latency=FLEXIBLE)
        assert await d.purge(before=datetime.now(timezone.utc)) == 3
        for ticket in gone:
            ticket._found = None  # as one that has not looked since
            with pytest.raises(TicketNotFoundError, match="purged"):
                await ticket.result(timeout=PATIENCE)
        with pytest.raises(TicketNotFoundError):
            await d.ticket("r-1", job=name)
        assert sorted([result.key async for result in job.results(timeout=PATIENCE)]) == ["r-3", "r-4"]
        assert (await job.wait(timeout=PATIENCE)).total == 2
        assert sorted([result.key async for result in job.results(timeout=PATIENCE)]) == ["r-3", "r-4"]
        assert world.books.billed() == 5


@pytest.mark.parametrize("name", ["j", None])
async def test_a_job_that_is_purged_while_somebody_reads_it_goes_on(world: World, name: str | None):
    async with world.open() as d:
        await (await d.dispatch_all(many(3), job=name, latency=FLEXIBLE)).wait()
        world.sandbox.batch_latency = 1.0
        job = await d.dispatch_all(many(6), job=name, latency=FLEXIBLE)
        seen = []
        async for result in job.results(timeout=PATIENCE):
            seen.append(result.key)
            if len(seen) == 3:  # those of the second batch are still to come
                assert await d.purge(before=datetime.now(timezone.utc)) == 3
            elif len(seen) == 4:
                await job.wait(timeout=PATIENCE)
                assert await d.purge(before=datetime.now(timezone.utc)) == 3
        assert sorted(seen) == [f"r-{n}" for n in range(6)]
        assert (await job.progress()).total == 0
        assert [result async for result in job.results(timeout=PATIENCE)] == []
