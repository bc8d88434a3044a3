"""The account that the sandbox imitates: its settings, its batches, its books. No HTTP here."""

from __future__ import annotations

import itertools
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, TypedDict, Union

from .batches import Batch
from .books import Books, Identify
from .cache import PromptCache
from .faults import Fault, FaultBox
from .latency import Latency, draw, seeded, to_seconds
from .limits import Limiter, RateLimits
from .replies import Replier, echo
from .rows import Caching, Settled
from .store import BatchStore

ApiKeys = Union[Mapping[str, str], Iterable[str], None]
Seconds = Union[float, timedelta]

WINDOW = timedelta(hours=24)
RETENTION = timedelta(days=29)
DEFAULT_WORKSPACE = "wrkspc_sandbox"
ORGANIZATION = "00000000-0000-4000-8000-00000005a4db"
_ROW_FAULTS = ("batch.all_rows_error", "batch.row_error", "batch.row_expired")


def new_id(prefix: str) -> str:
    """Return a new id that looks like the API's."""
    return f"{prefix}_01{uuid.uuid4().hex[:22]}"


class Settings(TypedDict, total=False):
    """The settings of a `World`, for type checkers."""

    sync_latency: Latency
    batch_latency: Latency
    cancel_latency: Latency
    window: Seconds
    retention: Seconds
    seed: int
    reply: Replier | None
    rate_limits: RateLimits | Mapping[str, Any] | None
    batch_queue_limit: int | None
    clock_skew: Seconds
    api_keys: ApiKeys
    models: Iterable[str] | None
    output_limit: int | None
    cache_hits: float
    cache_hits_beside: float
    cache_minimum: int | None
    identify: Identify | None


