"""The SDK's own client in front of a dispatcher: a transport that makes each Messages call a dispatch.

Made by public means of the SDK alone. The client that users hold has no timeout and no retries of its own: a timeout
that arrives is the caller's, and what a dispatcher could not do is not tried again on top of it.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple

import anthropic
import httpx2

from .answering import Answer, Call, Repeats, answer_of, read_call, refusal
from .async_tickets import AsyncTicket
from .errors import BatchwiseError, ResultTimeoutError
from .models import Lane, Policy, Status
from .request import Request
from .tagging import Tags, current_tags
from .tickets import Ticket

__all__ = ["Shared", "async_client", "async_transport", "client"]

_log = logging.getLogger("batchwise")
_LONE_WAITS = 3
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
    def waiting(self) -> Iterator[None]:
        """A call waits for a batch; says so once when three in a row had nobody beside them."""
        with self._lock:
            self._waiting += 1
            self._company = self._waiting > 1
            self._lone = 0 if self._company else self._lone + 1
            warn = self._lone >= _LONE_WAITS and not self._warned
            self._warned = self._warned or warn
        try:
            if warn:
                warnings.warn(
                    f"{_LONE_WAITS} calls in a row have each waited alone for a batch of one request; let calls wait "
                    "together: asyncio.gather, a ThreadPoolExecutor with as many workers as calls that may wait "
                    "together, or Dispatcher.dispatch_all",
                    UserWarning,
                    stacklevel=2,
                )
            yield
        finally:
            with self._lock:
                self._waiting -= 1
                if self._company:
                    self._lone = 0


class _Begun(NamedTuple):
    """A call's request, under the key that its job knows it by, and which of the repeats it took."""

    request: Request
    taken: tuple[str, bytes, int] | None


class _Front:
    """What both colours do with a request before and after they wait."""

    def __init__(self, made: anthropic.Anthropic | anthropic.AsyncAnthropic, tags: Tags, shared: Shared) -> None:
        self._tags, self._shared = tags, shared
        self._base = httpx2.URL(str(made.base_url))
        self._path = self._base.path.rstrip("/") + "/v1/messages"
        self._known = {name.lower(): value for name, value in made.default_headers.items()}

    def is_call(self, request: httpx2.Request) -> bool:
        url = request.url
        return (
            request.method == "POST"
            and url.path == self._path
            and (url.scheme, url.host, url.port) == (self._base.scheme, self._base.host, self._base.port)
        )

    def read(self, request: httpx2.Request, body: bytes) -> Call:
        tags = current_tags().over(self._tags)
        return read_call(dict(request.headers), body, tags, self._shared.now(), self._known)

    def passes_through(self, call: Call) -> bool:
        """Whether its stream goes through as it comes: somebody reads it now, and no cap has to be kept."""
        if not (call.stream and call.blocking and self._shared.policy.max_spend is None):
            return False
        _log.info("batchwise: streaming: a blocking call reads a stream, so it goes to the API at once")
        return True

    def begin(self, call: Call) -> _Begun:
        if call.job is None or call.request.key is not None:
            return _Begun(call.request, None)
        content = call.request.digest
        number = self._shared.repeats.take(call.job, content)
        return _Begun(call.request.keyed(Repeats.key(content, number)), (call.job, content, number))

    def unanswered(self, begun: _Begun) -> None:
        """It ended without its outcome; whoever asks again gets it."""
        if begun.taken is not None:
            self._shared.repeats.give_back(*begun.taken)


def _timeout(request: httpx2.Request) -> float | None:
    """Seconds that the caller waits at most for an answer."""
    limits: Mapping[str, float | None] = request.extensions.get("timeout") or {}
    return limits.get("read")


def _options(request: httpx2.Request) -> dict[str, Any]:
    """How the dispatcher's own client sends a request on."""
    headers = {name: value for name, value in request.headers.items() if name not in _HOP_BY_HOP}
    options: dict[str, Any] = {"headers": headers}
    limits = request.extensions.get("timeout") or {}
    if any(value is not None for value in limits.values()):
        options["timeout"] = httpx2.Timeout(**limits)
    return options


def _of_status(error: anthropic.APIStatusError) -> httpx2.Response:
    """An answer that the SDK raised, as it came; its body has been read and decoded."""
    response = error.response
    headers = [(n, v) for n, v in response.headers.items() if n not in {"content-encoding", *_HOP_BY_HOP}]
    return httpx2.Response(response.status_code, headers=headers, content=response.content)


def _waits_for_batch(ticket: Ticket | AsyncTicket) -> bool:
    return ticket.decision.lane is Lane.BATCH and ticket.status is not Status.SETTLED


# -- threads -----------------------------------------------------------------------------------------------------------


class _Body(httpx2.SyncByteStream):
    def __init__(self, chunks: Iterator[bytes], close: Callable[[], None]) -> None:
        self._chunks, self._close = chunks, close

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        self._close()


