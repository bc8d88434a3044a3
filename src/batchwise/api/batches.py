"""The Message Batches API, one call at a time, in both colours."""

from __future__ import annotations

import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from typing import Any, TypeVar, cast

import anthropic
import anyio
import httpx2
import tenacity

from . import wire
from .faults import async_sent, retry_options, sent, translate
from .types import BatchInfo, Created, Listing
from .uploads import AsyncUpload, Upload

__all__ = ["AsyncBatchLane", "BatchLane"]

_T = TypeVar("_T")

READ_SIZE = 48 * 1024
"""Smaller reads are joined up to this size, so that lines are cut and stored in bulk. The transport reads up to 64 KB,
which goes on uncopied."""


class _Joiner:
    """Joins small pieces of a stream up to `READ_SIZE`."""

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._size = 0

    def add(self, piece: bytes) -> bool:
        """Hold one more piece; True if there is enough to take."""
        self._held.append(piece)
        self._size += len(piece)
        return self._size >= READ_SIZE

    def take(self) -> bytes:
        """What is held, as one."""
        joined = self._held[0] if len(self._held) == 1 else b"".join(self._held)
        self._held.clear()
        self._size = 0
        return joined


def _chunks(response: httpx2.Response) -> Generator[bytes]:
    joiner = _Joiner()
    failure = None
    source = response.iter_bytes() if wire.is_encoded(response) else response.iter_raw()
    try:
        with closing(cast("Generator[bytes]", source)) as pieces:
            for piece in pieces:
                if joiner.add(piece):
                    yield joiner.take()
    except Exception as error:  # noqa: BLE001  (translate raises again what it does not know)
        failure = translate(error)
    if rest := joiner.take():
        yield rest
    if failure is not None:
        raise failure


async def _async_chunks(response: httpx2.Response) -> AsyncGenerator[bytes]:
    joiner = _Joiner()
    failure = None
    source = response.aiter_bytes() if wire.is_encoded(response) else response.aiter_raw()
    try:
        async with aclosing(source) as pieces:
            async for piece in pieces:
                if joiner.add(piece):
                    yield joiner.take()
    except Exception as error:  # noqa: BLE001
        failure = translate(error)
    if rest := joiner.take():
        yield rest
    if failure is not None:
        raise failure


