"""The policy that a dispatcher works under: the given one, or the one that the ledger keeps."""

from __future__ import annotations

import logging

from batchwise.errors import LedgerError
from batchwise.ledger.ledger import Ledger
from batchwise.models import Policy, check_policy

__all__ = ["KeptPolicy"]

_log = logging.getLogger("batchwise")


class KeptPolicy:
    """Chooses the policy, and has the ledger keep it once work is accepted under it.

    Args:
        ledger: Keeps the policy that work was last accepted under.
        given: A policy; None: the one that the ledger keeps, else the defaults.

    Raises:
        InvalidValueError: `given` is no policy.
    """

    def __init__(self, ledger: Ledger, given: Policy | None) -> None:
        if given is not None:
            check_policy(given)
        kept = ledger.conditions.kept_policy()
        self._ledger, self.policy = ledger, given or kept or Policy()
        self._unstored = None if given == kept else given
        """The policy that the ledger does not keep yet; None: it keeps this one."""
        if kept is not None and self._unstored is not None:
            words = self.policy.differs_from(kept)
            _log.info("batchwise: the work in %s was accepted under another policy: %s", ledger.name, words)

    def keep(self) -> None:
        """Have the ledger keep the given policy, once."""
        if self._unstored is None:
            return
        try:
            self._ledger.conditions.keep_policy(self._unstored)
        except LedgerError:  # the work is accepted; the next acceptance tries again
            _log.debug("batchwise: the policy could not be stored yet", exc_info=True)
        else:
            self._unstored = None
