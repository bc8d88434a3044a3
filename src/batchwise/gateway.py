"""A dispatcher as a local server that answers like the Messages API: for programs that make their own client.

A program whose `ANTHROPIC_BASE_URL` is this server gets the same answers as from a client of `AsyncDispatcher.client`:
both use the same transport. Needs the extra `gateway` (starlette and uvicorn).
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import anthropic
import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from .async_dispatcher import AsyncDispatcher
from .client.answering import Answer, failed, refusal
from .client.tagging import tags
from .errors import BatchwiseError, InvalidValueError
from .models import LatencyTag, Policy, parse_latency

__all__ = ["application", "serve"]

_log = logging.getLogger("batchwise")
_UNTIL_PINGS = 1.0
"""Seconds after which a stream without an answer begins with pings. An earlier error still has its HTTP status."""
_PING_SECONDS = 10.0
"""Seconds between two pings of a stream that waits: well below the shortest read timeout in common use, 30 s."""
_GRACE_SECONDS = 5
"""How long running calls may go on when the server is told to end. Those that wait for a batch stay in the ledger."""
_PING = b'event: ping\ndata: {"type": "ping"}\n\n'
_CLIENT_CLOSED_REQUEST = 499
"""For the server's log: the caller has gone, so nobody reads the response."""
_METHODS = ["DELETE", "GET", "PATCH", "POST", "PUT"]
_OURS = "batchwise-"
_NOT_SENT_ON = frozenset(
    {
        "authorization",  # the dispatcher's client sends its own key
        "x-api-key",
        "x-stainless-retry-count",  # a retry of the caller's client is a call like any other
        "connection",
        "content-length",
        "host",
        "transfer-encoding",
    }
)
_NOT_SENT_BACK = frozenset({"connection", "content-length", "transfer-encoding"})


