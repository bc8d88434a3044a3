"""Keys: the same one with the same content is the same request, in this process or a later one."""

from __future__ import annotations

from datetime import timedelta

import pytest

from batchwise import (
    JobNotFoundError,
    KeyConflictError,
    Lane,
    Latency,
    Outcome,
    Request,
    Status,
    TicketNotFoundError,
)
from tests.strategies import params

from .world import HOURS_30, PATIENCE, World, listed, many

FLEXIBLE = Latency.FLEXIBLE


async def test_same_key_same_content_is_the_same_ticket_with_its_first_deadline(world: World):
    async with world.open() as d:
        first = await d.dispatch(params("x"), key="k", latency=HOURS_30)
        deadline = first.decision.deadline
        later = await d.dispatch(params("x"), key="k", latency=timedelta(hours=60))
        assert later.decision.deadline == deadline
        none = await d.dispatch(params("x"), key="k", latency=FLEXIBLE)
        assert none.decision.deadline == deadline
        assert none.custom_id == first.custom_id
        assert (await later.result()).deadline == deadline
        again = await d.dispatch(params("x"), key="k", latency=HOURS_30)
        assert (again.status, (await again.result()).text) == (Status.SETTLED, "echo: x")
    assert world.books.bought("x") == 1


async def test_an_earlier_deadline_tightens(world: World):
    async with world.open() as d:
        first = await d.dispatch(params("x"), key="k", latency=timedelta(hours=60))
        second = await d.dispatch(params("x"), key="k", latency=HOURS_30)
        assert second.decision.deadline < first.decision.deadline
        await first.refresh()
        assert (await d.ticket("k")).decision.deadline == second.decision.deadline
        urgent = await d.dispatch(params("x"), key="k", latency=timedelta(hours=1))
        assert urgent.decision.lane is Lane.SYNC
        assert (await urgent.result()).lane is Lane.SYNC
    assert (world.calls, world.creates) == (1, 0)


async def test_asking_again_for_an_answer_now_gets_one(world: World):
    async with world.open() as d:
        queued = await d.dispatch(params("x"), key="k", latency=HOURS_30)
        blocking = await d.dispatch(params("x"), key="k")
        assert (await blocking.result(timeout=PATIENCE)).text == (await queued.result()).text == "echo: x"
    assert world.books.bought("x") == 1


OTHERS = [
    {"params": params("y")},
    {"params": params("x", temperature=0.5)},
    {"params": params("x"), "betas": ["files-api-2025-04-14"]},
    {"params": params("x"), "stream": True},
]


async def test_same_key_other_content_is_a_conflict(world: World):
    async with world.open() as d:
        await d.dispatch(params("x"), key="k", latency=HOURS_30)
        for other in OTHERS:
            made = Request(key="k", latency=HOURS_30, **other)
            with pytest.raises(KeyConflictError, match="'k'"):
                await d.dispatch(made)
            with pytest.raises(KeyConflictError, match="'k'"):
                await d.dispatch_all([Request(params("new"), key="n", latency=HOURS_30), made])
        assert (await d.progress()).total == 1


async def test_content_is_canonical(world: World):
    turned = dict(reversed(list(params("x").items())))
    async with world.open() as d:
        await d.dispatch(params("x"), key="k", latency=HOURS_30)
        await d.dispatch(turned, key="k", latency=HOURS_30)
        assert (await d.progress()).total == 1


async def test_without_a_key_each_dispatch_is_a_request_of_its_own(world: World):
    async with world.open() as d:
        first, second = [await d.dispatch(params("x"), latency=FLEXIBLE) for _ in range(2)]
        assert first.key != second.key
        assert (await first.result()).key == first.key
        assert (await (await d.ticket(second.key)).result()).text == "echo: x"
    assert world.books.bought("x") == 2


async def test_positions_are_the_keys_in_a_named_job(world: World):
    requests = [Request(params(f"p{n}")) for n in range(3)]
    async with world.open() as d:
        job = await d.dispatch_all(requests, job="j", latency=FLEXIBLE)
        assert sorted([r.key async for r in job.results()]) == ["#0", "#1", "#2"]
        appended = await d.dispatch(params("p3"), job="j", latency=FLEXIBLE)
        assert (appended.key, appended.job) == ("#3", "j")
        assert (await appended.result()).job == "j"
        assert sorted([r.key async for r in job.results()]) == ["#0", "#1", "#2", "#3"]
        mixed = [Request(params("p0")), Request(params("named"), key="name"), Request(params("p2"))]
        job = await d.dispatch_all(mixed, job="mixed", latency=FLEXIBLE)
        assert sorted([r.key async for r in job.results()]) == ["#0", "#2", "name"]


