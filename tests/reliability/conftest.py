"""Virtual time ends with the test that it was made for."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from batchwise.engine import calls, core


@pytest.fixture(autouse=True)
def real_time_again() -> Iterator[None]:
    yield
    for module in (calls, core):
        module.monotonic = time.monotonic  # type: ignore[attr-defined]
