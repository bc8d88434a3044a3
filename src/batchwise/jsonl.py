"""A file of JSON lines that is there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from .jsontext import encode

__all__ = ["JsonLines"]


class JsonLines:
    """Writes values, a line for each, beside the file that they become: that is replaced when all are on the disk.

    Only its owner can read it, since it holds answers. Used under `with`; an exception leaves the file as it was.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path).expanduser()
        self.lines = 0
        """How many were written."""
        number, name = tempfile.mkstemp(prefix=f".{self._path.name}.", suffix=".part", dir=self._path.parent)
        self._part = Path(name)
        self._file = os.fdopen(number, "wb")

    def write(self, values: Iterable[Mapping[str, Any]]) -> None:
        """Write some more."""
        for value in values:
            self._file.write(encode(value) + b"\n")
            self.lines += 1

    def __enter__(self) -> JsonLines:  # noqa: PYI034 (typing.Self is younger than Python 3.10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        except BaseException:
            kind = OSError
            raise
        finally:
            self._file.close()
            if kind is None:
                self._part.replace(self._path)
            else:
                self._part.unlink(missing_ok=True)
