"""The sandbox as a server: an asyncio loop in a thread of its own, on a loopback port."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .api import Api
from .http import Connection
from .latency import to_seconds
from .world import Seconds, Settings, World

if TYPE_CHECKING:
    from anthropic import Anthropic, AsyncAnthropic
    from typing_extensions import Self, Unpack

_HOST = "127.0.0.1"


class Sandbox(World):
    """A loopback server that imitates the Messages API and the Message Batches API. No key, no cost, no network.

    It runs from construction to `close()`; use it in a `with` block, or as a pytest fixture:

        @pytest.fixture
        def sandbox():
            with Sandbox(batch_latency=0.1) as sandbox:
                yield sandbox

        def test_something(sandbox):
            client = anthropic.Anthropic(base_url=sandbox.base_url, api_key="sandbox")
            ...
            assert sandbox.books.bought_twice() == {}

    Args:
        port: the port on 127.0.0.1; 0 takes a free one.
        **settings: those of `World`, each an attribute that may be set later as well.
    """

    def __init__(self, *, port: int = 0, **settings: Unpack[Settings]) -> None:
        super().__init__(**settings)
        self._api = Api(self)
        self._api.control.restart = self._restart_soon
        self._loop = asyncio.new_event_loop()
        self._connections: set[Connection] = set()
        self._socket = _bound(port)
        self.port: int = self._socket.getsockname()[1]
        self.base_url = f"http://{_HOST}:{self.port}"
        self._server: asyncio.Server | None = None
        self._closed = False
        self._lifecycle = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"sandbox-{self.port}", daemon=True)
        self._thread.start()
        self._call(self._listen())

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def _call(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _listen(self) -> None:
        def connect() -> Connection:
            return Connection(self._api.handle, self._api.body_limit, self._connections)

        self._server = await self._loop.create_server(connect, sock=self._socket, backlog=1024)

    async def _vanish(self, *, rebind: bool) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._connections):
            connection.transport.abort()
        if rebind:
            self._socket = _bound(self.port)  # bound but not listening: connections are refused, the port stays ours

    def restart(self, downtime: Seconds = 0.0, *, wait: bool = False) -> None:
        """Let the server go away, cutting all connections, and come back on the same port with all it knows.

        Args:
            downtime: how long connections are refused.
            wait: return only when it is back; without it the downtime runs in the background.
        """
        seconds = to_seconds(downtime)
        with self._lifecycle:
            if self._closed:
                raise RuntimeError("the sandbox is closed")
            self._call(self._vanish(rebind=True))
            future = asyncio.run_coroutine_threadsafe(self._come_back(seconds), self._loop)
        if wait or not seconds:
            future.result()

    async def _come_back(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if not self._closed:
            await self._listen()

    def _restart_soon(self, downtime: float) -> None:
        threading.Timer(0.05, self.restart, (downtime,)).start()

    def close(self) -> None:
        """Stop the server. The books can still be read."""
        with self._lifecycle:
            if self._closed:
                return
            self._closed = True
            self._call(self._shut_down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._socket.close()

    async def _shut_down(self) -> None:
        await self._vanish(rebind=False)
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _client_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        key = "sandbox"
        if self.api_keys:
            key = next(iter(self.api_keys))
        return {"base_url": self.base_url, "api_key": key, **options}

    def client(self, **options: Any) -> Anthropic:
        """An `anthropic.Anthropic` that talks to this sandbox; options go to its constructor."""
        import anthropic

        return anthropic.Anthropic(**self._client_options(options))

    def async_client(self, **options: Any) -> AsyncAnthropic:
        """An `anthropic.AsyncAnthropic` that talks to this sandbox; options go to its constructor."""
        import anthropic

        return anthropic.AsyncAnthropic(**self._client_options(options))


def _bound(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((_HOST, port))
    return sock
