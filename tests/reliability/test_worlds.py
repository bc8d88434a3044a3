"""Worlds in which the host and the API fail at once: nothing is lost, doubled without the books saying so, or hangs."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.reliability.worlds import HOSTS, World, judged

FEW = len(HOSTS)
"""Worlds in each run of the tests: one for each thing that may befall the host."""
MANY = int(os.environ.get("WORLDS", "300"))


def live_through(seeds: range, folder: Path, at_once: int) -> None:
    with ThreadPoolExecutor(at_once) as threads:
        worlds = [World.drawn(seed) for seed in seeds]
        found = list(threads.map(lambda world: judged(world, folder / str(world.seed)), worlds))
    ill = {world: verdict for world, verdict in zip(map(str, worlds), found, strict=True) if not verdict.well}
    assert not ill, "\n".join(f"{world}: {verdict}" for world, verdict in ill.items())


def test_a_few_random_worlds(tmp_path: Path) -> None:
    live_through(range(FEW), tmp_path, at_once=3)


@pytest.mark.soak
def test_many_random_worlds(tmp_path: Path) -> None:
    live_through(range(FEW, FEW + MANY), tmp_path, at_once=4)
