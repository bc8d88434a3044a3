"""The SDK's own client in front of a dispatcher: a transport that makes each Messages call a dispatch.

It uses only the SDK's public interface. The client that users hold has no timeout and no retries of its own: a timeout
that reaches the transport is the caller's, and the dispatcher has done all retries before an error comes back.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

import anthropic
import httpx2

from batchwise.async_tickets import AsyncTicket
from batchwise.basics.callers import users_line
from batchwise.errors import BatchwiseError, ResultTimeoutError
from batchwise.models import Lane, Policy, Status
from batchwise.results import Result
from batchwise.tickets import Ticket

from .answering import Call, Repeats, answer_of, read_call, refusal
from .tagging import Tags, current_tags

__all__ = ["Shared", "async_client", "async_transport", "client"]

_log = logging.getLogger("batchwise")
_T = TypeVar("_T")
_LONE_WAITS = 3
_ALONE = (
    f"{_LONE_WAITS} calls in a row have each waited alone for a batch of one request; make calls at the same time, so "
    "that they share a batch: with asyncio.gather, with a ThreadPoolExecutor that has a worker for each call, or with "
    "Dispatcher.dispatch_all"
)
_BETWEEN = ("anthropic", "httpx2", "asyncio", "trio", "anyio")
"""Packages whose code may stand on the call stack between the user's line and a transport."""
_RAW_RESPONSE = "x-stainless-raw-response"
"""Tells the SDK to return the raw response. The user's client has seen it; the inner client must not."""
_HOP_BY_HOP = frozenset({"connection", "content-length", "host", "transfer-encoding"})


class Shared:
    """What all clients of one dispatcher share. Thread-safe."""

    def __init__(self, policy: Policy, now: Callable[[], datetime]) -> None:
        self.policy, self.now = policy, now
        self.repeats = Repeats()
        self._lock = threading.Lock()
        self._waiting = self._lone = 0
        self._company = False
        self._warned = False

    @contextmanager
    def waiting(self) -> Iterator[bool]:
        """Count a call that waits for a batch. Gives True, once, if it is the third in a row that waits alone."""
        with self._lock:
            self._waiting += 1
            self._company = self._waiting > 1
            self._lone = 0 if self._company else self._lone + 1
            warn = self._lone >= _LONE_WAITS and not self._warned
            self._warned = self._warned or warn
        try:
            yield warn
        finally:
            with self._lock:
                self._waiting -= 1
                if self._company:
                    self._lone = 0


