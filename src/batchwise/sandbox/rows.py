"""The outcomes of the rows of a batch that has ended."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from .cache import NOTHING, Cached, PromptCache, cached_in
from .errors import ApiError
from .faults import Fault
from .latency import seeded
from .models import check_model
from .replies import Replier, ask, build_message
from .validation import check_params

if TYPE_CHECKING:
    from .batches import Batch

SUCCEEDED, ERRORED, CANCELED, EXPIRED = range(4)
STATES = ("succeeded", "errored", "canceled", "expired")


@dataclass
class Settled:
    """The outcomes of the rows of an ended batch: states and tokens by row, and the result lines in their order."""

    states: bytearray
    input_tokens: array[int]
    output_tokens: array[int]
    lines: list[bytes] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    cached: dict[int, Cached] = field(default_factory=dict)
    """What a row read from the prompt cache and wrote to it, for each row that did."""

    def counts(self) -> dict[str, int]:
        """The `request_counts` of the end."""
        return {"processing": 0, **{name: self.states.count(code) for code, name in enumerate(STATES)}}


class Caching(NamedTuple):
    """The prompt cache, and how likely rows of a batch hit it.

    Attributes:
        cache: the cache.
        hits: how likely a row reads what was cached before its batch began.
        hits_beside: how likely it reads what another row of its batch writes, since they run at the same time.
        minimum: the fewest tokens of a prefix that is cached; None: the model's.
    """

    cache: PromptCache
    hits: float
    hits_beside: float
    minimum: int | None


class _Rows:
    """Settles the rows of one batch, one by one."""

    def __init__(self, batch: Batch, reply: Replier, caching: Caching) -> None:
        self.batch = batch
        self.reply = reply
        self.caching = caching
        self.chances = seeded(f"{batch.seed}:cache")
        count = len(batch.rows)
        self.out = Settled(bytearray(count), array("Q", bytes(8 * count)), array("Q", bytes(8 * count)))
        self.lines: list[bytes] = [b""] * count
        self.random = seeded(f"{batch.seed}:rows")
        self.prefix = f"msg_01{batch.id[-14:]}"

    def unfinished(self, index: int, state: int) -> None:
        """Settle a row that was not run."""
        self.out.states[index] = state
        self._line(index, {"type": STATES[state]})

    def run(self, index: int) -> None:
        """Run a row: it is answered, or fails."""
        params = self.batch.rows[index]["params"]
        hit = self._fault()
        if hit is not None and hit.name == "batch.row_expired":
            self.unfinished(index, EXPIRED)
            return
        try:
            message = self._message(index, params, hit)
        except ApiError as error:
            self.out.states[index] = ERRORED
            body = error.body(f"req_01{self.batch.id[-12:]}{index:06x}")
            self._line(index, {"type": "errored", "error": body})
            return
        usage = message["usage"]
        self.out.input_tokens[index] = usage["input_tokens"]
        self.out.output_tokens[index] = usage["output_tokens"]
        if any(cached := cached_in(usage)):
            self.out.cached[index] = cached
        self._line(index, {"type": "succeeded", "message": message})

    def _fault(self) -> Fault | None:
        for fault in self.batch.row_faults:
            if fault.name == "batch.all_rows_error" or self.random.random() < fault.probability:
                return fault
        return None

    def _message(self, index: int, params: dict[str, Any], hit: Fault | None) -> dict[str, Any]:
        if hit is not None:
            raise ApiError(hit["type"], hit["message"])
        batch = self.batch
        check_params(params, batch=True, limit=batch.output_limit, betas=batch.betas)
        check_model(params["model"], batch.models)
        reply = ask(self.reply, params)
        cached = NOTHING if reply.failure is not None else self._cached(params)
        return build_message(params, reply, message_id=f"{self.prefix}{index:06x}", tier="batch", cached=cached)

    def _cached(self, params: dict[str, Any]) -> Cached:
        batch, caching = self.batch, self.caching
        return caching.cache.use(
            params,
            workspace=batch.workspace,
            begun=batch.created_at,
            done=batch.ended_at,
            batch=batch.id,
            hit=lambda beside: self.chances.random() < (caching.hits_beside if beside else caching.hits),
            minimum=caching.minimum,
        )

    def _line(self, index: int, result: dict[str, Any]) -> None:
        # Copied: what orjson returns keeps the room that it grew into, which 100,000 times is half a gigabyte.
        row = {"custom_id": self.batch.rows[index]["custom_id"], "result": result}
        self.lines[index] = b"%b\n" % orjson.dumps(row)


def settle(batch: Batch, reply: Replier, caching: Caching) -> Settled:
    """Settle every row: finished ones are answered, the others expire or are canceled. The lines come shuffled."""
    count = len(batch.rows)
    rows = _Rows(batch, reply, caching)
    finished = batch.finished_rows()
    order = list(range(count))
    shuffle = seeded(f"{batch.seed}:order").shuffle
    if finished < count:
        shuffle(order)
    state = EXPIRED if batch.cancel is None else CANCELED
    for index in order[:finished]:
        rows.run(index)
    for index in order[finished:]:
        rows.unfinished(index, state)
    shuffle(order)
    rows.out.order = order
    rows.out.lines = [rows.lines[index] for index in order]
    return rows.out
