"""Whose workspace the client's is. Nothing of a ledger is touched with the key of another workspace."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from batchwise.api.faults import LaneFault
from batchwise.api.types import BatchInfo, Listing
from batchwise.ledger.ledger import Ledger

from .effects import api, store

__all__ = ["Workspace"]


class Workspace:
    """Binds the ledger to the client's endpoint, and to its workspace as soon as the API has said which that is.

    Args:
        ledger: What is bound.
        endpoint: The client's base URL; None: the ledger is only looked at, and bound to nothing.
        now: The wall clock.

    Raises:
        WrongWorkspaceError: The ledger belongs to another endpoint.
    """

    def __init__(self, ledger: Ledger, endpoint: str | None, now: Callable[[], datetime]) -> None:
        self._ledger, self._endpoint, self._now = ledger, endpoint or "", now
        self._claimed = endpoint is not None and ledger.conditions.bind(endpoint=endpoint, workspace=None)
        self.known = False
        """Whether the client's workspace is known to be the ledger's."""

    @property
    def may_differ(self) -> bool:
        """Whether the ledger belongs to a workspace, and it is not known yet that this is the client's."""
        return self._claimed and not self.known

    def bind(self, workspace: str | None) -> None:
        """Learn whose workspace the client's is; None: the API did not say.

        Raises:
            WrongWorkspaceError: It is not the ledger's.
        """
        self._ledger.conditions.bind(endpoint=self._endpoint, workspace=workspace)
        self.known = True

    def note_from(self, told: Listing | BatchInfo) -> None:
        """Take over what any answer tells: whose workspace it is, and the server's time.

        Raises:
            WrongWorkspaceError: It is not the ledger's.
        """
        self.bind(told.workspace)
        if told.server_time is not None:
            self._ledger.conditions.note(clock_offset=told.server_time - self._now())

    async def check(self) -> None:
        """Learn whose workspace the client's is, before anything of the ledger's is touched with it.

        Raises:
            WrongWorkspaceError: It is not the ledger's.
        """
        if self.known:
            return
        try:
            listing = await api.list(limit=1)
        except LaneFault:
            return  # what follows meets the same fault, and is asked for again
        await store(self.note_from, listing)
