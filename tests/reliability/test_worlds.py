"""Worlds in which the host and the API fail at once: nothing is lost, doubled without the books saying so, or hangs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.postgres import Schemas
from tests.reliability.worlds import HOSTS, HOSTS_IN_POSTGRES, World, judged

FEW = len(HOSTS)
"""Worlds in each run of the tests: one for each thing that may befall the host."""
MANY = int(os.environ.get("WORLDS", "300"))


def live_through(seeds: Iterable[int], folder: Path, at_once: int, schemas: Schemas | None = None) -> None:
    """Live through worlds of these seeds, with a ledger in a file each, or in a schema each."""
    hosts = HOSTS if schemas is None else HOSTS_IN_POSTGRES
    worlds = [World.drawn(seed, hosts) for seed in seeds]
    ledgers = [None if schemas is None else schemas.url() for _ in worlds]
    with ThreadPoolExecutor(at_once) as threads:
        found = list(
            threads.map(lambda world, ledger: judged(world, folder / str(world.seed), ledger), worlds, ledgers)
        )
    ill = {world: verdict for world, verdict in zip(map(str, worlds), found, strict=True) if not verdict.well}
    assert not ill, "\n".join(f"{world}: {verdict}" for world, verdict in ill.items())


def test_a_few_random_worlds(tmp_path: Path) -> None:
    live_through(range(FEW), tmp_path, at_once=3)


def test_a_random_world_in_postgres_whose_connections_are_cut(schemas: Schemas, tmp_path: Path) -> None:
    live_through([HOSTS_IN_POSTGRES.index("cut")], tmp_path, at_once=1, schemas=schemas)


@pytest.mark.soak
def test_many_random_worlds_in_postgres(schemas: Schemas, tmp_path: Path) -> None:
    live_through(range(FEW, FEW + MANY), tmp_path, at_once=4, schemas=schemas)


@pytest.mark.soak
def test_many_random_worlds(tmp_path: Path) -> None:
    live_through(range(FEW, FEW + MANY), tmp_path, at_once=4)
