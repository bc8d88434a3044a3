"""A commit that calls of several threads share: what it costs, above all the wait for the disk, is paid once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import attrs

from .database import Connection, Database

__all__ = ["Call", "SharedCommit"]

_MOST = 256
"""Calls that share one transaction: other processes get their turn in between."""


@attrs.define(eq=False)
class Call:
    """What one thread asks for."""

    done: bool = attrs.field(default=False, init=False)
    """It is durable, or there is an error. Read under the database's lock."""
    error: BaseException | None = attrs.field(default=None, init=False)


C = TypeVar("C", bound=Call)


class SharedCommit(Generic[C]):
    """Carries calls out together: whoever gets the ledger first takes along what others have asked for meanwhile.

    Args:
        database: The ledger's database.
        name: What its transactions do; see `Database.write`.
        work: Carries calls out inside a transaction. What it raises, all of them get.
        failed: Called when a transaction was given up.
    """

    def __init__(
        self,
        database: Database,
        name: str,
        work: Callable[[Connection, list[C]], None],
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        self._database, self._name, self._work, self._failed = database, name, work, failed
        self._waiting: deque[C] = deque()

    def carry_out(self, call: C) -> None:
        """Return when it is done; `call.error` says what was wrong."""
        self._waiting.append(call)
        with self._database.lock:
            if not call.done:
                self._share()

    def _share(self) -> None:
        calls: list[C] = []
        try:
            with self._database.write(self._name) as db:
                # Collected only now: waiting for another process's transaction lets more come together.
                self._take(calls, _MOST)
                self._work(db, calls)
        except BaseException as error:
            if not calls:
                self._take(calls, len(self._waiting))  # it did not even begin, and nobody else can answer these
            for call in calls:
                call.error = error
            self._failed()
            if not isinstance(error, Exception):
                raise
        finally:
            for call in calls:
                call.done = True

    def _take(self, calls: list[C], most: int) -> None:
        while self._waiting and len(calls) < most:
            calls.append(self._waiting.popleft())
