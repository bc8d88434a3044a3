"""Checks that the client's workspace is the ledger's. No work of a ledger is sent with the key of another workspace."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from batchwise.api.faults import LaneFault
from batchwise.api.types import BatchInfo, Listing
from batchwise.ledger.ledger import Ledger

from .effects import store
from .ports import api

__all__ = ["Workspace"]


class Workspace:
    """Binds the ledger to the client's endpoint, and to its workspace as soon as the API has named that.

    Args:
        ledger: The ledger to bind.
        endpoint: The client's base URL; None: the ledger is only read, and not bound.
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
        """Whether the ledger belongs to a workspace, and the client's is not known yet."""
        return self._claimed and not self.known

    def bind(self, workspace: str | None) -> None:
        """Bind the ledger to the client's workspace; None: the API did not name it.

        Raises:
            WrongWorkspaceError: The workspace is not the ledger's.
        """
        self._ledger.conditions.bind(endpoint=self._endpoint, workspace=workspace)
        self.known = True

    def note_from(self, told: Listing | BatchInfo) -> None:
        """Note what every answer of the API says: the workspace, and the server's time.

        Raises:
            WrongWorkspaceError: The workspace is not the ledger's.
        """
        self.bind(told.workspace)
        if told.server_time is not None:
            self._ledger.conditions.note(clock_offset=told.server_time - self._now())

    async def check(self) -> None:
        """Ask the API for the client's workspace, before work of the ledger is sent with its key.

        Raises:
            WrongWorkspaceError: The workspace is not the ledger's.
        """
        if self.known:
            return
        try:
            listing = await api.list(limit=1)
        except LaneFault:
            return  # the next call meets the same fault, and is tried again
        await store(self.note_from, listing)
