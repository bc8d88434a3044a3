"""The two effects that a procedure may ask for, and how each colour carries them out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any, Protocol, TypeVar, Union

import anyio
import anyio.to_thread
import attrs

from batchwise.lanes.batches import AsyncBatchLane, BatchLane
from batchwise.lanes.messages import AsyncMessageLane, MessageLane
from batchwise.lanes.values import BatchInfo, Created, Listing, Reply

__all__ = [
    "Api",
    "AsyncPorts",
    "Effect",
    "Ports",
    "Procedure",
    "SyncPorts",
    "Threads",
    "api",
    "drive",
    "drive_async",
    "page",
    "pause",
    "persist",
    "store",
]

T = TypeVar("T")
_PAGE = 100
_THREADS = 40
"""Calls in worker threads at once, for each of a dispatcher's two purposes: as many as anyio gives an application."""


class Ports(Protocol):
    """The API as procedures see it; the async one returns awaitables."""

    def create(self, chunks: Iterator[bytes], length: int, betas: tuple[str, ...]) -> Created:
        """One create call; never retried."""

    def retrieve(self, remote_id: str) -> BatchInfo:
        """One batch."""

    def cancel(self, remote_id: str) -> BatchInfo:
        """Ask for its end."""

    def list(self, *, limit: int, after_id: str | None = None) -> Listing:
        """One page of the batches, newest first."""

    def read(self, remote_id: str, feed: Callable[[bytes], bool]) -> None:
        """Feed the raw chunks of a batch's results; a False from `feed` ends the reading."""

    def call(
        self, body: bytes, *, model: str, max_tokens: int, betas: tuple[str, ...], ready: Callable[[], bool] | None
    ) -> Reply:
        """One Messages call; never retried. `ready` waits until the body may be sent."""


@attrs.frozen
class Store:
    """Run a function that works on the ledger (it blocks for a moment)."""

    call: Callable[[], Any]
    sure: bool = False
    """Run it even if the task was cancelled just before."""


@attrs.frozen
class Api:
    """Ask the API."""

    call: Callable[[Ports], Any]


Effect = Union[Store, Api]
Procedure = Generator[Effect, Any, T]


def store(call: Callable[[], T], *, sure: bool = False) -> Procedure[T]:
    """Ask for a ledger call; returns its value. `sure`: for what the API has said, and would not say again."""
    value: T = yield Store(call, sure)
    return value


def api(call: Callable[[Ports], T]) -> Procedure[T]:
    """Ask for an API call; returns its value, or raises its `LaneFault`."""
    value: T = yield Api(call)
    return value


def page(after: str | None = None) -> Procedure[Listing]:
    """One page of the batches, newest first, from behind the id `after`."""
    return api(lambda ports: ports.list(limit=_PAGE, after_id=after))


def pause(wait: Callable[[], Any]) -> Procedure[None]:
    """Ask for a wait; the async driver's gives an awaitable."""
    yield Api(lambda _ports: wait())


def persist(procedure: Procedure[T], again: Callable[[Effect, Exception], Procedure[bool]]) -> Procedure[T]:
    """Carry a procedure out; an effect that fails is asked for again as long as `again` says so, after its pause."""
    try:
        effect = next(procedure)
        while True:
            try:
                value = yield effect
            except Exception as error:  # noqa: BLE001  # the procedure decides what it means
                if not (yield from again(effect, error)):
                    effect = procedure.throw(error)
            else:
                effect = procedure.send(value)
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        procedure.close()


def drive(procedure: Procedure[T], ports: SyncPorts) -> T:
    """Carry a procedure out by calling."""
    try:
        effect = next(procedure)
        while True:
            try:
                value = effect.call(ports) if isinstance(effect, Api) else effect.call()
            except Exception as error:  # noqa: BLE001  # the procedure decides what it means
                effect = procedure.throw(error)
            else:
                effect = procedure.send(value)
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        procedure.close()  # what interrupts it (Ctrl-C, a cancelled task) leaves nothing half done


class Threads:
    """Worker threads for calls that block for a moment, apart from those that the application keeps busy.

    Made, and used, on the event loop.
    """

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(_THREADS)

    async def run(self, function: Callable[..., T], *args: Any, **keywords: Any) -> T:
        """Call it in a worker thread; where none can be started, here: the event loop waits for it then."""
        begun = False

        def call() -> T:
            nonlocal begun
            begun = True
            return function(*args, **keywords)

        try:
            return await anyio.to_thread.run_sync(call, limiter=self._limiter)
        except RuntimeError:  # the system's limit, or an interpreter that ends
            if begun:
                raise
        return function(*args, **keywords)


async def drive_async(procedure: Procedure[T], ports: AsyncPorts) -> T:
    """Carry a procedure out by awaiting; the ledger is reached through a worker thread."""
    try:
        effect = next(procedure)
        while True:
            try:
                if isinstance(effect, Api):
                    asked: Awaitable[Any] = effect.call(ports)  # type: ignore[arg-type]  # the awaiting twin of Ports
                    value = await asked
                elif effect.sure:
                    with anyio.CancelScope(shield=True):
                        value = await ports.threads.run(effect.call)
                else:
                    value = await ports.threads.run(effect.call)
            except Exception as error:  # noqa: BLE001  # the procedure decides what it means
                effect = procedure.throw(error)
            else:
                effect = procedure.send(value)
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        procedure.close()


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
