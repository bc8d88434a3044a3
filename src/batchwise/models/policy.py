"""`Policy`, and its parts: how time is traded for money, the account's limits, the prices of models."""

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

_optional = attrs.validators.optional
_MOST = 10**12
"""The largest count, and the most US dollars: a larger figure is a slip, and too large for a database's integers."""


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


def _one_of(*words: str) -> Callable[[object, attrs.Attribute[str], str], None]:
    def check(_instance: object, attribute: attrs.Attribute[str], value: str) -> None:
        if value not in words:
            raise InvalidValueError(f"{attribute.name}={shown(value)} is not one of {', '.join(map(repr, words))}")

    return check


def _to_usd(value: object, field: str) -> Decimal:
    wrong = f"{field}={shown(value)} is not an amount of US dollars"
    try:
        amount = Decimal(str(value))
    except ArithmeticError:
        raise InvalidValueError(f"{wrong}; give a Decimal or an int") from None
    if not amount.is_finite() or not 0 <= amount <= _MOST:
        raise InvalidValueError(f"{wrong} from 0 to {_MOST:,}")
    return amount


GRAIN = Decimal("0.0001")
"""A caller's rates have to be multiples of this, in USD per million tokens, so that half a rate, and a rate with the
surcharge for inference in the US, is exact."""


def _to_max_spend(value: object) -> Decimal:
    return _to_usd(value, "max_spend")


def _to_delay_cost(value: object) -> Decimal:
    return _to_usd(value, "delay_cost_per_hour")


def _to_rate(value: object) -> Decimal:
    rate = _to_usd(value, "rate")
    if rate % GRAIN:
        raise InvalidValueError(
            f"rate={shown(value)} USD per million tokens is finer than {GRAIN}; round it to 4 decimals"
        )
    return rate


@attrs.frozen(kw_only=True)
class Rates:
    """The prices of a model on the sync lane, in USD per million tokens, for `Policy.prices`. A batch costs half.

    Amounts are given as Decimal, int, float or str, with at most 4 decimals. A cache rate that is left out is the
    multiple of `input` that the data of genai-prices have for the model; without such data, 1.25 and 0.1 times `input`.

    Attributes:
        input: Input tokens that are not cached.
        output: Output tokens, thinking included.
        cache_write: Input tokens that are written to the 5-minute cache. The rate of the 1-hour cache follows from it.
        cache_read: Input tokens that are read from the cache.
    """

    input: Decimal = attrs.field(converter=_to_rate)
    output: Decimal = attrs.field(converter=_to_rate)
    cache_write: Decimal | None = attrs.field(default=None, converter=attrs.converters.optional(_to_rate))
    cache_read: Decimal | None = attrs.field(default=None, converter=attrs.converters.optional(_to_rate))


@attrs.frozen(kw_only=True)
class Limits:
    """The limits of the account's sync lane and batch queue. `None`: no such limit.

    Attributes:
        requests_per_minute: Messages calls a minute.
        input_tokens_per_minute: Uncached input tokens a minute.
        output_tokens_per_minute: Output tokens a minute.
        concurrency: Messages calls at the same time.
        latency: The mean duration of a sync call. Together with `concurrency` it limits the calls a minute.
        batch_requests_in_queue: Batch requests that may wait in the account's queue at the same time.
    """

    requests_per_minute: int | None = attrs.field(default=None, validator=_optional(_positive_number))
    input_tokens_per_minute: int | None = attrs.field(default=None, validator=_optional(_positive_number))
    output_tokens_per_minute: int | None = attrs.field(default=None, validator=_optional(_positive_number))
    concurrency: int | None = attrs.field(default=None, validator=_optional(_positive_number))
    latency: timedelta = attrs.field(default=timedelta(seconds=10), validator=_positive)
    batch_requests_in_queue: int | None = attrs.field(default=None, validator=_optional(_positive_number))

    @classmethod
    def for_tier(cls, tier: Literal["start", "build", "scale"]) -> Limits:
        """Return the published limits of a usage tier (API documentation, rate limits, 2026).

        `concurrency` is not published. The figure is as many calls as may start in 6 s; if the API refuses calls for
        load, the lane makes fewer at a time.

        Args:
            tier: `"start"`, `"build"` or `"scale"`.

        Raises:
            InvalidValueError: There is no such tier.
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
        f"limits={shown(value)} cannot be limits; give a Limits, such as Limits.for_tier('build'), or Limits by the "
        "beginning of models' ids, such as {'claude-haiku': Limits(...)}, or None (follow the API's headers)"
    )


def _limits_of(table: object) -> object:
    """Read limits from a table: the name of a tier, the limits themselves, or limits by the models' prefix."""
    if isinstance(table, str):
        return Limits.for_tier(table)  # type: ignore[arg-type]  # it refuses other words
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
        raise InvalidValueError(
            f"fallback_models={shown(value)} is not a list of models' ids; give e.g. ['claude-...']"
        )
    return models


