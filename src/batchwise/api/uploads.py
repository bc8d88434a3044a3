"""The body of a create call on its way to the API: how much was taken of it, and whose exception stopped it."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Upload"]


class Upload:
    """Counts what the client's transport takes, and keeps an exception of the source.

    Args:
        chunks: The source of the body.
        length: How many bytes the body has.
    """

    def __init__(self, chunks: Iterable[bytes], length: int) -> None:
        self._chunks, self._length, self._taken = iter(chunks), length, 0
        self.error: Exception | None = None
        """The exception that the source raised, or that its length is not `length`."""

    @property
    def taken_whole(self) -> bool:
        """False proves that the API cannot have seen the whole body."""
        return self._taken >= self._length

    def take(self) -> bytes | None:
        """Return the next chunk; None at the end.

        Raises:
            ValueError: The chunks hold more or fewer bytes than `length`.
        """
        try:
            chunk = next(self._chunks, None)
            self._count(chunk)
        except Exception as error:
            self.error = error
            raise
        return chunk

    def _count(self, chunk: bytes | None) -> None:
        if chunk is None:
            if not self.taken_whole:
                raise ValueError(f"the chunks hold {self._taken} bytes, not length={self._length}")
            return
        if self._taken + len(chunk) > self._length:
            raise ValueError(f"the chunks hold more than length={self._length} bytes")
        self._taken += len(chunk)
