"""Finds the line of user code that called batchwise. Warnings name it, because Python hides those of libraries."""

from __future__ import annotations

import sys
import warnings
from typing import Any, NamedTuple

__all__ = ["Line", "users_line"]

_OURS = __name__.partition(".")[0]


class Line(NamedTuple):
    """A line of code that is running."""

    file: str
    number: int
    names: dict[str, Any]
    """The globals of its module."""

    def warn(self, message: str, category: type[Warning]) -> None:
        """Warn as if the warning stood on this line."""
        registry = self.names.setdefault("__warningregistry__", {})
        module = self.names.get("__name__")
        warnings.warn_explicit(message, category, self.file, self.number, module=module, registry=registry)


def users_line(*between: str) -> Line:
    """Return the innermost line on the call stack that is neither in batchwise nor in one of these packages.

    If there is no such line, return the outermost one.

    Args:
        between: Names of packages between batchwise and the user's code.
    """
    skipped = {_OURS, *between}
    frame = sys._getframe(1)  # noqa: SLF001  # what `warnings.warn` itself does for a stacklevel
    while str(frame.f_globals.get("__name__")).partition(".")[0] in skipped and frame.f_back is not None:
        frame = frame.f_back
    return Line(frame.f_code.co_filename, frame.f_lineno, frame.f_globals)
