"""`Policy`, and what it is made of: how time is traded for money, the account's limits, what models charge."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any, Literal

import attrs

from batchwise.basics.figures import check_whole
from batchwise.basics.tables import from_table, read_toml, to_table
from batchwise.basics.times import WINDOW, check_duration, check_positive, check_reach
from batchwise.errors import InvalidValueError, shown

__all__ = ["GRAIN", "Limits", "Policy", "Rates", "check_policy"]

_MOST = 10**12
"""Of whatever is counted, US dollars included: larger figures are slips, and too large for a database's integers."""


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
