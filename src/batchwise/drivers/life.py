"""The life of a dispatcher: whether it works, is being closed or is closed, and the error that ended it."""

from __future__ import annotations

import os
from copy import copy

from batchwise.errors import ClosedDispatcherError
from batchwise.ledger.forks import check_own

from .waiters import Notifiers

__all__ = ["Life"]


class Life:
    """Whether a dispatcher works.

    It takes no lock, because signal handlers and the garbage collector close dispatchers, too.

    Args:
        notifiers: Wakes the pump, the workers and waiting callers.
    """

    def __init__(self, notifiers: Notifiers) -> None:
        self._notifiers, self._pid = notifiers, os.getpid()
        self._error: Exception | None = None
        self.closing = False
        """Whether it accepts no new requests."""
        self.stopped = False
        """Whether it starts nothing more, queued work included."""
        self.closed = False
        """Whether it is closed."""

    # -- who may go on ----------------------------------------------------------------------------------------------

    @property
    def forked(self) -> bool:
        """Whether this process is a fork of the one that it belongs to."""
        return self._pid != os.getpid()

    def check_own(self) -> None:
        """Raise if the dispatcher was made in the parent process, before a fork."""
        check_own("this dispatcher was made", self._pid)

    def check(self) -> None:
        """Raise if the dispatcher is closed, or was made in the parent process, before a fork."""
        self.check_own()
        if self.closed:
            raise ClosedDispatcherError("this dispatcher is closed; open a new one: the ledger has all its work")

    def check_working(self) -> None:
        """Raise if an error has ended this dispatcher, or it is being closed: new work would not be done."""
        self.raise_fatal()
        if self.closing:
            raise ClosedDispatcherError("this dispatcher is being closed; open a new one: the ledger has all its work")

    # -- what ends it -----------------------------------------------------------------------------------------------

    @property
    def failed(self) -> bool:
        """Whether an error has ended it."""
        return self._error is not None

    def fail(self, error: Exception) -> None:
        """Note the error that ends the dispatcher, and wake waiting callers."""
        self._error = error
        self._notifiers.waiters.notify_all()

    def raise_fatal(self) -> None:
        """Raise the error that ended the dispatcher, if there is one."""
        if self._error is not None:
            # A copy for each caller: a traceback holds the frames that the error passed, and so the dispatcher.
            raise copy(self._error) from self._error.__cause__

    # -- its end, step by step --------------------------------------------------------------------------------------

    def begin_closing(self) -> None:
        """Take no more work."""
        self.closing = True

    def stop(self) -> None:
        """Begin no more work. End the pauses before another try."""
        self.closing = self.stopped = True
        self._notifiers.ending.notify()
        self._notifiers.pump.notify()

    def end(self) -> None:
        """Mark it as closed, and wake everybody; only the ledger and the client are still to be closed."""
        self.closing = self.stopped = self.closed = True
        self._notifiers.notify_all()
