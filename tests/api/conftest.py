"""Every test of a lane runs three times: synchronous, on asyncio, and on trio."""

from __future__ import annotations

from functools import partial

import pytest

from tests.api.harness import AsyncLanes, SyncLanes


@pytest.fixture(params=["sync", "asyncio", "trio"])
def make_lanes(request):
    """A maker of lanes of one colour; its options go to the client."""
    return SyncLanes if request.param == "sync" else partial(AsyncLanes, request.param)


@pytest.fixture
def lanes(make_lanes):
    return make_lanes()
