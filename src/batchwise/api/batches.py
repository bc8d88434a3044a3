"""The Message Batches API, one call at a time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import httpx2
import tenacity

from . import wire
from .colours import IO
from .faults import retry_options, translate
from .types import BatchInfo, Listing
from .uploads import Upload

__all__ = ["BatchLane"]

_T = TypeVar("_T")

READ_SIZE = 48 * 1024
"""Smaller reads are joined up to this size, so that lines are cut and stored in bulk. The transport reads up to 64 KB,
which goes on uncopied."""


class BatchLane:
    """The batch lane.

    Args:
        io: The client.
    """

    def __init__(self, io: IO) -> None:
        self._io = io

    async def create(self, chunks: Iterable[bytes], length: int, betas: tuple[str, ...] = ()) -> BatchInfo:
        """Create a batch by exactly one POST of an already encoded body.

        Args:
            chunks: The body. An exception that it raises comes out unchanged, and the request stays unfinished.
            length: How many bytes the body has.
            betas: The `anthropic-beta` values of the whole batch.

        Raises:
            LaneFault: The API refused it, or its answer was not seen; `fault.request_sent` is False if nothing can
                have been created.
        """
        io, upload = self._io, Upload(chunks, length)
        options = wire.create_options(io.client, length, betas)
        try:
            response = await io.call(
                io.client.post, wire.BATCHES, cast_to=httpx2.Response, content=io.body(upload), options=options
            )
        except Exception as error:  # noqa: BLE001  (translate raises again what it does not know)
            if upload.error is not None:
                raise upload.error from None
            failure = translate(error, sent_whole=upload.taken_whole)
        else:
            return wire.parse_batch(response)
        raise failure

    async def retrieve(self, remote_id: str) -> BatchInfo:
        """Return the batch as it is now.

        Raises:
            LaneFault: The API did not say.
        """
        path, options = wire.batch_path(remote_id), wire.quick_options(self._io.client)
        return await self._asked(wire.parse_batch, self._io.client.get, path, options)

    async def cancel(self, remote_id: str) -> BatchInfo:
        """Ask the API to cancel a batch. It ends later, and may have finished by then.

        Raises:
            LaneFault: The API did not accept the cancel.
        """
        path, options = wire.batch_path(remote_id, "cancel"), wire.quick_options(self._io.client)
        return await self._asked(wire.parse_batch, self._io.client.post, path, options)

    async def list(self, *, limit: int, after_id: str | None = None) -> Listing:
        """Return one page of the workspace's batches, newest first.

        Raises:
            LaneFault: The API did not say.
        """
        options = wire.list_options(self._io.client, limit, after_id)
        return await self._asked(wire.parse_listing, self._io.client.get, wire.BATCHES, options)

    async def read(self, remote_id: str, feed: Callable[[bytes], bool]) -> None:
        """Feed the raw chunks of an ended batch's results to `feed`, until it returns False.

        Raises:
            LaneFault: The results could not be opened, or the read broke off; all that came before was fed.
        """
        async with self.results(remote_id) as chunks:
            async for chunk in chunks:
                if not await self._io.run(feed, chunk):
                    return

    @asynccontextmanager
    async def results(self, remote_id: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open the results of an ended batch, to be iterated over in raw chunks.

        They come from the client's own endpoint, whatever `results_url` says. Opening is tried again; reading is not.
        The iterator raises a `LaneFault` if the read breaks off, after all that came before.

        Raises:
            LaneFault: They could not be opened.
        """
        io, path = self._io, wire.batch_path(remote_id, "results")
        options = {"options": wire.results_options(io.client), "stream": True, "stream_cls": io.raw_stream}
        response = await self._tried(lambda: io.sent(io.client.get, path, **options))
        try:
            async with aclosing(self._chunks(response)) as chunks:
                yield chunks
        finally:
            await io.close(response)

    async def _chunks(self, response: httpx2.Response) -> AsyncGenerator[bytes]:
        """Yield the body of a response in chunks of `READ_SIZE` or more."""
        held, size, failure = list[bytes](), 0, None
        try:
            async with aclosing(self._io.pieces(response, decoded=wire.is_encoded(response))) as pieces:
                async for piece in pieces:
                    held.append(piece)
                    size += len(piece)
                    if size >= READ_SIZE:
                        chunk = piece if len(held) == 1 else b"".join(held)
                        held, size = [], 0
                        yield chunk
        except Exception as error:  # noqa: BLE001  (translate raises again what it does not know)
            failure = translate(error)
        if rest := b"".join(held):
            yield rest
        if failure is not None:
            raise failure

    async def _asked(
        self, parse: Callable[[httpx2.Response], _T], method: Callable[..., Any], path: str, options: object
    ) -> _T:
        """Return what the API answers to a call that may be tried again."""

        async def ask() -> _T:
            return parse(await self._io.sent(method, path, options=options))

        return await self._tried(ask)

    async def _tried(self, call: Callable[[], Awaitable[_T]]) -> _T:
        async def attempt() -> _T:  # tenacity awaits only what it can tell is a coroutine function
            return await call()

        return await tenacity.AsyncRetrying(sleep=self._io.sleep, **retry_options())(attempt)
