"""One interface to both dispatchers, so that each behaviour is tested once, by an async function.

The synchronous dispatcher gets the asynchronous one's interface: a call does its work right there, and gives something
that can be awaited or iterated and never suspends. So a test of the synchronous dispatcher runs without an event loop.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from inspect import isawaitable
from pathlib import Path
from textwrap import dedent
from typing import Any

import anyio
from typing_extensions import Self

from batchwise import AsyncDispatcher, Dispatcher, Job, Lane, Policy, Request, Ticket
from batchwise.ledger.sqlite import SqliteLedger
from batchwise.sandbox import Sandbox
from tests.strategies import params

HOURS_30 = timedelta(hours=30)
LATENCIES = {Lane.SYNC: timedelta(hours=1), Lane.BATCH: HOURS_30}
"""What sends a request to each lane, where nobody waits."""
FAST = (timedelta(milliseconds=10), timedelta(milliseconds=200))
LINGER = timedelta(milliseconds=20)
PRELUDE = """
from datetime import timedelta
import batchwise as bw
from tests.strategies import params
policy = bw.Policy(
    poll_every=(timedelta(milliseconds=20), timedelta(milliseconds=200)), linger=timedelta(milliseconds=20)
)
"""
PATIENCE = 60.0
"""Seconds after which a test that waits has failed. On a busy machine a second process needs 20 for its imports."""

Test = Callable[[], Coroutine[Any, Any, None]]


def many(count: int, prefix: str = "r", **tags: Any) -> list[Request]:
    """Requests `r-0`, `r-1`, ... whose prompts are their keys."""
    return [Request(params(f"{prefix}-{i}"), key=f"{prefix}-{i}", **tags) for i in range(count)]


class _Call:
    """One call of a synchronous method: made when it is awaited or iterated."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call

    def __await__(self) -> Generator[None, None, Any]:
        return _facing(self._call())
        yield  # a generator that never suspends

    async def __aiter__(self) -> Any:
        for item in self._call():
            yield item


class _Facade:
    """A synchronous object with the interface of its asynchronous twin."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        return (lambda *args, **keywords: _Call(lambda: value(*args, **keywords))) if callable(value) else value

    async def __aenter__(self) -> Self:
        self._inner.__enter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        self._inner.__exit__(*error)

    def __repr__(self) -> str:
        return repr(self._inner)


def _facing(value: Any) -> Any:
    return _Facade(value) if isinstance(value, (Dispatcher, Ticket, Job)) else value


class Colour(ABC):
    """How a test of one colour is run."""

    name: str

    @abstractmethod
    def run(self, test: Test) -> None: ...
    @abstractmethod
    def dispatcher(self, client: Any, ledger: Any, policy: Policy, **others: Any) -> Any: ...
    @abstractmethod
    def client(self, sandbox: Sandbox, **options: Any) -> Any: ...
    @abstractmethod
    async def together(self, *functions: Callable[[], Awaitable[Any]]) -> list[Any]: ...
    @abstractmethod
    async def sleep(self, seconds: float) -> None: ...


def _step(awaitable: Awaitable[Any]) -> Any:
    """Run an awaitable that never suspends."""

    async def whole() -> Any:
        return await awaitable

    try:
        whole().send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("a synchronous test waited for an event loop")


class Sync(Colour):
    name = "sync"

    def run(self, test: Test) -> None:
        _step(test())

    def dispatcher(self, client: Any, ledger: Any, policy: Policy, **others: Any) -> Any:
        return _Facade(Dispatcher(client, ledger=ledger, policy=policy, **others))

    def client(self, sandbox: Sandbox, **options: Any) -> Any:
        return _Facade(sandbox.client(**options))

    async def together(self, *functions: Callable[[], Awaitable[Any]]) -> list[Any]:
        found: list[Any] = [None] * len(functions)

        def work(index: int) -> None:
            try:
                found[index] = _step(functions[index]())
            except Exception as error:  # noqa: BLE001  # handed to the test
                found[index] = error

        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(functions))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in threads)
        return found

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  # there is no event loop


class Async(Colour):
    def __init__(self, backend: str) -> None:
        self.name = backend

    def run(self, test: Test) -> None:
        async def whole() -> None:
            with anyio.fail_after(2 * PATIENCE):
                await test()

        anyio.run(whole, backend=self.name)

    def dispatcher(self, client: Any, ledger: Any, policy: Policy, **others: Any) -> Any:
        return AsyncDispatcher(client, ledger=ledger, policy=policy, **others)

    def client(self, sandbox: Sandbox, **options: Any) -> Any:
        return sandbox.async_client(**options)

    async def together(self, *functions: Callable[[], Awaitable[Any]]) -> list[Any]:
        found: list[Any] = [None] * len(functions)

        async def work(index: int) -> None:
            try:
                found[index] = await functions[index]()
            except Exception as error:  # noqa: BLE001  # handed to the test
                found[index] = error

        async with anyio.create_task_group() as tasks:
            for index in range(len(functions)):
                tasks.start_soon(work, index)
        return found

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


def front(dispatcher: Any, **tags: Any) -> Any:
    """The SDK's client in front of a dispatcher, of its colour; `got` waits for what its methods give."""
    return (dispatcher._inner if isinstance(dispatcher, _Facade) else dispatcher).client(**tags)


