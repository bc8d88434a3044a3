"""The words of batchwise as frozen values: lanes, tags, policy, decisions, forecasts and reports.

No behaviour beyond their own consistency: rules live in `batchwise.planning`, effects in the drivers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, TypeVar, Union

import attrs

from .basics.figures import check_whole
from .basics.rendering import moment, span, to_html
from .basics.tables import from_table, read_toml, to_table
from .basics.times import LONGEST, WINDOW, check_aware, check_duration, check_positive, check_reach, from_numpy
from .basics.wording import dollars, human, in_requests
from .errors import InvalidValueError, printable, shown

__all__ = [
    "GRAIN",
    "Check",
    "Decision",
    "Lane",
    "Latency",
    "LatencyLike",
    "LatencyTag",
    "Limits",
    "Outcome",
    "Policy",
    "Progress",
    "Rates",
    "Reason",
    "Report",
    "ResultError",
    "RunningBatch",
    "Status",
    "ToolUse",
    "ToolUseLike",
    "check_policy",
]


class Lane(str, Enum):
    """Which of the two APIs a request goes to."""

    SYNC = "sync"
    """The Messages API: full price, an answer in seconds."""
    BATCH = "batch"
    """The Message Batches API: half price, up to 24 hours."""


class Latency(str, Enum):
    """How long the caller can wait, where that is not a `timedelta` or a `datetime`."""

    BLOCKING = "blocking"
    """Somebody is waiting: answer now."""
    FLEXIBLE = "flexible"
    """No deadline: whenever it is cheapest."""


LatencyTag = Union[Latency, timedelta, datetime]
"""`Latency`, a `timedelta` counted from the dispatch, or an aware `datetime` to be done by.

For a request that is dispatched by itself, an hour or more counts from the last full second.
"""

LatencyLike = Union[LatencyTag, Literal["blocking", "flexible"]]
"""What callers may say for one: a `Latency` by its value, too."""


class ToolUse(str, Enum):
    """What a request does with tools."""

    NONE = "none"
    SINGLE = "single"
    """Tools are declared and one turn's answer is the result (a forced tool, an extraction)."""
    SERVER = "server"
    """Only tools that the API runs itself."""
    ITERATIVE = "iterative"
    """The caller runs tools and goes on, and each turn is wanted now; a batch cannot carry that."""
    PATIENT = "patient"
    """The caller runs tools and goes on, but each turn may wait for a batch. Never inferred."""


ToolUseLike = Union[ToolUse, Literal["none", "single", "server", "iterative", "patient"]]
"""What callers may say for one: the member, or its value."""


class Status(str, Enum):
    """Where a request is."""

    QUEUED = "queued"
    IN_FLIGHT = "in_flight"
    SETTLED = "settled"


class Outcome(str, Enum):
    """How a request ended; each accepted request has exactly one."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REFUSED = "refused"
    """The model declined (`stop_reason` is `refusal`): billed, and no answer."""
    EXPIRED = "expired"
    CANCELED = "canceled"


class Reason(str, Enum):
    """Why a request goes to the lane it goes to. The values are stable."""

    ITERATIVE_TOOL_USE = "iterative_tool_use"
    BLOCKING = "blocking"
    STREAMING = "streaming"
    SYNC_ONLY_PARAMETER = "sync_only_parameter"
    BATCH_ONLY_PARAMETER = "batch_only_parameter"
    ZERO_DATA_RETENTION = "zero_data_retention"
    DEADLINE_INSIDE_WINDOW = "deadline_inside_window"
    DELAY_COSTS_MORE = "delay_costs_more"
    LATENCY_TOLERANT = "latency_tolerant"
    HEDGED = "hedged"


Labels = tuple[tuple[str, str], ...]
"""A request's labels by name."""

_E = TypeVar("_E", bound=Enum)
_MOST = 10**12
"""Of whatever is counted, US dollars included: larger figures are slips, and too large for a database's integers."""


def to_enum(kind: type[_E], value: object, field: str) -> _E:
    """`value` as a member of `kind`, by member or by its string value.

    Raises:
        InvalidValueError: It is neither; the message lists the members.
    """
    try:
        return kind(value)
    except (ValueError, TypeError):
        known = ", ".join(repr(member.value) for member in kind)
        raise InvalidValueError(f"{field}={shown(value)} is not one of {known}") from None


