"""The SDK's own client in front of a dispatcher: a transport that makes each Messages call a dispatch.

It uses only the SDK's public interface. The client that users hold has no timeout and no retries of its own: a timeout
that reaches the transport is the caller's, and the dispatcher has done all retries before an error comes back.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import datetime
from typing import Any

import anthropic
import httpx2

from batchwise.api.colours import synchronous
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

    Its steps are coroutines that await nothing but `_call`, so that the transports of threads and of tasks share them.

    Args:
        made: The dispatcher's client.
        tags: The tags of calls that have none of their own.
        shared: What the dispatcher's clients share.
        accept: Accepts a request into a job and returns its ticket.
    """

    _read: Callable[[httpx2.Request], Any]
    """Reads the body of a request."""
    _streams: Any
    """The SDK's class of a streamed response."""

    def __init__(
        self,
        made: anthropic.Anthropic | anthropic.AsyncAnthropic,
        tags: Tags,
        shared: Shared,
        accept: Callable[..., Ticket] | Callable[..., Awaitable[AsyncTicket]],
    ) -> None:
        # The user's client has applied middleware and default query already.
        self._inner = made.copy(middleware=[], set_default_query={})
        self._tags, self._shared, self._accept = tags, shared, accept
        self._base = httpx2.URL(str(made.base_url))
        self._path = self._base.path.rstrip("/") + "/v1/messages"
        self._known = {name.lower(): value for name, value in made.default_headers.items()}

    @abstractmethod
    async def _call(self, method: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
        """Call a method of the client, the dispatcher or a ticket, and return what it returns in the end."""

    async def _answer(self, request: httpx2.Request) -> httpx2.Response:
        """The response to any request."""
        if not self._is_call(request):
            return await self._sent_on(request)
        body = await self._call(self._read, request)
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
        return httpx2.Response(answer.status, headers=dict(answer.headers), content=answer.body)

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
            ticket: Ticket | AsyncTicket = await self._call(self._accept, named.request, named.job)
            waits = ticket.decision.lane is Lane.BATCH and ticket.status is not Status.SETTLED
            with self._shared.waiting() if waits else nullcontext(False) as alone:
                if alone:
                    users_line(*_BETWEEN).warn(_ALONE, UserWarning)
                found: Result = await self._call(ticket.result, timeout)
        return found

    async def _sent_on(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request to the API as it is, and return the API's own response."""
        options: dict[str, Any] = {"cast_to": object, "options": _options(request), "stream": True}
        if request.method != "GET":
            options["content"] = await self._call(self._read, request)
        method = getattr(self._inner, request.method.lower())
        try:
            stream = await self._call(method, str(request.url), stream_cls=self._streams, **options)
        except anthropic.APIStatusError as error:
            return _whole(error.response)
        response: httpx2.Response = stream.response
        if response.is_closed:  # an event hook of the HTTP client has read it
            return _whole(response)
        return httpx2.Response(response.status_code, headers=response.headers.raw, stream=response.stream)


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


def _whole(response: httpx2.Response) -> httpx2.Response:
    """A response whose body is read and decoded already."""
    headers = [(n, v) for n, v in response.headers.items() if n not in {"content-encoding", *_HOP_BY_HOP}]
    return httpx2.Response(response.status_code, headers=headers, content=response.content)


class _Transport(_Answering, httpx2.BaseTransport):
    _read = staticmethod(httpx2.Request.read)
    _streams = anthropic.Stream[object]

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        return synchronous(self._answer)(request)

    async def _call(self, method: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
        return method(*args, **options)


class _AsyncTransport(_Answering, httpx2.AsyncBaseTransport):
    _read = staticmethod(httpx2.Request.aread)
    _streams = anthropic.AsyncStream[object]

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return await self._answer(request)

    async def _call(self, method: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
        return await method(*args, **options)


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
    transport = _Transport(made, tags, shared, accept)
    return made.copy(http_client=httpx2.Client(transport=transport), timeout=None, max_retries=0)


def async_transport(
    made: anthropic.AsyncAnthropic, *, accept: Callable[..., Awaitable[AsyncTicket]], shared: Shared, tags: Tags
) -> httpx2.AsyncBaseTransport:
    """The transport alone: for `AsyncDispatcher.transport`. Arguments as for `client`."""
    return _AsyncTransport(made, tags, shared, accept)


def async_client(
    made: anthropic.AsyncAnthropic, *, accept: Callable[..., Awaitable[AsyncTicket]], shared: Shared, tags: Tags
) -> anthropic.AsyncAnthropic:
    """As `client`."""
    transport = async_transport(made, accept=accept, shared=shared, tags=tags)
    return made.copy(http_client=httpx2.AsyncClient(transport=transport), timeout=None, max_retries=0)
