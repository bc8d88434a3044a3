"""Files that are there whole or not at all, of JSON lines for one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .jsontext import encode

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["JsonLines", "WholeFile"]


class WholeFile:
    """Writes beside the file that it becomes: that is replaced when all is on the disk.

    Only its owner can read it, since it holds answers. Used under `with`; an exception leaves the file as it was.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path).expanduser()
        number, name = tempfile.mkstemp(prefix=f".{self._path.name}.", suffix=".part", dir=self._path.parent)
        self._part = Path(name)
        self.file = os.fdopen(number, "wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.file.flush()
                os.fsync(self.file.fileno())
        except BaseException:
            kind = OSError
            raise
        finally:
            self.file.close()
            if kind is None:
                self._part.replace(self._path)
            else:
                self._part.unlink(missing_ok=True)


class JsonLines(WholeFile):
    """A whole file of values, a line for each."""

    lines = 0
    """How many were written."""

    def write(self, values: Iterable[Mapping[str, Any]]) -> None:
        """Write some more."""
        for value in values:
            self.file.write(encode(value) + b"\n")
            self.lines += 1
