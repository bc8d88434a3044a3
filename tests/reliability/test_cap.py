"""Worlds under a spend limit in which answers cost all that they may, are lost, and are bought again: it is kept."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest

import batchwise as bw
from tests.reliability.simulation import HOUR, MINUTE, World

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


def live_through(seed: int) -> str:
    """A world of this seed, checked after each thing that happens; returns what went on in it, for the log."""
    chance = random.Random(seed)
    cap = chance.choice(["0.015", "0.02", "0.04", "0.07"])
    policy = bw.Policy(
        max_spend=cap,
        exclusive_workspace=chance.random() < 0.5,
        hedge=chance.random() < 0.5,
        max_attempts=chance.choice([2, 3, 5]),
    )
    world = World(policy)
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
                world.ledger.resume()
            world.check()
        world.settle_all()
        report = world.ledger.report(job=None)
    finally:
        world.close()
    assert accepted, "the limit leaves room for something"
    return f"{accepted} accepted, {refused} refused, {report.possible_doubles} in doubt, {report.cost} of {cap}"


@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(n, marks=pytest.mark.soak) for n in range(12, 212))])
def test_the_spend_limit_is_passed_in_no_world(seed: int) -> None:
    print(live_through(seed))
