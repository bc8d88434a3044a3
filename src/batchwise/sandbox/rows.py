"""What became of the rows of a batch that has ended."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Union

import orjson

from .errors import ApiError
from .faults import Fault
from .latency import seeded
from .memory import uncollected
from .replies import Replier, Reply, ask, build_message, usage_of
from .validation import params_error

if TYPE_CHECKING:
    from .batches import Batch

SUCCEEDED, ERRORED, CANCELED, EXPIRED = range(4)
STATES = ("succeeded", "errored", "canceled", "expired")

End = Union[Reply, ApiError, None]
"""What a row was answered, or refused with; None: it was not run."""


class Settled:
    """What became of the rows of an ended batch. Result lines and tokens are made when they are asked for.

    Attributes:
        states: By row.
        order: The rows in the order of their result lines.
    """

    def __init__(self, batch: Batch, states: bytearray, ends: list[End], order: list[int]) -> None:
        self.states, self.order = states, order
        self._batch, self._ends = batch, ends

    def counts(self) -> dict[str, int]:
        """The `request_counts` of the end."""
        return {"processing": 0, **{name: self.states.count(code) for code, name in enumerate(STATES)}}

    @cached_property
    def tokens(self) -> tuple[array[int], array[int]]:
        """Input and output tokens by row."""
        read, written = (array("Q", bytes(8 * len(self.states))) for _ in range(2))
        for index, end in enumerate(self._ends):
            if isinstance(end, Reply):
                usage = usage_of(self._batch.rows[index]["params"], end, tier="batch")
                read[index], written[index] = usage["input_tokens"], usage["output_tokens"]
        return read, written

    def lines(self) -> Iterator[bytes]:
        """The result lines, in order."""
        batch, ends = self._batch, self._ends
        prefix = f"msg_01{batch.id[-14:]}"
        for index in self.order:
            row, end = batch.rows[index], ends[index]
            result: dict[str, Any]
            if end is None:
                result = {"type": STATES[self.states[index]]}
            elif isinstance(end, ApiError):
                result = {"type": "errored", "error": end.body(f"req_01{batch.id[-12:]}{index:06x}")}
            else:
                message = build_message(row["params"], end, message_id=f"{prefix}{index:06x}", tier="batch")
                result = {"type": "succeeded", "message": message}
            yield orjson.dumps({"custom_id": row["custom_id"], "result": result}, option=orjson.OPT_APPEND_NEWLINE)

    def drop_lines(self) -> None:
        """Free what the result lines are made of; the books stay."""
        _ = self.tokens
        self._ends, self.order = [], []


class _Rows:
    """Settles the rows of one batch, one by one."""

    def __init__(self, batch: Batch, reply: Replier) -> None:
        self.batch = batch
        self.reply = reply
        self.states = bytearray(len(batch.rows))
        self.ends: list[End] = [None] * len(batch.rows)
        self.random = seeded(f"{batch.seed}:rows")

    def run(self, index: int) -> None:
        """A row that was run: answered, or failed."""
        hit = self._fault() if self.batch.row_faults else None
        if hit is not None and hit.name == "batch.row_expired":
            self.states[index] = EXPIRED
            return
        try:
            self.ends[index] = self._reply(self.batch.rows[index]["params"], hit)
        except ApiError as error:
            self.states[index], self.ends[index] = ERRORED, error

    def _fault(self) -> Fault | None:
        for fault in self.batch.row_faults:
            if fault.name == "batch.all_rows_error" or self.random.random() < fault.probability:
                return fault
        return None

    def _reply(self, params: dict[str, Any], hit: Fault | None) -> Reply:
        if hit is not None:
            raise ApiError(hit["type"], hit["message"])
        batch = self.batch
        wrong = params_error(params, batch=True, limit=batch.output_limit, betas=batch.betas)
        if wrong is not None:
            raise ApiError("invalid_request_error", wrong)
        reply = ask(self.reply, params)
        if reply.failure is not None:
            raise ApiError(*reply.failure)
        return reply


def settle(batch: Batch, reply: Replier) -> Settled:
    """Settle every row: those finished are answered, the others expired or canceled; the lines come shuffled."""
    count = len(batch.rows)
    rows = _Rows(batch, reply)
    finished = batch.finished_rows()
    order = list(range(count))
    shuffle = seeded(f"{batch.seed}:order").shuffle
    if finished < count:
        shuffle(order)
    state = EXPIRED if batch.cancel is None else CANCELED
    with uncollected():
        for index in order[:finished]:
            rows.run(index)
    for index in order[finished:]:
        rows.states[index] = state
    shuffle(order)
    return Settled(batch, rows.states, rows.ends, order)
