"""How a batch's end is noticed and its rows are collected: each once, and none taken for granted.

Rows are read as raw lines in bounded memory and settled in chunks; reading them again changes nothing. `ended` proves
nothing: every custom_id that was sent is ticked off, and rows without an answer are checked against the API's
`request_counts`; a short, broken or doubtful read is read again before anything is bought again. Reads that fail are
never a reason to buy again: they go on, and in the end suspend the lane.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import attrs
import orjson

from batchwise.lanes.faults import LaneFault
from batchwise.lanes.lines import LineSplitter
from batchwise.lanes.values import BatchInfo
from batchwise.ledger.base import Member, Settlement
from batchwise.ledger.roll import Answer, Roll
from batchwise.models import Lane, Outcome, ResultError
from batchwise.planning.custom_ids import opener
from batchwise.planning.outcomes import (
    UNANSWERED,
    Ruling,
    Verdict,
    credible,
    discrepancy,
    rule_call,
    rule_row,
    stop_sign,
)
from batchwise.planning.state import BatchState, BatchView, Terms
from batchwise.planning.turns import continued, merged, usage_of

from .core import Engine
from .effects import Procedure, api, page, store
from .money import Biller

__all__ = ["cancel", "collect", "poll", "release"]

_log = logging.getLogger("batchwise")

_UNREADABLE = (orjson.JSONDecodeError, KeyError, TypeError, AttributeError)
"""What a line raises that is no result of ours."""
_Rows = dict[int, tuple[bytes, Mapping[str, Any]]]
"""Lines with their results, by the number of the request."""
_CHUNK = 2_000
"""Rows given back in one transaction."""
_ROWS, _BYTES = 1_500, 2_500_000
"""Rows, and bytes of rows, settled in one transaction: few enough that what is made for them dies young."""
_REREADS = 3
"""How often a short read is repeated before missing rows are bought again."""
_TROUBLES = 10
"""Polls or reads of one batch that fail in a row before the lane is suspended."""
_MAX_TURNS = 20
"""How often a paused turn is continued."""
_YOUNG = timedelta(minutes=5)
"""A batch just created may be unknown to `retrieve` for a moment (seen: a second or so)."""


def poll(engine: Engine, batch: BatchView) -> Procedure[None]:
    """Ask how a batch is doing."""
    remote = batch.remote_id or ""
    try:
        info = yield from api(lambda ports: ports.retrieve(remote))
    except LaneFault as error:
        yield from _unreadable(engine, batch, error)
        return
    yield from _seen(engine, batch, info)


def _seen(engine: Engine, batch: BatchView, info: BatchInfo) -> Procedure[None]:
    """Take over what the API says of a batch, unless that cannot be any more."""
    if info.status != "ended" and _overdue(engine, info):
        yield from _again(engine, batch, f"it should have ended at {info.expires_at:%Y-%m-%d %H:%M} UTC")
        return
    yield from store(lambda: _update(engine, batch, info, was=batch))


def _overdue(engine: Engine, info: BatchInfo) -> bool:
    """Whether it ought to have ended long ago; both times are the server's."""
    return info.server_time is not None and info.server_time > info.expires_at + engine.policy.create_grace


def cancel(engine: Engine, batch: BatchView) -> Procedure[None]:
    """Cancel a batch; what it finished is collected when it has ended."""
    remote, now = batch.remote_id or "", engine.now()
    asked = attrs.evolve(batch, state=BatchState.CANCELING, cancel_at=batch.cancel_at or now, polled_at=now)
    try:
        info = yield from api(lambda ports: ports.cancel(remote))
    except LaneFault:  # it may have ended just now, or the cancel may have arrived: the next poll tells
        yield from store(lambda: engine.ledger.update_batch(asked, was=batch))
        return
    yield from store(lambda: _update(engine, asked, info, was=batch))


def release(engine: Engine, batch: BatchView, terms: tuple[int, ...]) -> Procedure[None]:
    """Queue its rows for the sync lane, whatever becomes of it: their last safe moment has come."""

    def queue() -> None:
        if batch.state is BatchState.SEALED:  # never sent: back into the queue, where what is due changes lanes
            engine.ledger.unseal(batch.id, now=engine.now())
            return
        engine.ledger.unseal(batch.id, lane=Lane.SYNC, now=engine.now(), keep=True, doubtful=True, terms=terms)
        left = {group.terms.id for group in batch.groups} - set(terms)
        if batch.state is BatchState.DOUBT and not left:
            engine.ledger.update_batch(attrs.evolve(batch, state=BatchState.WATCHED), was=batch)

    yield from store(queue)


