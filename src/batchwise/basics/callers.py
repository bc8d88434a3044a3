"""The line of the user's own code that led here. Warnings are shown in its name: Python hides those of libraries."""

from __future__ import annotations

import sys
import warnings
from typing import Any, NamedTuple

__all__ = ["Line", "users_line"]

_OURS = __name__.partition(".")[0]


class Line(NamedTuple):
    """A line of code that runs, in whatever thread."""

    file: str
    number: int
    names: dict[str, Any]
    """The globals of its module."""

    def warn(self, message: str, category: type[Warning]) -> None:
        """Warn as if this line did."""
        registry = self.names.setdefault("__warningregistry__", {})
        module = self.names.get("__name__")
        warnings.warn_explicit(message, category, self.file, self.number, module=module, registry=registry)


def users_line(*between: str) -> Line:
    """The nearest line that runs now outside of batchwise, and of these packages between it and the user's code.

    The outermost line if there is none.
    """
    skipped = {_OURS, *between}
    frame = sys._getframe(1)  # noqa: SLF001  # what `warnings.warn` itself does for a stacklevel
    while str(frame.f_globals.get("__name__")).partition(".")[0] in skipped and frame.f_back is not None:
        frame = frame.f_back
    return Line(frame.f_code.co_filename, frame.f_lineno, frame.f_globals)
