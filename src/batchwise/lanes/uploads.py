"""A body on its way to the API: what was given to the transport, and whose exception stopped it."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator

import anyio.to_thread

from batchwise.planning.outcomes import Fault

from .faults import LaneFault

__all__ = ["AsyncUpload", "Upload", "held", "held_async"]


class _Counted:
    """A body on its way: counts what was handed to the transport and keeps the source's own exception."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.given = 0
        self.error: Exception | None = None

    @property
    def given_whole(self) -> bool:
        """False proves that the API cannot have seen the whole body."""
        return self.given >= self.length

    def _count(self, chunk: bytes) -> None:
        if self.given + len(chunk) > self.length:
            raise ValueError(f"the chunks hold more than length={self.length} bytes")
        self.given += len(chunk)

    def _check_end(self) -> None:
        if self.given != self.length:
            raise ValueError(f"the chunks hold {self.given} bytes, not length={self.length}")


class Upload(_Counted):
    """A synchronous upload."""

    def __init__(self, chunks: Iterable[bytes], length: int) -> None:
        super().__init__(length)
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        source = iter(self._chunks)
        while True:
            try:
                chunk = next(source, None)
                if chunk is None:
                    self._check_end()
                    return
                self._count(chunk)
            except Exception as error:
                self.error = error
                raise
            yield chunk


class AsyncUpload(_Counted):
    """An asynchronous upload."""

    def __init__(self, chunks: AsyncIterable[bytes], length: int) -> None:
        super().__init__(length)
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        source = self._chunks.__aiter__()
        while True:
            try:
                chunk = await anext(source, None)
                if chunk is None:
                    self._check_end()
                    return
                self._count(chunk)
            except Exception as error:
                self.error = error
                raise
            yield chunk


def _withheld() -> LaneFault:
    return LaneFault(
        Fault(
            status=None, type="connection_error", message="the call was given up before it was sent", request_sent=False
        )
    )


def held(body: bytes, ready: Callable[[], bool]) -> Iterator[bytes]:
    """A body that is given out when it is `ready`.

    Raises:
        LaneFault: It will not be.
    """
    if not ready():
        raise _withheld()
    yield body


async def held_async(body: bytes, ready: Callable[[], bool]) -> AsyncIterator[bytes]:
    """The same for an event loop, which goes on meanwhile."""
    if not await anyio.to_thread.run_sync(ready):
        raise _withheld()
    yield body
