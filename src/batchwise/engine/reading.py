"""Reads the rows of an ended batch as raw lines in bounded memory, and settles or requeues them in chunks.

Reading rows again changes nothing.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import attrs
import orjson

from batchwise.api.lines import LineSplitter
from batchwise.basics.jsontext import decode
from batchwise.errors import printable
from batchwise.ledger.open_rows import Answer
from batchwise.ledger.values import RequestRow, Which
from batchwise.models import Lane, Outcome
from batchwise.planning.batch_results import UNANSWERED, discrepancy
from batchwise.planning.continuation import received, usage_of
from batchwise.planning.custom_ids import opener
from batchwise.planning.outcomes import CUTS, MALFORMED, PAUSES, REFUSAL, Verdict, lane_wide_error, rule_row
from batchwise.planning.state import BatchView

from .core import Engine
from .money import Biller, Meter
from .sorting import CHUNK, Sorter

__all__ = ["Reader"]

_log = logging.getLogger("batchwise")

_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError)
"""The errors that a line raises if it is no result of ours."""
_CUSTOM_ID = re.compile(rb'"custom_id"\s*:\s*"([a-zA-Z0-9_-]{1,64})"')
_T = TypeVar("_T")
_Rows = dict[int, tuple[bytes, Mapping[str, Any]]]
"""Lines with their results, by the number of the request."""
_RULED = (*PAUSES, REFUSAL, *CUTS)
"""Stop reasons of messages that may be no whole answers: `rule_answer` decides."""
_ROWS, _BYTES = 1_200, 2_500_000
"""Rows, and bytes of rows, settled in one transaction: so few that the garbage collector frees their objects early."""


def _answer(result: Mapping[str, Any], ruled: Sequence[str] = _RULED) -> dict[str, Any] | None:
    """Return the message of a row's result if it certainly is a whole answer: its stop reason is not in `ruled`."""
    if result.get("type") != "succeeded":
        return None
    message = result.get("message")
    if not isinstance(message, dict):
        return None
    stop = message.get("stop_reason")
    if stop in ruled:
        return None
    return message if isinstance(message.get("content"), list) else None


def _keep(rows: dict[_T, tuple[bytes, Mapping[str, Any]]], request: _T, line: bytes, result: Mapping[str, Any]) -> None:
    """Keep one row of each request: the first that the API has billed, or else the first."""
    before = rows.get(request)
    if before is None or (before[1].get("type") in UNANSWERED and result.get("type") not in UNANSWERED):
        rows[request] = line, result


def _row(line: bytes, *, damaged: bool) -> tuple[str, bytes, Mapping[str, Any]] | None:
    """Return the custom_id, the line and the result of a row that the fast path does not take; None: it is no row.

    Args:
        line: As it came.
        damaged: Also take a line that is no result but shows a custom_id, as an unreadable answer.
    """
    try:
        row = decode(line)
        name, result = row["custom_id"], row["result"]
        if isinstance(name, str) and isinstance(result, dict):
            return name, line, result
    except _UNREADABLE:
        pass
    found = _CUSTOM_ID.search(line) if damaged else None
    if found is None:
        return None
    name = found[1].decode()
    kept, message = received(name, line)
    return name, kept, {"type": "succeeded", "message": message}


@attrs.define
class _Part:
    """Rows that settle together, by kind: answers to requests among the open rows (nearly all), and the rest."""

    meters: Sequence[Meter]
    """Bill the answers of each kind among the open rows, at the prices of one moment."""
    answers: list[Answer] = attrs.field(factory=list)
    rows: _Rows = attrs.field(factory=dict)
    adopted: dict[str, tuple[bytes, Mapping[str, Any]]] = attrs.field(factory=dict)
    """Rows of an adopted batch by their custom_ids; the ledger finds or chooses the request of each."""
    size: int = 0
    """Bytes of the stream."""

    @property
    def full(self) -> bool:
        """Whether to settle it before more rows are taken."""
        return self.size >= _BYTES or len(self.answers) + len(self.rows) + len(self.adopted) >= _ROWS


