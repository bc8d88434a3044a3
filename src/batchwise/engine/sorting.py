"""What becomes of the rows of a batch: they settle or are tried again, and are stored a chunk at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from batchwise.basics.jsontext import decode
from batchwise.errors import SpendLimitError
from batchwise.ledger.values import RequestRow, Settlement, Turn, Which
from batchwise.models import Lane, Outcome, ResultError
from batchwise.planning.continuation import next_call
from batchwise.planning.outcomes import UNAFFORDABLE, Ruling, Verdict
from batchwise.planning.retries import next_attempt
from batchwise.planning.state import BatchView

from .core import Engine
from .money import Biller
from .settlements import settlement_of, settlement_without_answer

__all__ = ["CHUNK", "Sorter", "buy_again"]

CHUNK = 2_000
"""The most rows that one transaction queues again."""


class Sorter:
    """Collects the outcomes of a chunk's rows, and writes them."""

    def __init__(self, engine: Engine, batch: BatchView) -> None:
        self.engine, self.batch = engine, batch
        self.settlements: list[Settlement] = []
        self.requeued: dict[tuple[Lane, bool, bool], list[int]] = {}
        self.turns: list[tuple[int, bytes, RequestRow, Ruling]] = []
        self.ended: list[int] = []
        self.settled = self.rescued = 0
        """How many rows it has settled, and how many it has queued for the sync lane."""
        self.price_at(engine.now())

    def price_at(self, now: datetime) -> None:
        """Bill the next rows at the prices of this moment."""
        self.biller = Biller(self.engine.prices, now)

    def add_answer(
        self,
        number: int,
        member: RequestRow,
        line: bytes,
        message: Mapping[str, Any],
        outcome: Outcome = Outcome.SUCCEEDED,
    ) -> None:
        """Add a row with a message: it is billed, and its request settles."""
        # Only the answer names the model of an adopted batch's row.
        asked = member.terms.asked if member.terms.model else (str(message.get("model")),)
        self.settlements.append(
            settlement_of(self.biller, number, Lane.BATCH, asked, line, message, member.turns, outcome)
        )

    def add_failure(self, number: int, member: RequestRow, ruling: Ruling, line: bytes | None) -> None:
        """Add a row without an answer: its request is tried again while attempts are left, else it settles."""
        if ruling.verdict in {Verdict.RETRY, Verdict.SUSPEND} and not self.batch.canceled:
            # A row that somebody else canceled costs an attempt: they may go on cancelling.
            costs = ruling.costs_attempt or (ruling.caller_decides and self.batch.cancel_at is None)
            following = self._next(member, costs=costs)
            if following is not None:
                self.requeued.setdefault((*following, ruling.maybe_billed), []).append(number)
                return
        settlement = settlement_without_answer(
            number,
            member.key,
            ruling.outcome or Outcome.FAILED,
            ruling.error or ResultError("unknown_error", "the API gave no reason", retryable=True),
            lane=Lane.BATCH,
            nonce=self.batch.nonce,
            maybe_billed=ruling.maybe_billed,
        )
        if line is not None:
            settlement = settlement._replace(line=line)
        if ruling.verdict is Verdict.SETTLE and ruling.maybe_billed:  # an unreadable answer is paid for
            settlement = settlement._replace(cost=None, saved=None)
        self.settlements.append(settlement)

    def _next(self, member: RequestRow, *, costs: bool) -> tuple[Lane, bool] | None:
        engine = self.engine
        works = Lane.SYNC not in engine.suspensions.lanes
        return next_attempt(member.terms, member.attempts, engine.now(), engine.policy, costs=costs, sync_works=works)

    def write(self) -> list[int]:
        """Settle and requeue the added rows, a transaction for each kind of outcome; returns their requests."""
        ledger, now, batch = self.engine.ledger, self.engine.now(), self.batch.id
        gone: list[int] = []
        models = self.engine.policy.fallback_models
        for number, line, member, ruling in self.turns:
            before = ledger.body(number)
            goes_on = next_call(ruling, before, member.turns, line, terms=member.terms, fallback_models=models)
            if goes_on is None:  # it settles with the message that came
                message = decode(line)["result"]["message"]
                self.add_answer(number, member, line, message, ruling.outcome or Outcome.FAILED)
                continue
            lane, _ = self._next(member, costs=False) or (Lane.BATCH, False)
            turn = Turn(line, goes_on[0], goes_on[1].asked)
            one = Which(requests=[number], batch=batch)
            ledger.requeue(one, lane=lane, costs_attempt=ruling.costs_attempt, now=now, turn=turn)
            gone.append(number)
        settled = [settlement.id for settlement in self.settlements]
        if self.settlements:
            ledger.settle(self.settlements, now=now, batch=batch)
            self.end(settled)
        for (lane, costs, maybe_billed), numbers in self.requeued.items():
            if maybe_billed:
                self.end(buy_again(self.engine, self.batch, numbers, lane=lane, costs_attempt=costs))
            else:
                ledger.requeue(Which(requests=numbers, batch=batch), lane=lane, costs_attempt=costs, now=now)
            self.rescued += len(numbers) if lane is Lane.SYNC else 0
            gone += numbers
        self.settlements, self.requeued, self.turns = [], {}, []
        return gone + settled

    def end(self, numbers: Sequence[int]) -> None:
        """Count requests that have settled; they are announced later."""
        self.ended += numbers
        self.settled += len(numbers)

    def take_ended(self) -> list[int]:
        """Return the requests that settled since the last call."""
        ended, self.ended = self.ended, []
        return ended


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

    for start in range(0, len(requests), CHUNK):
        part = requests[start : start + CHUNK]
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
