"""A commit that calls of several threads share: its cost, above all the wait for the disk, is paid once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

import attrs

from batchwise.errors import LedgerError

from .database import Connection, Database

__all__ = ["Call", "SharedCommit"]

_MOST = 256
"""The most calls that share one transaction, so that other processes get their turn."""

_INTERRUPTED = (
    "another thread was interrupted while it wrote this step to the ledger {} together with its own. Unless that was "
    "at the very end, nothing was stored; with a key it can be done again in any case"
)


@attrs.define(eq=False)
class Call:
    """A call of one thread."""

    asked: bool = attrs.field(default=False, init=False)
    """Whether it waits for a commit that takes it along, or has waited."""
    done: bool = attrs.field(default=False, init=False)
    """Whether it is durable or has an error. Read under the database's lock."""
    error: Exception | None = attrs.field(default=None, init=False)


C = TypeVar("C", bound=Call)


class SharedCommit(Generic[C]):
    """Carries calls out together: the first thread that gets the ledger takes the calls of the others along.

    Args:
        database: The ledger's database.
        name: What its transactions do; see `Database.write`.
        work: Carries calls out inside a transaction. The error that it raises, all of them get;
            what interrupts a thread, such as KeyboardInterrupt, is raised in that thread alone.
        failed: Called when a transaction was rolled back.
        ask: Asks inside the transaction for what `work` has to know of calls, before it has to wait for others.
    """

    def __init__(
        self,
        database: Database,
        name: str,
        work: Callable[[Connection, list[C]], None],
        failed: Callable[[], None] = lambda: None,
        ask: Callable[[Connection, list[C]], None] = lambda _db, _calls: None,
    ) -> None:
        self._database, self._name, self._work, self._failed, self._ask = database, name, work, failed, ask
        self._waiting: deque[C] = deque()

    def ask(self, call: C) -> None:
        """Have a call carried out with the next commit. `carry_out` has to follow: it may be the one that commits."""
        call.asked = True
        self._waiting.append(call)

    def carry_out(self, call: C) -> None:
        """Return when the call is done; `call.error` has its error."""
        try:
            if not call.asked:
                self.ask(call)
            with self._database.lock:
                while not call.done:  # so many may be before it that the first commit leaves it out
                    self._share()
        except BaseException:  # what interrupts this thread; the others' calls are still theirs to carry out
            with suppress(ValueError):
                self._waiting.remove(call)
            raise

    def _share(self) -> None:
        calls: list[C] = []
        try:
            with self._database.write(self._name) as db:
                self._ask(db, self._take(calls))
                self._database.begin(db)
                # Waiting for another process's transaction lets more come together.
                self._ask(db, self._take(calls))
                self._work(db, calls)
        except Exception as error:  # noqa: BLE001 (raised by those whose calls these are)
            if not calls:
                self._take(calls, len(self._waiting))  # it did not even begin, and it would not for these
            self._fail(calls, error)
        except BaseException:
            self._fail(calls, LedgerError(_INTERRUPTED.format(self._database.name), passing=True))
            raise
        finally:
            for call in calls:
                call.done = True

    def _fail(self, calls: list[C], error: Exception) -> None:
        for call in calls:
            call.error = error
        self._failed()

    def _take(self, calls: list[C], most: int = _MOST) -> list[C]:
        """Take more of the waiting calls; returns them."""
        before = len(calls)
        while self._waiting and len(calls) < most:
            calls.append(self._waiting.popleft())
        return calls[before:]
