"""Clocks that are set, and machines that sleep: what is due is due by the wall clock."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

from batchwise import Lane, Latency
from batchwise.drivers import passes
from tests.strategies import params

from .world import HOURS_30, World, clock_of, many

HOUR = timedelta(hours=1)


async def test_what_falls_due_while_the_machine_sleeps_is_seen_within_a_second(world: World):
    """The monotonic clock stands still meanwhile, or the wall clock is set forward."""
    async with world.open(flexible_interval=HOUR) as d:
        set_clock = clock_of(d)
        await d.dispatch(params("x"), latency=Latency.FLEXIBLE)
        driver = d._driver
        await world.until(lambda: driver.schedule._next is not None)
        driver.changes.look_at = time.monotonic() + 1e6  # no look for what other processes did wakes the pump meanwhile
        await world.colour.sleep(passes.WATCH)
        set_clock(2 * HOUR)
        await world.until(lambda: world.creates, 1.0 + passes.CLOCK_LOOK)


async def test_whoever_looks_sees_that_a_rescue_should_have_begun_and_that_a_deadline_has_passed(world: World):
    world.sandbox.batch_latency = 3600
    async with world.open() as d:
        await d.dispatch_all(many(3), job="left alone", latency=HOURS_30)
        await world.until(lambda: world.creates)
        await d.dispatch(params("another"), latency=timedelta(days=9), job="another")
    async with world.open() as d:
        await d.progress()
        d._ledger.conditions.suspend(Lane.SYNC, "no credit")  # no rescue can begin
        set_clock, rescue = clock_of(d), (await d.progress()).batches[0].rescue_at
        set_clock(rescue - datetime.now(timezone.utc) + timedelta(seconds=1))
        for found in (await d.progress(), await d.progress("left alone")):
            assert (found.at_risk, found.overdue) == (3, 0)
        found = await d.progress("another")
        assert (found.at_risk, found.overdue) == (0, 0)
        set_clock(HOURS_30)
        for job, overdue in ((None, 3), ("left alone", 3), ("another", 0)):
            found = await d.progress(job)
            assert (found.at_risk, found.overdue) == (0, overdue)