class _Transport(httpx2.BaseTransport):
    """Answers Messages calls from a dispatcher, and sends everything else on as it is."""

    def __init__(
        self, front: _Front, shared: Shared, inner: anthropic.Anthropic, accept: Callable[..., Ticket]
    ) -> None:
        self._front, self._shared, self._inner, self._accept = front, shared, inner, accept

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if not self._front.is_call(request):
            return self._sent_on(request)
        body = request.read()
        if request.headers.get("x-stainless-retry-count", "0") != "0":
            raise anthropic.APITimeoutError(request)  # only a timeout comes back, and only if retries were asked for
        try:
            call = self._front.read(request, body)
            if self._front.passes_through(call):
                return self._sent_on(request)
            answer = self._answer(call, _timeout(request))
        except ResultTimeoutError as error:
            raise anthropic.APITimeoutError(request) from error
        except BatchwiseError as error:
            answer = refusal(error)
        return httpx2.Response(answer.status, headers=dict(answer.headers), content=b"".join(answer.body))

    def _answer(self, call: Call, timeout: float | None) -> Answer:
        begun = self._front.begin(call)
        try:
            ticket = self._accept(begun.request, call.job)
            if _waits_for_batch(ticket):
                with self._shared.waiting():
                    result = ticket.result(timeout)
            else:
                result = ticket.result(timeout)
        except BaseException:
            self._front.unanswered(begun)
            raise
        return answer_of(result, stream=call.stream)

    def _sent_on(self, request: httpx2.Request) -> httpx2.Response:
        options = _options(request)
        content = {} if request.method == "GET" else {"content": request.read()}
        send: Callable[..., Any] = getattr(self._inner, request.method.lower())
        try:
            stream = send(
                str(request.url),
                cast_to=object,
                options=options,
                stream=True,
                stream_cls=anthropic.Stream[object],
                **content,
            )
        except anthropic.APIStatusError as error:
            return _of_status(error)
        response = stream.response
        return httpx2.Response(
            response.status_code, headers=response.headers.raw, stream=_Body(response.iter_raw(), response.close)
        )


def client(
    made: anthropic.Anthropic, *, accept: Callable[..., Ticket], shared: Shared, tags: Tags
) -> anthropic.Anthropic:
    """The dispatcher's client with a transport in front of it.

    Args:
        made: The dispatcher's client.
        accept: What takes a request into a job and gives its ticket.
        shared: What the dispatcher's clients share.
        tags: The tags of calls that say nothing else.
    """
    inner = made.copy(middleware=[], set_default_query={})
    transport = _Transport(_Front(made, tags, shared), shared, inner, accept)
    return made.copy(http_client=httpx2.Client(transport=transport), timeout=None, max_retries=0)


# -- tasks -------------------------------------------------------------------------------------------------------------


class _AsyncBody(httpx2.AsyncByteStream):
    def __init__(self, chunks: AsyncIterator[bytes], close: Callable[[], Awaitable[None]]) -> None:
        self._chunks, self._close = chunks, close

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks

    async def aclose(self) -> None:
        await self._close()


class _AsyncTransport(httpx2.AsyncBaseTransport):
    """As `_Transport`; a waiting call costs no thread."""

    def __init__(
        self,
        front: _Front,
        shared: Shared,
        inner: anthropic.AsyncAnthropic,
        accept: Callable[..., Awaitable[AsyncTicket]],
    ) -> None:
        self._front, self._shared, self._inner, self._accept = front, shared, inner, accept

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if not self._front.is_call(request):
            return await self._sent_on(request)
        body = await request.aread()
        if request.headers.get("x-stainless-retry-count", "0") != "0":
            raise anthropic.APITimeoutError(request)
        try:
            call = self._front.read(request, body)
            if self._front.passes_through(call):
                return await self._sent_on(request)
            answer = await self._answer(call, _timeout(request))
        except ResultTimeoutError as error:
            raise anthropic.APITimeoutError(request) from error
        except BatchwiseError as error:
            answer = refusal(error)
        return httpx2.Response(answer.status, headers=dict(answer.headers), content=b"".join(answer.body))

    async def _answer(self, call: Call, timeout: float | None) -> Answer:
        begun = self._front.begin(call)
        try:
            ticket = await self._accept(begun.request, call.job)
            if _waits_for_batch(ticket):
                with self._shared.waiting():
                    result = await ticket.result(timeout)
            else:
                result = await ticket.result(timeout)
        except BaseException:
            self._front.unanswered(begun)
            raise
        return answer_of(result, stream=call.stream)

    async def _sent_on(self, request: httpx2.Request) -> httpx2.Response:
        options = _options(request)
        content = {} if request.method == "GET" else {"content": await request.aread()}
        send: Callable[..., Any] = getattr(self._inner, request.method.lower())
        try:
            stream = await send(
                str(request.url),
                cast_to=object,
                options=options,
                stream=True,
                stream_cls=anthropic.AsyncStream[object],
                **content,
            )
        except anthropic.APIStatusError as error:
            return _of_status(error)
        response = stream.response
        return httpx2.Response(
            response.status_code, headers=response.headers.raw, stream=_AsyncBody(response.aiter_raw(), response.aclose)
        )


def async_transport(
    made: anthropic.AsyncAnthropic, *, accept: Callable[..., Awaitable[AsyncTicket]], shared: Shared, tags: Tags
) -> httpx2.AsyncBaseTransport:
    """What answers requests for the API: Messages calls from the dispatcher, all others by the dispatcher's client."""
    inner = made.copy(middleware=[], set_default_query={})
    return _AsyncTransport(_Front(made, tags, shared), shared, inner, accept)


def async_client(
    made: anthropic.AsyncAnthropic, *, accept: Callable[..., Awaitable[AsyncTicket]], shared: Shared, tags: Tags
) -> anthropic.AsyncAnthropic:
    """As `client`."""
    transport = async_transport(made, accept=accept, shared=shared, tags=tags)
    return made.copy(http_client=httpx2.AsyncClient(transport=transport), timeout=None, max_retries=0)
