"""Reads requests from a file of lines as the batch API takes them: `{"custom_id": "...", "params": {...}}`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO

from batchwise.basics.jsontext import UnreadableError, decode
from batchwise.errors import InvalidRequestError, InvalidValueError, shown
from batchwise.request import Request, check_key

__all__ = ["Lines"]

_EXAMPLE = '{"custom_id": "app.py", "params": {"model": "claude-...", "max_tokens": 1024, "messages": [...]}}'


class Lines:
    """Iterates over the requests of a file. An error names the line.

    Args:
        path: The file; `-` is stdin.

    Raises:
        InvalidValueError: There is no such file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._number = 0
        if path != "-":
            try:
                Path(path).stat()  # a pipe can be opened only once
            except OSError as error:
                raise self._unreadable(error) from None

    def __iter__(self) -> Iterator[Request]:
        try:
            with self._open() as file:
                for self._number, line in enumerate(file, 1):  # `named` needs the number
                    if line.strip():
                        yield self._request(line)
        except OSError as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: OSError) -> InvalidValueError:
        return InvalidValueError(f"{shown(self.path)} cannot be read: {error.strerror}")

    def _open(self) -> AbstractContextManager[IO[bytes]]:
        return nullcontext(sys.stdin.buffer) if self.path == "-" else open(self.path, "rb")  # noqa: PTH123

    def _request(self, line: bytes) -> Request:
        try:
            found = decode(line)
        except UnreadableError:
            raise self._wrong("not JSON") from None
        if not isinstance(found, dict):
            raise self._wrong(f"a {type(found).__name__}")
        if found.keys() != {"custom_id", "params"}:
            extra = sorted(found.keys() - {"custom_id", "params"})
            lacks = sorted({"custom_id", "params"} - found.keys())
            words = f"also has {', '.join(map(shown, extra))}" if extra else f"lacks {' and '.join(lacks)}"
            raise self._wrong(f"an object that {words}")
        return Request(found["params"], key=check_key(found["custom_id"]))

    def _wrong(self, what: str) -> InvalidRequestError:
        return InvalidRequestError(f"the line is {what}; write {_EXAMPLE}")

    def named(self, error: InvalidRequestError) -> InvalidRequestError:
        """Return an error about the line that was read last, with the file and the line in its message."""
        return type(error)(f"{self.path}, line {self._number}: {error}. Nothing was accepted or sent")
