"""The capacity of the sync lane: the account's limits for each class of models, and what one process can deliver.

Admission, rescues, the schedule and progress all ask here, and so does the pacing that carries the plan out. No plan
uses a rate that the driver cannot deliver. No clock, no I/O.

**Classes.** The API's limits hold for each model, but some older models share theirs (API documentation, rate limits,
October 2026). The class of a model is the longest prefix of it in `Policy.limits`, where that is a mapping. Otherwise
it is the model's id without a date (`claude-haiku-4-5-20251001` is of the class `claude-haiku-4-5`), and for the
models that share one limit, their family: `claude-opus-4`, `claude-sonnet-4` and `claude-fable-5`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from fractions import Fraction
from functools import lru_cache
from typing import TypeVar

import attrs

from batchwise.models import Limits, Policy

from .sync_schedule import Pace

__all__ = [
    "FILLED",
    "MOST_CALLS",
    "Capacity",
    "Measured",
    "calls_at_once",
    "class_of",
    "given_limits",
    "latest",
    "limits_of",
    "queue_limit",
    "tail_of",
]

T = TypeVar("T")

MOST_CALLS = 1_000
"""The most calls that one process runs at once: the connections that the SDK's client opens by default."""
FILLED = Fraction(95, 100)
"""The share of its limits that the sync lane keeps filled where nothing worse was measured."""
_BELIEVED = timedelta(minutes=10)
"""How long a measured share is planned with: our choice."""
_COARSE = 1_000
"""A measured share is taken as a fraction with at most this denominator."""
_START = attrs.evolve(Limits.for_tier("start"), concurrency=None)
"""The assumed limits of the account until the API has named them. The API publishes no limit of concurrency."""
_FAMILIES = re.compile(r"claude-(?:opus-4|sonnet-4|fable-5)(?![0-9])")
_DATE = re.compile(r"(?:[-@][0-9]{8}|-latest)(?:-v[0-9].*)?$")


@attrs.frozen(kw_only=True)
class Measured:
    """What a process last measured of the sync lane for one class of models.

    Attributes:
        at: When it was seen (our clock).
        share: The share of the limits that the lane reaches, 0 to 1; None: nothing was measured.
        requests_per_minute: The limit that the API's headers said; None: they said none.
        input_tokens_per_minute: The same.
        output_tokens_per_minute: The same.
    """

    at: datetime
    share: float | None = None
    requests_per_minute: int | None = None
    input_tokens_per_minute: int | None = None
    output_tokens_per_minute: int | None = None


def class_of(model: str, limits: Limits | Mapping[str, Limits] | None) -> str:
    """Return the class of a model under `Policy.limits`: requests of one class share the account's limits."""
    if isinstance(limits, Mapping):
        prefix = _prefix(model, limits)
        if prefix is not None:
            return prefix
    return _family(model)


def _prefix(model: str, limits: Mapping[str, Limits]) -> str | None:
    names = model, _bare(model)
    return max((each for each in limits if any(name.startswith(each) for name in names)), key=len, default=None)


def _bare(model: str) -> str:
    """Return the model's id without the prefix of some platforms."""
    return model[max(0, model.find("claude-")) :]


@lru_cache(maxsize=1_024)
def _family(model: str) -> str:
    shared = _FAMILIES.search(model)
    return shared.group() if shared else _DATE.sub("", _bare(model))


def given_limits(model: str, limits: Limits | Mapping[str, Limits] | None) -> Limits | None:
    """Return the limits that a policy gives for a model (or its class); None: none, so the API's headers set them."""
    if not isinstance(limits, Mapping):
        return limits
    prefix = _prefix(model, limits)
    return None if prefix is None else limits[prefix]


def limits_of(model: str, limits: Limits | Mapping[str, Limits] | None, measured: Measured | None = None) -> Limits:
    """Return the limits in force for a model (or for its class).

    Given limits are kept to, and the API's headers may lower them. Where none are given, the Start tier's hold until
    the headers (`measured`) have said the account's, which are followed upwards, too.
    """
    given = given_limits(model, limits)
    found = _START if given is None else given
    if measured is None:
        return found
    return attrs.evolve(
        found,
        requests_per_minute=_lower(measured.requests_per_minute, found.requests_per_minute, given),
        input_tokens_per_minute=_lower(measured.input_tokens_per_minute, found.input_tokens_per_minute, given),
        output_tokens_per_minute=_lower(measured.output_tokens_per_minute, found.output_tokens_per_minute, given),
    )


