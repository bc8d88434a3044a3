"""The two effects that a procedure may await, and how each colour carries them out.

A procedure is an `async def` that is written once for threads and for tasks. Awaiting an effect hands it to `drive`
(which calls), to `drive_async` (which awaits), or to a test (which can let each effect fail in turn).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator, Sequence
from functools import partial
from time import monotonic
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import attrs

from batchwise.api.batches import AsyncBatchLane, BatchLane
from batchwise.api.faults import LaneFault
from batchwise.api.messages import AsyncMessageLane, MessageLane
from batchwise.api.types import BatchInfo, Created, Listing, Reply
from batchwise.errors import printable

__all__ = [
    "Ask",
    "AsyncPorts",
    "Effect",
    "Ports",
    "Procedure",
    "Store",
    "SyncPorts",
    "Threads",
    "api",
    "drive",
    "drive_async",
    "pause",
    "persist",
    "store",
    "store_surely",
    "store_together",
]

T = TypeVar("T")
P = ParamSpec("P")
_log = logging.getLogger("batchwise")
_PAGE = 100
_THREADS = 40
"""The most calls in worker threads at once, for callers and for work apart: anyio's own default for an application."""


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


class _Effect(Generic[T]):
    """An effect. Awaiting it yields it to the driver, which sends back its value or throws its error."""

    def __await__(self) -> Generator[Any, Any, T]:
        value: T = yield self
        return value


@attrs.frozen(eq=False)
class Store(_Effect[T]):
    """Call a function that works on the ledger. It blocks for a moment."""

    call: Callable[[], Any]
    sure: bool = False
    """Whether the function is called even if the task was cancelled just before."""
    together: bool = False
    """Whether `call` only begins the work and returns the function that ends it, to share a thread and a commit."""


@attrs.frozen(eq=False)
class Ask(_Effect[T]):
    """Ask the API, or wait."""

    call: Callable[[Ports], T]


Effect = Store[Any] | Ask[Any]
Procedure = Coroutine[Effect, Any, T]
"""The coroutine of an `async def` that awaits only effects and other procedures. It needs no event loop."""


def store(call: Callable[P, T], *args: P.args, **keywords: P.kwargs) -> Store[T]:
    """Call a function that works on the ledger; awaiting it gives the function's value."""
    return Store(partial(call, *args, **keywords))


def store_surely(call: Callable[P, T], *args: P.args, **keywords: P.kwargs) -> Store[T]:
    """As `store`, for an answer that the API would not give again: it runs even if the task is being cancelled."""
    return Store(partial(call, *args, **keywords), sure=True)


def store_together(begin: Callable[[], Callable[[], T]], *, sure: bool = False) -> Store[T]:
    """As `store`, for work in two steps: `begin` returns the function that ends it. Many share a thread and commit."""
    return Store(begin, sure, together=True)


def pause(wait: Callable[P, Any], *args: P.args, **keywords: P.kwargs) -> Ask[None]:
    """Wait by calling this function, which returns an awaitable where tasks are driven."""
    return Ask(lambda _ports: wait(*args, **keywords))


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


async def persist(procedure: Procedure[T], retry: Callable[[Effect, Exception], Procedure[bool]]) -> T:
    """Carry a procedure out. Where an effect fails, `retry` pauses and returns whether the effect is tried again."""
    try:
        effect = procedure.send(None)
        while True:
            try:
                value = await effect
            except Exception as error:  # noqa: BLE001  # the procedure decides what it means
                if not await retry(effect, error):
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
        effect = procedure.send(None)
        while True:
            try:
                if isinstance(effect, Ask):
                    value = effect.call(ports)
                else:
                    value = effect.call()() if effect.together else effect.call()
            except Exception as error:  # noqa: BLE001  # the procedure decides what it means
                effect = procedure.throw(error)
            else:
                effect = procedure.send(value)
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        procedure.close()  # Ctrl-C, or a cancelled task, leaves nothing half done


@attrs.define(eq=False)
class _Asked:
    """A piece of work that shares a thread with others; see `Threads.together`."""

    begin: Callable[[], Callable[[], Any]]
    end: Callable[[], Any] | None = None
    done: bool = False
    value: Any = None
    error: BaseException | None = None

    def __call__(self) -> None:
        """Begin the work at the first call; end it at the second."""
        if self.done:
            return
        try:
            if self.end is None:
                self.end = self.begin()
            else:
                self.value, self.done = self.end(), True
        except BaseException as error:  # noqa: BLE001  # raised where it was asked for, Ctrl-C too
            self.error, self.done = error, True


def _do_together(work: Sequence[_Asked]) -> None:
    for each in (*work, *work):
        each()


class Threads:
    """Worker threads for calls that block for a moment, apart from the application's own.

    It is made and used on the event loop.
    """

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(_THREADS)
        self._asked: list[_Asked] = []
        self._turn: anyio.Event | None = None
        """Set when the work that shares a thread now is done."""

    async def run(self, function: Callable[..., T], *args: Any, **keywords: Any) -> T:
        """Call a function in a worker thread; where none can be started, here: then the event loop waits for it."""
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

    async def together(self, begin: Callable[[], Callable[[], T]]) -> T:
        """Begin and end work in a worker thread, together with all work that is asked for by then.

        A thread for each piece would cost more than most of the work.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        asked = _Asked(begin)
        self._asked.append(asked)
        with anyio.CancelScope(shield=True):
            while not asked.done:
                if self._turn is not None:
                    await self._turn.wait()
                    continue
                self._turn = turn = anyio.Event()
                work, self._asked = self._asked, []
                try:
                    await self.run(_do_together, work)
                finally:
                    self._turn = None
                    turn.set()
        if asked.error is not None:
            raise asked.error
        value: T = asked.value
        return value


async def drive_async(procedure: Procedure[T], ports: AsyncPorts) -> T:
    """Carry a procedure out by awaiting; the ledger is reached through a worker thread."""
    try:
        effect = procedure.send(None)
        while True:
            try:
                if isinstance(effect, Ask):
                    asked: Awaitable[Any] = effect.call(ports)  # type: ignore[arg-type]  # the awaiting twin of Ports
                    value = await asked
                else:
                    run = ports.threads.together if effect.together else ports.threads.run
                    if effect.sure:
                        with anyio.CancelScope(shield=True):
                            value = await run(effect.call)
                    else:
                        value = await run(effect.call)
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
