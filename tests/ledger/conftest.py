"""One suite for every backend: a `backend` opens ledgers on one store, again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from batchwise.ledger.ledger import Ledger
from batchwise.ledger.sqlite import SqliteLedger

from .model import World


class Backend:
    """Opens ledgers on one store. `shared`: another open sees the same data (not so in memory)."""

    def __init__(self, opener: Callable[[], Ledger], *, shared: bool) -> None:
        self._opener, self.shared = opener, shared
        self.opened: list[Ledger] = []
        self.kind: Callable[[Path], Backend]

    def open(self) -> Ledger:
        self.opened.append(self._opener())
        return self.opened[-1]

    def close(self) -> None:
        for ledger in self.opened:
            ledger.close()


def _sqlite_file(folder: Path) -> Backend:
    return Backend(lambda: SqliteLedger(folder / "ledger.db"), shared=True)


def _sqlite_memory(folder: Path) -> Backend:
    return Backend(lambda: SqliteLedger(":memory:"), shared=False)


BACKENDS = {"sqlite file": _sqlite_file, "sqlite memory": _sqlite_memory}


@pytest.fixture(params=BACKENDS.values(), ids=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    made = request.param(tmp_path)
    made.kind = request.param
    yield made
    made.close()


@pytest.fixture
def ledger(backend: Backend) -> Ledger:
    return backend.open()


@pytest.fixture
def world(ledger: Ledger) -> World:
    return World(ledger)


@pytest.fixture
def twin(backend: Backend, tmp_path: Path) -> Iterator[World]:
    """A world on a store of its own, of the same kind as `world`'s."""
    folder = tmp_path / "twin"
    folder.mkdir()
    made = backend.kind(folder)
    yield World(made.open())
    made.close()
