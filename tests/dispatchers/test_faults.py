"""Faults that pass are waited out, and batches in doubt are looked for: nothing is lost, nothing bought unseen."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from batchwise import Latency, Limits, Outcome
from batchwise.sandbox import Reply, echo
from tests.strategies import params

from .world import World, listed, many

FLEXIBLE = Latency.FLEXIBLE


async def test_a_429_pauses_the_whole_lane(world: World):
    world.sandbox.fault("messages.rate_limited_429", times=1, retry_after=1)
    answered: list[float] = []
    world.sandbox.reply = lambda p: (answered.append(time.monotonic()), echo(p))[1]
    async with world.open() as d:
        started = time.monotonic()
        first = await d.dispatch(params("p0"))
        await world.until(lambda: world.calls)
        await world.colour.sleep(0.1)
        others = [await d.dispatch(params(f"p{n}")) for n in range(1, 4)]
        results = [await ticket.result() for ticket in [first, *others]]
        assert min(answered) - started >= 1, "the others waited, too"
        assert [(r.text, r.attempts) for r in results] == [(f"echo: p{n}", 1) for n in range(4)]
    assert world.calls == 5


@pytest.mark.parametrize(
    ("fault", "attempts", "bought", "doubles"),
    [
        ("messages.overloaded_529", 1, 1, 0),
        ("messages.error_500", 2, 1, 0),
        ("messages.drop_before", 2, 1, 1),
        ("messages.drop_after_billing", 2, 2, 1),
    ],
)
async def test_a_call_that_fails_is_tried_again(world: World, fault, attempts, bought, doubles):
    world.sandbox.fault(fault, times=1)
    async with world.open() as d:
        result = await (await d.dispatch(params("x"))).result()
        assert (result.text, result.attempts) == ("echo: x", attempts)
        assert (await d.report()).possible_doubles == doubles
    assert world.books.bought("x") == bought


async def test_a_call_that_goes_on_failing_ends(world: World):
    world.sandbox.reply = lambda _: Reply.error("api_error", "Internal server error")
    async with world.open(max_attempts=2) as d:
        result = await (await d.dispatch(params("x"))).result()
        assert (result.outcome, result.error.type, result.attempts) == (Outcome.FAILED, "api_error", 2)
    assert world.calls == 2


async def test_an_invalid_call_is_not_tried_again(world: World):
    async with world.open() as d:
        result = await (await d.dispatch(params("x", max_tokens=10**9))).result()
        assert (result.outcome, result.error.type, result.error.retryable, result.attempts) == (
            Outcome.FAILED,
            "invalid_request_error",
            False,
            1,
        )
    assert world.calls == 1


async def test_the_sdks_retries_are_off(world: World):
    world.sandbox.fault("messages.error_500", times=1)
    async with world.open(client=world.client(max_retries=5), max_attempts=1) as d:
        assert (await (await d.dispatch(params("x"))).result()).outcome is Outcome.FAILED
    assert world.calls == 1


CREATES = [
    "create.drop_before",
    "create.drop_after",
    "create.error_500_before",
    "create.error_500_after",
    "create.overloaded_529",
    "create.rate_limited_429",
    "create.too_large_413",
]
READS = [
    "list.error_500",
    "retrieve.error_500",
    "retrieve.not_found_404",
    "results.drop",
    "results.cut_line",
    "results.garbage_line",
    "results.duplicate_row",
    "results.foreign_row",
    "results.error_500",
]


@pytest.mark.parametrize("faults", [CREATES, READS], ids=["creates", "reads"])
async def test_each_fault_of_the_batch_api(world: World, faults):
    async with world.open(create_grace=timedelta(milliseconds=200)) as d:
        for fault in faults:
            world.sandbox.fault(fault, times=1)
            job = await d.dispatch_all(many(6, fault), job=fault, latency=FLEXIBLE)
            results = await listed(job.results(timeout=15))
            found = sorted((r.key, r.text, r.attempts) for r in results)
            assert found == [(f"{fault}-{n}", f"echo: {fault}-{n}", 1) for n in range(6)]
            assert world.sandbox.faults_fired[fault] == 1
    assert world.books.bought_twice() == {}


@pytest.mark.parametrize("stop", ["end_turn", "refusal"])
async def test_an_answer_stays_though_its_row_comes_again_without_one(world: World, stop: str):
    world.sandbox.reply = lambda _body: Reply.text("half", stop_reason=stop)
    world.sandbox.fault("results.duplicate_row", times=9, type="errored")
    async with world.open() as d:
        results = await listed((await d.dispatch_all(many(6), job="j", latency=FLEXIBLE)).results(timeout=15))
        assert [(r.stop_reason, r.attempts) for r in results] == [(stop, 1)] * 6
        assert (await d.report()).possible_doubles == 0
    assert world.sandbox.faults_fired["results.duplicate_row"] > 0
    assert world.books.bought_twice() == {}


async def test_a_row_that_never_comes_is_bought_again(world: World):
    world.sandbox.fault("results.missing_row", times=5, every=6)
    async with world.open() as d:
        results = await listed((await d.dispatch_all(many(6), job="j", latency=FLEXIBLE)).results(timeout=15))
        assert len(results) == 6
        assert all(r.text == f"echo: {r.key}" for r in results)
        assert (await d.report()).possible_doubles == 1
    assert sum(world.books.bought_twice().values()) == 2


async def test_an_unknown_kind_of_row_fails_and_hides_nothing(world: World):
    world.sandbox.fault("results.unknown_type", times=1, every=6)
    async with world.open() as d:
        results = await listed((await d.dispatch_all(many(6), job="j", latency=FLEXIBLE)).results())
        assert sorted(r.ok for r in results) == [False, *[True] * 5]
        assert {r.error.type for r in results if not r.ok} == {"unknown_result_type"}


async def test_a_server_that_goes_away_and_comes_back(world: World):
    world.sandbox.batch_latency = 0.3
    async with world.open() as d:
        job = await d.dispatch_all(many(3), job="j", latency=FLEXIBLE)
        await world.until(lambda: world.creates)
        world.sandbox.restart(0.4)
        assert len(await listed(job.results())) == 3
    assert world.books.bought_twice() == {}


async def test_a_create_that_cannot_connect_is_sent_when_it_can(world: World):
    world.sandbox.restart(0.5)
    async with world.open() as d:
        job = await d.dispatch_all(many(3), job="j", latency=FLEXIBLE)
        assert len(await listed(job.results())) == 3
    assert world.creates == 1


async def test_more_than_the_queue_takes(world: World):
    world.sandbox.batch_queue_limit = 4
    world.sandbox.batch_latency = 0.1
    async with world.open(limits=Limits(batch_requests_in_queue=4)) as d:
        results = await listed((await d.dispatch_all(many(10), job="j", latency=FLEXIBLE)).results())
        assert len(results) == 10
    assert max(len(batch.rows) for batch in world.books.batches) <= 4
    assert world.books.bought_twice() == {}