class Reader:
    """Takes a stream of results: call `feed` for each chunk, then `finish`.

    Args:
        engine: The core, whose ledger takes the rows.
        batch: The batch of the rows.
        last: Whether this is the last reading: then a damaged line is taken as the answer.
    """

    def __init__(self, engine: Engine, batch: BatchView, *, last: bool = False) -> None:
        self.engine, self.batch = engine, batch
        self.sorter = Sorter(engine, batch)
        self.last = last
        self._resumes = engine.suspensions.resumes
        self._splitter = LineSplitter()
        self._open = opener(batch.nonce)
        self._held: dict[int, bytes] = {}  # lines without an answer are short, and a batch's worth at most
        self._kinds: Counter[tuple[str, str]] = Counter()
        self._unanswered: dict[str, set[int]] = {kind: set() for kind in UNANSWERED}
        self.off: Mapping[str, int] = {}
        """The result of `discrepancy`, once the reading has ended."""
        self._open_rows = None if batch.adopted else engine.ledger.batches.open_rows(batch.id)
        kinds = () if self._open_rows is None else self._open_rows.kinds
        self._ruled = _RULED if any(each.terms.structured for each in kinds) else (*PAUSES, REFUSAL)
        self._part = self._new_part()

    def feed(self, chunk: bytes) -> bool:
        """Take in a chunk; returns True: more is wanted."""
        self._tell_apart(self._splitter.feed(chunk))
        self._part.size += len(chunk)
        if self._part.full:
            self._settle_part()
        return True

    def _new_part(self) -> _Part:
        biller = Biller(self.engine.prices, self.engine.now())
        kinds = () if self._open_rows is None else self._open_rows.kinds
        return _Part([biller.meter(each.terms.model, Lane.BATCH) for each in kinds])

    def finish(self, *, whole: bool) -> list[int]:
        """Take in the rest; returns the requests that are not ticked off.

        Rows without an answer are ruled on once every row was seen and they are no more than the API counted, or in
        the last reading if it was `whole`.
        """
        last, self.last = self.last and whole, False  # the rest is a line that was cut off, not a damaged one
        rest = self._splitter.rest()
        self._tell_apart([rest] if rest else [])
        self._settle_part()
        missing = self._missing()
        found = {kind: len(numbers) for kind, numbers in self._unanswered.items()}
        self.off = discrepancy(found, self.batch.counts)
        maybe_billed = any(more > 0 for more in self.off.values())
        if not self._held or not (last or (self._held.keys() >= set(missing) and not maybe_billed)):
            return missing
        stop = None if self.batch.adopted else lane_wide_error(self._kinds, self.batch.requests)
        if stop is not None:  # first: rows that are queued while the lane takes work are sent again at once
            self.engine.suspensions.suspend(Lane.BATCH, stop, resumes=self._resumes)
        self._let_go(forgiven=stop is not None, maybe_billed=maybe_billed)
        return self._missing()

    def _missing(self) -> list[int]:
        if self._open_rows is not None and not self._open_rows.left:
            return []
        return self.engine.ledger.numbers(Which(batch=self.batch.id))

    def _tell(self) -> None:
        """Announce settled requests."""
        self.engine.announcing.settled(self.sorter.take_ended())

    def _tell_apart(self, lines: Iterable[bytes]) -> None:
        """Take in lines.

        A row that comes twice in one part is noticed only when it is settled. Then the open rows are dropped: the rest
        settles more slowly, with the same outcomes.
        """
        if self.batch.adopted:
            self._tell_adopted(lines)
            return
        answers, rows, meters = self._part.answers, self._part.rows, self._part.meters
        loads, open_, open_rows, ruled = orjson.loads, self._open, self._open_rows, self._ruled
        for line in lines:
            try:
                row = loads(line)
                number, result = open_(row["custom_id"].encode()), row["result"]
                if number < 0:
                    continue
                message = _answer(result, ruled)
                kind = None if open_rows is None or message is None else open_rows.kind(number)
                if message is None or kind is None:
                    _keep(rows, number, line, result)
                else:
                    cost, saved, tokens, cached = meters[kind](usage_of(message))
                    answers.append((number, line, cost, saved, tokens, cached))
            except Exception:  # noqa: BLE001  # one line harms no other
                self._take_odd(line)

    def _take_odd(self, line: bytes) -> None:
        """Take a line that the fast path cannot take. The request of a line that is no row is not ticked off."""
        row = _row(line, damaged=self.last)
        number = -1 if row is None else self._open(row[0].encode("utf-8", "replace"))
        if row is not None and number >= 0:
            _keep(self._part.rows, number, *row[1:])

    def _tell_adopted(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            row = _row(line, damaged=self.last)
            if row is not None:
                _keep(self._part.adopted, *row)

    def _settle_part(self) -> None:
        """Settle what was taken in, and announce it."""
        part, self._part = self._part, self._new_part()
        try:
            self._store(part)
        finally:
            self._tell()

    def _store(self, part: _Part) -> None:
        self.sorter.price_at(self.engine.now())
        # These first: a caller may wait only for a row that has left the batch, and while the batch still has rows,
        # that row is not given up.
        if part.adopted:
            numbers = self.engine.ledger.adoption.name(self.batch.id, list(part.adopted))
            if len(numbers) < len(part.adopted):
                _log.warning(
                    "batchwise: the results of batch %s have %d rows beyond its %d requests; they are passed over",
                    printable(self.batch.remote_id or ""),
                    len(part.adopted) - len(numbers),
                    self.batch.requests,
                )
            part.rows.update((number, part.adopted[name]) for name, number in numbers.items())
        self._settle(part.rows)
        answers = part.answers
        if answers and not self._tick_off(answers):
            self._open_rows = None
            rows: _Rows = {}
            for number, line, *_ in answers:
                _keep(rows, number, line, decode(line)["result"])
            self._settle(rows)

    def _tick_off(self, answers: Sequence[Answer]) -> bool:
        """Settle answers by the open rows; False, and nothing is changed, if those are out of date."""
        engine, open_rows = self.engine, self._open_rows
        if open_rows is None or not engine.ledger.settle_answers(open_rows, answers, now=engine.now()):
            return False
        self.sorter.end([answer[0] for answer in answers])
        return True

    def _write(self) -> None:
        """Store the outcomes of the rows that were looked up."""
        gone = self.sorter.write()
        if gone and self._open_rows is not None:
            self._open_rows.tick(gone)

    def _settle(self, rows: _Rows) -> None:
        """Settle rows of any kind; looks each request up."""
        if not rows:
            return
        members = self.engine.ledger.rows(Which(requests=list(rows), batch=self.batch.id))
        others = [number for number in rows if number not in members]
        strays = self.engine.ledger.rows(Which(requests=others, unsettled=True))
        for number, (line, result) in rows.items():
            member = members.get(number)
            if (kind := result.get("type")) in UNANSWERED:
                self._unanswered[kind].add(number)
            if member is None:
                self._stray(number, strays.get(number), line, result)
            elif (message := _answer(result)) is not None:
                self.sorter.add_answer(number, member, line, message)
            else:
                self._hold(number, member, line, result)
        self._write()

    def _hold(self, number: int, member: RequestRow, line: bytes, result: Mapping[str, Any]) -> None:
        ruling = rule_row(result, structured=member.terms.structured)
        outcome, error = ruling.outcome or Outcome.FAILED, ruling.error
        fallback = outcome is Outcome.REFUSED and self.engine.policy.fallback_models
        if (ruling.verdict is Verdict.CONTINUE or fallback) and not self.batch.adopted:
            self.sorter.turns.append((number, line, member, ruling))
            return
        if ruling.billed or error is None:
            self.sorter.add_answer(number, member, line, result["message"], outcome)
            return
        if error.type == MALFORMED:  # an answer all the same: another reading would tell no more
            self.sorter.add_failure(number, member, ruling, line)
            return
        if number in self._held:
            return  # it came twice
        self._kinds[error.type, error.message] += 1
        self._held[number] = line

    def _stray(self, number: int, unsettled: RequestRow | None, line: bytes, result: Mapping[str, Any]) -> None:
        """Handle a paid row of a request that has left this batch, or is settled (then `unsettled` is None).

        A whole answer settles its request wherever that is now, unless it is settled. A paused turn that was continued
        is on record already. Every other row is booked as paid and not used.
        """
        message = result.get("message")
        if result.get("type") != "succeeded" or not isinstance(message, dict):
            return
        ruling = rule_row(result, structured=unsettled is not None and unsettled.terms.structured)
        whole = ruling.verdict is Verdict.SETTLE and ruling.outcome is Outcome.SUCCEEDED
        if unsettled is not None and not unsettled.turns and whole:
            self.sorter.add_answer(number, unsettled, line, message)
            return
        cost, *_ = self.sorter.biller.meter(str(message.get("model")), Lane.BATCH)(usage_of(message))
        self.engine.ledger.book_stray(self.batch.id, number, line, cost or 0, now=self.engine.now())

    def _let_go(self, *, forgiven: bool, maybe_billed: bool) -> None:
        held = list(self._held.items())
        self._held = {}
        for start in range(0, len(held), CHUNK):
            part: Sequence[tuple[int, bytes]] = held[start : start + CHUNK]
            members = self.engine.ledger.rows(Which(requests=[number for number, _ in part], batch=self.batch.id))
            for number, line in part:
                member = members.get(number)
                if member is None:
                    continue
                ruling = rule_row(decode(line)["result"])
                ruling = attrs.evolve(ruling, maybe_billed=ruling.maybe_billed or maybe_billed)
                if forgiven:
                    ruling = attrs.evolve(ruling, verdict=Verdict.SUSPEND, costs_attempt=False)
                self.sorter.add_failure(number, member, ruling, line)
            if not forgiven:  # a lane-wide error is on all rows, so all of them are queued again together
                self._write()
                self._tell()
        self._write()
        self._tell()