def to_latency(value: object, field: str = "latency") -> LatencyTag:
    """`value` as a latency tag: `Latency` (or its string), positive `timedelta`, or aware `datetime` (made UTC).

    Raises:
        InvalidValueError: It is none of these, or farther away than any deadline is.
    """
    value = from_numpy(value)
    if isinstance(value, timedelta):
        duration = check_positive(value, field)
        if duration > LONGEST:
            raise InvalidValueError(f"{field}={duration} is over a hundred years; for no deadline say Latency.FLEXIBLE")
        return duration
    if isinstance(value, datetime):
        return check_reach(check_aware(value, field), field)
    try:
        return Latency(value)
    except (ValueError, TypeError):
        raise InvalidValueError(
            f"{field}={shown(value)} says nothing about how long the caller can wait; write {_meant(value)}, "
            "or an aware datetime (by then), Latency.BLOCKING (now) or Latency.FLEXIBLE (no deadline)"
        ) from None


def _meant(value: object) -> str:
    """The duration that somebody who wrote `value` may have meant, as he has to write it."""
    known = re.fullmatch(r"([0-9]{1,6})(?:\.0*)? *([a-z]*)", str(value).strip().lower())
    number, unit = (known[1], known[2]) if known and not isinstance(value, bool) else ("30", "")
    words = next((word for word in ("seconds", "minutes", "days") if unit and word.startswith(unit)), "hours")
    return f"timedelta({words}={int(number) or 30})"


_LABELS, _LABEL_LENGTH = 16, 128


def to_labels(value: object) -> Labels:
    """`value`, a mapping of names to values, as sorted pairs.

    Raises:
        InvalidValueError: It is none; or a name or a value is no text of 1 to 128 characters that can be seen.
    """
    if not isinstance(value, Mapping):
        raise InvalidValueError(f"labels={shown(value)} is no mapping; give e.g. labels={{'team': 'search'}}")
    if len(value) > _LABELS:
        raise InvalidValueError(f"there are {len(value)} labels, more than {_LABELS}; a bill by name needs few")
    for part in (*value, *value.values()):
        if not isinstance(part, str) or not 1 <= len(part) <= _LABEL_LENGTH or not part.isprintable():
            raise InvalidValueError(
                f"{shown(part)} can be neither a label's name nor its value: text of 1 to {_LABEL_LENGTH} characters "
                "that can be seen; give e.g. labels={'team': 'search'}"
            )
    return tuple(sorted(value.items()))


def _positive(instance: object, attribute: attrs.Attribute[timedelta], value: timedelta) -> None:
    _keep(instance, attribute, value, check_positive(value, attribute.name))


def _not_negative(instance: object, attribute: attrs.Attribute[timedelta], value: timedelta) -> None:
    _keep(instance, attribute, value, check_duration(value, attribute.name))


def _keep(instance: object, attribute: attrs.Attribute[timedelta], value: timedelta, plain: timedelta) -> None:
    check_reach(plain, attribute.name)
    if plain is not value:  # of a subclass
        object.__setattr__(instance, attribute.name, plain)