def probe(engine: Engine, batch: int, terms: int) -> Procedure[None]:
    """Queue one of its requests for the sync lane, to see that it works before the others need it."""

    def queue() -> None:
        ledger = engine.ledger
        numbers = ledger.missing(batch)[::-1]  # the last may be the one that the batch comes to last
        for start in range(0, len(numbers), _CHUNK):
            members = ledger.members(batch, numbers[start : start + _CHUNK])
            found = [number for number in members if members[number].terms.id == terms]
            if found:
                one, now = max(found), engine.now()
                ledger.requeue([one], lane=Lane.SYNC, costs_attempt=False, now=now, doubtful=True, batch=batch)
                return

    yield from store(queue)


def _update(engine: Engine, batch: BatchView, info: BatchInfo, *, was: BatchView) -> None:
    """Take over what the API says. One that still runs although we asked for its end is open: it is asked again."""
    states = {"in_progress": BatchState.OPEN, "canceling": BatchState.CANCELING, "ended": BatchState.ENDED}
    state = states[info.status]
    now = engine.now()
    if info.server_time is not None:
        engine.ledger.note_clock(info.server_time - now)
    engine.ledger.update_batch(
        attrs.evolve(
            batch,
            state=state,
            created_at=info.created_at,
            expires_at=info.expires_at,
            ended_at=info.ended_at,
            counts=credible(info.counts.by_result, batch.requests) if state is BatchState.ENDED else None,
            polled_at=now,
            failures=0,
        ),
        was=was,
    )


def _unreadable(engine: Engine, batch: BatchView, error: LaneFault) -> Procedure[None]:
    """A poll or a read failed: again later; lost for good if the API goes on not knowing the batch, nor lists it."""
    fault, ruling = error.fault, rule_call(error.fault)
    if fault.status == 404:
        young = engine.now() - (batch.posting_at or batch.sealed_at) < _YOUNG
        if batch.failures >= _REREADS and not young:
            try:
                info = None if batch.state is BatchState.ENDED else (yield from _listed(batch))
            except LaneFault as unlisted:
                yield from _again(engine, batch, f"{unlisted.fault.type}: {unlisted.fault.message}")
                return
            if info is not None:
                yield from _seen(engine, batch, info)
                return
            yield from _lost(engine, batch, "batch_gone", "the API knows the batch no more; it or its results are gone")
            return
        noted = attrs.evolve(batch, polled_at=engine.now(), failures=batch.failures + 1)
        yield from store(lambda: engine.ledger.update_batch(noted, was=batch))
        return
    reason = (ruling.reason or "") if ruling.verdict is Verdict.SUSPEND else None
    yield from _again(engine, batch, f"{fault.type}: {fault.message}", reason)


def _listed(batch: BatchView) -> Procedure[BatchInfo | None]:
    """The batch as the listing shows it; None: it is not there."""
    after: str | None = None
    while True:
        listing = yield from page(after)
        for info in listing.batches:
            if info.id == batch.remote_id:
                return info
            if batch.created_at is not None and info.created_at < batch.created_at:
                return None
        if not listing.has_more or listing.last_id is None:
            return None
        after = listing.last_id


def _again(engine: Engine, batch: BatchView, words: str, reason: str | None = None) -> Procedure[None]:
    """Look again later, ever more seldom. Who waits is told in the end; nothing is bought again because of it."""
    failures = batch.failures + 1
    noted = attrs.evolve(batch, polled_at=engine.now(), failures=failures)
    yield from store(lambda: engine.ledger.update_batch(noted, was=batch))
    if reason is None and failures >= _TROUBLES:
        reason = (
            f"batch {batch.remote_id} could not be read {failures} times in a row ({words}); "
            "see whether the API can be reached, then resume()"
        )
    if reason is not None:
        told = reason
        yield from store(lambda: engine.ledger.suspend(Lane.BATCH, told, now=engine.now()))


