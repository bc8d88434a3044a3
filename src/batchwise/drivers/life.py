"""Whether a dispatcher works, is being closed, or has ended, and what ended it."""

from __future__ import annotations

import os
from copy import copy

from batchwise.errors import ClosedDispatcherError
from batchwise.ledger.forks import check_own

from .waiters import Notifiers

__all__ = ["Life"]


class Life:
    """Takes no lock: a signal's handler and the collector of garbage end dispatchers, too.

    Args:
        notifiers: Wakes those who have to know of the end.
    """

    def __init__(self, notifiers: Notifiers) -> None:
        self._notifiers, self._pid = notifiers, os.getpid()
        self._error: Exception | None = None
        self.closing = False
        """Whether it takes no more work."""
        self.stopped = False
        """Whether it begins nothing more of the work that it has."""
        self.closed = False
        """Whether it is closed."""

    # -- who may go on ----------------------------------------------------------------------------------------------

    @property
    def forked(self) -> bool:
        """Whether this process is a fork of the one that it belongs to."""
        return self._pid != os.getpid()

    def check_own(self) -> None:
        """Raise if the dispatcher belongs to the process that this one was forked from."""
        check_own("this dispatcher was made", self._pid)

    def check(self) -> None:
        """Raise if the dispatcher is closed, or belongs to the process that this one was forked from."""
        self.check_own()
        if self.closed:
            raise ClosedDispatcherError("this dispatcher is closed; open a new one: the ledger has all its work")

    def check_working(self) -> None:
        """Raise if nobody would do work that is handed in now: the dispatcher has ended, or is ending."""
        self.check()
        self.raise_fatal()
        if self.closing:
            raise ClosedDispatcherError("this dispatcher is being closed; open a new one: the ledger has all its work")

    # -- what ends it -----------------------------------------------------------------------------------------------

    @property
    def failed(self) -> bool:
        """Whether an error ended it."""
        return self._error is not None

    def fail(self, error: Exception) -> None:
        """This error ends the dispatcher: whoever waits is told."""
        self._error = error
        self._notifiers.waiters.notify_all()

    def raise_fatal(self) -> None:
        """Raise what ended the dispatcher, if something did."""
        if self._error is not None:
            # A copy for each caller: a traceback holds the frames that the error passed, and so the dispatcher.
            raise copy(self._error) from self._error.__cause__

    # -- its end, step by step --------------------------------------------------------------------------------------

    def begin_closing(self) -> None:
        """Nothing more is taken."""
        self.closing = True

    def stop(self) -> None:
        """Nothing more is begun. What waits before another try is tried at once."""
        self.closing = self.stopped = True
        self._notifiers.ending.notify()
        self._notifiers.pump.notify()

    def end(self) -> None:
        """It has ended, but for letting go of what it holds; everybody is told."""
        self.closing = self.stopped = self.closed = True
        self._notifiers.notify_all()
