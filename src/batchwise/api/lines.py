"""Cuts a stream of bytes into lines. It does no I/O: the caller feeds chunks."""

from __future__ import annotations

__all__ = ["LineSplitter"]


class LineSplitter:
    """Cuts chunks into lines at LF or CRLF, wherever the chunks are cut. Blank lines are skipped."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that this chunk completes, without their ends."""
        lines = chunk.split(b"\n")
        rest = lines.pop()
        if lines and self._held:  # only the first line is joined: the rest of the chunk is not copied
            lines[0] = b"".join((*self._held, lines[0]))
            self._held.clear()
        if rest:
            self._held.append(rest)
        if lines and (b"\r" in chunk or lines[0].endswith(b"\r")):
            lines = [line[:-1] if line.endswith(b"\r") else line for line in lines]
        return [line for line in lines if line]

    def rest(self) -> bytes:
        """Return what came after the last line end: a line that may be cut off, or nothing."""
        return b"".join(self._held)