def _lost(engine: Engine, batch: BatchView, kind: str, words: str) -> Procedure[None]:
    """Its unsettled rows will not come: another attempt while some are left. They may have been paid for."""

    def give_back() -> list[int]:
        error = ResultError(kind, words, retryable=True)
        ruling = Ruling(verdict=Verdict.RETRY, outcome=Outcome.FAILED, error=error, doubtful=True)
        sorter = _Sorter(engine, batch)
        numbers = engine.ledger.missing(batch.id)
        for start in range(0, len(numbers), _CHUNK):
            members = engine.ledger.members(batch.id, numbers[start : start + _CHUNK])
            for number, member in members.items():
                sorter.failed(number, member, ruling, None)
            sorter.write()
        engine.ledger.update_batch(attrs.evolve(batch, state=BatchState.CLOSED), was=batch)
        return sorter.ended

    engine.settled((yield from store(give_back)))


def collect(engine: Engine, batch: BatchView) -> Procedure[None]:
    """Read an ended batch's rows, settle them, and tick them off."""
    remote = batch.remote_id or ""
    reader = _Reader(engine, batch)
    fault: LaneFault | None = None
    try:
        yield from api(lambda ports: ports.read(remote, reader.feed))
    except LaneFault as error:
        fault = error
    last = fault is None and batch.failures >= _REREADS
    missing = yield from store(lambda: reader.finish(last=last))
    engine.settled(reader.sorter.take_ended())
    if reader.off and fault is None and (last or not missing):
        _log.warning(
            "batchwise: the results of batch %s differ from its request_counts (%s); what its rows say stands",
            remote,
            ", ".join(f"{kind}: {more:+d}" for kind, more in reader.off.items()),
        )
    if not missing:
        closed = attrs.evolve(batch, state=BatchState.CLOSED, polled_at=engine.now())
        yield from store(lambda: engine.ledger.update_batch(closed, was=batch))
    elif fault is not None:
        yield from _unreadable(engine, batch, fault)
    elif batch.failures < _REREADS:
        yield from _again(engine, batch, "rows are missing from its results, or differ from what the API counted")
    else:
        yield from _lost(engine, batch, "missing_row", "the batch ended without a readable row for this request")


class _Sorter:
    """What becomes of the rows of a chunk, and the writing of it."""

    def __init__(self, engine: Engine, batch: BatchView) -> None:
        self.engine, self.batch = engine, batch
        self.settlements: list[Settlement] = []
        self.again: dict[tuple[Lane, bool, bool], list[int]] = {}
        self.turns: list[tuple[int, bytes, Member]] = []
        self.ended: list[int] = []
        self.look(engine.now())

    def look(self, now: datetime) -> None:
        """The moment from which on rows are judged."""
        self._now, self.biller = now, Biller(self.engine.prices, now)
        self._met: dict[int, tuple[bool | None, timedelta]] = {}

    def answered(self, number: int, member: Member, line: bytes, message: Mapping[str, Any]) -> None:
        """A row with an answer."""
        terms = member.terms
        money = self.biller.bill(terms.model, Lane.BATCH, message, member.turns)
        if terms.id not in self._met:
            self._met[terms.id] = self.engine.met(terms, self._now)
        met, lateness = self._met[terms.id]
        self.settlements.append(
            Settlement(
                number,
                Outcome.SUCCEEDED,
                Lane.BATCH,
                merged(member.turns, line) if member.turns else line,
                money.cost,
                money.saved,
                met,
                lateness,
                money.input_tokens,
                money.cache_read_tokens,
            )
        )

    def failed(self, number: int, member: Member, ruling: Ruling, line: bytes | None) -> None:
        """A row without an answer: tried again while attempts are left, else it ends."""
        again = ruling.verdict in {Verdict.RETRY, Verdict.SUSPEND} and not self.batch.canceled
        # Canceled by somebody else, it costs an attempt: they may go on cancelling.
        costs = ruling.costs_attempt or (ruling.caller_decides and self.batch.cancel_at is None)
        if again and (not costs or member.attempts + 1 < self.engine.policy.max_attempts):
            place = (self._lane(member.terms), costs, ruling.doubtful)
            self.again.setdefault(place, []).append(number)
            return
        outcome, error = ruling.outcome or Outcome.FAILED, ruling.error
        settlement = self.engine.failure(
            number,
            member.key,
            member.terms,
            outcome,
            error or ResultError("unknown_error", "the API gave no reason", retryable=True),
            lane=Lane.BATCH,
            nonce=self.batch.nonce,
        )
        self.settlements.append(settlement if line is None else settlement._replace(line=line))

    def _lane(self, terms: Terms) -> Lane:
        """Another batch if the time allows one, else the sync lane."""
        if terms.deadline is None or terms.batch_only:
            return Lane.BATCH
        policy = self.engine.policy
        left = terms.deadline - self.engine.now()
        return Lane.BATCH if left >= policy.window + policy.reserve_for(left - policy.window) else Lane.SYNC

    def write(self) -> list[int]:
        """Settle and queue again, in two or three transactions; returns the requests that this was about."""
        ledger, now, batch = self.engine.ledger, self.engine.now(), self.batch.id
        gone = [settlement.id for settlement in self.settlements]
        if self.settlements:
            ledger.settle(self.settlements, now=now, batch=batch)
            self.ended += gone
        for (lane, costs, doubtful), numbers in self.again.items():
            ledger.requeue(numbers, lane=lane, costs_attempt=costs, now=now, doubtful=doubtful, batch=batch)
            gone = [*gone, *numbers]
        for number, line, member in self.turns:
            body = next(iter(ledger.bodies([number])))
            ledger.requeue(
                [number],
                lane=self._lane(member.terms),
                costs_attempt=False,
                now=now,
                turn=line,
                body=continued(body, line),
                batch=batch,
            )
            gone.append(number)
        self.settlements, self.again, self.turns = [], {}, []
        return gone

    def take_ended(self) -> list[int]:
        """The requests that settled since the last time."""
        ended, self.ended = self.ended, []
        return ended


