"""The ledger and the policy that the command line names, to look at or to work on."""

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

__all__ = ["given_policy", "looking", "planning", "working"]


def given_policy(ledger: Ledger, path: str | None) -> Policy | None:
    """The policy of a TOML file; what differs from the one that the ledger keeps is said. None: no file is named.

    Raises:
        InvalidValueError: The file holds no policy.
    """
    if path is None:
        return None
    policy, kept = Policy.from_toml(path), ledger.conditions.kept_policy()
    if kept is not None and policy != kept:
        note(f"other policy than the work in {ledger.name} was accepted under: {policy.differs_from(kept)}")
    return policy


@contextmanager
def looking(ledger: str | None, policy: str | None = None) -> Iterator[Engine]:
    """A core that only looks at a ledger: no key is needed, nothing is sent, made or changed.

    Raises:
        LedgerNotFoundError: There is no such ledger.
    """
    with closing(open_ledger(ledger, must_exist=True)) as found:
        yield Engine(found, given_policy(found, policy), endpoint=None)


@contextmanager
def planning(ledger: str | None, policy: str | None = None) -> Iterator[Engine]:
    """As `looking`; where no ledger is named and there is none yet, on an empty one in memory.

    Raises:
        LedgerNotFoundError: There is no ledger of this name.
    """
    try:
        found = open_ledger(ledger, must_exist=True)
    except LedgerNotFoundError:
        if ledger is not None:
            raise
        found = open_ledger(":memory:")
    with closing(found):
        yield Engine(found, given_policy(found, policy), endpoint=None)


@contextmanager
def working(
    ledger: str | None, policy: str | None = None, *, must_exist: bool = True, finish: bool = False
) -> Iterator[tuple[Dispatcher, str]]:
    """A dispatcher on a ledger, and the ledger's name.

    Args:
        ledger: The ledger.
        policy: The file of the policy.
        must_exist: Make no new ledger.
        finish: At the end, unless something was raised, send what is queued for a batch and let sync calls end.

    Raises:
        LedgerNotFoundError: There is no such ledger, and it has to be there.
    """
    from batchwise.dispatcher import Dispatcher  # brings the SDK, which looking does without

    with closing(open_ledger(ledger, must_exist=must_exist)) as found:
        dispatcher = Dispatcher(ledger=found, policy=given_policy(found, policy))
        try:
            yield dispatcher, found.name
        except BaseException:
            dispatcher.close(finish=False)
            raise
        dispatcher.close(finish=finish)
