"""Closing in the middle of other code: in a signal's handler, or in the garbage collector.

Such code runs in a thread that may hold any lock. So it takes none, and has another thread do the work.
"""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Callable
from types import FrameType

__all__ = ["in_background", "interrupted", "started"]

_PACKAGE = __name__.partition(".")[0]


def started(thread: threading.Thread) -> bool:
    """Start a thread; False if none can be started: the system's limit, or the interpreter ends."""
    try:
        thread.start()
    except RuntimeError:
        return False
    return True


def interrupted() -> FrameType | None:
    """Return the frame of batchwise's own work that the calling code has interrupted; None if it interrupted none.

    Such code is the handler of a signal, or an iterable that batchwise reads.
    """
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001  # it is documented, and takes no lock
    while frame is not None and _is_ours(frame):
        frame = frame.f_back
    while frame is not None and not _is_ours(frame):
        frame = frame.f_back
    return frame


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] == _PACKAGE


def in_background(function: Callable[[], object]) -> None:
    """Call a function in a thread of its own, which the end of the interpreter waits for. Takes no lock.

    Raises:
        RuntimeError: No thread can be started.
    """
    _thread.start_new_thread(_begin, (function,))


def _begin(function: Callable[[], object]) -> None:
    if not started(threading.Thread(target=function, name="batchwise-close", daemon=False)):  # takes locks
        function()
