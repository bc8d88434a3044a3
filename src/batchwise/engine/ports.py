"""The API as procedures see it, in both colours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, Protocol, TypeVar

from batchwise.api.batches import BatchLane
from batchwise.api.colours import AsyncIO, SyncIO, synchronous
from batchwise.api.faults import LaneFault
from batchwise.api.messages import MessageLane
from batchwise.api.types import BatchInfo, Listing, Reply
from batchwise.errors import printable

from .effects import Ask
from .worker_threads import Threads

__all__ = ["AsyncPorts", "Ports", "SyncPorts", "api"]

T = TypeVar("T")
_log = logging.getLogger("batchwise")
_PAGE = 100


class Ports(Protocol):
    """The API as procedures see it; the async one returns awaitables."""

    def create(self, chunks: Iterator[bytes], length: int, betas: tuple[str, ...]) -> BatchInfo:
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


async def _logged(words: str, asked: Ask[T], brief: Callable[[T], str]) -> T:
    """Ask the API, and log at DEBUG what was asked, the answer in brief, and how long it took."""
    begun, came = monotonic(), "broken off"
    try:
        answer = await asked
        came = brief(answer)
    except LaneFault as error:
        came = error.fault.summary
        raise
    finally:
        _log.debug("batchwise: %s: %s, after %.3f s", words, came, monotonic() - begun)
    return answer


def _status(info: BatchInfo) -> str:
    return info.status


class _Api:
    """The API for procedures: `await api.retrieve(...)` returns its answer, or raises its `LaneFault`.

    Calls of the sync lane are logged as events; see `calls`.
    """

    async def create(self, chunks: Iterator[bytes], length: int, betas: tuple[str, ...]) -> BatchInfo:
        asked = Ask(lambda ports: ports.create(chunks, length, betas))
        return await _logged(f"create of a batch of {length:,} bytes", asked, lambda info: printable(info.id))

    async def retrieve(self, remote_id: str) -> BatchInfo:
        asked = Ask(lambda ports: ports.retrieve(remote_id))
        return await _logged(f"poll of batch {printable(remote_id)}", asked, _status)

    async def cancel(self, remote_id: str) -> BatchInfo:
        asked = Ask(lambda ports: ports.cancel(remote_id))
        return await _logged(f"cancel of batch {printable(remote_id)}", asked, _status)

    async def list(self, *, limit: int = _PAGE, after_id: str | None = None) -> Listing:
        asked = Ask(lambda ports: ports.list(limit=limit, after_id=after_id))
        return await _logged("list of batches", asked, lambda page: f"{len(page.batches)} of them")

    async def read(self, remote_id: str, feed: Callable[[bytes], bool]) -> None:
        asked = Ask(lambda ports: ports.read(remote_id, feed))
        await _logged(f"results of batch {printable(remote_id)}", asked, lambda _: "read")

    def call(self, body: bytes, *, model: str, max_tokens: int, betas: tuple[str, ...]) -> Ask[Reply]:
        return Ask(lambda ports: ports.call(body, model=model, max_tokens=max_tokens, betas=betas))


api = _Api()
"""See `Ports` for what each call does."""


class SyncPorts:
    """The API over an `anthropic.Anthropic`.

    Args:
        client: The user's client.
        sleep: Sleeps for so many seconds, between two tries.
    """

    def __init__(self, client: Any, *, sleep: Callable[[float], object]) -> None:
        io = SyncIO(client, sleep)
        batches = BatchLane(io)
        self.create, self.read = synchronous(batches.create), synchronous(batches.read)
        self.retrieve, self.cancel = synchronous(batches.retrieve), synchronous(batches.cancel)
        self.list, self.call = synchronous(batches.list), synchronous(MessageLane(io).call)


class AsyncPorts:
    """The API over an `anthropic.AsyncAnthropic`, and the threads in which procedures reach the ledger.

    Args:
        client: The user's client.
    """

    def __init__(self, client: Any) -> None:
        self.threads = Threads()
        io = AsyncIO(client, self.threads.run)
        batches = BatchLane(io)
        self.create, self.read = batches.create, batches.read
        self.retrieve, self.cancel, self.list = batches.retrieve, batches.cancel, batches.list
        self.call = MessageLane(io).call
