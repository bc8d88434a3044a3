"""Files that are complete or not there at all; among them files of JSON lines."""

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
    """Writes a temporary file in the same folder, and moves it to its name when all of it is on the disk.

    It is used under `with`. If the block raises, a file of that name stays as it was. Only the owner can read the file,
    because it holds answers.

    Args:
        path: The file.

    Raises:
        OSError: The file cannot be written.
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
    """A whole file of JSON values, one a line."""

    lines = 0
    """How many lines were written."""

    def write(self, values: Iterable[Mapping[str, Any]]) -> None:
        """Write these values, each as a line."""
        for value in values:
            self.file.write(encode(value) + b"\n")
            self.lines += 1