class World:
    """Settings and state of the imitated account. All attributes may be set at any time, from any thread.

    Attributes:
        sync_latency: how long a Messages call takes.
        batch_latency: how long a batch takes; drawn when it is accepted.
        cancel_latency: how long a batch stays `canceling`.
        window: how long a batch may run; then its unfinished rows expire. Holds for batches created later.
        retention: how long results can be read, from `created_at`; holds for batches created later.
        reply: what the model answers; see `Reply`.
        batch_queue_limit: the most rows of unfinished batches at once; a create over it gets a 429. None: no limit.
        clock_skew: by how many seconds the clock that the server shows is ahead of the real one.
        api_keys: the valid keys (a mapping gives each its workspace); None: every key is valid.
        models: the names of the valid models; None: those that the API knows.
        output_limit: the most output tokens of every model; None: the model's own limit.
        cache_hits: how likely a row of a batch reads a prefix that was cached before its batch began.
        cache_hits_beside: how likely it reads one that another row of its batch writes, since they run at the same
            time. The API documents hit rates of 30 % to 98 %.
        cache_minimum: the fewest tokens that a prefix needs to be cached; None: the model's.
        seed: the seed of all random draws.
        books: what was bought.
    """

    def __init__(
        self,
        *,
        sync_latency: Latency = 0.0,
        batch_latency: Latency = 0.0,
        cancel_latency: Latency = 0.0,
        window: Seconds = WINDOW,
        retention: Seconds = RETENTION,
        seed: int = 0,
        reply: Replier | None = None,
        rate_limits: RateLimits | Mapping[str, Any] | None = None,
        batch_queue_limit: int | None = None,
        clock_skew: Seconds = 0.0,
        api_keys: ApiKeys = None,
        models: Iterable[str] | None = None,
        output_limit: int | None = None,
        cache_hits: float = 1.0,
        cache_hits_beside: float = 0.3,
        cache_minimum: int | None = None,
        identify: Identify | None = None,
    ) -> None:
        self.sync_latency = sync_latency
        self.batch_latency = batch_latency
        self.cancel_latency = cancel_latency
        self.window = window
        self.retention = retention
        self.seed = seed
        self.reply: Replier = reply or echo
        self.batch_queue_limit = batch_queue_limit
        self.clock_skew = clock_skew
        self.api_keys = api_keys if api_keys is None or isinstance(api_keys, Mapping) else frozenset(api_keys)
        self.models = None if models is None else tuple(models)
        self.output_limit = output_limit
        self.cache_hits, self.cache_hits_beside, self.cache_minimum = cache_hits, cache_hits_beside, cache_minimum
        self.cache = PromptCache()
        self.rng = seeded(f"{seed}:sync")
        self._advanced = 0.0
        self._started = time.time() - time.monotonic()  # so that a step of the system clock ends no batch
        self.store = BatchStore()
        self.fault_box = FaultBox(seed)
        self.limiter = Limiter(RateLimits.of(rate_limits), time.monotonic)
        self.books = Books(self.store, self.now, self.settle, identify)
        self._numbers = itertools.count(1)
        self.base_url = ""

    # time

    def now(self) -> float:
        """Return the seconds of the sandbox's own clock, without the skew."""
        return self._started + time.monotonic() + self._advanced

    def server_now(self) -> float:
        """Return the seconds of the clock that the server shows."""
        return self.now() + to_seconds(self.clock_skew)

    def advance(self, duration: Seconds) -> None:
        """Let time pass for the batches without waiting: they finish, expire and are archived."""
        self._advanced += to_seconds(duration)

    # a setting that is more than a value

    @property
    def rate_limits(self) -> RateLimits:
        """The account's rate limits. When they are set, the buckets are full."""
        return self.limiter.limits

    @rate_limits.setter
    def rate_limits(self, value: RateLimits | Mapping[str, Any] | None) -> None:
        self.limiter = Limiter(RateLimits.of(value), time.monotonic)

    # faults

    def fault(
        self, name: str, *, times: int | None = 1, probability: float = 1.0, skip: int = 0, **params: Any
    ) -> Fault:
        """Order a fault.

        Args:
            name: a key of `KNOWN_FAULTS`.
            times: how often it happens; None: always, until cleared.
            probability: how likely it is at each chance; for the `batch.row_*` faults, for each row.
            skip: how many chances pass before the first.
            **params: the fault's own parameters, see `KNOWN_FAULTS`.

        Returns:
            The order; its `fired` counts.

        Raises:
            UnknownFaultError: no fault has this name; the message lists them.
        """
        return self.fault_box.order(name, times, probability, skip, params)

    def clear_faults(self, name: str | None = None) -> None:
        """Remove the orders of one fault, or of all."""
        self.fault_box.clear(name)

    @property
    def faults_fired(self) -> Counter[str]:
        """How often each fault happened."""
        return Counter(self.fault_box.fired)

    # batches

    def accept(
        self,
        rows: list[dict[str, Any]],
        *,
        workspace: str = DEFAULT_WORKSPACE,
        betas: frozenset[str] = frozenset(),
        delay: float = 0.0,
    ) -> Batch:
        """Accept a batch, now or `delay` seconds from now."""
        number = next(self._numbers)
        seed = f"{self.seed}:{number}"
        faults = (self.fault_box.fire(name) for name in _ROW_FAULTS)
        batch = Batch(
            id=new_id("msgbatch"),
            number=number,
            workspace=workspace,
            rows=rows,
            created_at=self.now() + delay,
            duration=draw(self.batch_latency, seeded(seed)),
            window=to_seconds(self.window),
            retention=to_seconds(self.retention),
            seed=seed,
            betas=betas,
            output_limit=self.output_limit,
            models=self.models,
            row_faults=tuple(fault for fault in faults if fault is not None),
        )
        self.store.add(batch)
        return batch

    def add_foreign_batch(
        self,
        count: int,
        *,
        ended: bool = False,
        created_ago: Seconds | None = None,
        ends_in: Seconds | None = None,
        workspace: str = DEFAULT_WORKSPACE,
        custom_id: str = "foreign-{}",
    ) -> str:
        """Put another tool's batch into the workspace. It is in no books.

        Args:
            count: how many rows.
            ended: whether it has ended already.
            created_ago: how long ago it was created; default 60 s if ended, else just now.
            ends_in: when a running one ends; default: its window.
            workspace: where it is.
            custom_id: pattern of its custom_ids.

        Returns:
            The batch's id.
        """
        ago = (60.0 if ended else 0.0) if created_ago is None else to_seconds(created_ago)
        window = to_seconds(self.window)
        left = window if ends_in is None else ago + to_seconds(ends_in)
        params = {"model": "claude-sonnet-5", "max_tokens": 16, "messages": [{"role": "user", "content": "foreign"}]}
        number = next(self._numbers)
        batch = Batch(
            id=new_id("msgbatch"),
            number=number,
            workspace=workspace,
            rows=[{"custom_id": custom_id.format(index), "params": params} for index in range(count)],
            created_at=self.now() - ago,
            duration=ago if ended else left,
            window=max(window, ago),
            retention=to_seconds(self.retention),
            seed=f"{self.seed}:{number}",
            foreign=True,
        )
        self.store.add(batch)
        return batch.id

    def finish(self, batch_id: str) -> None:
        """Let a running batch end now, with all its rows finished."""
        with self.store.lock:
            batch = self.store.get(batch_id)
            if batch.cancel is None and batch.status(self.now()) != "ended":
                batch.duration = max(0.0, min(batch.window, self.now() - batch.created_at - 1e-6))

    def settle(self, batch: Batch) -> Settled:
        """Return the outcomes of the rows of an ended batch."""
        caching = Caching(self.cache, self.cache_hits, self.cache_hits_beside, self.cache_minimum)
        return batch.settled(echo if batch.foreign else self.reply, caching)

    # callers

    def workspace_of(self, key: str) -> str | None:
        """Return the workspace of a key; None: the key is not valid."""
        keys = self.api_keys
        if keys is None:
            return DEFAULT_WORKSPACE if key else None
        if isinstance(keys, Mapping):
            return keys.get(key)
        return DEFAULT_WORKSPACE if key in keys else None