async def test_a_second_run_buys_nothing_twice_and_tomorrows_job_starts_afresh(world: World):
    async def script(name):
        async with world.open() as d:
            job = await d.dispatch_all((Request(params(f"p{n}")) for n in range(5)), job=name, latency=HOURS_30)
            await d.dispatch(params("p5"), job=name, latency=HOURS_30)
            await d.dispatch(params("p6"), job=name, latency=HOURS_30)
            return {r.key: r.text async for r in job.results()}

    first = await script("monday")
    assert first == {f"#{n}": f"echo: p{n}" for n in range(7)}
    assert await script("monday") == first
    assert world.books.bought_twice() == {}
    assert await script("tuesday") == first
    assert world.books.bought_by_prompt() == {f"p{n}": 2 for n in range(7)}


async def test_appending_one_by_one_again_finds_each(world: World):
    for _ in range(2):
        async with world.open() as d:
            keys = [(await d.dispatch(params(f"p{n}"), job="j", latency=FLEXIBLE)).key for n in range(4)]
            assert keys == ["#0", "#1", "#2", "#3"]
            assert (await (await d.job("j")).wait()).total == 4
    assert world.books.bought_twice() == {}


async def test_jobs_are_scopes_and_dispatches_without_one_share_theirs(world: World):
    async with world.open() as d:
        shared = await d.dispatch(params("x"), key="k", latency=FLEXIBLE)
        one = await d.dispatch(params("y"), key="k", job="one", latency=FLEXIBLE)
        two = await d.dispatch(params("z"), key="k", job="two", latency=FLEXIBLE)
        assert [(await t.result()).text for t in (shared, one, two)] == ["echo: x", "echo: y", "echo: z"]
        assert (await (await d.ticket("k", job="two")).result()).text == "echo: z"
        same = await d.dispatch_all([Request(params("x"), key="k")], latency=FLEXIBLE)
        assert [r.text async for r in same.results()] == ["echo: x"]
        with pytest.raises(KeyConflictError, match="without a job"):
            await d.dispatch(params("y"), key="k", latency=FLEXIBLE)
    assert world.books.billed() == 3


async def test_an_anonymous_bulk_with_keys_that_are_there_already(world: World):
    async with world.open() as d:
        await (await d.dispatch_all(many(4), latency=FLEXIBLE)).wait()
        world.sandbox.batch_latency = 0.1
        job = await d.dispatch_all(many(8), latency=FLEXIBLE)
        assert job.name is None
        results = await listed(job.results())
        assert sorted(r.key for r in results) == sorted(f"r-{n}" for n in range(8))
        assert all(r.text == f"echo: {r.key}" for r in results)
        progress = await job.progress()
        assert (progress.total, progress.settled, progress.done) == (8, 8, True)
        everything = await d.dispatch_all(many(8), latency=FLEXIBLE)
        assert len(await listed(everything.results())) == 8
        assert len(await listed(everything.results())) == 8
    assert world.books.bought_twice() == {}


async def test_the_same_key_twice_in_one_bulk(world: World):
    async with world.open() as d:
        job = await d.dispatch_all([*many(2), *many(2)], job="j", latency=FLEXIBLE)
        assert sorted([r.key async for r in job.results()]) == ["r-0", "r-1"]
        loose = await d.dispatch_all([*many(2, "s"), *many(2, "s")], latency=FLEXIBLE)
        assert sorted([r.key async for r in loose.results()]) == ["s-0", "s-1"]
        with pytest.raises(KeyConflictError, match="'r-0'"):
            await d.dispatch_all([*many(1, "t"), Request(params("other"), key="r-0")], job="j", latency=FLEXIBLE)
        assert (await (await d.job("j")).progress()).total == 2
    assert world.books.billed() == 4


async def test_what_is_not_there_says_where_it_looked(world: World):
    async with world.open() as d:
        await d.dispatch(params("x"), key="k", latency=HOURS_30)
        for ask in (
            d.job,
            d.progress,
            d.report,
            lambda name: d.cancel(job=name),
            lambda name: listed(d.results(job=name)),
        ):
            with pytest.raises(JobNotFoundError, match="'nobody'") as caught:
                await ask("nobody")
            assert str(world.path.resolve()) in str(caught.value)
            assert isinstance(caught.value, LookupError)
        for key, job in (("nobody", None), ("k", "nobody")):
            with pytest.raises(TicketNotFoundError, match=key):
                await d.ticket(key, job=job)


async def test_a_failed_request_stays_failed_under_its_key(world: World):
    async with world.open() as d:
        bad = params("x", max_tokens=10**9)
        failed = await (await d.dispatch(bad, key="k", latency=FLEXIBLE)).result()
        assert failed.outcome is Outcome.FAILED
        again = await d.dispatch(bad, key="k", latency=FLEXIBLE)
        assert (await again.result()).cursor == failed.cursor
    assert len(world.books.batches) == 1