async def got(value: Any) -> Any:
    """What a method of the SDK gives, in either colour."""
    return await value if isawaitable(value) else value


def clock_of(dispatcher: Any) -> Callable[[timedelta], None]:
    """Put a wall clock of its own under a dispatcher; what it gives steps this clock."""
    skew = [timedelta(0)]
    dispatcher._engine.now = lambda: datetime.now(timezone.utc) + skew[0]

    def step(by: timedelta) -> None:
        skew[0] += by

    return step


class SlowToLearn(SqliteLedger):
    """A ledger that takes a while to store its workspace, which the first answer names."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.answered, bind = threading.Event(), self.conditions.bind

        def slow(*, endpoint: str, workspace: str | None) -> bool:
            if workspace is not None:
                self.answered.set()
                time.sleep(0.4)
            return bind(endpoint=endpoint, workspace=workspace)

        self.conditions.bind = slow  # type: ignore[method-assign]


class World:
    """What a test has: a sandbox, a ledger's path, and dispatchers of its colour."""

    def __init__(self, colour: Colour, folder: Path) -> None:
        self.colour, self.folder = colour, folder
        self.sandbox = Sandbox(batch_latency=0.01)
        self.path = folder / "ledger.db"
        self._clients: list[Any] = []

    @property
    def books(self) -> Any:
        return self.sandbox.books

    @property
    def paths(self) -> Any:
        """How often each endpoint was called."""
        return self.books.requests_by_path

    @property
    def creates(self) -> int:
        return self.paths["POST /v1/messages/batches"]

    @property
    def calls(self) -> int:
        return self.paths["POST /v1/messages"]

    def client(self, **options: Any) -> Any:
        made = self.colour.client(self.sandbox, **options)
        self._clients.append(made)
        return made

    def open(self, *, ledger: Any = None, client: Any = None, on_event: Any = None, **policy: Any) -> Any:
        """A dispatcher, to be used under `async with`."""
        made = client or self.client()
        inner = made._inner if isinstance(made, _Facade) else made
        ledger = self.path if ledger is None else ledger
        return self.colour.dispatcher(inner, ledger, self.policy(**policy), on_event=on_event)

    def policy(self, **settings: Any) -> Policy:
        return Policy(**{"poll_every": FAST, "linger": LINGER, **settings})

    def run(self, test: Test) -> None:
        async def whole() -> None:
            try:
                await test()
            finally:
                for client in self._clients:
                    await client.close()

        self.colour.run(whole)

    async def together(self, *functions: Callable[[], Awaitable[Any]]) -> list[Any]:
        """Run some functions at the same time; an exception stands in its function's place."""
        return await self.colour.together(*functions)

    async def until(self, check: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        """Wait for a condition; `check` may be async."""
        end = time.monotonic() + seconds
        while True:
            value = check()
            if isawaitable(value):
                value = await value
            if value:
                return value
            assert time.monotonic() < end, "the condition never came true"
            await self.colour.sleep(0.01)

    @contextmanager
    def script(self, code: str) -> Iterator[subprocess.Popen[str]]:
        """A real second process, with the sandbox and the ledger in its environment; killed at the end."""
        environment = {
            **os.environ,
            "ANTHROPIC_BASE_URL": self.sandbox.base_url,
            "ANTHROPIC_API_KEY": "sandbox",
            "BATCHWISE_LEDGER": str(self.path),
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
        }
        command = [sys.executable, "-u", "-c", PRELUDE + dedent(code)]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, env=environment, stdout=pipe, stderr=pipe, text=True, cwd=self.folder
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def ran(self, code: str) -> str:
        """What a script printed that ran to its end."""
        with self.script(code) as process:
            out, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
        return out

    def close(self) -> None:
        self.sandbox.close()


async def listed(iterable: Any) -> list[Any]:
    """All of an asynchronous iterable."""
    return [item async for item in iterable]
