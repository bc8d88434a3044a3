"""A body on its way to the API: what was given to the transport, and whose exception stopped it."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator

__all__ = ["AsyncUpload", "Upload"]


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
