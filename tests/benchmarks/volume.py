"""Ten million requests a day in eight workspaces, in virtual time: what a planning pass costs as the days go by.

Each workspace has a ledger of its own, so a planner of its own. The planner and the driver are those of `simulation`.
Work is counted in calls of functions within `planner.plan`, not in time: the same on every machine. What a pass reads
of a real ledger is held by tests/ledger/test_costs.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from .harness import Figure, Meter, child, note, serve

_WORKSPACES, _A_DAY = 8, 10_000_000
_EVERY = 600.0
"""Seconds between two arrivals of a workspace."""


def workspace(days: int, seed: int) -> dict[str, Any]:
    """One workspace: passes, calls and CPU of planning by day, and what became of its requests."""
    import random

    from batchwise.models import Limits, Policy
    from batchwise.planning import planner

    from .simulation.traffic import DAY, HOUR, Arrival, Scenario
    from .simulation.world import World, total

    rng, arrivals = random.Random(seed), []
    mean = _A_DAY / _WORKSPACES * _EVERY / DAY
    for number in range(round(days * DAY / _EVERY)):
        sla = rng.choice((26, 30, 36, 48)) * HOUR
        moment = number * _EVERY + rng.uniform(0, 60)
        arrivals.append(Arrival(moment, sla, round(mean * rng.uniform(0.8, 1.2)), bulk=rng.random() < 0.1))
    passes, calls, groups = [0] * days, [0] * days, [0] * days

    def plan(snapshot: Any, *args: Any, **more: Any) -> Any:
        count = 0

        def counted(_: Any, event: str, __: Any) -> None:
            nonlocal count
            count += event == "call"

        sys.setprofile(counted)
        try:
            return planner.plan(snapshot, *args, **more)
        finally:
            sys.setprofile(None)
            day = int(world.now // DAY)
            if day < days:
                passes[day] += 1
                calls[day] += count
                groups[day] += len(snapshot.batch_queue) + sum(len(each.groups) for each in snapshot.batches)

    limits = Limits(input_tokens_per_minute=10_000_000, concurrency=2_000, latency=timedelta(seconds=10))
    world = World(arrivals, Scenario("a", "benign", seed=seed), Policy(limits=limits), plan=plan, seed=seed)
    with Meter() as meter:
        world.run()
    found = total(world.tallies)
    return {
        "passes": passes,
        "calls": calls,
        "groups": groups,
        "cpu": meter.cpu,
        "requests": found.requests,
        "settled": found.settled,
        "refused": found.refused,
        "missed": found.missed,
    }


def run(*, quick: bool) -> Iterator[tuple[str, list[Figure]]]:
    """Compare the last day with the second: the first one begins with an empty ledger."""
    days = 3 if quick else 6
    found = []
    for seed in range(1 if quick else _WORKSPACES):
        note(f"volume: workspace {seed + 1}, {days} days")
        found.append(child("volume", "workspace", days=days, seed=seed))

    def each(field: str, day: int) -> float:
        return sum(one[field][day] for one in found) / sum(one["passes"][day] for one in found)

    calls = {day: each("calls", day) for day in (1, days - 2)}
    totals = {field: sum(one[field] for one in found) for field in ("requests", "settled", "refused", "missed")}
    lost = totals["requests"] - totals["refused"] - totals["settled"]
    seconds = sum(one["cpu"] for one in found) / (len(found) * days)
    yield (
        f"volume: {_A_DAY:,} requests a day in {_WORKSPACES} workspaces, {days} days of virtual time",
        [
            Figure("volume/requests", "requests", "", [totals["requests"]]),
            Figure(
                "volume/lost",
                "accepted, without an outcome",
                "",
                [lost],
            ),
            Figure("volume/missed", "promised deadlines missed", "", [totals["missed"]]),
            Figure("volume/refused", "refused", "", [totals["refused"]]),
            Figure("volume/passes", "planning passes a workspace and day", "", [sum(found[0]["passes"]) / days]),
            Figure("volume/groups", "groups that a pass looks at, last day but one", "", [each("groups", days - 2)]),
            Figure("volume/calls", "calls of a pass, the second day", "", [calls[1]]),
            Figure("volume/growth", "the last day but one against it", "x", [calls[days - 2] / calls[1]]),
            Figure("volume/cpu", "CPU of a workspace's day, simulation included", "s", [seconds]),
        ],
    )


if __name__ == "__main__":
    serve({"workspace": workspace})
