"""The proof by simulation on six days of traffic; `python -m tests.benchmarks.simulation` runs four weeks."""

from __future__ import annotations

from functools import lru_cache

import pytest
from tests.benchmarks.simulation.policies import MUTANTS, batchwise, clairvoyant, policy_for
from tests.benchmarks.simulation.report import Bench
from tests.benchmarks.simulation.world import Tallies, total

NAMES = "abcd"


@lru_cache(maxsize=1)
def bench() -> Bench:
    return Bench.of(6)


def run(load: float, name: str, *, hedge: bool) -> Tallies:
    return bench().batchwise(load, bench().scenarios[NAMES.index(name)], hedge=hedge)


@pytest.mark.parametrize("hedge", [False, True], ids=["plain", "hedge"])
@pytest.mark.parametrize("name", NAMES)
def test_at_nine_tenths_every_deadline_is_kept(name: str, hedge: bool) -> None:
    found = total(run(0.9, name, hedge=hedge))
    assert (found.missed, found.refused) == (0, 0)
    assert found.settled == found.requests


@pytest.mark.parametrize("hedge", [False, True], ids=["plain", "hedge"])
@pytest.mark.parametrize("name", "cd")
def test_at_eleven_tenths_what_was_promised_is_kept(name: str, hedge: bool) -> None:
    found = total(run(1.1, name, hedge=hedge))
    assert found.missed == 0
    assert found.settled == found.requests - found.refused


def test_at_eleven_tenths_admission_refuses_or_moves_work() -> None:
    found = total(run(1.1, "c", hedge=False))
    assert found.refused + found.moved > 0


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_misses_deadlines(name: str) -> None:
    assert total(bench().mutant(name, 0.9).tallies).missed > 0


@pytest.mark.parametrize(("name", "most"), [("a", 1.05), ("b", 1.10)])
def test_hedging_costs_little_more_than_knowing_the_future(name: str, most: float) -> None:
    scenario = bench().scenarios[NAMES.index(name)]
    world = batchwise(bench().arrivals, scenario, policy_for(bench().peak / 0.9, hedge=True))
    optimum = total(clairvoyant(bench().arrivals, scenario, world.instants))
    assert total(world.tallies).cost <= most * optimum.cost