def _positive_number(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    plain = check_whole(value, attribute.name, 1)
    if plain > _MOST:
        raise InvalidValueError(f"{attribute.name} is over {_MOST:,}; give a smaller number")
    if plain is not value:  # numpy's
        object.__setattr__(instance, attribute.name, plain)


def _flag(_instance: object, attribute: attrs.Attribute[bool], value: bool) -> None:
    if not isinstance(value, bool):
        raise InvalidValueError(f"{attribute.name}={shown(value)} is neither True nor False")


def _to_usd(value: object) -> Decimal:
    try:
        amount = Decimal(str(value))
    except ArithmeticError:
        raise InvalidValueError(f"{shown(value)} is not an amount of US dollars; give a Decimal or an int") from None
    if not amount.is_finite() or not 0 <= amount <= _MOST:
        raise InvalidValueError(f"{shown(value)} is not an amount of US dollars from 0 to {_MOST:,}")
    return amount


GRAIN = Decimal("0.0001")
"""What a caller's rates are multiples of, in USD per million tokens: half of one, also in the US, is still exact."""


def _to_rate(value: object) -> Decimal:
    rate = _to_usd(value)
    if rate % GRAIN:
        raise InvalidValueError(f"{shown(value)} USD per million tokens is finer than {GRAIN}; round it to 4 decimals")
    return rate


@attrs.frozen(kw_only=True)
class Rates:
    """What a model charges on the sync lane, in USD per million tokens, for `Policy.prices`. A batch costs half.

    Amounts are given as Decimal, int, float or str, with at most 4 decimals. Where a rate of the cache is left out, it
    is the multiple of `input` that genai-prices' data have for the model, else the usual one (1.25 and 0.1).

    Attributes:
        input: Input that is not cached.
        output: Output, thinking included.
        cache_write: Input that is written to the 5-minute cache; the 1-hour cache costs its multiple of that.
        cache_read: Input that is read from the cache.
    """

    input: Decimal = attrs.field(converter=_to_rate)
    output: Decimal = attrs.field(converter=_to_rate)
    cache_write: Decimal | None = attrs.field(default=None, converter=attrs.converters.optional(_to_rate))
    cache_read: Decimal | None = attrs.field(default=None, converter=attrs.converters.optional(_to_rate))


@attrs.frozen(kw_only=True)
class Limits:
    """What the account's sync lane and batch queue can take. `None` means that a resource does not limit.

    Attributes:
        requests_per_minute: Messages calls a minute.
        input_tokens_per_minute: Uncached input tokens a minute.
        output_tokens_per_minute: Output tokens a minute.
        concurrency: Messages calls at the same time.
        latency: Mean time of one sync call; with `concurrency` it bounds the rate.
        batch_requests_in_queue: Batch requests that may wait in the account's queue at once.
    """

    requests_per_minute: int | None = attrs.field(default=None, validator=attrs.validators.optional(_positive_number))
    input_tokens_per_minute: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(_positive_number)
    )
    output_tokens_per_minute: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(_positive_number)
    )
    concurrency: int | None = attrs.field(default=None, validator=attrs.validators.optional(_positive_number))
    latency: timedelta = attrs.field(default=timedelta(seconds=10), validator=_positive)
    batch_requests_in_queue: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(_positive_number)
    )

    @classmethod
    def for_tier(cls, tier: Literal["start", "build", "scale"]) -> Limits:
        """The published limits of a usage tier (API documentation, rate limits, 2026).

        `concurrency` is not published; the figure fills the request limit at the mean latency of 10 s, and the
        lane adapts downwards when the API says so.

        Raises:
            InvalidValueError: No such tier.
        """
        try:
            requests, tokens_in, tokens_out, queue = _TIERS[tier]
        except KeyError:
            raise InvalidValueError(f"tier={tier!r} is not one of {', '.join(map(repr, _TIERS))}") from None
        return cls(
            requests_per_minute=requests,
            input_tokens_per_minute=tokens_in,
            output_tokens_per_minute=tokens_out,
            concurrency=requests // 10,
            batch_requests_in_queue=queue,
        )


_TIERS: Mapping[str, tuple[int, int, int, int]] = {
    "start": (1_000, 2_000_000, 400_000, 200_000),
    "build": (5_000, 5_000_000, 1_000_000, 300_000),
    "scale": (10_000, 10_000_000, 2_000_000, 500_000),
}


def _to_limits(value: object) -> Limits | Mapping[str, Limits] | None:
    if value is None or isinstance(value, Limits):
        return value
    if (
        isinstance(value, Mapping)
        and value
        and all(isinstance(prefix, str) and isinstance(limits, Limits) for prefix, limits in value.items())
    ):
        return dict(value)
    raise InvalidValueError(
        f"limits={value!r} is neither a Limits, nor a mapping from a model's prefix to Limits "
        "(such as {'claude-haiku': Limits(...)}), nor None (follow the API's headers)"
    )


def _limits_of(table: object) -> object:
    """Limits as a table has them: a tier's name, the limits, or limits by the models' prefix."""
    if isinstance(table, str):
        return Limits.for_tier(table)  # type: ignore[arg-type]  # it refuses what is no tier
    if not isinstance(table, Mapping):
        return table
    own, each = {field.name for field in attrs.fields(Limits)}, table.items()
    by_prefix = all(isinstance(value, Mapping) or (isinstance(value, str) and name not in own) for name, value in each)
    return {name: _limits_of(value) for name, value in each} if each and by_prefix else from_table(Limits, table)


def _to_poll_every(value: object) -> tuple[timedelta, timedelta]:
    if isinstance(value, (tuple, list)) and len(value) == 2:
        shortest, longest = (check_reach(check_positive(each, "poll_every"), "poll_every") for each in value)
        if shortest <= longest:
            return shortest, longest
    raise InvalidValueError(f"poll_every={value!r} is not a pair (shortest, longest) of positive timedeltas")


def _to_models(value: object) -> tuple[str, ...]:
    models = None if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)
    if models is None or not all(isinstance(model, str) and model and model.isprintable() for model in models):
        raise InvalidValueError(f"fallback_models={shown(value)} is no list of models' ids; give e.g. ['claude-...']")
    return models


