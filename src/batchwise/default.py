"""`batchwise.dispatch`: for scripts, on a default dispatcher that is closed at exit."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .dispatcher import Dispatcher
from .engine.arguments import takes_one_dict
from .models import LatencyLike, ToolUseLike
from .request import Request
from .tickets import Ticket

if TYPE_CHECKING:
    from .params import Params

__all__ = ["default_dispatcher", "dispatch"]

_lock = threading.Lock()
_default: Dispatcher | None = None


def _forget() -> None:
    """In a forked child process, forget the parent's dispatcher, and the lock: a thread of the parent may hold it."""
    global _default, _lock  # one for each process
    _default, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def default_dispatcher() -> Dispatcher:
    """Return the default dispatcher of the process: made on first use from the environment, and closed at exit."""
    global _default  # noqa: PLW0603  # one for each process
    with _lock:
        if _default is None or _default.closed:
            _default = Dispatcher()
            atexit.register(_default.close)
        return _default


@takes_one_dict
def dispatch(
    request: Request | Params,
    *,
    key: str | None = None,
    latency: LatencyLike | None = None,
    tool_use: ToolUseLike | None = None,
    betas: Sequence[str] = (),
    stream: bool = False,
    expected_output_tokens: int | None = None,
    output_format: object = None,
    labels: Mapping[str, str] | None = None,
    job: str | None = None,
) -> Ticket:
    """Accept one request on the default dispatcher of this process. See `Dispatcher.dispatch`.

    That dispatcher takes its client and its ledger from the environment. When the process exits, it submits what is
    queued for a batch, lets running calls end, and is closed.
    """
    return default_dispatcher().dispatch(
        request,
        key=key,
        latency=latency,
        tool_use=tool_use,
        betas=betas,
        stream=stream,
        expected_output_tokens=expected_output_tokens,
        output_format=output_format,
        labels=labels,
        job=job,
    )
