"""One synchronous interface to the sync and the async lanes, and a server that plays a script over a raw socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any

import anthropic
import anyio
from typing_extensions import Self

from batchwise.api.batches import BatchLane
from batchwise.api.colours import IO, AsyncIO, SyncIO, synchronous
from batchwise.api.faults import LaneFault
from batchwise.api.messages import MessageLane
from batchwise.engine.worker_threads import Threads

URL = "http://api.test"
KEY = "sk-very-secret"


class Lanes:
    """The lanes over a new client for each call; a colour says how a coroutine over one is run."""

    def __init__(self, **options: Any) -> None:
        self.options = {"api_key": KEY, "base_url": URL, **options}
        self.slept: list[float] = []

    def _run(self, use: Callable[[IO], Any]) -> Any:
        raise NotImplementedError

    def batch(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._run(lambda io: getattr(BatchLane(io), method)(*args, **kwargs))

    def create(self, chunks: Iterable[bytes], length: int, betas: tuple[str, ...] = ()) -> Any:
        return self.batch("create", chunks, length=length, betas=betas)

    def results(
        self, remote_id: str, limit: int | None = None, into: list[bytes] | None = None
    ) -> tuple[list[bytes], LaneFault | None]:
        async def use(io: IO) -> tuple[list[bytes], LaneFault | None]:
            got = [] if into is None else into
            async with BatchLane(io).results(remote_id) as chunks:
                try:
                    async for chunk in chunks:
                        got.append(chunk)
                        if limit is not None and len(got) >= limit:
                            break
                except LaneFault as error:
                    return got, error
            return got, None

        return self._run(use)

    def call(self, body: bytes, **kwargs: Any) -> Any:
        return self._run(lambda io: MessageLane(io).call(body, **kwargs))


class SyncLanes(Lanes):
    """Over a synchronous client, without an event loop."""

    def _run(self, use: Callable[[IO], Any]) -> Any:
        http_client = anthropic.DefaultHttpxClient(verify=False)
        with anthropic.Anthropic(http_client=http_client, **self.options) as client:
            return synchronous(use)(SyncIO(client, self.slept.append))


class AsyncLanes(Lanes):
    """Over an asynchronous client, each call in an event loop of its own."""

    def __init__(self, backend: str, **options: Any) -> None:
        super().__init__(**options)
        self.backend = backend

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def _run(self, use: Callable[[IO], Any]) -> Any:
        async def main() -> Any:
            http_client = anthropic.DefaultAsyncHttpxClient(verify=False)
            async with anthropic.AsyncAnthropic(http_client=http_client, **self.options) as client:
                return await use(AsyncIO(client, Threads().run, self._sleep))

        return anyio.run(main, backend=self.backend)


class Peer:
    """One connection as the server sees it."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._buffer = b""

    def head(self) -> bytes:
        while b"\r\n\r\n" not in self._buffer:
            data = self.connection.recv(65_536)
            if not data:
                return self._buffer
            self._buffer += data
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return head

    def body(self, at_most: int | None = None) -> int:
        """Read the body until it is whole, the client closes, or `at_most` bytes came; how many there were."""
        seen = len(self._buffer)
        while at_most is None or seen < at_most:
            try:
                data = self.connection.recv(65_536)
            except OSError:
                break
            if not data:
                break
            seen += len(data)
        return seen

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.connection.sendall(piece)

    def answer(self, status: int, body: bytes, *headers: bytes) -> None:
        lines = [b"HTTP/1.1 %d X" % status, b"Content-Length: %d" % len(body), *headers]
        self.send(b"\r\n".join(lines) + b"\r\n\r\n" + body)


class ScriptedServer:
    """Accepts connections on loopback and lets `script` handle each; `heads` are the request heads seen."""

    def __init__(self, script: Callable[[Peer], Any]) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.heads: list[bytes] = []
        self.told: list[Any] = []
        self.handled = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(20)
                peer = Peer(connection)
                try:
                    self.heads.append(peer.head())
                    self.told.append(self._script(peer))
                except OSError as error:
                    self.told.append(error)
            self.handled.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=25)