def _answer(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The message of a row's result, if it is a whole answer."""
    if result.get("type") != "succeeded":
        return None
    message = result.get("message")
    return message if isinstance(message, dict) and message.get("stop_reason") != "pause_turn" else None


class _Reader:
    """Takes a results stream chunk by chunk; every method but `finish` is called from within the read."""

    def __init__(self, engine: Engine, batch: BatchView) -> None:
        self.engine, self.batch = engine, batch
        self.sorter = _Sorter(engine, batch)
        self._splitter = LineSplitter()
        self._open = opener(batch.nonce)
        self._lines: list[bytes] = []
        self._size = 0
        self._held: dict[int, bytes] = {}  # lines without an answer are short, and a batch's worth at most
        self._kinds: Counter[tuple[str, str]] = Counter()
        self._unanswered: dict[str, set[int]] = {kind: set() for kind in UNANSWERED}
        self.off: Mapping[str, int] = {}
        """What `discrepancy` found, once the reading has ended."""
        self._roll = engine.ledger.roll(batch.id)

    def feed(self, chunk: bytes) -> bool:
        """Take some bytes in; always wants more."""
        self._lines += self._splitter.feed(chunk)
        self._size += len(chunk)
        if self._size >= _BYTES or len(self._lines) >= _ROWS:
            self._size = 0
            self._sort()
        return True

    def finish(self, *, last: bool = True) -> list[int]:
        """Take in the rest; returns the rows that are not ticked off.

        Rows without an answer are judged once every row was seen and no more of them than the API counted, or in the
        `last` reading.
        """
        rest = self._splitter.rest()
        if rest:
            self._lines.append(rest)
        self._sort()
        missing = self._missing()
        found = {kind: len(numbers) for kind, numbers in self._unanswered.items()}
        self.off = discrepancy(found, self.batch.counts)
        doubtful = any(more > 0 for more in self.off.values())
        if not self._held or not (last or (self._held.keys() >= set(missing) and not doubtful)):
            return missing
        stop = stop_sign(self._kinds, self.batch.requests)
        if stop is not None:  # first: what is queued while the lane takes work is sent again at once
            self.engine.ledger.suspend(Lane.BATCH, stop, now=self.engine.now())
        self._let_go(forgiven=stop is not None, doubtful=doubtful)
        return self._missing()

    def _missing(self) -> list[int]:
        return [] if self._roll is not None and not self._roll.left else self.engine.ledger.missing(self.batch.id)

    def _sort(self) -> None:
        """Settle what came: answers to requests on the roll, which is nearly all, and the rest."""
        lines, self._lines = self._lines, []
        self.sorter.look(self.engine.now())
        answers: list[Answer] = []
        rows: _Rows = {}
        loads, open_, roll = orjson.loads, self._open, self._roll
        meters = [] if roll is None else [self.sorter.biller.meter(each.terms.model, Lane.BATCH) for each in roll.kinds]
        for line in lines:
            try:
                row = loads(line)
                number, result = open_(row["custom_id"].encode()), row["result"]
            except _UNREADABLE:
                continue  # garbage or a cut line: its request stays unticked
            if number < 0 or not isinstance(result, dict):
                continue
            message = _answer(result)
            kind = None if roll is None or message is None else roll.kind(number)
            if message is None or kind is None:
                rows[number] = line, result
            else:
                cost, saved, tokens, cached = meters[kind](usage_of(message))
                answers.append((number, line, cost, saved, tokens, cached))
        # These first: a row that has left the batch may be the last that a caller waits for, and while others are
        # still in the batch it is not given up.
        self._settle(rows)
        if answers and not self._tick_off(answers, roll):
            self._roll = None
            self._settle({number: (line, loads(line)["result"]) for number, line, *_ in answers})

    def _tick_off(self, answers: list[Answer], roll: Roll | None) -> bool:
        """Settle answers by the roll; False, and nothing done, if it does not hold any more."""
        engine, now = self.engine, self.engine.now()
        if roll is None or not engine.ledger.settle_answers(
            roll, answers, met=lambda terms: engine.met(terms, now), now=now
        ):
            return False
        engine.settled([answer[0] for answer in answers])
        return True

    def _write(self) -> None:
        """Store what became of the rows that were looked up."""
        gone = self.sorter.write()
        if gone and self._roll is not None:
            self._roll.tick(gone)
        self.engine.settled(self.sorter.take_ended())

    def _settle(self, rows: _Rows) -> None:
        """Settle whatever rows, looking each request up."""
        if not rows:
            return
        members = self.engine.ledger.members(self.batch.id, list(rows))
        strays = self.engine.ledger.unsettled([number for number in rows if number not in members])
        for number, (line, result) in rows.items():
            member = members.get(number)
            if (kind := result.get("type")) in UNANSWERED:
                self._unanswered[kind].add(number)
            if member is None:
                self._stray(number, strays.get(number), line, result)
            elif (message := _answer(result)) is not None:
                self.sorter.answered(number, member, line, message)
            else:
                self._hold(number, member, line, result)
        self._write()

    def _hold(self, number: int, member: Member, line: bytes, result: Mapping[str, Any]) -> None:
        ruling = rule_row(result)
        if ruling.verdict is Verdict.CONTINUE and len(member.turns) < _MAX_TURNS:
            self.sorter.turns.append((number, line, member))
            return
        if ruling.verdict is Verdict.CONTINUE or ruling.error is None:
            self.sorter.answered(number, member, line, result["message"])
            return
        if number in self._held:
            return  # it came twice
        self._kinds[ruling.error.type, ruling.error.message] += 1
        self._held[number] = line

    def _stray(self, number: int, member: Member | None, line: bytes, result: Mapping[str, Any]) -> None:
        """A row of a request that has left this batch or is settled.

        It is paid: a whole answer ends its request wherever that is by now, if nothing has ended it yet. A paused
        turn is on the record already if it was continued. The rest is booked as paid and not used.
        """
        message = result.get("message")
        if result.get("type") != "succeeded" or not isinstance(message, dict):
            return
        whole = _answer(result) is not None
        if member is not None and not member.turns and whole:
            self.sorter.answered(number, member, line, message)
            return
        if not whole and self.engine.ledger.has_turn(number, line):
            return
        cost, *_ = self.sorter.biller.meter(str(message.get("model")), Lane.BATCH)(usage_of(message))
        self.engine.ledger.book_stray(self.batch.id, number, cost or 0)

    def _let_go(self, *, forgiven: bool, doubtful: bool) -> None:
        held = list(self._held.items())
        self._held = {}
        for start in range(0, len(held), _CHUNK):
            part: Sequence[tuple[int, bytes]] = held[start : start + _CHUNK]
            members = self.engine.ledger.members(self.batch.id, [number for number, _ in part])
            for number, line in part:
                member = members.get(number)
                if member is None:
                    continue
                ruling = rule_row(orjson.loads(line)["result"])
                ruling = attrs.evolve(ruling, doubtful=ruling.doubtful or doubtful)
                if forgiven:
                    ruling = attrs.evolve(ruling, verdict=Verdict.SUSPEND, costs_attempt=False)
                self.sorter.failed(number, member, ruling, line)
            if not forgiven:  # a stop sign stands on all rows: all of them go back at once
                self._write()
        self._write()
