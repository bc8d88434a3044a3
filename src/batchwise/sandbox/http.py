"""A small HTTP/1.1 server for loopback: large bodies in, streamed bodies out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import parse_qsl, unquote

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


class Connection(asyncio.Protocol):
    """One client connection: parses requests, hands them to the handler one at a time, writes the answers."""

    def __init__(self, handler: Handler, body_limit: BodyLimit, connections: set[Connection]) -> None:
        self._handler = handler
        self._body_limit = body_limit
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._pending = b""
        self._request: Request | None = None
        self._busy = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._reset_body()

    def _reset_body(self) -> None:
        self._chunked = False
        self._left = 0  # bytes still to come of the body, or of the chunk
        self._chunk_end = False  # the CRLF after a chunk's data comes next
        self._trailer = False
        self._limit = 0
        self._kept = 0
        self._through = False  # a refused body has come to its end
        self._answered = False  # a refused body has been answered

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
        if self._busy and not (self._request is not None and self._request.too_large):
            self._pending += data
            return
        self._consume(self._pending + data if self._pending else data)

    # reading

    def _consume(self, data: bytes) -> None:
        self._pending = b""
        try:
            if self._request is None:
                data = self._read_head(data)
                if self._request is None:
                    self._pending = data
                    return
            done, rest = self._read_chunked(data) if self._chunked else self._read_plain(data)
        except (ValueError, IndexError):
            self._write_simple(400)
            return
        self._pending = rest
        if not done:
            return
        if self._busy:  # the rest of a body that was too large
            self._through = True
            if self._answered:
                self.transport.close()
            return
        self._start(self._request)

    def _read_head(self, data: bytes) -> bytes:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > _HEAD_LIMIT:
                raise ValueError("head too long")
            return data
        lines = data[:end].decode("latin-1").split("\r\n")
        method, target, version = lines[0].split(" ")
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        path, _, query = target.partition("?")
        self._reset_body()
        self._request = Request(method, unquote(path), dict(parse_qsl(query)), headers)
        self._closing = version == "HTTP/1.0" or headers.get("connection", "").lower() == "close"
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        self._limit = self._body_limit(path)
        if not self._chunked:
            self._left = int(headers.get("content-length", "0"))
            if self._left > self._limit:
                self._refuse_body(self._request)
        if headers.get("expect", "").lower() == "100-continue" and not self._busy:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return data[end + 4 :]

    def _keep(self, piece: bytes | memoryview) -> None:
        request = self._request
        if request is None or request.too_large:
            return
        self._kept += len(piece)
        if self._kept > self._limit:
            self._refuse_body(request)
            return
        request.body += piece

    def _refuse_body(self, request: Request) -> None:
        """Answer at once, as the API's edge does, and read on only to let the client come to the answer."""
        request.too_large = True
        request.body = bytearray()
        self._start(request)
        self._loop.call_later(_LINGER, self.transport.close)

    def _read_plain(self, data: bytes) -> tuple[bool, bytes]:
        if len(data) <= self._left:
            self._left -= len(data)
            self._keep(data)
            return self._left == 0, b""
        rest = data[self._left :]
        self._keep(data[: self._left])
        self._left = 0
        return True, rest

    def _read_chunked(self, data: bytes) -> tuple[bool, bytes]:
        view = memoryview(data)
        at, size = 0, len(data)
        while True:
            if self._left:
                take = min(self._left, size - at)
                self._keep(view[at : at + take])
                at += take
                self._left -= take
                if self._left:
                    return False, b""
                self._chunk_end = True
            if self._chunk_end:
                if size - at < 2:
                    return False, data[at:]
                at += 2
                self._chunk_end = False
            end = data.find(b"\r\n", at)
            if end < 0:
                return False, data[at:]
            line, at = data[at:end], end + 2
            if self._trailer:
                if not line:
                    return True, data[at:]
                continue
            self._left = int(line.split(b";")[0], 16)
            self._trailer = self._left == 0

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
            if self._through:
                self.transport.close()
            return
        self._next()

    def _next(self) -> None:
        self._request = None
        self._busy = False
        if self._closing:
            self.transport.close()
        elif self._pending:
            self._consume(self._pending)

    async def _write(self, response: Response) -> None:
        reason = _REASONS.get(response.status, "Answer")
        lines = [f"HTTP/1.1 {response.status} {reason}"]
        lines += [f"{name}: {value}" for name, value in response.headers.items()]
        body = response.body
        lines.append(f"content-length: {len(body)}" if isinstance(body, bytes) else "transfer-encoding: chunked")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
        if isinstance(body, bytes):
            self.transport.write(head + body)
            return
        self.transport.write(head)
        async for piece in body:
            if self.transport.is_closing():
                return
            if piece:
                self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await self._writable.wait()
        self.transport.write(b"0\r\n\r\n")

    def _write_simple(self, status: int) -> None:
        reason = _REASONS[status]
        self.transport.write(f"HTTP/1.1 {status} {reason}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode())
        self.transport.close()
