"""One suite for every backend: a `backend` opens ledgers on one store, again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from batchwise.ledger.ledger import Ledger
from batchwise.ledger.sqlite import SqliteLedger
from tests.postgres import opened_without_grace

from .model import World


class Backend:
    """Opens ledgers on one store. `shared`: another open sees the same data (not so in memory)."""

    many_terms = 2_000
    """More than a page of anything."""

    def __init__(self, opener: Callable[[], Ledger], *, shared: bool) -> None:
        self._opener, self.shared = opener, shared
        self.opened: list[Ledger] = []
        self.twin: Callable[[], Backend]

    def open(self) -> Ledger:
        self.opened.append(self._opener())
        return self.opened[-1]

    def close(self) -> None:
        for ledger in self.opened:
            ledger.close()


def _sqlite_file(request: pytest.FixtureRequest) -> Backend:
    folder = request.getfixturevalue("tmp_path_factory").mktemp("store")
    return Backend(lambda: SqliteLedger(folder / "ledger.db"), shared=True)


def _sqlite_memory(request: pytest.FixtureRequest) -> Backend:
    made = Backend(lambda: SqliteLedger(":memory:"), shared=False)
    made.many_terms = 33_000  # more than a statement of SQLite takes values
    return made


def _postgres(request: pytest.FixtureRequest) -> Backend:
    url = request.getfixturevalue("schemas").url()
    return Backend(lambda: opened_without_grace(url), shared=True)


BACKENDS = {"sqlite file": _sqlite_file, "sqlite memory": _sqlite_memory, "postgres": _postgres}


@pytest.fixture(params=BACKENDS.values(), ids=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    made = request.param(request)
    made.twin = lambda: request.param(request)
    yield made
    made.close()


@pytest.fixture
def ledger(backend: Backend) -> Ledger:
    return backend.open()


@pytest.fixture
def world(ledger: Ledger) -> World:
    return World(ledger)


@pytest.fixture
def twin(backend: Backend) -> Iterator[World]:
    """A world on a store of its own, of the same kind as `world`'s."""
    made = backend.twin()
    yield World(made.open())
    made.close()
