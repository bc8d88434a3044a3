"""A small HTTP/1.1 server for loopback: large bodies in, streamed bodies out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import parse_qsl, unquote

import h11

from .errors import ConnectionDropError

log = logging.getLogger("batchwise.sandbox")

_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}
_HEAD_LIMIT = 64 * 1024
_LINGER = 10.0


@dataclass
class Request:
    """One HTTP request, read whole.

    Attributes:
        too_large: the body passed the limit and was not kept.
        gone: set when the client has closed the connection.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)
    too_large: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Response:
    """One HTTP answer: a body in one piece, or an iterator of pieces that are sent chunked."""

    status: int
    headers: dict[str, str]
    body: bytes | AsyncIterator[bytes] = b""


Handler = Callable[[Request], Awaitable[Response]]
BodyLimit = Callable[[str], int]


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Answer')}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def _reader() -> h11.Connection:
    return h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_LIMIT)


class Connection(asyncio.Protocol):
    """One client connection: parses requests, hands them to the handler one at a time, writes the answers."""

    def __init__(self, handler: Handler, body_limit: BodyLimit, connections: set[Connection]) -> None:
        self._handler = handler
        self._body_limit = body_limit
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._reader = _reader()
        self._request: Request | None = None
        self._limit = 0
        self._busy = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._closing = False
        self._answered = False  # a refused body has been answered
        self._tasks: set[asyncio.Task[None]] = set()

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self.transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Called by asyncio."""
        self._connections.discard(self)
        self._writable.set()
        if self._request is not None:
            self._request.gone.set()

    def pause_writing(self) -> None:
        """Called by asyncio."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Called by asyncio."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._reader.receive_data(data)
        if not self._busy or (self._request is not None and self._request.too_large):
            self._read()

    # reading

    def _read(self) -> None:
        """Take in what has come, up to the end of one request."""
        try:
            while True:
                match self._reader.next_event():
                    case h11.Request() as head:
                        self._begin(head)
                    case h11.Data() as piece:
                        self._keep(piece.data)
                    case h11.EndOfMessage():
                        self._end()
                    case _:  # the rest has not come yet, or this request has to be answered first
                        return
        except h11.RemoteProtocolError as error:
            self._write_simple(error.error_status_hint)

    def _begin(self, event: h11.Request) -> None:
        path, _, query = event.target.decode("latin-1").partition("?")
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
        self._request = Request(event.method.decode(), unquote(path), dict(parse_qsl(query)), headers)
        self._closing = event.http_version == b"1.0" or headers.get("connection", "").lower() == "close"
        self._limit = self._body_limit(path)
        if int(headers.get("content-length", "0")) > self._limit:
            self._refuse_body(self._request)
        elif self._reader.they_are_waiting_for_100_continue:
            self.transport.write(self._reader.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")

    def _keep(self, piece: bytes | bytearray) -> None:
        request = self._request
        if request is None or request.too_large:
            return
        if len(request.body) + len(piece) > self._limit:
            self._refuse_body(request)
            return
        request.body += piece

    def _refuse_body(self, request: Request) -> None:
        """Answer at once, as the API's edge does. Read the rest of the body, so that the client gets to the answer."""
        request.too_large = True
        request.body = bytearray()
        self._start(request)
        self._loop.call_later(_LINGER, self.transport.close)

    def _end(self) -> None:
        if not self._busy:
            if self._request is not None:
                self._start(self._request)
            return
        if self._answered:  # the rest of a body that was too large has come
            self.transport.close()

    # answering

    def _start(self, request: Request) -> None:
        self._busy = True
        task = self._loop.create_task(self._answer(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, request: Request) -> None:
        try:
            response = await self._handler(request)
            if request.gone.is_set():
                return
            if request.too_large:
                response.headers["connection"] = "close"
                self._closing = True
            await self._write(response)
        except ConnectionDropError:
            self.transport.close()
            return
        except Exception:
            log.exception("the sandbox failed to answer %s %s", request.method, request.path)
            self.transport.close()
            return
        if request.too_large:
            self._answered = True
            if self._reader.their_state is not h11.SEND_BODY:  # all of its body has come
                self.transport.close()
            return
        self._next()

    def _next(self) -> None:
        self._request = None
        self._busy = False
        if self._closing:
            self.transport.close()
            return
        rest, _ = self._reader.trailing_data
        self._reader = _reader()  # a new one for each request: h11 sees no answers, which are written without it
        if rest:
            self.data_received(rest)

    async def _write(self, response: Response) -> None:
        body = response.body
        if isinstance(body, bytes):
            self.transport.write(_head(response.status, {**response.headers, "content-length": str(len(body))}) + body)
            return
        self.transport.write(_head(response.status, {**response.headers, "transfer-encoding": "chunked"}))
        async for piece in body:
            if self.transport.is_closing():
                return
            if piece:
                self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await self._writable.wait()
        self.transport.write(b"0\r\n\r\n")

    def _write_simple(self, status: int) -> None:
        self.transport.write(_head(status, {"connection": "close", "content-length": "0"}))
        self.transport.close()
