"""A blocking call is prepared while its request is being accepted, and sent only when that is durable."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest

from batchwise import Dispatcher, LedgerError, Policy, Request, Status
from batchwise.ledger.sqlite import SqliteLedger
from batchwise.ledger.sqlite_database import SqliteDatabase
from batchwise.ledger.values import Claim
from batchwise.models import Limits
from batchwise.sandbox import Sandbox
from tests.strategies import params

from .world import PATIENCE


class Database(SqliteDatabase):
    """Does something else instead of committing an acceptance, once it has been told to."""

    instead: Any = None

    def commit(self, name: str) -> None:
        if name == "accept" and self.instead is not None:
            self.instead()
        super().commit(name)


class Transport(httpx2.HTTPTransport):
    """Says when a call is asked for, and when its body has been taken."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.events = threading.Event(), list[str]()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v1/messages":
            whole = request.stream
            assert isinstance(whole, httpx2.SyncByteStream)
            request.stream = _Told(whole, self.events)
            self.asked.set()
        return super().handle_request(request)


class _Told(httpx2.SyncByteStream):
    def __init__(self, whole: httpx2.SyncByteStream, events: list[str]) -> None:
        self._whole, self._events = whole, events

    def __iter__(self) -> Any:
        for chunk in self._whole:
            self._events.append("body")
            yield chunk


def opened(sandbox: Sandbox, ledger: SqliteLedger, transport: Transport, **policy: Any) -> Dispatcher:
    client = anthropic.Anthropic(
        base_url=sandbox.base_url, api_key="sandbox", http_client=httpx2.Client(transport=transport)
    )
    return Dispatcher(client, ledger=ledger, policy=Policy(**policy))


def fail() -> None:
    raise sqlite3.OperationalError("disk full")


def test_a_call_is_prepared_while_its_request_is_committed(tmp_path: Path) -> None:
    ledger, transport = SqliteLedger(Database(tmp_path / "ledger.db")), Transport()

    def committing() -> None:
        assert transport.asked.wait(PATIENCE), "the call waits for the commit"
        transport.events.append("commit")

    with Sandbox() as sandbox, opened(sandbox, ledger, transport) as dispatcher:
        ledger.database.instead = committing
        assert dispatcher.dispatch(params("x")).result(PATIENCE).text == "echo: x"
    ledger.close()
    assert transport.events == ["commit", "body"]


def test_what_could_not_be_accepted_is_not_sent(tmp_path: Path) -> None:
    ledger, transport = SqliteLedger(Database(tmp_path / "ledger.db")), Transport()
    with Sandbox() as sandbox:
        with opened(sandbox, ledger, transport, limits=Limits(concurrency=1)) as dispatcher:
            ledger.database.instead = lambda: (transport.asked.wait(PATIENCE), fail())
            with pytest.raises(LedgerError, match="disk full"):
                dispatcher.dispatch(params("lost"))
            ledger.database.instead = None
            assert dispatcher.progress().total == 0
            # Its number is given again; what was prepared for it must not touch that one's request.
            tickets = [dispatcher.dispatch(params(f"kept {n}")) for n in range(3)]
            assert [ticket.result(PATIENCE).text for ticket in tickets] == [f"echo: kept {n}" for n in range(3)]
            assert dispatcher._engine.health.failed_at is None, "the lane did not fail"
        assert sandbox.books.bought_by_prompt("sync") == {f"kept {n}": 1 for n in range(3)}
    ledger.close()


def test_whoever_waits_is_told_while_a_call_for_nothing_has_the_same_number(tmp_path: Path) -> None:
    connected = threading.Event()

    class Slow(Transport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            first = request.url.path == "/v1/messages" and not self.asked.is_set()
            self.asked.set()
            if first:
                connected.wait(2 * PATIENCE)
            return super().handle_request(request)

    ledger, transport = SqliteLedger(Database(tmp_path / "ledger.db")), Slow()
    with Sandbox() as sandbox, opened(sandbox, ledger, transport) as dispatcher:
        ledger.database.instead = lambda: (transport.asked.wait(PATIENCE), fail())
        with pytest.raises(LedgerError, match="disk full"):
            dispatcher.dispatch(params("lost"))
        ledger.database.instead = None
        assert dispatcher.dispatch(params("kept")).result(PATIENCE).text == "echo: kept"
        assert dispatcher._engine.queue.busy == 1, "the other one still connects"
        connected.set()
    ledger.close()


def test_a_claim_that_was_never_accepted_does_not_go_back_to_the_ledger(tmp_path: Path) -> None:
    ledger = SqliteLedger(Database(tmp_path / "ledger.db"))
    with Sandbox() as sandbox, opened(sandbox, ledger, Transport()) as dispatcher:
        engine, begun = dispatcher._engine, list[Claim]()
        engine.accept(Request(params("x"), key="x"), None, begun.append)
        engine.push(begun[0]._replace(accepting=lambda: False))  # of one that had this number before
        engine.put_back()
        assert dispatcher.ticket("x").status is Status.IN_FLIGHT
        engine.push(begun[0])
        engine.put_back()
        assert dispatcher.ticket("x").status is Status.QUEUED
        assert engine.queue.busy == 0
    ledger.close()
