"""The planner's view of the ledger: the unsettled work in groups, the batches, the lanes. Frozen values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import Enum

import attrs

from batchwise.models import Labels, Lane, Reason, ToolUse

from .cache_priming import Caching, Hits, Primed
from .capacity import Measured
from .packing import BYTES_PER_TOKEN, Sizes
from .pricing import Tariff
from .prompt_prefix import GROWTH

__all__ = ["BatchState", "BatchView", "Group", "Snapshot", "Terms"]


@attrs.frozen(kw_only=True)
class Terms:
    """The terms on which requests were accepted; many requests share one.

    Attributes:
        id: The ledger's number for it; 0: not stored yet.
        job: The ledger's number of the job; 0: the shared scope.
        lane: The lane that was chosen at the dispatch.
        reason: The reason for the lane.
        explanation: The decision's sentence.
        blocking: A caller waits for the answer; after a crash of its process none does.
        deadline: When the results are due; None: no deadline.
        submit_by: The last moment at which a batch with these may be sent.
        rescue_at: The last moment at which a rescue of one of these alone would begin; None: there is no rescue.
        interval: The longest one of these waits for its batch to be sent.
        model: The model that is asked: the one asked for, or after refusals a fallback model.
        refused_by: The models that declined before, the one asked for first.
        max_tokens: The most output tokens of one of these.
        output_tokens: The expected output tokens of one of these (max_tokens where nothing better is known).
        expected: The caller gave `expected_output_tokens`.
        betas: `anthropic-beta` values of its call.
        stream: The caller wants streaming.
        tool_use: How it uses tools.
        structured: Its answer has to keep to a JSON schema.
        batch_only: No sync rescue exists.
        prefix: The digest of the prefix that these share, where `Policy.cache` asks for that; empty: none.
        prefix_tokens: How long it is, estimated.
        breakpoints: How many breakpoints of one of these have no lifetime.
        labels: The labels to which one of these is billed.
        adopted: Its batch was made elsewhere: its body is not in the ledger, so it cannot be sent again.
        max_cost_each: The most pico-USD that one call of one of these costs, its body apart; reserved until it
            settles. 0 without a spend limit.
        max_cost_per_byte: The most that each byte of its body adds.
    """

    id: int = 0
    job: int = 0
    lane: Lane
    reason: Reason
    explanation: str = ""
    blocking: bool = False
    deadline: datetime | None = None
    submit_by: datetime | None = None
    rescue_at: datetime | None = None
    interval: timedelta = timedelta(0)
    model: str
    refused_by: tuple[str, ...] = ()
    max_tokens: int
    output_tokens: int
    expected: bool = False
    betas: tuple[str, ...] = ()
    stream: bool = False
    tool_use: ToolUse = ToolUse.NONE
    structured: bool = False
    batch_only: bool = False
    prefix: str = ""
    prefix_tokens: int = 0
    breakpoints: int = 0
    labels: Labels = ()
    adopted: bool = False
    max_cost_each: int = 0
    max_cost_per_byte: int = 0

    @property
    def due(self) -> datetime | None:
        """The deadline that calls may keep; None: it has none, or only a batch takes it."""
        return None if self.batch_only else self.deadline

    @property
    def hedged(self) -> bool:
        """Whether its batch may have to be cancelled for it."""
        return self.reason is Reason.HEDGED

    @property
    def grows(self) -> int:
        """Bytes by which one of these grows if its breakpoints ask for an hour."""
        return self.breakpoints * GROWTH if self.prefix else 0

    @property
    def asked(self) -> tuple[str, ...]:
        """The models that were asked, in their order."""
        return (*self.refused_by, self.model)

    def asking(self, models: Sequence[str]) -> Terms:
        """Return the terms on which the last of these models is asked, after the ones before it have refused."""
        *refused_by, model = models
        prefix = "" if refused_by else self.prefix  # each model has a cache of its own
        return attrs.evolve(self, model=model, refused_by=tuple(refused_by), prefix=prefix)


@attrs.frozen(kw_only=True)
class Group:
    """Unsettled requests on the same terms in the same place.

    Attributes:
        terms: Their terms.
        requests: How many.
        size: Bytes of their bodies together.
        since: When the first of them came to this place.
        flush: Send at once: a caller waits.
    """

    terms: Terms
    requests: int
    size: int
    since: datetime
    flush: bool = False

    @property
    def input_tokens(self) -> int:
        """The input tokens of all of them, estimated."""
        return self.size // BYTES_PER_TOKEN

    @property
    def output_tokens(self) -> int:
        """The output tokens of all of them, as far as known before."""
        return self.requests * self.terms.output_tokens


class BatchState(str, Enum):
    """The state of a batch. `sealed` and `posting` are ours alone; from `open` on the API knows it.

    `ledger.transitions` says which state may follow which, and docs/explanation/design.md draws it.
    """

    SEALED = "sealed"
    """Its requests and nonce are stored; nothing was sent, so it is safe to send."""
    POSTING = "posting"
    """The one POST may be on its way."""
    IN_DOUBT = "doubt"
    """The POST's outcome is unknown; the batch is looked for in the listing."""
    WATCHED = "watched"
    """It is given up and its requests are sent otherwise, but it may turn up until its window has passed."""
    OPEN = "open"
    """The API processes it."""
    CANCELING = "canceling"
    ENDED = "ended"
    """It has ended; its results are to be collected."""
    CLOSED = "closed"
    """Every row is ticked off."""
    VOID = "void"
    """It was never created."""