class _Answering(ABC):
    """Answers HTTP requests: Messages calls from the dispatcher, everything else from the API.

    The steps are written once, as coroutines. The waits differ between threads and tasks, and are in the two
    transports below.

    Args:
        made: The dispatcher's client.
        tags: The tags of calls that have none of their own.
        shared: What the dispatcher's clients share.
    """

    def __init__(
        self,
        made: anthropic.Anthropic | anthropic.AsyncAnthropic,
        tags: Tags,
        shared: Shared,
    ) -> None:
        # The user's client has applied middleware and default query already.
        self._inner = made.copy(middleware=[], set_default_query={})
        self._tags, self._shared = tags, shared
        self._base = httpx2.URL(str(made.base_url))
        self._path = self._base.path.rstrip("/") + "/v1/messages"
        self._known = {name.lower(): value for name, value in made.default_headers.items()}

    # -- what differs ---------------------------------------------------------------------------------------------

    @abstractmethod
    async def _read(self, request: httpx2.Request) -> bytes:
        """The body of a request."""

    @abstractmethod
    async def _accept(self, call: Call) -> Ticket | AsyncTicket:
        """Accept a call into the ledger."""

    @abstractmethod
    async def _result(self, ticket: Any, timeout: float | None) -> Result:
        """Wait for an outcome."""

    @abstractmethod
    async def _send(self, send: Callable[..., Any], url: str, **options: Any) -> httpx2.Response:
        """Send a request to the API with this method of the SDK. The body of the response is not read yet."""

    @abstractmethod
    def _unread(self, response: httpx2.Response) -> httpx2.SyncByteStream | httpx2.AsyncByteStream:
        """Stream the body of a response."""

    # -- what is the same -----------------------------------------------------------------------------------------

    async def _answer(self, request: httpx2.Request) -> httpx2.Response:
        """The response to any request."""
        if not self._is_call(request):
            return await self._sent_on(request)
        body = await self._read(request)
        if request.headers.get("x-stainless-retry-count", "0") != "0":
            raise anthropic.APITimeoutError(request)  # a retry, which only a timeout causes, if retries are switched on
        try:
            call = self._call_of(request, body)
            if self._passes_through(call):
                return await self._sent_on(request)
            answer = answer_of(await self._outcome(call, _timeout(request)), stream=call.stream)
        except ResultTimeoutError as error:
            raise anthropic.APITimeoutError(request) from error
        except BatchwiseError as error:
            answer = refusal(error)
        return httpx2.Response(answer.status, headers=dict(answer.headers), content=b"".join(answer.body))

    def _is_call(self, request: httpx2.Request) -> bool:
        url = request.url
        return (
            request.method == "POST"
            and url.path == self._path
            and (url.scheme, url.host, url.port) == (self._base.scheme, self._base.host, self._base.port)
        )

    def _call_of(self, request: httpx2.Request, body: bytes) -> Call:
        tags = current_tags().over(self._tags)
        return read_call(dict(request.headers), body, tags, self._shared.now(), self._known)

    def _passes_through(self, call: Call) -> bool:
        """Whether its stream goes through as it comes: somebody reads it now, and there is no spend limit."""
        policy = self._shared.policy
        if not (call.stream and call.blocking and policy.max_spend is None):
            return False
        aside = "; should it be refused, no fallback model is asked" if policy.fallback_models else ""
        _log.info("batchwise: streaming: a blocking call reads a stream, so it goes to the API at once%s", aside)
        return True

    async def _outcome(self, call: Call, timeout: float | None) -> Result:
        """Accept a call and wait for its outcome."""
        with self._shared.repeats.named(call) as named:
            ticket = await self._accept(named)
            if ticket.decision.lane is not Lane.BATCH or ticket.status is Status.SETTLED:
                return await self._result(ticket, timeout)
            with self._shared.waiting() as alone:
                if alone:
                    users_line(*_BETWEEN).warn(_ALONE, UserWarning)
                return await self._result(ticket, timeout)

    async def _sent_on(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request to the API as it is, and return the API's own response."""
        options: dict[str, Any] = {"cast_to": object, "options": _options(request), "stream": True}
        if request.method != "GET":
            options["content"] = await self._read(request)
        try:
            response = await self._send(getattr(self._inner, request.method.lower()), str(request.url), **options)
        except anthropic.APIStatusError as error:
            return _of_status(error)
        return httpx2.Response(response.status_code, headers=response.headers.raw, stream=self._unread(response))


def _timeout(request: httpx2.Request) -> float | None:
    """How long the caller waits at most, in seconds. None: no limit."""
    limits: Mapping[str, float | None] = request.extensions.get("timeout") or {}
    return limits.get("read")


def _options(request: httpx2.Request) -> dict[str, Any]:
    """The options with which the dispatcher's client sends a request on."""
    headers = {n: v for n, v in request.headers.items() if n not in {_RAW_RESPONSE, *_HOP_BY_HOP}}
    options: dict[str, Any] = {"headers": headers}
    limits = request.extensions.get("timeout") or {}
    if any(value is not None for value in limits.values()):
        options["timeout"] = httpx2.Timeout(**limits)
    return options


def _of_status(error: anthropic.APIStatusError) -> httpx2.Response:
    """The response behind an error of the SDK; its body is read and decoded already."""
    response = error.response
    headers = [(n, v) for n, v in response.headers.items() if n not in {"content-encoding", *_HOP_BY_HOP}]
    return httpx2.Response(response.status_code, headers=headers, content=response.content)


# -- threads -----------------------------------------------------------------------------------------------------------


def _ran(answering: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine that never suspends, because all that it awaits blocks."""
    try:
        answering.send(None)
    except StopIteration as end:
        value: _T = end.value
        return value
    raise RuntimeError("a synchronous transport cannot wait for an event loop")


class _Body(httpx2.SyncByteStream):
    def __init__(self, response: httpx2.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        return self._response.iter_raw()

    def close(self) -> None:
        self._response.close()


class _Transport(_Answering, httpx2.BaseTransport):
    def __init__(self, *args: Any, accept: Callable[..., Ticket]) -> None:
        super().__init__(*args)
        self._take = accept

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        return _ran(self._answer(request))

    async def _read(self, request: httpx2.Request) -> bytes:
        return request.read()

    async def _accept(self, call: Call) -> Ticket:
        return self._take(call.request, call.job)

    async def _result(self, ticket: Ticket, timeout: float | None) -> Result:
        return ticket.result(timeout)

    async def _send(self, send: Callable[..., Any], url: str, **options: Any) -> httpx2.Response:
        stream: anthropic.Stream[object] = send(url, stream_cls=anthropic.Stream[object], **options)
        return stream.response

    def _unread(self, response: httpx2.Response) -> httpx2.SyncByteStream:
        return _Body(response)


def client(
    made: anthropic.Anthropic, *, accept: Callable[..., Ticket], shared: Shared, tags: Tags
) -> anthropic.Anthropic:
    """The dispatcher's client with a transport in front of it.

    Args:
        made: The dispatcher's client.
        accept: What takes a request into a job and gives its ticket.
        shared: What the dispatcher's clients share.
        tags: The tags of calls that have none of their own.
    """
    transport = _Transport(made, tags, shared, accept=accept)
    return made.copy(http_client=httpx2.Client(transport=transport), timeout=None, max_retries=0)


# -- tasks -------------------------------------------------------------------------------------------------------------


class _AsyncBody(httpx2.AsyncByteStream):
    def __init__(self, response: httpx2.Response) -> None:
        self._response = response

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._response.aiter_raw()

    async def aclose(self) -> None:
        await self._response.aclose()


class _AsyncTransport(_Answering, httpx2.AsyncBaseTransport):
    def __init__(self, *args: Any, accept: Callable[..., Awaitable[AsyncTicket]]) -> None:
        super().__init__(*args)
        self._take = accept

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return await self._answer(request)

    async def _read(self, request: httpx2.Request) -> bytes:
        return await request.aread()

    async def _accept(self, call: Call) -> AsyncTicket:
        return await self._take(call.request, call.job)

    async def _result(self, ticket: AsyncTicket, timeout: float | None) -> Result:
        return await ticket.result(timeout)

    async def _send(self, send: Callable[..., Any], url: str, **options: Any) -> httpx2.Response:
        stream: anthropic.AsyncStream[object] = await send(url, stream_cls=anthropic.AsyncStream[object], **options)
        return stream.response

    def _unread(self, response: httpx2.Response) -> httpx2.AsyncByteStream:
        return _AsyncBody(response)


def async_transport(
    made: anthropic.AsyncAnthropic, *, accept: Callable[..., Awaitable[AsyncTicket]], shared: Shared, tags: Tags
) -> httpx2.AsyncBaseTransport:
    """The transport alone: for `AsyncDispatcher.transport`. Arguments as for `client`."""
    return _AsyncTransport(made, tags, shared, accept=accept)


def async_client(
    made: anthropic.AsyncAnthropic, *, accept: Callable[..., Awaitable[AsyncTicket]], shared: Shared, tags: Tags
) -> anthropic.AsyncAnthropic:
    """As `client`."""
    transport = async_transport(made, accept=accept, shared=shared, tags=tags)
    return made.copy(http_client=httpx2.AsyncClient(transport=transport), timeout=None, max_retries=0)
