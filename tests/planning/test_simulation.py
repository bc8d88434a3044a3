"""The proof by simulation on six days of traffic; `python -m tests.benchmarks.simulation` runs four weeks."""

from __future__ import annotations

from functools import lru_cache

import attrs
import pytest
from tests.benchmarks.simulation.policies import MUTANTS, batchwise, clairvoyant, policy_for
from tests.benchmarks.simulation.report import Bench
from tests.benchmarks.simulation.traffic import HOUR, Arrival
from tests.benchmarks.simulation.world import Tally, World, total

NAMES = "abcd"


@lru_cache(maxsize=1)
def bench() -> Bench:
    return Bench.of(6)


@lru_cache
def simulated(load: float, name: str, *, hedge: bool) -> World:
    scenario = bench().scenarios[NAMES.index(name)]
    return batchwise(bench().arrivals, scenario, policy_for(bench().peak / load, hedge=hedge))


def run(load: float, name: str, *, hedge: bool) -> Tally:
    return total(simulated(load, name, hedge=hedge).tallies)


@pytest.mark.parametrize("hedge", [False, True], ids=["plain", "hedge"])
@pytest.mark.parametrize("name", NAMES)
def test_at_nine_tenths_every_deadline_is_kept(name: str, hedge: bool) -> None:
    found = run(0.9, name, hedge=hedge)
    assert (found.missed, found.refused) == (0, 0)
    assert found.settled == found.requests


@pytest.mark.parametrize("name", ["c", *(pytest.param(name, marks=pytest.mark.soak) for name in "abd")])
def test_priming_misses_no_deadline(name: str) -> None:
    policy = attrs.evolve(policy_for(bench().peak / 0.9), cache="prime")
    long = [Arrival((24 * day + 19) * HOUR, sla * HOUR, 300, bulk=True) for day in range(5) for sla in (54, 60, 80)]
    world = batchwise(sorted([*bench().arrivals, *long]), bench().scenarios[NAMES.index(name)], policy)
    found = total(world.tallies)
    assert any(known.tried_at is not None for known in world.prefixes.values()), "some went ahead"
    assert found.missed == 0
    assert found.settled == found.requests - found.refused


@pytest.mark.parametrize(("name", "most"), [("a", 1.05), ("b", 1.10)])
def test_hedging_costs_little_more_than_knowing_the_future(name: str, most: float) -> None:
    scenario = bench().scenarios[NAMES.index(name)]
    optimum = total(clairvoyant(bench().arrivals, scenario, simulated(0.9, name, hedge=True).instants))
    assert run(0.9, name, hedge=True).cost <= most * optimum.cost


@pytest.mark.parametrize("hedge", [False, True], ids=["plain", "hedge"])
@pytest.mark.parametrize("name", "cd")
def test_at_eleven_tenths_what_was_promised_is_kept(name: str, hedge: bool) -> None:
    found = run(1.1, name, hedge=hedge)
    assert found.missed == 0
    assert found.settled == found.requests - found.refused


def test_at_eleven_tenths_admission_refuses_or_moves_work() -> None:
    found = run(1.1, "c", hedge=False)
    assert found.refused + found.moved > 0


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_misses_deadlines(name: str) -> None:
    assert total(bench().mutant(name, 0.9).tallies).missed > 0
