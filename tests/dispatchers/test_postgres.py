"""Dispatchers on one ledger in Postgres hear of each other's work, and ask the server nothing while nothing is due."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import anthropic
import anyio
import psycopg
import pytest

import batchwise as bw
from batchwise.drivers import pump
from batchwise.sandbox import Sandbox
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
    monkeypatch.setattr(pump, "WATCH", SLOW_LOOKS)


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


def test_an_idle_dispatcher_asks_the_server_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    execute = psycopg.Connection.execute

    def counting(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal asked
        asked += 1
        return execute(self, *args, **options)

    monkeypatch.setattr(psycopg.Connection, "execute", counting)
    with Sandbox() as sandbox, bw.Dispatcher(sandbox.client(), ledger=url) as dispatcher:
        assert dispatcher.dispatch(params("a")).result(timeout=timedelta(seconds=30)).ok

        def still() -> bool:
            before = asked
            time.sleep(2.0)
            return asked == before

        until(still, "it goes on asking")
