"""Dispatchers on one ledger in Postgres hear of each other's work, and ask the server nothing while nothing is due."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import anthropic
import anyio
import orjson
import psycopg
import pytest

import batchwise as bw
from batchwise.drivers import changes
from batchwise.ledger.ledger import Ledger
from batchwise.ledger.opening import open_ledger
from batchwise.ledger.postgres_database import PostgresDatabase
from batchwise.sandbox import Sandbox
from tests.ledger.model import PATIENT, World
from tests.postgres import Schemas
from tests.strategies import params
from tests.waiting import until

SLOW_LOOKS, SOON = 30.0, 12.0
"""Seconds between two looks of the pump: who hears of something much sooner was told."""


@pytest.fixture
def url(schemas: Schemas) -> str:
    return schemas.url()


@pytest.fixture
def rare_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "WATCH", SLOW_LOOKS)


def test_a_waiter_is_told_of_what_another_dispatcher_settled(url: str, rare_looks: None) -> None:
    with Sandbox(sync_latency=0.5) as sandbox:
        with bw.Dispatcher(sandbox.client(), ledger=url) as one, bw.Dispatcher(sandbox.client(), ledger=url) as two:
            one.dispatch(params("a"), key="a")
            begun = time.monotonic()
            assert two.ticket("a").result(timeout=SLOW_LOOKS - 5).ok
            assert time.monotonic() - begun < SOON
        assert sandbox.books.bought_by_prompt() == {"a": 1}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_task_that_waits_is_told_too(backend: str, url: str, rare_looks: None) -> None:
    async def wait(sandbox: Sandbox) -> None:
        client = anthropic.AsyncAnthropic(base_url=sandbox.base_url, api_key="sandbox")
        async with bw.AsyncDispatcher(client, ledger=url) as two:
            with bw.Dispatcher(sandbox.client(), ledger=url) as one:
                await anyio.to_thread.run_sync(lambda: one.dispatch(params("a"), key="a"))
                ticket = await two.ticket("a")
                begun = time.monotonic()
                result = await ticket.result(timeout=SLOW_LOOKS - 5)
                assert result.ok
                assert time.monotonic() - begun < SOON

    with Sandbox(sync_latency=0.5) as sandbox:
        anyio.run(wait, sandbox, backend=backend)


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All statements that go to the server, as they come."""
    sent: list[str] = []

    def counting(real: Any) -> Any:
        def call(self: Any, sql: str, *args: Any, **options: Any) -> Any:
            sent.append(sql)
            return real(self, sql, *args, **options)

        return call

    for name in ("execute", "executemany", "copy"):
        monkeypatch.setattr(psycopg.Cursor, name, counting(getattr(psycopg.Cursor, name)))
    return sent


def test_an_idle_dispatcher_alone_asks_the_server_nothing(url: str, statements: list[str]) -> None:
    with Sandbox() as sandbox, bw.Dispatcher(sandbox.client(), ledger=url) as dispatcher:
        assert dispatcher.dispatch(params("a")).result(timeout=timedelta(seconds=30)).ok

        def still() -> bool:
            before = len(statements)
            time.sleep(2.0)
            return len(statements) == before

        until(still, "it goes on asking")


def test_of_two_idle_dispatchers_each_asks_the_server_one_thing_a_minute(
    url: str, statements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    minute = 0.5
    with (
        Sandbox() as sandbox,
        bw.Dispatcher(sandbox.client(), ledger=url) as one,
        bw.Dispatcher(sandbox.client(), ledger=url) as two,
    ):
        assert one.dispatch(params("a"), key="a").result(timeout=timedelta(seconds=30)).ok
        monkeypatch.setattr(changes, "IDLE_SWEEP", minute)
        monkeypatch.setattr(changes, "WATCH", 0.05)
        rounds: list[list[str]] = []

        def still() -> bool:
            before, begun = len(statements), time.monotonic()
            time.sleep(4 * minute)
            rounds.append(statements[before:])
            return 0 < len(rounds[-1]) <= 2 * (1 + (time.monotonic() - begun) / minute) and all(
                "pg_locks" in each for each in rounds[-1]
            )

        until(still, "they ask more than that")
        assert two.ticket("a").result(timeout=30).ok


# -- who leads, who lives ---------------------------------------------------------------------------------------------


def test_a_holder_of_the_lease_that_is_cut_off_while_it_sends_breaks_off(url: str, postgres: str) -> None:
    """Another one leads in between; the first connects again, and even leads again: what it was sending is over."""
    with Sandbox(batch_latency=0.1) as sandbox, closing(open_ledger(url)) as other:
        ledger = open_ledger(f"{url}&application_name=cut-off")
        real, cut = ledger.batches.entries, []

        def entries(batch: int) -> Iterator[tuple[int, str, bytes]]:
            for each in real(batch):
                if not cut:
                    cut.append(batch)
                    end_locking(postgres, "cut-off")
                    until(other.lease.acquire, "the lease of a lost session is not free")
                    other.lease.release()
                    until(lambda: leads(ledger), "it never led again")
                yield each

        ledger.batches.entries = entries  # type: ignore[method-assign]
        with closing(ledger), bw.Dispatcher(sandbox.client(), ledger=ledger) as dispatcher:
            job = dispatcher.dispatch_all(
                [bw.Request(params(f"{n}"), key=f"{n}") for n in range(3)], job="j", latency=bw.Latency.FLEXIBLE
            )
            assert [result.ok for result in job.results(timeout=60)] == [True] * 3
            assert dispatcher.report().possible_doubles == 0
        assert sandbox.books.bought_by_prompt() == {"0": 1, "1": 1, "2": 1}
        assert len(sandbox.books.batches) == 1
        assert sandbox.books.batches[0].rows
        with other.database.read() as db:
            assert [state for (state,) in db.execute("SELECT state FROM batch ORDER BY id")] == ["void", "closed"]


def end_locking(postgres: str, application: str) -> None:
    """Have the server end those sessions that hold locks."""
    with psycopg.connect(postgres, autocommit=True) as db:
        db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s "
            "AND pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory')",
            (application,),
        )


def leads(ledger: Ledger) -> bool:
    try:
        return ledger.lease.acquire()
    except bw.LedgerError:
        return False


def test_one_advance_does_what_a_dead_process_left(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PostgresDatabase, "grace", 0.5)
    dead = open_ledger(url)
    World(dead).accept("a", PATIENT, claim=True, body=orjson.dumps(params("a")).decode())
    dead.close()
    with Sandbox() as sandbox, bw.Dispatcher(sandbox.client(), ledger=url) as dispatcher:
        dispatcher.advance()
        assert dispatcher.ticket("a").status is bw.Status.SETTLED
        assert sandbox.books.bought_by_prompt() == {"a": 1}
