"""Ends that come in the middle of other code: from a signal's handler, or from the collector of garbage.

Such code runs in a thread that may hold any lock, also one that it cannot take twice. So it takes none: what has to be
done is done by another thread.
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
    """Start a thread; False if none can be had: the system's limit, or an interpreter that ends."""
    try:
        thread.start()
    except RuntimeError:
        return False
    return True


def interrupted() -> FrameType | None:
    """Where batchwise was in this thread when it called other code, which has now called batchwise; None: nowhere.

    That other code is the handler of a signal that came while batchwise worked, or an iterable that batchwise reads.
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
    """Call it in a thread of its own, which the end of the interpreter waits for. Takes no lock.

    Raises:
        RuntimeError: No thread can be had.
    """
    _thread.start_new_thread(_begin, (function,))


def _begin(function: Callable[[], object]) -> None:
    if not started(threading.Thread(target=function, name="batchwise-close", daemon=False)):  # takes locks
        function()