@attrs.frozen(kw_only=True)
class BatchView:
    """One batch that is neither closed nor void.

    Attributes:
        id: The ledger's number.
        nonce: The nonce in all its custom_ids.
        state: Its state.
        remote_id: The API's id; None until known.
        requests: How many rows were sealed.
        size: Bytes of the create body.
        betas: Its headers.
        sealed_at: When it was sealed (our clock).
        posting_at: When `posting` was made durable (our clock).
        posting_server: The server's `Date` just before the POST.
        last_byte_at: When the last byte was given to the socket (our clock); None: unknown.
        watermark: The newest remote id listed just before the POST; None: the listing was empty.
        candidates: Remote ids that may be it: unknown to the ledger, with its count.
        struck: Remote ids that are proved not to be it.
        created_at: By the server.
        expires_at: By the server.
        ended_at: By the server.
        counts: Its rows by result type, as the API counted them when it had ended; None: not known.
        cancel_at: When a cancel was asked for (our clock).
        polled_at: When it was last looked at (our clock).
        failures: Consecutive failed polls or reads.
        canceled: The caller wants none of its rows any more.
        adopted: It was made elsewhere; only its results show its custom_ids.
        caching: How it treats the prompt cache.
        groups: Its unsettled requests.
    """

    id: int
    nonce: str
    state: BatchState
    remote_id: str | None = None
    requests: int
    size: int = 0
    betas: tuple[str, ...] = ()
    sealed_at: datetime
    posting_at: datetime | None = None
    posting_server: datetime | None = None
    last_byte_at: datetime | None = None
    watermark: str | None = None
    candidates: tuple[str, ...] = ()
    struck: tuple[str, ...] = ()
    created_at: datetime | None = None
    expires_at: datetime | None = None
    ended_at: datetime | None = None
    counts: Mapping[str, int] | None = None
    cancel_at: datetime | None = None
    polled_at: datetime | None = None
    failures: int = 0
    canceled: bool = False
    adopted: bool = False
    caching: Caching = Caching.AS_IS
    groups: tuple[Group, ...] = ()

    @property
    def model(self) -> str:
        """The model of the first of its unsettled requests; "" where none is left, or where it was made elsewhere."""
        return self.groups[0].terms.model if self.groups else ""

    def began(self, clock_offset: timedelta) -> datetime:
        """Return when the API began with it, or else when it was sealed, by our clock."""
        return self.sealed_at if self.created_at is None else self.created_at - clock_offset


@attrs.frozen
class Setback:
    """A failure that is tried again, as a process stored it.

    Attributes:
        run: The run of that process.
        next_try: When it tries again (our clock).
        words: What failed, how often, why, and when it is tried again; no content.
    """

    run: int
    next_try: datetime
    words: str


@attrs.frozen(kw_only=True)
class Snapshot:
    """The input of the planner.

    Attributes:
        batch_queue: Requests queued for a batch.
        sync_queue: Requests queued for the sync lane.
        sync_running: Requests that the sync lane runs now.
        batches: Batches neither closed nor void.
        suspended: Suspended lanes with the reason.
        resumes: How often suspended lanes were resumed.
        batch_ends: The mean time of a batch by its model and the number of digits of its size, where sizes are chosen.
        clock_offset: The server's clock minus ours, as last seen.
        batch_paused_until: The account's queue is full until then, as far as known.
        sizes: How many requests a batch may have, after the outcomes of earlier creates.
        leased: Whether this process may do batch actions.
        sync_answered_at: When a call of the sync lane was last answered (our clock).
        sync_failed_at: When one was last refused for good or not answered (our clock).
        advanced_at: When a process last called `advance` (our clock).
        setback: The last failure that a process stored and that has not been resolved.
        measured: What was measured of the sync lane, by class of models.
        prefixes: The records of the prefixes of queued requests, by their digests.
        hits: How often rows of batches have hit the prompt cache.
        tariffs: The batch lane's tariffs for the models of requests with a prefix.
    """

    batch_queue: tuple[Group, ...] = ()
    sync_queue: tuple[Group, ...] = ()
    sync_running: tuple[Group, ...] = ()
    batches: tuple[BatchView, ...] = ()
    suspended: Mapping[Lane, str] = attrs.field(factory=dict)
    resumes: int = 0
    batch_ends: Mapping[tuple[str, int], timedelta] = attrs.field(factory=dict)
    clock_offset: timedelta = timedelta(0)
    batch_paused_until: datetime | None = None
    sizes: Sizes = attrs.field(factory=Sizes)
    leased: bool = True
    sync_answered_at: datetime | None = None
    sync_failed_at: datetime | None = None
    advanced_at: datetime | None = None
    setback: Setback | None = None
    measured: Mapping[str, Measured] = attrs.field(factory=dict)
    prefixes: Mapping[str, Primed] = attrs.field(factory=dict)
    hits: Hits = attrs.field(factory=Hits)
    tariffs: Mapping[str, Tariff] = attrs.field(factory=dict)