def _tags_of(headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the tags in a caller's `batchwise-` headers, by the argument names of `batchwise.tags`.

    Raises:
        InvalidValueError: Such a header is unknown or malformed.
    """
    given: dict[str, Any] = {}
    for name, value in headers.items():
        if not name.startswith(_OURS):
            continue
        match name.removeprefix(_OURS):
            case "within":
                given["latency"] = parse_latency(value, "within")
            case "job" | "key" as tag:
                given[tag] = unquote(value)
            case "tool-use":
                given["tool_use"] = value
            case _:
                raise InvalidValueError(
                    f"the header {name!r} is unknown; batchwise reads batchwise-within, batchwise-job, "
                    "batchwise-key and batchwise-tool-use"
                )
    return given


def _is_allowed(headers: Mapping[str, str], token: str | None) -> bool:
    if token is None:
        return True
    bearer = headers.get("authorization", "")
    shown = headers.get("x-api-key") or bearer.removeprefix("Bearer ")
    return hmac.compare_digest(shown.encode("latin-1"), token.encode())  # header bytes are read as latin-1


def _response(answer: Answer) -> Response:
    return Response(answer.body, status_code=answer.status, headers=dict(answer.headers))


async def _body_of(response: httpx2.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.aiter_raw():
            yield chunk
    finally:
        await response.aclose()


def _sent_back(response: httpx2.Response) -> Response:
    headers = {name: value for name, value in response.headers.items() if name not in _NOT_SENT_BACK}
    if response.is_stream_consumed:  # made by the dispatcher, not the API
        return Response(response.content, status_code=response.status_code, headers=headers)
    return StreamingResponse(_body_of(response), status_code=response.status_code, headers=headers)


async def _is_done(answer: asyncio.Task[httpx2.Response], request: Request, seconds: float | None) -> bool:
    """Wait for an answer; returns False if the seconds are over, or if the caller has closed the connection."""
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({answer, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
    return answer.done()


async def _gone(request: Request) -> None:
    """Return when the caller has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _pinging(answer: asyncio.Task[httpx2.Response]) -> AsyncIterator[bytes]:
    """Yield the events of a stream whose answer is still to come: pings, then the answer or the error."""
    try:
        while not answer.done():
            yield _PING
            await asyncio.wait({answer}, timeout=_PING_SECONDS)
    finally:
        answer.cancel()  # does nothing if the answer is there
    try:
        response = answer.result()
        failed = response.status_code >= 400  # the stream began with status 200, so the error has to be an event
        content = await response.aread()
    except Exception as error:  # noqa: BLE001  # the caller has to be told of any error
        failed, content = True, b'{"type": "error", "error": {"type": "api_error", "message": "the call failed"}}'
        _log.warning("batchwise: a stream that waited ended with %s", type(error).__name__)
    yield b"event: error\ndata: %b\n\n" % content if failed else content


class _Endpoint:
    """Answers each HTTP request as the Messages API does.

    Args:
        transport: The dispatcher's transport, which answers requests for the API.
        base: The URL of the API, under which the transport knows Messages calls.
        token: What callers have to send as their API key. None: any key, or none, will do.
    """

    def __init__(self, transport: httpx2.AsyncBaseTransport, base: str, token: str | None) -> None:
        self._transport, self._base, self._token = transport, base.rstrip("/"), token
        self._running: set[asyncio.Task[httpx2.Response]] = set()

    async def answer(self, request: Request) -> Response:
        """Return the response to a request; errors become responses, too."""
        if not _is_allowed(request.headers, self._token):
            return _response(failed(401, "authentication_error", "the API key is not this gateway's token"))
        try:
            return await self._answered(request)
        except ClientDisconnect:
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        except anthropic.APITimeoutError:
            return _response(failed(504, "timeout_error", "no answer within the time that the caller gave"))
        except anthropic.APIConnectionError:
            return _response(failed(502, "api_error", "the gateway cannot reach the API"))
        except BatchwiseError as error:
            return _response(refusal(error))

    async def _answered(self, request: Request) -> Response:
        given, call = _tags_of(request.headers), await self._for_api(request)
        answer = asyncio.create_task(self._asked(call, given))
        self._running.add(answer)  # asyncio holds only weak references to tasks
        answer.add_done_callback(self._running.discard)
        streams = b'"stream"' in call.content
        if await _is_done(answer, request, _UNTIL_PINGS if streams else None):
            return _sent_back(await answer)
        if streams and not await request.is_disconnected():
            return StreamingResponse(_pinging(answer), media_type="text/event-stream")
        answer.cancel()  # its request stays in the ledger, and the next call of its content gets its answer
        return Response(status_code=_CLIENT_CLOSED_REQUEST)

    async def _for_api(self, request: Request) -> httpx2.Request:
        """Return a caller's request as one for the API, without the headers that belong to the gateway."""
        query = f"?{request.url.query}" if request.url.query else ""
        headers = [
            (name, value)
            for name, value in request.headers.items()
            if name not in _NOT_SENT_ON and not name.startswith(_OURS)
        ]
        url = self._base + request.url.path + query
        return httpx2.Request(request.method, url, headers=headers, content=await request.body())

    async def _asked(self, call: httpx2.Request, given: Mapping[str, Any]) -> httpx2.Response:
        with tags(**given):
            return await self._transport.handle_async_request(call)


def application(
    dispatcher: AsyncDispatcher,
    *,
    latency: LatencyTag | None = None,
    job: str | None = None,
    token: str | None = None,
) -> Starlette:
    """Make an ASGI application that answers as the Messages API does, by means of a dispatcher.

    Args:
        dispatcher: An open dispatcher on asyncio. The API key of its client is used for all callers.
        latency: The latency of calls without the header `batchwise-within`.
        job: The job of calls without the header `batchwise-job`.
        token: What callers have to send as their API key. None: any key, or none, will do.

    Raises:
        InvalidValueError: `latency` or `job` has a value that it cannot have.
    """
    transport = dispatcher.transport(latency=latency, job=job)
    endpoint = _Endpoint(transport, str(dispatcher.client().base_url), token)
    return Starlette(routes=[Route("/{path:path}", endpoint.answer, methods=_METHODS)])


def _check_reach(host: str, token: str | None) -> None:
    """Refuse an address that other machines can reach without a token: they would use the gateway's API key.

    Raises:
        InvalidValueError: The host is not a loopback address, and there is no token.
    """
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and not token:
        raise InvalidValueError(
            f"--host {host} can be reached from other machines, and the gateway holds your API key; "
            "give --token SECRET (callers send it as their API key), or leave --host out"
        )


class _Server(uvicorn.Server):
    """Says where it listens, once it takes calls. A signal ends the server; then the dispatcher is closed."""

    def __init__(self, config: uvicorn.Config, started: Callable[[str], object]) -> None:
        super().__init__(config)
        self._tell = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port, *_ = self.servers[0].sockets[0].getsockname()
            self._tell(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


async def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 8787,
    latency: LatencyTag | None = None,
    job: str | None = None,
    ledger: str | None = None,
    policy: Policy | None = None,
    token: str | None = None,
    started: Callable[[str], object] = lambda _url: None,
) -> None:
    """Serve until SIGTERM or Ctrl-C, then close the dispatcher.

    Args:
        host: The address to listen on. One that other machines can reach needs a token.
        port: The port; 0 takes a free one.
        latency: The latency of calls without the header `batchwise-within`.
        job: The job of calls without the header `batchwise-job`.
        ledger: As for `AsyncDispatcher`.
        policy: As for `AsyncDispatcher`.
        token: What callers have to send as their API key. None: any key, or none, will do.
        started: Called with the base URL once the server takes calls.

    Raises:
        InvalidValueError: The address needs a token.
    """
    _check_reach(host, token)
    async with AsyncDispatcher(ledger=ledger, policy=policy) as dispatcher:
        app = application(dispatcher, latency=latency, job=job, token=token)
        config = uvicorn.Config(
            app, host=host, port=port, log_level="warning", lifespan="off", timeout_graceful_shutdown=_GRACE_SECONDS
        )
        await _Server(config, started).serve()
