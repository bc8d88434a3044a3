"""Every async test that takes `world` runs three times: sync, asyncio, trio."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from inspect import iscoroutinefunction
from pathlib import Path

import pytest

from .world import Async, Colour, Sync, World


@pytest.fixture(params=[Sync(), Async("asyncio"), Async("trio")], ids=lambda colour: colour.name)
def colour(request: pytest.FixtureRequest) -> Colour:
    return request.param


@pytest.fixture
def world(colour: Colour, tmp_path: Path) -> Iterator[World]:
    made = World(colour, tmp_path)
    yield made
    made.close()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not iscoroutinefunction(pyfuncitem.obj):
        return None
    given = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    pyfuncitem.funcargs["world"].run(partial(pyfuncitem.obj, **given))
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(60))
