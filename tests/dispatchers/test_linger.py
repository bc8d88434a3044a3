"""A wait submits what it waits for, once nothing more has joined for the linger."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from functools import partial
from time import monotonic

from batchwise import Lane
from tests.strategies import params

from .world import HOURS_30, World


async def _dispatched(d, name):
    ticket = await d.dispatch(params(name), latency=HOURS_30)
    return await ticket.result(timeout=15)


async def test_waits_that_come_together_share_a_batch(world: World) -> None:
    async with world.open(linger=timedelta(seconds=0.4)) as d:
        results = await world.together(*(partial(_dispatched, d, f"q-{i}") for i in range(12)))
        assert {result.lane for result in results} == {Lane.BATCH}
    assert world.creates == 1


async def test_a_wait_is_submitted_after_one_linger_and_not_before(world: World) -> None:
    async with world.open(linger=timedelta(seconds=0.5)) as d:
        ticket = await d.dispatch(params("alone"), latency=HOURS_30)
        begun = monotonic()
        await ticket.result(timeout=15)
    assert 0.5 <= monotonic() - begun < 5
    assert world.creates == 1


async def test_what_goes_on_joining_holds_a_wait_up_for_five_lingers_at_most(world: World) -> None:
    async with world.open(linger=timedelta(seconds=0.2)) as d:
        done = False

        async def waits():
            nonlocal done
            await _dispatched(d, "first")
            done = True

        async def join():
            number = 0
            while not done and number < 200:
                await d.dispatch(params(f"join-{number}"), latency=HOURS_30)
                number += 1
                await world.colour.sleep(0.05)
            return number

        _, joined = await world.together(waits, join)
    assert joined < 200


async def test_a_named_job_is_waited_for_as_a_ticket_is(world: World) -> None:
    async with world.open() as d:
        for number in range(3):
            await d.dispatch(params(f"p-{number}"), latency=HOURS_30, job="nightly")
        progress = await (await d.job("nightly")).wait(timeout=15)
        assert progress.done
    assert world.creates == 1


async def test_a_wait_given_up_is_submitted_all_the_same(world: World) -> None:
    async with world.open(linger=timedelta(seconds=0.3)) as d:
        ticket = await d.dispatch(params("left"), latency=HOURS_30)
        with contextlib.suppress(TimeoutError):
            await ticket.result(timeout=0)
        await world.until(lambda: world.creates == 1)
