"""`batchwise.dispatch`: for scripts, on a default dispatcher that is flushed at exit."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from .dispatcher import Dispatcher
from .models import LatencyTag, ToolUse
from .request import Request
from .tickets import Ticket

__all__ = ["default_dispatcher", "dispatch"]

_lock = threading.Lock()
_default: tuple[int, Dispatcher] | None = None


def default_dispatcher() -> Dispatcher:
    """The process's default dispatcher: made on first use (client and ledger from the environment), closed at exit."""
    global _default  # noqa: PLW0603  # one for each process
    with _lock:
        if _default is None or _default[0] != os.getpid() or _default[1].closed:
            made = Dispatcher()
            atexit.register(made.close)
            _default = os.getpid(), made
        return _default[1]


def dispatch(
    request: Request | Mapping[str, Any],
    *,
    key: str | None = None,
    latency: LatencyTag | None = None,
    tool_use: ToolUse | None = None,
    betas: Sequence[str] = (),
    stream: bool = False,
    expected_output_tokens: int | None = None,
    job: str | None = None,
) -> Ticket:
    """`Dispatcher.dispatch` on the process's default dispatcher, which is flushed and closed at exit."""
    return default_dispatcher().dispatch(
        request,
        key=key,
        latency=latency,
        tool_use=tool_use,
        betas=betas,
        stream=stream,
        expected_output_tokens=expected_output_tokens,
        job=job,
    )