def _to_prices(value: object) -> Mapping[str, Rates]:
    if isinstance(value, Mapping) and all(
        isinstance(model, str) and model and isinstance(rates, Rates) for model, rates in value.items()
    ):
        return dict(value)
    raise InvalidValueError(
        f"prices={shown(value)} is not a mapping from a model's id to Rates; "
        'give e.g. prices={"my-model": Rates(input=3, output=15)}'
    )


def _prices_of(table: object) -> object:
    """Read prices from a table, which has a table of rates for each model."""
    if not isinstance(table, Mapping):
        return table
    return {model: from_table(Rates, rates) if isinstance(rates, Mapping) else rates for model, rates in table.items()}


@attrs.frozen(kw_only=True)
class Policy:
    """How a dispatcher trades time for money. Every field has a default that keeps deadlines.

    Attributes:
        window: The processing window of the batch API.
        reserve: The time before each deadline that is kept to redo on the sync lane what a batch did not finish.
            None: a third of the buffer, which is the time from dispatch to deadline minus the window. It is never
            shorter than the overhead of a rescue: two polls, reading the batch, and the slowest call; by default that
            is 2 min 32 s.
        min_reserve: The shortest reserve that is derived with `reserve=None`.
        interval: The longest time that a request waits until its batch is sent. None: it is derived from each SLA.
            With a delay cost, requests wait no longer than waiting for others pays.
        flexible_interval: The same for `Latency.FLEXIBLE` requests.
        hedge: Whether a request may go to a batch although its deadline lies inside the window. A rescue is then
            planned before the deadline. With a delay cost, a request is hedged only if it would also go to a batch
            with more time, and its batch is cancelled when a longer wait would cost more than it may save.
        delay_cost_per_hour: What an hour of waiting costs, in USD for each request. A request goes to a batch only if
            that is cheaper, the cost of the wait included.
        zero_data_retention: Whether the organisation has zero data retention. Batches are not covered by it, so
            nothing goes to a batch.
        max_attempts: How often a request may be tried, on both lanes together. While the deadline can still be met,
            the last attempt is left to the sync lane, attempts in batches do not count against it there, and requests
            that the API refused for load, or that were never sent, are tried until the deadline.
        max_spend: The most that the work of the ledger may cost, in USD. None: no limit.
        max_spend_period: `max_spend` counts what settled within this time, and all unsettled work. None: all that
            ever settled.
        late: What becomes of work whose deadline has passed. "run": it still runs, on the cheapest lane. "fail": it
            settles without being sent.
        limits: The account's limits for each class of models. A `Limits` holds for every class. A mapping has the
            limits by the beginning of the models' ids; the longest one that fits counts. Given limits are never
            exceeded, and the API's headers may lower them. None: the Start tier's at first, and then what the API's
            headers say, upwards and downwards.
        poll_every: The shortest and the longest time between two polls of a batch. In between, a batch is polled each
            time that it has become a tenth older.
        create_grace: How long batchwise looks for a batch whose create was not answered, before its requests go into
            another batch.
        cancel_settle: How long the API may take to end a batch that was cancelled.
        max_batch_requests: The most requests in one batch. None: the API's limit (100,000). Smaller batches end
            sooner, and nothing of a batch can be read before it ends. "auto": a submission is cut into at most 100
            batches of 10,000, 1,000 or 100 requests, if those of this ledger so far ended clearly sooner.
        exclusive_workspace: Whether nobody but this ledger makes batches in the client's workspace.
        linger: How long a wait for a ticket, a job or a client's call lets other requests join before the batch is
            submitted. Each one that joins starts this time anew, but the wait is never more than five times as long,
            and never past the moment by which the batch has to be sent.
        fallback_models: If a model refuses a request, the request is sent again to the next of these models, on the
            cheapest lane that keeps the deadline, without the thinking of the model that refused. Each try is billed
            and counts as an attempt, but all models are tried even if `max_attempts` is reached. A request that the
            last model refuses too settles REFUSED.
        cache: "prime": if requests for a batch share a prefix up to a `cache_control` breakpoint, one of them is sent
            first and writes the prefix to the prompt cache for an hour, provided that this is expected to be cheaper
            and the deadlines leave time for it. Breakpoints without a `ttl` then ask for an hour. "as_is": requests
            are sent as they are.
        prices: The prices of models, by exact model id. They replace those in the data of genai-prices.
    """

    window: timedelta = attrs.field(default=WINDOW, validator=_positive)
    reserve: timedelta | None = attrs.field(default=None, validator=_optional(_not_negative))
    min_reserve: timedelta = attrs.field(default=timedelta(minutes=15), validator=_not_negative)
    interval: timedelta | None = attrs.field(default=None, validator=_optional(_positive))
    flexible_interval: timedelta = attrs.field(default=timedelta(hours=1), validator=_positive)
    hedge: bool = attrs.field(default=False, validator=_flag)
    delay_cost_per_hour: Decimal = attrs.field(default=Decimal(0), converter=_to_delay_cost)
    zero_data_retention: bool = attrs.field(default=False, validator=_flag)
    max_attempts: int = attrs.field(default=3, validator=_positive_number)
    max_spend: Decimal | None = attrs.field(default=None, converter=attrs.converters.optional(_to_max_spend))
    max_spend_period: timedelta | None = attrs.field(default=None, validator=_optional(_positive))
    late: Literal["run", "fail"] = attrs.field(default="run", validator=_one_of("run", "fail"))
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
    cache: Literal["as_is", "prime"] = attrs.field(default="as_is", validator=_one_of("as_is", "prime"))
    prices: Mapping[str, Rates] = attrs.field(factory=dict, converter=_to_prices, hash=False)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Policy:
        """Read a policy from a TOML file: `window = "24h"`, `max_spend = 20`, `hedge = true`, `limits = "build"`.

        Fields that are left out have their defaults. Durations are text with units (`"90m"`, `"1d12h"`). `limits` is
        the name of a tier, a table, or a table for each beginning of models' ids.

        Args:
            path: The file.

        Raises:
            InvalidValueError: The file cannot be read, a field is unknown, or a value is impossible.
        """
        try:
            return cls.from_dict(read_toml(path))
        except InvalidValueError as error:
            raise InvalidValueError(f"{os.fspath(path)}: {error}") from None

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], *, lenient: bool = False) -> Policy:
        """Make a policy from what `to_dict` returns, or from the content of a TOML file.

        Args:
            table: The fields by name. Fields that are left out have their defaults.
            lenient: Whether fields that this version does not know are ignored.

        Raises:
            InvalidValueError: A field is unknown, or a value is impossible.
        """
        return from_table(cls, table, parts=_POLICY_PARTS, lenient=lenient)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON has them: durations as `"1d12h"`, money as text."""
        return to_table(self)

    def differs_from(self, other: Policy) -> str:
        """Say where this policy differs from another one: `window=24h (not 1h), hedge=True (not False)`."""
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


def check_policy(policy: object) -> None:
    """Check that a caller gave a policy.

    Raises:
        InvalidValueError: It is not a `Policy`.
    """
    if not isinstance(policy, Policy):
        raise InvalidValueError(
            f"policy is a {type(policy).__name__}, not a Policy; write Policy(...), Policy.from_dict(...) of a dict, "
            "or Policy.from_toml(...) of a file's path"
        )


_POLICY_PARTS: Mapping[str, Callable[[Any], Any]] = {"limits": _limits_of, "prices": _prices_of}
"""How to read those fields of a policy that are tables themselves."""
