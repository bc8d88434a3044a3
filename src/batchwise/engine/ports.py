"""The API as procedures see it, in both colours."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from time import monotonic
from typing import Protocol, TypeVar

from batchwise.api.batches import AsyncBatchLane, BatchLane
from batchwise.api.faults import LaneFault
from batchwise.api.messages import AsyncMessageLane, MessageLane
from batchwise.api.types import BatchInfo, Created, Listing, Reply
from batchwise.errors import printable

from .effects import Ask
from .worker_threads import Threads

__all__ = ["AsyncPorts", "Ports", "SyncPorts", "api"]

T = TypeVar("T")
_log = logging.getLogger("batchwise")
_PAGE = 100


class Ports(Protocol):
    """The API as procedures see it; the async one returns awaitables."""

    def create(self, chunks: Iterator[bytes], length: int, betas: tuple[str, ...]) -> Created:
        """One create call; never retried."""

    def retrieve(self, remote_id: str) -> BatchInfo:
        """Ask for one batch."""

    def cancel(self, remote_id: str) -> BatchInfo:
        """Ask for a batch to be cancelled."""

    def list(self, *, limit: int, after_id: str | None = None) -> Listing:
        """Ask for a page of the batches, newest first."""

    def read(self, remote_id: str, feed: Callable[[bytes], bool]) -> None:
        """Feed the raw chunks of a batch's results, until `feed` returns False."""

    def call(self, body: bytes, *, model: str, max_tokens: int, betas: tuple[str, ...]) -> Reply:
        """One Messages call; never retried."""


async def _logged(words: str, asked: Ask[T]) -> T:
    """Ask the API, and log at DEBUG what was asked, what came of it, and how long that took."""
    begun, came = monotonic(), "broken off"
    try:
        answer = await asked
        came = _brief(answer)
    except LaneFault as error:
        came = error.fault.summary
        raise
    finally:
        _log.debug("batchwise: %s: %s, after %.3f s", words, came, monotonic() - begun)
    return answer


def _brief(answer: object) -> str:
    match answer:
        case Created():
            return printable(answer.batch.id)
        case BatchInfo():
            return answer.status
        case Listing():
            return f"{len(answer.batches)} of them"
        case _:
            return "read"


class _Api:
    """The API for procedures: `await api.retrieve(...)` returns its answer, or raises its `LaneFault`.

    Calls of the sync lane are logged as events; see `calls`.
    """

    async def create(self, chunks: Iterator[bytes], length: int, betas: tuple[str, ...]) -> Created:
        asked = Ask(lambda ports: ports.create(chunks, length, betas))
        return await _logged(f"create of a batch of {length:,} bytes", asked)

    async def retrieve(self, remote_id: str) -> BatchInfo:
        return await _logged(f"poll of batch {printable(remote_id)}", Ask(lambda ports: ports.retrieve(remote_id)))

    async def cancel(self, remote_id: str) -> BatchInfo:
        return await _logged(f"cancel of batch {printable(remote_id)}", Ask(lambda ports: ports.cancel(remote_id)))

    async def list(self, *, limit: int = _PAGE, after_id: str | None = None) -> Listing:
        return await _logged("list of batches", Ask(lambda ports: ports.list(limit=limit, after_id=after_id)))

    async def read(self, remote_id: str, feed: Callable[[bytes], bool]) -> None:
        asked = Ask(lambda ports: ports.read(remote_id, feed))
        await _logged(f"results of batch {printable(remote_id)}", asked)

    def call(self, body: bytes, *, model: str, max_tokens: int, betas: tuple[str, ...]) -> Ask[Reply]:
        return Ask(lambda ports: ports.call(body, model=model, max_tokens=max_tokens, betas=betas))


api = _Api()
"""See `Ports` for what each call does."""


class SyncPorts:
    """The API over an `anthropic.Anthropic`."""

    def __init__(self, batches: BatchLane, messages: MessageLane) -> None:
        self._batches, self._messages = batches, messages
        self.retrieve, self.cancel, self.list = batches.retrieve, batches.cancel, batches.list
        self.call = messages.call

    def create(self, chunks: Iterator[bytes], length: int, betas: tuple[str, ...]) -> Created:
        """See `BatchLane.create`."""
        return self._batches.create(chunks, length=length, betas=betas)

    def read(self, remote_id: str, feed: Callable[[bytes], bool]) -> None:
        """Feed the raw chunks of a batch's results."""
        with self._batches.results(remote_id) as chunks:
            for chunk in chunks:
                if not feed(chunk):
                    return


class AsyncPorts:
    """The API over an `anthropic.AsyncAnthropic`, and the threads in which procedures reach the ledger."""

    def __init__(self, batches: AsyncBatchLane, messages: AsyncMessageLane) -> None:
        self._batches, self._messages = batches, messages
        self.threads = Threads()
        self.retrieve, self.cancel, self.list = batches.retrieve, batches.cancel, batches.list
        self.call = messages.call

    async def create(self, chunks: Iterator[bytes], length: int, betas: tuple[str, ...]) -> Created:
        """See `AsyncBatchLane.create`; the chunks are made in a worker thread."""

        async def made() -> AsyncIterator[bytes]:
            while (chunk := await self.threads.run(next, chunks, None)) is not None:
                yield chunk

        return await self._batches.create(made(), length=length, betas=betas)

    async def read(self, remote_id: str, feed: Callable[[bytes], bool]) -> None:
        """Feed the raw chunks of a batch's results, in a worker thread."""
        async with self._batches.results(remote_id) as chunks:
            async for chunk in chunks:
                if not await self.threads.run(feed, chunk):
                    return
