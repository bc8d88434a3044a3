"""Opens the ledger and the policy that the command line names, for verbs that look and for verbs that work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from batchwise.engine.core import Engine
from batchwise.errors import LedgerNotFoundError
from batchwise.ledger.ledger import Ledger
from batchwise.ledger.opening import open_ledger
from batchwise.models import Policy

from .answers import note

if TYPE_CHECKING:
    from batchwise.dispatcher import Dispatcher

__all__ = ["looking", "working"]


def _note_other(ledger: Ledger, policy: Policy | None) -> None:
    """Print where a policy differs from the one that the ledger keeps."""
    kept = ledger.conditions.kept_policy()
    if policy is not None and kept is not None and policy != kept:
        note(f"the work in {ledger.name} was accepted under another policy: {policy.differs_from(kept)}")


@contextmanager
def looking(ledger: str | None, policy: str | None = None, *, or_empty: bool = False) -> Iterator[Engine]:
    """Open an existing ledger to look at it: this needs no API key, and sends and creates nothing.

    Args:
        ledger: The ledger.
        policy: The file of the policy.
        or_empty: Whether to look at an empty ledger in memory if none is named and the default one does not exist.

    Raises:
        InvalidValueError: The file does not hold a policy.
        LedgerNotFoundError: There is no such ledger.
    """
    given = None if policy is None else Policy.from_toml(policy)
    try:
        found = open_ledger(ledger, must_exist=True)
    except LedgerNotFoundError:
        if not or_empty or ledger is not None:
            raise
        found = open_ledger(":memory:")
    with closing(found):
        _note_other(found, given)
        yield Engine(found, given, endpoint=None)


@contextmanager
def working(
    ledger: str | None, policy: str | None = None, *, must_exist: bool = True, finish: bool = False
) -> Iterator[tuple[Dispatcher, str]]:
    """Open a dispatcher on a ledger, with a client from the environment; gives it and the name of the ledger.

    Args:
        ledger: The ledger.
        policy: The file of the policy.
        must_exist: Whether a ledger that does not exist is an error. Otherwise it is created.
        finish: Whether at the end, unless the block raises, queued requests are submitted and running calls end.

    Raises:
        InvalidValueError: The file does not hold a policy.
        LedgerNotFoundError: The ledger does not exist, and `must_exist` is set.
    """
    from batchwise.dispatcher import Dispatcher  # imports the SDK, which the other verbs do not need

    given = None if policy is None else Policy.from_toml(policy)  # first: a wrong one leaves no new ledger behind
    with closing(open_ledger(ledger, must_exist=must_exist)) as found:
        _note_other(found, given)
        dispatcher = Dispatcher(ledger=found, policy=given)
        try:
            yield dispatcher, found.name
        except BaseException:
            dispatcher.close(finish=False)
            raise
        dispatcher.close(finish=finish)
