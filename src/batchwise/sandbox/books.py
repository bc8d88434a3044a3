"""What was bought of the sandbox, how often, on which lane, for which caller's prompt."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from .batches import Batch
from .cache import NOTHING, Cached
from .replies import first_user_text
from .rows import STATES, SUCCEEDED, Settled
from .store import BatchStore

Identify = Callable[[dict[str, Any]], str]


@dataclass(frozen=True)
class Purchase:
    """One request that the sandbox accepted.

    Attributes:
        lane: `sync` or `batch`.
        prompt: the identity of the caller's prompt.
        state: `running`, `succeeded`, `errored`, `canceled` or `expired`.
        billed: whether it cost money; a running one may still.
        input_tokens: input that was neither read from the prompt cache nor written to it.
        cached: input that was.
        delivered: of a sync call, whether its answer was sent; of a batch row always True.
    """

    lane: str
    prompt: str
    custom_id: str | None
    batch_id: str | None
    workspace: str
    model: str
    state: str
    billed: bool
    input_tokens: int
    output_tokens: int
    delivered: bool = True
    cached: Cached = NOTHING

    @property
    def bought(self) -> bool:
        """Whether it is billed, or still runs and may be."""
        return self.billed or self.state == "running"


class Tokens(NamedTuple):
    """Billed tokens; `input` is neither read from the prompt cache nor written to it."""

    input: int
    output: int
    cache_read: int = 0
    cache_written: int = 0


@dataclass
class SyncCall:
    """One Messages call while it runs and after."""

    prompt: str
    workspace: str
    model: str
    state: str = "running"
    input_tokens: int = 0
    output_tokens: int = 0
    delivered: bool = False
    cached: Cached = NOTHING


class Books:
    """The sandbox's account of everything it accepted; derived when asked, so keeping it costs little."""

    def __init__(
        self,
        store: BatchStore,
        clock: Callable[[], float],
        settle: Callable[[Batch], Settled],
        identify: Identify | None = None,
    ) -> None:
        self.identify: Identify = identify or first_user_text
        self.requests_by_path: Counter[str] = Counter()
        self._store = store
        self._clock = clock
        self._settle = settle
        self._lock = threading.Lock()
        self._calls: list[SyncCall] = []

    # written by the server

    def count_request(self, path: str) -> None:
        """Count a request by `METHOD /path`, ids replaced by `{id}`."""
        with self._lock:
            self.requests_by_path[path] += 1

    def open_call(self, params: dict[str, Any], workspace: str) -> SyncCall:
        """Note a Messages call that was accepted."""
        call = SyncCall(self.identify(params), workspace, str(params.get("model")))
        with self._lock:
            self._calls.append(call)
        return call

    # read by tests

    @property
    def batches(self) -> list[Batch]:
        """The batches that were accepted, oldest first, without those of other tools."""
        return [batch for batch in self._store.accepted(self._clock()) if not batch.foreign]

    @property
    def purchases(self) -> list[Purchase]:
        """Every request accepted so far on either lane."""
        return [*self._sync_purchases(), *(p for batch in self.batches for p in self._rows(batch))]

    def _sync_purchases(self) -> Iterator[Purchase]:
        with self._lock:
            calls = list(self._calls)
        for c in calls:
            billed = c.state == "succeeded"
            yield Purchase(
                "sync", c.prompt, None, None, c.workspace, c.model, c.state, billed,
                c.input_tokens, c.output_tokens, c.delivered, c.cached,
            )  # fmt: skip

    def _identities(self, batch: Batch) -> list[str]:
        if batch.identities is None:
            batch.identities = [self.identify(row["params"]) for row in batch.rows]
        return batch.identities

    def _outcome(self, batch: Batch) -> Settled | None:
        return self._settle(batch) if batch.status(self._clock()) == "ended" else None

    def _rows(self, batch: Batch) -> Iterator[Purchase]:
        outcome = self._outcome(batch)
        for index, (row, prompt) in enumerate(zip(batch.rows, self._identities(batch), strict=True)):
            state = "running" if outcome is None else STATES[outcome.states[index]]
            yield Purchase(
                "batch", prompt, row["custom_id"], batch.id, batch.workspace, str(row["params"].get("model")),
                state, state == "succeeded",
                0 if outcome is None else outcome.input_tokens[index],
                0 if outcome is None else outcome.output_tokens[index],
                cached=NOTHING if outcome is None else outcome.cached.get(index, NOTHING),
            )  # fmt: skip

    def bought_by_prompt(self, lane: str | None = None) -> Counter[str]:
        """How often each prompt was bought: billed, or running and perhaps billed later."""
        counts: Counter[str] = Counter()
        if lane in (None, "sync"):
            counts.update(purchase.prompt for purchase in self._sync_purchases() if purchase.bought)
        if lane in (None, "batch"):
            for batch in self.batches:
                prompts, outcome = self._identities(batch), self._outcome(batch)
                if outcome is None:
                    counts.update(prompts)
                else:
                    counts.update(p for p, state in zip(prompts, outcome.states, strict=True) if state == SUCCEEDED)
        return counts

    def bought(self, prompt: str, lane: str | None = None) -> int:
        """How often this prompt was bought, on one lane or both."""
        return self.bought_by_prompt(lane)[prompt]

    def bought_twice(self) -> dict[str, int]:
        """The prompts that were bought more than once, and how often."""
        return {prompt: count for prompt, count in self.bought_by_prompt().items() if count > 1}

    def billed(self, lane: str | None = None) -> int:
        """How many requests were billed."""
        total = 0
        if lane in (None, "sync"):
            total += sum(1 for purchase in self._sync_purchases() if purchase.billed)
        if lane in (None, "batch"):
            total += sum(outcome.states.count(SUCCEEDED) for b in self.batches if (outcome := self._outcome(b)))
        return total

    def running(self, lane: str | None = None) -> int:
        """How many requests still run."""
        total = 0
        if lane in (None, "sync"):
            total += sum(1 for purchase in self._sync_purchases() if purchase.state == "running")
        if lane in (None, "batch"):
            total += sum(len(batch.rows) for batch in self.batches if self._outcome(batch) is None)
        return total

    def tokens(self, lane: str | None = None) -> Tokens:
        """The tokens that were billed."""
        read = written = 0
        cached: list[Cached] = []
        if lane in (None, "sync"):
            for purchase in self._sync_purchases():
                if purchase.billed:
                    read, written = read + purchase.input_tokens, written + purchase.output_tokens
                    cached.append(purchase.cached)
        if lane in (None, "batch"):
            for batch in self.batches:
                if outcome := self._outcome(batch):
                    read, written = read + sum(outcome.input_tokens), written + sum(outcome.output_tokens)
                    cached.extend(outcome.cached.values())
        return Tokens(
            read, written, sum(each.read for each in cached), sum(each.written_5m + each.written_1h for each in cached)
        )

    def cost(
        self,
        prices: Mapping[str, tuple[Decimal | int | str, Decimal | int | str]],
        *,
        lane: str | None = None,
        batch_discount: Decimal = Decimal("0.5"),
        cache: tuple[Decimal, Decimal, Decimal] = (Decimal("0.1"), Decimal("1.25"), Decimal(2)),
    ) -> Decimal:
        """What was billed, in the prices' currency.

        Args:
            prices: by model, `(input, output)` per million tokens on the sync lane; the model `*` stands for all.
            lane: one lane only.
            batch_discount: what a batch costs of the sync lane's price.
            cache: what input costs that is read from the prompt cache, written to it for 5 minutes, and for an hour, of
                the price of input.
        """
        total = Decimal(0)
        for purchase in self.purchases:
            if not purchase.billed or lane not in (None, purchase.lane):
                continue
            read, written = prices[purchase.model] if purchase.model in prices else prices["*"]
            cached = sum(factor * tokens for factor, tokens in zip(cache, purchase.cached, strict=True))
            amount = Decimal(read) * (purchase.input_tokens + cached) + Decimal(written) * purchase.output_tokens
            total += amount * (batch_discount if purchase.lane == "batch" else 1)
        return total / 1_000_000

    def summary(self) -> dict[str, Any]:
        """The books in figures, as JSON."""
        return {
            "billed": {lane: self.billed(lane) for lane in ("sync", "batch")},
            "running": {lane: self.running(lane) for lane in ("sync", "batch")},
            "tokens": {lane: self.tokens(lane)._asdict() for lane in ("sync", "batch")},
            "bought_twice": self.bought_twice(),
            "batches": [batch.id for batch in self.batches],
            "requests_by_path": dict(self.requests_by_path),
        }
