"""What differs between a synchronous and an asynchronous client. The lanes are written once, over either.

A lane's method is a coroutine that awaits nothing but an `IO`. Over `SyncIO` it never suspends, so `synchronous` runs
it to its end without an event loop.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextlib import aclosing, closing
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar, cast

import anthropic
import anyio
import httpx2

from .faults import translate
from .streams import Dialect
from .uploads import Upload

__all__ = ["IO", "AsyncIO", "SyncIO", "synchronous"]

T = TypeVar("T")
P = ParamSpec("P")


class IO(ABC):
    """A client of either colour. Its retries are not used."""

    client: Any
    raw_stream: Any
    """The SDK's class of a streamed response."""

    @abstractmethod
    async def call(self, method: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
        """Call a method of the client, and return what it returns in the end."""

    @abstractmethod
    async def run(self, function: Callable[..., T], /, *args: Any) -> T:
        """Call a function that may block for a moment."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Pause between two tries."""

    @abstractmethod
    def body(self, upload: Upload) -> object:
        """Return an upload as an iterable that the client takes."""

    @abstractmethod
    def pieces(self, response: httpx2.Response, *, decoded: bool) -> AsyncGenerator[bytes]:
        """Yield the body of a response as it arrives; `decoded`: decompressed, which costs a copy."""

    @abstractmethod
    async def close(self, response: httpx2.Response) -> None:
        """Close a response."""

    @abstractmethod
    async def streamed(self, kind: Dialect, see: Callable[[Any], None], path: str, **options: Any) -> Any:
        """Make a call that is streamed, and pass each event to `see`. Returns the SDK's stream once it has ended."""

    async def sent(self, method: Callable[..., Any], path: str, **options: Any) -> httpx2.Response:
        """Return the response to one call by this method of the client.

        Raises:
            LaneFault: There is no answer, or it is an error.
        """
        try:
            return cast("httpx2.Response", await self.call(method, path, cast_to=httpx2.Response, **options))
        except Exception as error:  # noqa: BLE001  (translate raises again what it does not know)
            failure = translate(error)
        raise failure


class SyncIO(IO):
    """An `anthropic.Anthropic`.

    Args:
        client: The user's client.
        sleep: Sleeps for so many seconds.
    """

    raw_stream = anthropic.Stream[Any]

    def __init__(self, client: anthropic.Anthropic, sleep: Callable[[float], object] = time.sleep) -> None:
        self.client, self._sleep = client, sleep

    async def call(self, method: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
        """See `IO.call`."""
        return method(*args, **options)

    async def run(self, function: Callable[..., T], /, *args: Any) -> T:
        """See `IO.run`."""
        return function(*args)

    async def sleep(self, seconds: float) -> None:
        """See `IO.sleep`."""
        self._sleep(seconds)

    def body(self, upload: Upload) -> object:
        """See `IO.body`."""
        return iter(upload.take, None)

    async def pieces(self, response: httpx2.Response, *, decoded: bool) -> AsyncGenerator[bytes]:
        """See `IO.pieces`."""
        source = response.iter_bytes() if decoded else response.iter_raw()
        with closing(cast("Generator[bytes]", source)) as pieces:
            for piece in pieces:
                yield piece

    async def close(self, response: httpx2.Response) -> None:
        """See `IO.close`."""
        response.close()

    async def streamed(self, kind: Dialect, see: Callable[[Any], None], path: str, **options: Any) -> Any:
        """See `IO.streamed`."""
        events = self.client.post(path, cast_to=kind.message, stream=True, stream_cls=kind.raw, **options)
        with kind.stream(events, output_format=anthropic.NOT_GIVEN) as stream:
            for event in stream:
                see(event)
        return stream


class _Runner(Protocol):
    def __call__(self, function: Callable[..., T], /, *args: Any) -> Awaitable[T]: ...


class AsyncIO(IO):
    """An `anthropic.AsyncAnthropic`.

    Args:
        client: The user's client.
        in_thread: Calls a function in a worker thread.
        sleep: Sleeps for so many seconds.
    """

    raw_stream = anthropic.AsyncStream[Any]

    def __init__(
        self,
        client: anthropic.AsyncAnthropic,
        in_thread: _Runner,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self.client, self._in_thread, self._sleep = client, in_thread, sleep

    async def call(self, method: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
        """See `IO.call`."""
        return await method(*args, **options)

    async def run(self, function: Callable[..., T], /, *args: Any) -> T:
        """See `IO.run`."""
        return await self._in_thread(function, *args)

    async def sleep(self, seconds: float) -> None:
        """See `IO.sleep`."""
        await self._sleep(seconds)

    async def body(self, upload: Upload) -> AsyncGenerator[bytes]:
        """See `IO.body`."""
        while (chunk := await self.run(upload.take)) is not None:
            yield chunk

    async def pieces(self, response: httpx2.Response, *, decoded: bool) -> AsyncGenerator[bytes]:
        """See `IO.pieces`."""
        async with aclosing(response.aiter_bytes() if decoded else response.aiter_raw()) as pieces:
            async for piece in pieces:
                yield piece

    async def close(self, response: httpx2.Response) -> None:
        """See `IO.close`."""
        with anyio.CancelScope(shield=True):
            await response.aclose()

    async def streamed(self, kind: Dialect, see: Callable[[Any], None], path: str, **options: Any) -> Any:
        """See `IO.streamed`."""
        events = await self.client.post(path, cast_to=kind.message, stream=True, stream_cls=kind.async_raw, **options)
        async with kind.async_stream(events, output_format=anthropic.NOT_GIVEN) as stream:
            async for event in stream:
                see(event)
        return stream


def synchronous(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Return a function that runs a coroutine to its end: one that awaits nothing that suspends, as over `SyncIO`."""

    @wraps(method)
    def run(*args: P.args, **keywords: P.kwargs) -> T:
        try:
            method(*args, **keywords).send(None)
        except StopIteration as stop:
            value: T = stop.value
            return value
        raise AssertionError(method)  # it awaited something that suspends

    return run
