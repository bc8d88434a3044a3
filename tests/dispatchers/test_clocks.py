"""Clocks that are set, and machines that sleep: what is due is due by the wall clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from batchwise import Latency
from batchwise.engine import passes
from tests.strategies import params

from .world import World

HOUR = timedelta(hours=1)


def clock_of(d: Any) -> Callable[[timedelta], None]:
    """Put a wall clock of its own under a dispatcher; what it gives steps this clock."""
    skew = [timedelta(0)]
    d._engine.now = lambda: datetime.now(timezone.utc) + skew[0]

    def step(by: timedelta) -> None:
        skew[0] += by

    return step


async def test_what_falls_due_while_the_machine_sleeps_is_seen_within_a_second(world: World):
    """The monotonic clock stands still meanwhile, or the wall clock is set forward."""
    async with world.open(flexible_interval=HOUR) as d:
        set_clock = clock_of(d)
        await d.dispatch(params("x"), latency=Latency.FLEXIBLE)
        driver = d._driver
        await world.until(lambda: driver._next is not None)
        driver._look_at = time.monotonic() + 1e6  # no look for what other processes did wakes the pump meanwhile
        await world.colour.sleep(passes.WATCH)
        set_clock(2 * HOUR)
        await world.until(lambda: world.creates, 1.0 + passes.CLOCK_LOOK)