def _lower(measured: int | None, known: int | None, given: Limits | None) -> int | None:
    if measured is None or known is None:
        return known if measured is None else measured
    return measured if given is None else min(measured, known)


def queue_limit(limits: Limits | Mapping[str, Limits] | None) -> int | None:
    """Return how many batch requests of all models may wait in the account's queue: the least that is given."""
    if isinstance(limits, Limits):
        return limits.batch_requests_in_queue
    given = () if limits is None else (each.batch_requests_in_queue for each in limits.values())
    return min((each for each in given if each is not None), default=_START.batch_requests_in_queue)


def tail_of(limits: Limits | Mapping[str, Limits] | None) -> timedelta:
    """Return the time that is allowed for the slowest sync call: three times the mean, of the slowest class."""
    if isinstance(limits, Mapping):
        return max(map(tail_of, (None, *limits.values())))  # models that it does not name have the first tier's
    return 3 * (_START if limits is None else limits).latency


def latest(known: Mapping[str, Measured], own: Mapping[str, Measured], now: datetime) -> dict[str, Measured]:
    """Return the latest measurement of each class: this process's own, or a later one that the ledger knows.

    What was seen after `now` was seen by a clock that was ahead, and is no news.
    """
    others = {name: it for name, it in known.items() if name not in own or own[name].at < it.at <= now}
    return {**own, **others}


class Capacity:
    """The sync lane for some classes of models at one moment.

    Each class has limits of its own, and all share the calls that one process runs at once. Where the classes could
    use more than these together, each is planned with a share of them. What was `measured` of a class long ago, or by
    a clock that was far ahead, has no share. `models` are models, or classes, that the lane has to serve.
    """

    def __init__(
        self,
        policy: Policy,
        now: datetime,
        measured: Mapping[str, Measured] | None = None,
        models: Iterable[str] = (),
    ) -> None:
        self._policy, self._now, self._measured = policy, now, measured or {}
        self.classes = frozenset(self.class_of(model) for model in models)
        self._full = {each: self._limits(each) for each in self.classes}
        wanted = sum(map(_filling, self._full.values()), Fraction(0))
        self._part = min(Fraction(1), MOST_CALLS / wanted) if wanted else Fraction(1)

    def class_of(self, model: str) -> str:
        """Return the class of a model."""
        return class_of(model, self._policy.limits)

    def joined(self, model: str) -> Capacity:
        """Return the lane as it serves this model, too; the same object if it already does."""
        name = self.class_of(model)
        if name in self.classes:
            return self
        return Capacity(self._policy, self._now, self._measured, (*self.classes, name))

    def _limits(self, name: str) -> Limits:
        return limits_of(name, self._policy.limits, self._measured.get(name))

    def limits(self, name: str) -> Limits:
        """Return the part of a class's limits that can be delivered."""
        limits = self._full.get(name) or self._limits(name)
        most = MOST_CALLS if self._part == 1 else max(1, int(_filling(limits) * self._part))
        return attrs.evolve(limits, concurrency=min(most, limits.concurrency or most))

    def share(self, name: str) -> Fraction:
        """Return the share of its limits that a class has reached lately; 1 if nothing was measured."""
        measured = self._measured.get(name)
        if measured is None or measured.share is None or abs(self._now - measured.at) > _BELIEVED:
            return Fraction(1)
        return min(Fraction(1), max(Fraction(1, _COARSE), Fraction(measured.share).limit_denominator(_COARSE)))

    def pace(self, name: str, most: Fraction = FILLED) -> Pace:
        """Return the pace to plan a class with: the share that it reaches, at most `most` of the limits."""
        return Pace(limits=self.limits(name), share=min(most, self.share(name)))

    def tail(self, name: str) -> timedelta:
        """Return the time that is allowed for the slowest call of a class."""
        return tail_of(self._limits(name))

    def by_class(self, items: Iterable[T], model: Callable[[T], str]) -> dict[str, list[T]]:
        """Return items, in their order, by the class of their model."""
        found: dict[str, list[T]] = {}
        for item in items:
            found.setdefault(self.class_of(model(item)), []).append(item)
        return found


def calls_at_once(limits: Limits) -> int:
    """Return how many calls run at once when the lane fills its limits."""
    return math.ceil(_filling(limits))


def _filling(limits: Limits) -> Fraction:
    bounds = [Fraction(MOST_CALLS)]
    if limits.concurrency is not None:
        bounds.append(Fraction(limits.concurrency))
    if limits.requests_per_minute is not None:
        bounds.append(limits.requests_per_minute * Fraction(limits.latency // timedelta(microseconds=1), 60_000_000))
    return min(bounds)