def _to_prices(value: object) -> Mapping[str, Rates]:
    if isinstance(value, Mapping) and all(
        isinstance(model, str) and model and isinstance(rates, Rates) for model, rates in value.items()
    ):
        return dict(value)
    raise InvalidValueError(
        f"prices={shown(value)} is no mapping from a model's id to Rates; "
        'give e.g. prices={"my-model": Rates(input=3, output=15)}'
    )


def _prices_of(table: object) -> object:
    """Prices as a table has them: a table of rates for each model."""
    if not isinstance(table, Mapping):
        return table
    return {model: from_table(Rates, rates) if isinstance(rates, Mapping) else rates for model, rates in table.items()}


@attrs.frozen(kw_only=True)
class Policy:
    """How a dispatcher trades money for time. Every field has a default that keeps deadlines.

    Attributes:
        window: The batch API's processing window.
        reserve: Time kept before each deadline to redo on the sync lane what a batch did not finish; None: a third
            of the buffer. It is never shorter than the overhead of a rescue (two polls, reading the batch, the
            slowest call: 2 min 32 s by default).
        min_reserve: The derived reserve's floor.
        interval: The longest a request waits for its batch to be sent; None derives it from each SLA. With a delay
            cost it is never longer than the mean wait is worth.
        flexible_interval: The same for `Latency.FLEXIBLE` requests.
        hedge: Send to a batch although less than the window is left, with a rescue planned before the deadline.
            With a delay cost, only requests are hedged that would go to a batch with more time, too. Their batch is
            broken off when a longer wait would cost more than it may save.
        delay_cost_per_hour: What an hour of waiting costs, in USD a request. A request goes to a batch if that is
            cheaper when it is sent at once; then it waits for others no longer than it pays.
        zero_data_retention: The organisation has zero data retention, which batches are not covered by.
        max_attempts: How often a request may be tried, over both lanes. Where a deadline can still be met, batches
            leave an attempt to the sync lane, calls alone count there, and the deadline alone ends what the API
            refuses for load or was never sent.
        max_spend: USD that the ledger's work may cost at most; None: no cap.
        max_spend_period: The cap counts what settled within this time, and all that is unsettled; None: the
            ledger's life.
        late: "run": overdue work still runs, on the cheapest lane; "fail": it settles unsent.
        limits: The account's limits, for each class of models. One `Limits` holds for each class, a mapping gives
            the limits by the models' prefix (the longest one counts). Given limits are kept to; the API's headers may
            lower them. None: the Start tier's, and then what the API's headers say, upwards and downwards.
        poll_every: Shortest and longest time between two polls of one batch; in between a tenth of its age.
        create_grace: How long a create of unknown outcome is looked for before its requests go into another batch.
        cancel_settle: How long a cancel may take to end.
        max_batch_requests: The most requests in one batch; None: the API's limit (100,000). Smaller batches end sooner,
            and nothing of a batch can be read before it ends. "auto": a submission is cut into batches of 10,000, 1,000
            or 100 (at most 100 of them) where this ledger's record says that those end clearly earlier.
        exclusive_workspace: Nobody else makes batches in the client's workspace.
        linger: How long a wait for a ticket, a job or a client's call lets others join before what it waits for is
            submitted; five times as long at most, and never past the moment by which its batch has to be sent.
        fallback_models: On a refusal a request is sent again, to the next of these models, on the cheapest lane that
            keeps its deadline. What the refusing model thought is left out. Each try counts among the attempts, also
            where `max_attempts` are used up, and all are billed. A request that the last model refuses too ends
            REFUSED.
        cache: "prime": where requests for a batch share a prefix up to a `cache_control` breakpoint, one of them goes
            ahead and writes the prefix to the prompt cache for an hour, if that is expected to be cheaper and the
            deadlines leave time for it; breakpoints that name no life then ask for an hour. "as_is": requests are sent
            as they are.
        prices: What models charge, by their exact ids, before what genai-prices' data have for them.
    """

    window: timedelta = attrs.field(default=WINDOW, validator=_positive)
    reserve: timedelta | None = attrs.field(default=None, validator=attrs.validators.optional(_not_negative))
    min_reserve: timedelta = attrs.field(default=timedelta(minutes=15), validator=_not_negative)
    interval: timedelta | None = attrs.field(default=None, validator=attrs.validators.optional(_positive))
    flexible_interval: timedelta = attrs.field(default=timedelta(hours=1), validator=_positive)
    hedge: bool = attrs.field(default=False, validator=_flag)
    delay_cost_per_hour: Decimal = attrs.field(default=Decimal(0), converter=_to_usd)
    zero_data_retention: bool = attrs.field(default=False, validator=_flag)
    max_attempts: int = attrs.field(default=3, validator=_positive_number)
    max_spend: Decimal | None = attrs.field(default=None, converter=attrs.converters.optional(_to_usd))
    max_spend_period: timedelta | None = attrs.field(default=None, validator=attrs.validators.optional(_positive))
    late: Literal["run", "fail"] = attrs.field(default="run")
    limits: Limits | Mapping[str, Limits] | None = attrs.field(default=None, converter=_to_limits, hash=False)
    poll_every: tuple[timedelta, timedelta] = attrs.field(
        default=(timedelta(seconds=1), timedelta(minutes=2)), converter=_to_poll_every
    )
    create_grace: timedelta = attrs.field(default=timedelta(minutes=15), validator=_not_negative)
    cancel_settle: timedelta = attrs.field(default=timedelta(minutes=10), validator=_not_negative)
    max_batch_requests: int | Literal["auto"] | None = attrs.field(default=None)
    exclusive_workspace: bool = attrs.field(default=False, validator=_flag)
    linger: timedelta = attrs.field(default=timedelta(seconds=1), validator=_not_negative)
    fallback_models: tuple[str, ...] = attrs.field(default=(), converter=_to_models)
    cache: Literal["as_is", "prime"] = attrs.field(default="as_is")
    prices: Mapping[str, Rates] = attrs.field(factory=dict, converter=_to_prices, hash=False)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Policy:
        """A policy out of a TOML file: `window = "24h"`, `max_spend = 20`, `hedge = true`, `limits = "build"`.

        What is left out has its default. Durations are text with units (`"90m"`, `"1d12h"`), `limits` a tier's name, a
        table, or a table for each prefix of models.

        Raises:
            InvalidValueError: The file cannot be read, or a field is unknown or cannot be what is written.
        """
        try:
            return cls.from_dict(read_toml(path))
        except InvalidValueError as error:
            raise InvalidValueError(f"{os.fspath(path)}: {error}") from None

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], *, lenient: bool = False) -> Policy:
        """A policy out of what `to_dict` gives, or what a TOML file holds; what is left out has its default.

        Args:
            table: What its fields are.
            lenient: Pass over fields that this version does not know.

        Raises:
            InvalidValueError: A field is unknown, or cannot be what is written.
        """
        return from_table(cls, table, parts=_POLICY_PARTS, lenient=lenient)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON has them: durations as `"1d12h"`, money as text, None as null."""
        return to_table(self)

    def differs_from(self, other: Policy) -> str:
        """What is different in another policy, in words: `window=24h (not 1h), hedge=True (not False)`."""
        mine, theirs = self.to_dict(), other.to_dict()
        return ", ".join(f"{name}={mine[name]} (not {theirs[name]})" for name in mine if mine[name] != theirs[name])

    def __attrs_post_init__(self) -> None:
        if self.max_spend_period is not None and self.max_spend is None:
            raise InvalidValueError("max_spend_period limits nothing without max_spend; give max_spend, in US dollars")

    @max_batch_requests.validator
    def _check_max_batch_requests(self, attribute: attrs.Attribute[int], value: int | str | None) -> None:
        if isinstance(value, str):
            if value != "auto":
                raise InvalidValueError(f"max_batch_requests={shown(value)} is neither a whole number nor 'auto'")
        elif value is not None:
            _positive_number(self, attribute, value)

    @cache.validator
    def _check_cache(self, _attribute: attrs.Attribute[str], value: str) -> None:
        if value not in {"as_is", "prime"}:
            raise InvalidValueError(f"cache={shown(value)} is not one of 'as_is', 'prime'")

    @late.validator
    def _check_late(self, _attribute: attrs.Attribute[str], value: str) -> None:
        if value not in {"run", "fail"}:
            raise InvalidValueError(f"late={value!r} is not one of 'run', 'fail'")


def check_policy(policy: object) -> None:
    """Refuse what a caller took for a policy.

    Raises:
        InvalidValueError: It is no `Policy`.
    """
    if not isinstance(policy, Policy):
        raise InvalidValueError(
            f"policy is a {type(policy).__name__}, not a Policy; write Policy(...), Policy.from_dict(...) of a dict, "
            "or Policy.from_toml(...) of a file's path"
        )


_POLICY_PARTS: Mapping[str, Callable[[Any], Any]] = {"limits": _limits_of, "prices": _prices_of}
"""How the fields of a policy are read that are tables themselves."""


@attrs.frozen
class Check:
    """One routing rule's verdict.

    Attributes:
        rule: The reason that the rule gives when it decides.
        decided: Whether this rule chose the lane.
        verdict: What the rule saw, in words with figures.
    """

    rule: Reason
    decided: bool
    verdict: str


@attrs.frozen
class Decision:
    """Which lane a request goes to, why, and by when what has to happen. Plain data: it pickles.

    Two are equal if they decide the same, in whatever words.

    Attributes:
        lane: The lane.
        reason: The rule that decided, by its stable name.
        deadline: When the result is due (UTC); None without a deadline.
        submit_by: The last moment at which its batch may be sent (UTC); None on the sync lane or without deadline.
        rescue_at: The last moment at which a rescue of it alone would begin (UTC); None where there is none.
    """

    lane: Lane
    reason: Reason
    _explanation: str | Callable[[], str] = attrs.field(default="", repr=False, eq=False)
    deadline: datetime | None = None
    submit_by: datetime | None = None
    rescue_at: datetime | None = None
    _checks: tuple[Check, ...] | Callable[[], tuple[Check, ...]] = attrs.field(default=(), repr=False, eq=False)

    @property
    def explanation(self) -> str:
        """One sentence a person can act on, with the figures in it. Put into words when read."""
        return self._explanation if isinstance(self._explanation, str) else self._explanation()

    @property
    def checks(self) -> tuple[Check, ...]:
        """Every rule with its verdict, in the order in which they are asked. Put into words when read."""
        return self._checks if isinstance(self._checks, tuple) else self._checks()

    def __reduce__(self) -> tuple[type[Decision], tuple[object, ...]]:
        when = self.deadline, self.submit_by, self.rescue_at
        return type(self), (self.lane, self.reason, self.explanation, *when, self.checks)


@attrs.frozen
class ResultError:
    """Why a request has no answer.

    Attributes:
        type: The API's error type (`invalid_request_error`, `overloaded_error`, ...) or batchwise's own
            (`refusal`, `truncated`, `expired`, `canceled`, `abandoned`, `missing_row`, `late`, ...).
        message: The API's words, or ours; control characters are escaped.
        retryable: Whether the same request may succeed when tried again.
    """

    type: str = attrs.field(converter=printable)
    message: str = attrs.field(converter=printable)
    retryable: bool


@attrs.frozen(kw_only=True)
class RunningBatch:
    """One batch that has not been collected yet.

    Attributes:
        remote_id: The API's id; None while the create's outcome is unknown.
        requests: How many requests went with it.
        elapsed: Time since it was created.
        expected_end: The earliest and the latest plausible end (UTC; the 10 % and 90 % points of the forecast).
        rescue_at: When a rescue would start (UTC); None where no deadline asks for one.
        status: `sealed`, `in_doubt`, `in_progress`, `canceling` or `ended`.
    """

    remote_id: str | None
    requests: int
    elapsed: timedelta
    expected_end: tuple[datetime, datetime]
    rescue_at: datetime | None
    status: str


@attrs.frozen(kw_only=True)
class Progress:
    """Where the work stands.

    Attributes:
        total: Requests accepted.
        by_status: Requests by status.
        by_outcome: Settled requests by outcome.
        by_lane: Unsettled requests by the lane that they are on now.
        batches: Batches not collected yet.
        at_risk: Unsettled requests whose deadline is still to come and may not be kept: their rescue should have begun
            and has not, or the lanes can no longer serve them in time.
        overdue: Unsettled requests whose deadline has passed.
        suspended: Suspended lanes with the reason.
        next_due: When some process must run next (UTC) so that every deadline is kept; None: nothing waits. In the
            past: some process should have run then, and none did.
        last_error: What this process tried last that failed and has not worked since, how often, and when it tries
            again (a busy database, a full disk, an API that does not answer); else what another process told the
            ledger so. None: nothing is in the way. Without any content.
        last_advance: When `advance` was last called on this ledger, by whatever process (UTC); None: never.
    """

    total: int
    by_status: Mapping[Status, int]
    by_outcome: Mapping[Outcome, int]
    by_lane: Mapping[Lane, int]
    batches: tuple[RunningBatch, ...] = ()
    at_risk: int = 0
    overdue: int = 0
    suspended: Mapping[Lane, str] = attrs.field(factory=dict)
    next_due: datetime | None = None
    last_error: str | None = None
    last_advance: datetime | None = None

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        by_status = ", ".join(f"{number:,} {status.value}" for status, number in self.by_status.items() if number)
        by_outcome = ", ".join(f"{number:,} {outcome.value}" for outcome, number in self.by_outcome.items() if number)
        yield f"{in_requests(self.total)}: {by_status or 'none'}"
        if by_outcome:
            yield f"outcomes: {by_outcome}"
        for batch in self.batches:
            first, last = map(_moment, batch.expected_end)
            rescue = "" if batch.rescue_at is None else f", rescue at {_moment(batch.rescue_at)}"
            yield (
                f"batch {printable(batch.remote_id or '(id unknown)')}: {in_requests(batch.requests)}, {batch.status} "
                f"for {span(batch.elapsed)}, expected to end between {first} and {last}{rescue}"
            )
        for lane, reason in self.suspended.items():
            yield f"suspended: the {lane.value} lane: {reason}"
        if self.at_risk:
            yield f"at risk: {in_requests(self.at_risk)} may miss their deadline"
        if self.overdue:
            yield f"overdue: {in_requests(self.overdue)} not settled after the deadline"
        if self.last_error is not None:
            yield f"failed last: {self.last_error}"
        if self.next_due is not None:
            yield f"next due: {_moment(self.next_due)}"

    def _repr_html_(self) -> str:
        """Tables, for notebooks."""
        counts = [(status.value, f"{self.by_status.get(status, 0):,}") for status in Status]
        counts += [(outcome.value, f"{number:,}") for outcome, number in self.by_outcome.items() if number]
        counts += [
            ("at risk", f"{self.at_risk:,}"),
            ("overdue", f"{self.overdue:,}"),
            ("next due", moment(self.next_due)),
        ]
        counts += [(f"the {lane.value} lane is suspended", reason) for lane, reason in self.suspended.items()]
        if self.last_error is not None:
            counts.append(("failed last", self.last_error))
        rows = [
            (
                batch.remote_id or "-",
                f"{batch.requests:,}",
                batch.status,
                span(batch.elapsed),
                moment(batch.expected_end[0]),
                moment(batch.expected_end[1]),
                moment(batch.rescue_at),
            )
            for batch in self.batches
        ]
        head = "batch", "requests", "status", "runs for", "ends from", "ends by", "rescue at"
        return to_html(counts, in_requests(self.total)) + (to_html(rows, head=head) if rows else "")

    @property
    def settled(self) -> int:
        """Requests that have their outcome."""
        return self.by_status.get(Status.SETTLED, 0)

    @property
    def done(self) -> bool:
        """Whether every accepted request is settled."""
        return self.settled == self.total


def _moment(at: datetime) -> str:
    return at.isoformat(timespec="seconds")


@attrs.frozen(kw_only=True)
class BatchRecord:
    """What a report knows of one batch that the API has named.

    Attributes:
        remote_id: The API's id.
        requests: How many requests went with it.
        model: The model of the first of them.
        created_at: When it was created (UTC).
        ended_at: When it ended (UTC); None: it runs.
        canceled_at: When its end was asked for (UTC); None: never.
        deadline: The first deadline of its requests (UTC); None: none has one.
        expected: How long such batches take: the 10 % and the 90 % point of the forecast as it is now.
    """

    remote_id: str
    requests: int
    model: str
    created_at: datetime
    ended_at: datetime | None
    canceled_at: datetime | None
    deadline: datetime | None
    expected: tuple[timedelta, timedelta]


@attrs.frozen(kw_only=True)
class Report:
    """Money and deadlines of what has settled. Amounts are USD.

    Attributes:
        requests: Settled requests.
        cost: What they cost.
        cost_by_lane: The same by lane.
        saved: What the sync lane would have cost beyond that.
        wasted: Paid for rows that were not used (rescued twice, arrived late, cancelled in a batch with others).
        unpriced: Settled requests whose model's price is unknown; they are in none of the amounts.
        met: Deadlines met: an answer came in time.
        missed: Deadlines missed: the answer came late, or none did. Cancelled requests are in neither.
        refused: Settled requests that the model declined to answer. They are billed.
        truncated: Settled requests whose message was cut off (`Result.truncated`), whatever their outcome.
        worst_lateness: By how much the worst was missed.
        attempts: Attempts made for these requests.
        possible_doubles: Purchases that may have happened twice because an acceptance could not be seen.
        cache_read_tokens: Input tokens read from the prompt cache.
        cache_written_tokens: Input tokens written to it.
        cache_saved: What the prompt cache saved, against the same input uncached; negative: writing cost more.
        input_tokens: All input tokens, cached ones included.
        prices: By which prices the ledger's answers were reckoned, each with the last day (UTC) on which it was: a
            release of genai-prices, the day on which its data were fetched, or Policy.prices before it.
        by_label: What the requests with a label cost, by its name and value: `{("team", "search"): Decimal("1.20")}`.
            One with several labels counts under each of them.
        batches: The last batches (200 at most), the oldest first: for `to_html`.
    """

    requests: int
    cost: Decimal
    cost_by_lane: Mapping[Lane, Decimal]
    saved: Decimal
    wasted: Decimal
    unpriced: int
    met: int
    missed: int
    refused: int
    truncated: int
    worst_lateness: timedelta
    attempts: int
    possible_doubles: int
    cache_read_tokens: int
    cache_written_tokens: int
    cache_saved: Decimal
    input_tokens: int
    prices: Mapping[str, date] = attrs.field(factory=dict)
    by_label: Mapping[tuple[str, str], Decimal] = attrs.field(factory=dict)
    batches: tuple[BatchRecord, ...] = attrs.field(default=(), eq=False, repr=False)

    @property
    def cache_hit_rate(self) -> float | None:
        """Of the tokens that the prompt cache was asked for, the share that was read from it; None: of none."""
        asked = self.cache_read_tokens + self.cache_written_tokens
        return self.cache_read_tokens / asked if asked else None

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        lanes = ", ".join(
            f"{dollars(cost)} on the {lane.value} lane" for lane, cost in self.cost_by_lane.items() if cost
        )
        odd = "".join(f", {number} of them {word}" for word, number in self._odd if number)
        yield f"{in_requests(self.requests)} settled{odd}; {self.attempts:,} attempt{'s' * (self.attempts != 1)}"
        yield f"cost: {dollars(self.cost)}{f' ({lanes})' if lanes else ''}; saved: {dollars(self.saved)}"
        worst = f", the worst by {human(self.worst_lateness)}" if self.worst_lateness else ""
        yield f"deadlines: {self.met:,} met, {self.missed:,} missed{worst}"
        if self.cache_hit_rate is not None:
            asked = self.cache_read_tokens + self.cache_written_tokens
            rate = f"{self.cache_hit_rate:.1%} of {asked:,} tokens read"
            yield f"prompt cache: {rate}, the rest written; saved: {dollars(self.cache_saved)}"
        for (name, value), cost in sorted(self.by_label.items()):
            yield f"label {printable(name)}={printable(value)}: {dollars(cost)}"
        for source, day in self.prices.items():
            yield f"by the prices of {source}, last on {day.isoformat()}"
        if self.wasted:
            yield f"paid for rows that were not used: {dollars(self.wasted)}"
        if self.unpriced:
            yield f"of unknown price, and in none of the amounts: {in_requests(self.unpriced)}"
        if self.possible_doubles:
            yield f"possibly bought twice: {self.possible_doubles}"

    @property
    def _odd(self) -> tuple[tuple[str, int], ...]:
        return ("refused", self.refused), ("truncated", self.truncated)

    def _repr_html_(self) -> str:
        """A table, for notebooks."""
        rows = [
            ("requests settled", f"{self.requests:,}"),
            *((word, f"{number:,}") for word, number in self._odd),
            ("deadlines met", f"{self.met:,}"),
            ("deadlines missed", f"{self.missed:,}"),
            ("worst lateness", span(self.worst_lateness)),
            *((f"cost on the {lane.value} lane", dollars(cost)) for lane, cost in self.cost_by_lane.items()),
            ("cost", dollars(self.cost)),
            ("saved", dollars(self.saved)),
            ("wasted", dollars(self.wasted)),
            *((f"{name}: {value}", dollars(cost)) for (name, value), cost in sorted(self.by_label.items())),
            ("of unknown price", f"{self.unpriced:,}"),
            ("attempts", f"{self.attempts:,}"),
            ("possible doubles", f"{self.possible_doubles:,}"),
            ("input tokens", f"{self.input_tokens:,}"),
            ("read from the cache", f"{self.cache_read_tokens:,}"),
            ("written to the cache", f"{self.cache_written_tokens:,}"),
            ("saved by the cache", dollars(self.cache_saved)),
        ]
        return to_html(rows, "Money and deadlines")

    def to_html(self, title: str = "batchwise report") -> str:
        """One page that holds all it shows: batches against deadlines with rescues, money, forecasts against facts.

        Of a report of `Dispatcher.report` or `Job.report`; one made otherwise has no batches to show. It needs no
        network, and matplotlib, which the extra `batchwise-claude[report]` brings.

        Args:
            title: The page's heading.

        Raises:
            BatchwiseError: matplotlib is not installed.
        """
        from .basics.pictures import report_page

        money = [*((f"{lane.value} lane", cost) for lane, cost in self.cost_by_lane.items())]
        money += [("saved", self.saved), ("wasted", self.wasted)]
        return report_page(title, self._repr_html_(), money, self.batches, datetime.now(timezone.utc))