class BatchLane:
    """The batch lane on a synchronous client.

    Args:
        client: The user's client; its retries are not used.
        sleep: How pauses between tries are slept.
    """

    def __init__(self, client: anthropic.Anthropic, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._client = client
        self._sleep = sleep

    def create(self, chunks: Iterable[bytes], *, length: int, betas: tuple[str, ...] = ()) -> Created:
        """Create a batch by exactly one POST of an already encoded body.

        Args:
            chunks: The body. An exception that it raises comes out unchanged, the request unfinished.
            length: How many bytes the body has.
            betas: `anthropic-beta` values of the whole batch.

        Raises:
            LaneFault: The API refused it, or its answer was not seen; `fault.request_sent` is False if nothing can
                have been created.
        """
        body = Upload(chunks, length)
        options = wire.create_options(self._client, length, betas)
        try:
            response = self._client.post(wire.BATCHES, cast_to=httpx2.Response, content=body, options=options)
        except Exception as error:  # noqa: BLE001  (translate raises again what it does not know)
            if body.error is not None:
                raise body.error from None
            failure = translate(error, sent_whole=body.given_whole)
        else:
            return wire.parse_created(response)
        raise failure

    def retrieve(self, remote_id: str) -> BatchInfo:
        """The batch as it is now.

        Raises:
            LaneFault: The API did not say.
        """
        path, options = wire.batch_path(remote_id), wire.quick_options(self._client)
        return self._asked(wire.parse_batch, self._client.get, path, options)

    def cancel(self, remote_id: str) -> BatchInfo:
        """Ask for a cancel. The batch ends later, and may have finished all the same.

        Raises:
            LaneFault: The API did not take it.
        """
        path, options = wire.batch_path(remote_id, "cancel"), wire.quick_options(self._client)
        return self._asked(wire.parse_batch, self._client.post, path, options)

    def list(self, *, limit: int = 100, after_id: str | None = None, before_id: str | None = None) -> Listing:
        """One page of the workspace's batches, newest first.

        Raises:
            LaneFault: The API did not say.
        """
        options = wire.list_options(self._client, limit, after_id, before_id)
        return self._asked(wire.parse_listing, self._client.get, wire.BATCHES, options)

    @contextmanager
    def results(self, remote_id: str) -> Iterator[Iterator[bytes]]:
        """The results of an ended batch as raw chunks, from the client's own endpoint whatever `results_url` says.

        Opening is tried again; a read that fails later raises `LaneFault` from the iterator, after all that came
        before it was given.

        Raises:
            LaneFault: They could not be opened.
        """
        path = wire.batch_path(remote_id, "results")
        options = {"options": wire.results_options(self._client), "stream": True, "stream_cls": anthropic.Stream[Any]}
        response = self._tried(lambda: sent(self._client.get, path, **options))
        try:
            with closing(_chunks(response)) as chunks:
                yield chunks
        finally:
            response.close()

    def _asked(
        self, parse: Callable[[httpx2.Response], _T], send: Callable[..., Any], path: str, options: object
    ) -> _T:
        """What the API answers to a call that may be tried again."""
        return self._tried(lambda: parse(sent(send, path, options=options)))

    def _tried(self, call: Callable[[], _T]) -> _T:
        return tenacity.Retrying(sleep=self._sleep, **retry_options())(call)


class AsyncBatchLane:
    """The batch lane on an asynchronous client; see `BatchLane`, which it follows method by method."""

    def __init__(
        self, client: anthropic.AsyncAnthropic, *, sleep: Callable[[float], Awaitable[None]] = anyio.sleep
    ) -> None:
        self._client = client
        self._sleep = sleep

    async def create(self, chunks: AsyncIterable[bytes], *, length: int, betas: tuple[str, ...] = ()) -> Created:
        """See `BatchLane.create`."""
        body = AsyncUpload(chunks, length)
        options = wire.create_options(self._client, length, betas)
        try:
            response = await self._client.post(wire.BATCHES, cast_to=httpx2.Response, content=body, options=options)
        except Exception as error:  # noqa: BLE001  (translate raises again what it does not know)
            if body.error is not None:
                raise body.error from None
            failure = translate(error, sent_whole=body.given_whole)
        else:
            return wire.parse_created(response)
        raise failure

    async def retrieve(self, remote_id: str) -> BatchInfo:
        """See `BatchLane.retrieve`."""
        path, options = wire.batch_path(remote_id), wire.quick_options(self._client)
        return await self._asked(wire.parse_batch, self._client.get, path, options)

    async def cancel(self, remote_id: str) -> BatchInfo:
        """See `BatchLane.cancel`."""
        path, options = wire.batch_path(remote_id, "cancel"), wire.quick_options(self._client)
        return await self._asked(wire.parse_batch, self._client.post, path, options)

    async def list(self, *, limit: int = 100, after_id: str | None = None, before_id: str | None = None) -> Listing:
        """See `BatchLane.list`."""
        options = wire.list_options(self._client, limit, after_id, before_id)
        return await self._asked(wire.parse_listing, self._client.get, wire.BATCHES, options)

    @asynccontextmanager
    async def results(self, remote_id: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """See `BatchLane.results`."""
        path = wire.batch_path(remote_id, "results")
        stream_cls = anthropic.AsyncStream[Any]
        options = {"options": wire.results_options(self._client), "stream": True, "stream_cls": stream_cls}
        response = await self._tried(lambda: async_sent(self._client.get, path, **options))
        try:
            async with aclosing(_async_chunks(response)) as chunks:
                yield chunks
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()

    async def _asked(
        self, parse: Callable[[httpx2.Response], _T], send: Callable[..., Awaitable[Any]], path: str, options: object
    ) -> _T:
        """See `BatchLane._asked`."""

        async def call() -> _T:
            return parse(await async_sent(send, path, options=options))

        return await self._tried(call)

    async def _tried(self, call: Callable[[], Awaitable[_T]]) -> _T:
        async def attempt() -> _T:  # tenacity awaits only what it can tell is a coroutine function
            return await call()

        return await tenacity.AsyncRetrying(sleep=self._sleep, **retry_options())(attempt)
