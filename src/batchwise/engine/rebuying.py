"""Buys rows again that may have been billed without an answer, as far as a spend limit leaves room."""

from __future__ import annotations

from collections.abc import Sequence

from batchwise.errors import SpendLimitError
from batchwise.ledger.values import Which
from batchwise.models import Lane, Outcome
from batchwise.planning.outcomes import UNAFFORDABLE
from batchwise.planning.state import BatchView

from .core import Engine
from .settlements import settlement_without_answer

__all__ = ["buy_again"]

_SOME = 2_000
"""The most rows that one transaction queues."""


def buy_again(
    engine: Engine, batch: BatchView, requests: Sequence[int], *, lane: Lane, costs_attempt: bool
) -> list[int]:
    """Queue rows of a batch again that may have been billed. Returns the numbers of those that failed instead.

    Rows for which the spend limit has no room in another batch go to the sync lane, whose cost was reserved when they
    were accepted. A row that only a batch takes then fails.
    """
    ledger, ended = engine.ledger, list[int]()

    def queue(numbers: Sequence[int], where: Lane) -> None:
        which = Which(requests=numbers, batch=batch.id)
        ledger.requeue(
            which,
            lane=where,
            costs_attempt=costs_attempt,
            now=engine.now(),
            maybe_billed=True,
            max_spend=engine.spend_limit.max_spend(),
        )

    for start in range(0, len(requests), _SOME):
        part = requests[start : start + _SOME]
        try:
            queue(part, lane)
        except SpendLimitError:
            members = ledger.rows(Which(requests=part, batch=batch.id))
            alone = [number for number, member in members.items() if member.terms.batch_only]
            queue([number for number, member in members.items() if not member.terms.batch_only], Lane.SYNC)
            ends = [
                settlement_without_answer(
                    number,
                    members[number].key,
                    Outcome.FAILED,
                    UNAFFORDABLE,
                    lane=Lane.BATCH,
                    nonce=batch.nonce,
                    maybe_billed=True,
                )
                for number in alone
            ]
            ledger.settle(ends, now=engine.now(), batch=batch.id)
            ended += alone
    return ended
