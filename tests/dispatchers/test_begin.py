"""A blocking call begins when its request is durable: not before, and whatever happens just after."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from batchwise import Dispatcher, LedgerError, Request, Status
from batchwise.ledger.sqlite import SqliteLedger
from batchwise.ledger.sqlite_database import SqliteDatabase
from batchwise.sandbox import Sandbox
from tests.strategies import params

from .world import PATIENCE


class Database(SqliteDatabase):
    """Calls `before` and `after`, if they are set, before and after it commits an acceptance."""

    before: Any = None
    after: Any = None

    def commit(self, name: str) -> None:
        if name == "accept" and self.before is not None:
            self.before()
        super().commit(name)
        if name == "accept" and self.after is not None:
            self.after()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    made = SqliteLedger(Database(tmp_path / "ledger.db"))
    yield made
    made.close()


def fail() -> None:
    raise sqlite3.OperationalError("disk full")


def interrupt() -> None:
    raise KeyboardInterrupt


def test_nothing_of_a_call_is_prepared_before_its_request_is_durable(ledger: SqliteLedger) -> None:
    with Sandbox() as sandbox, sandbox.client() as client, Dispatcher(client, ledger=ledger) as dispatcher:
        queue = dispatcher._engine.queue
        ledger.database.before = lambda: busy.append(queue.busy)
        busy: list[int] = []
        assert dispatcher.dispatch(params("x")).result(PATIENCE).text == "echo: x"
        assert busy == [0]


def test_what_could_not_be_accepted_is_not_sent(ledger: SqliteLedger) -> None:
    with Sandbox() as sandbox, sandbox.client() as client, Dispatcher(client, ledger=ledger) as dispatcher:
        ledger.database.before = fail
        with pytest.raises(LedgerError, match="disk full"):
            dispatcher.dispatch(params("lost"))
        assert dispatcher._engine.queue.busy == 0
        ledger.database.before = None
        assert dispatcher.progress().total == 0
        # Its number is given again.
        tickets = [dispatcher.dispatch(params(f"kept {n}")) for n in range(3)]
        assert [ticket.result(PATIENCE).text for ticket in tickets] == [f"echo: kept {n}" for n in range(3)]
        assert sandbox.books.bought_by_prompt("sync") == {f"kept {n}": 1 for n in range(3)}


@pytest.mark.parametrize("key", ["k", None])
def test_ctrl_c_during_the_commit_loses_no_request(ledger: SqliteLedger, key: str | None) -> None:
    """What was interrupted is in the ledger, in flight in this run: it is called, or it would wait for ever."""
    with Sandbox() as sandbox, sandbox.client() as client, Dispatcher(client, ledger=ledger) as dispatcher:
        ledger.database.after = interrupt
        with pytest.raises(KeyboardInterrupt):
            dispatcher.dispatch(params("x"), key=key)
        ledger.database.after = None
        if key is not None:
            assert dispatcher.dispatch(params("x"), key=key).result(PATIENCE).text == "echo: x"
        dispatcher.close()
        assert sandbox.books.bought("x") == 1
    assert len(ledger.results(job=None, after=0, limit=9)) == 1


def test_ctrl_c_in_one_thread_loses_no_request_of_another(ledger: SqliteLedger) -> None:
    def dispatched(name: str) -> None:
        with suppress(KeyboardInterrupt, LedgerError):
            dispatcher.dispatch(params(name), key=name)

    with Sandbox() as sandbox, sandbox.client() as client, Dispatcher(client, ledger=ledger) as dispatcher:
        names = [f"r-{n}" for n in range(6)]
        ledger.database.after = interrupt
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(dispatched, names))
        ledger.database.after = None
        for name in names:
            assert dispatcher.dispatch(params(name), key=name).result(PATIENCE).text == f"echo: {name}"
        assert sandbox.books.bought_by_prompt("sync") == dict.fromkeys(names, 1)


def test_an_interrupted_acceptance_touches_no_request_of_another(ledger: SqliteLedger) -> None:
    with Sandbox() as sandbox, sandbox.client() as client, Dispatcher(client, ledger=ledger) as dispatcher:
        engine, queue = dispatcher._engine, dispatcher._engine.queue
        ledger.database.before = interrupt
        with pytest.raises(KeyboardInterrupt):
            engine.accepting.accept(Request(params("lost"), key="lost"), None)
        ledger.database.before = None
        assert queue.busy == 0, "it was not stored"
        engine.accepting.accept(Request(params("x"), key="x"), None)
        engine.sync_lane.put_back()
        assert dispatcher.ticket("x").status is Status.QUEUED
