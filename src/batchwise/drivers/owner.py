"""The owner of a driver: its dispatcher. The driver works until that is closed or garbage-collected."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable

from .life import Life

__all__ = ["Owner"]


class Owner:
    """The dispatcher of a driver, held weakly.

    Args:
        life: Whether the driver works.
        ledger_name: The ledger's name, for messages.
        abandon: Ends the driver of a dispatcher that nobody holds. It takes no lock: the garbage collector may
            call it.
    """

    def __init__(self, life: Life, ledger_name: str, abandon: Callable[[], None]) -> None:
        self._life, self._ledger_name, self._abandon = life, ledger_name, abandon
        self._dispatcher: weakref.ref[object] | None = None
        self._dropped: weakref.finalize[..., object] | None = None

    def serve(self, dispatcher: object) -> None:
        """Work until this dispatcher is closed or garbage-collected. Call it once."""
        self._dispatcher = weakref.ref(dispatcher)
        self._dropped = weakref.finalize(dispatcher, self._forsaken, type(dispatcher).__name__)
        self._dropped.atexit = False

    @property
    def dispatcher(self) -> object:
        """The dispatcher; None: it was garbage-collected."""
        return None if self._dispatcher is None else self._dispatcher()

    def close(self) -> None:
        """Note that it is being closed: a ResourceWarning is no longer due."""
        if self._dropped is not None:
            self._dropped.detach()

    def _forsaken(self, name: str) -> None:
        if self._life.forked:
            return
        if not self._life.closing:
            self._abandon()
        warnings.warn(
            f"nobody holds {name} on the ledger {self._ledger_name} any more, and it was never closed: it ends, "
            "and queued work stays queued; use it under `with` or `async with`, or close it",
            ResourceWarning,
            stacklevel=2,
        )
