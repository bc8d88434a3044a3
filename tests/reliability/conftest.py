"""Virtual time ends with the test that it was made for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import attrs
import pytest

from batchwise.engine import call_reports, calls, planner_pass, sync_lane


@pytest.fixture(autouse=True)
def real_time_again() -> Iterator[None]:
    yield
    for module in (call_reports, calls, planner_pass, sync_lane):
        module.monotonic = time.monotonic  # type: ignore[attr-defined]


@attrs.frozen
class Store:
    """Names ledgers that are not there yet, for several processes."""

    ledger: Callable[[], str]
    local: bool
    """Whether a file, not a server: of what is slow, a run does less on a server."""


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "postgres":
        return Store(request.getfixturevalue("schemas").url, local=False)
    numbers = count()
    return Store(lambda: str(tmp_path / f"ledger-{next(numbers)}.db"), local=True)
