"""Forecasts how long batches take, and how long cancels take: from the ledger's own record, with a cautious prior.

A distribution is a survival curve over fixed duration buckets, linear within a bucket. History moves it bucket by
bucket: the chance to end in a bucket is (ended in it + K * prior mass in it) / (reached it + K * prior mass from it
on), the grouped Kaplan-Meier estimate with the prior counted as K batches. With no batch cut off it is exactly
Dirichlet smoothing; one that was cut off (still running, or cancelled) counts for the time that it was watched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Literal

import attrs

from batchwise.basics.times import WINDOW, ZERO, check_aware, check_duration, check_positive
from batchwise.errors import InvalidValueError

from .survival_curve import Curve

__all__ = ["STRENGTH", "Forecast", "Sample", "check_share"]

STRENGTH = 20
"""The weight of the parent curve in samples (K above): our choice."""

_MICROSECOND = timedelta(microseconds=1)
_HOURS_AROUND = 2  # the hour of day is a pool of five hours: our choice

# Bucket ends in minutes, each about a quarter or a third above the one before. A batch that fails to finish ends when
# its window does; the hour past it is room for the sweep that expires it (our allowance, the API states none).
_ENDS = (
    *(1, 2, 3, 4, 5, 7, 10, 15, 20, 25, 30, 40, 50, 60, 75, 90, 105, 120, 150, 180, 210, 240, 300, 360, 420, 480, 600),
    *(720, 840, 960, 1_080, 1_200, 1_320, 1_440, 1_500),
)
_CANCELS = (1 / 12, 1 / 6, 1 / 3, 1 / 2, 1, 2, 3, 5, 7, 10, 15, 20, 30, 45, 60, 120, 240, 480, 960, 1_500)

# (minutes, share still running). The API documentation says that most batches end within 1 h and that none runs past
# 24 h. "Most" is taken as 60 %; from there on the share falls a little slower than 1/t, and 5 % are left to expire.
_PRIOR_ENDS = ((0, 1.0), (5, 0.95), (15, 0.8), (30, 0.6), (60, 0.4), (120, 0.28), (240, 0.2), (480, 0.13), (960, 0.08))
_PRIOR_ENDS_LATE = ((1_440, 0.05), (1_500, 0.0))
# The API documentation gives no figure for cancels. Our guess: half end in a minute, nine of ten in the 10 minutes of
# `Policy.cancel_settle`, 1 % hang until the window ends.
_PRIOR_CANCELS = ((0, 1.0), (1, 0.5), (5, 0.2), (10, 0.1), (30, 0.03), (60, 0.01), (1_500, 0.0))


def _to_hour(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value not in range(24):
        raise InvalidValueError(f"hour={value!r} is not an hour of the day, 0 to 23")
    return value


def _duration(_sample: object, attribute: attrs.Attribute[timedelta], value: object) -> None:
    check_duration(value, attribute.name)


def _known_kind(_sample: object, _attribute: object, value: object) -> None:
    if value not in {"batch", "cancel"}:
        raise InvalidValueError(f"kind={value!r} is not one of 'batch', 'cancel'")


@attrs.frozen(kw_only=True)
class Sample:
    """One observation of a batch, or of a cancel.

    Attributes:
        duration: From `created_at` (of a cancel: from `cancel_initiated_at`) to the end, or to the last look.
        ended: Whether it ended then by itself; False for one that still runs or, as a batch, was cancelled then.
        model: The batch's model.
        requests: How many requests it carried.
        hour: The hour of the day (UTC, 0 to 23) at which it began.
        kind: A whole batch, or the time from a cancel to the end.
    """

    duration: timedelta = attrs.field(validator=_duration)
    ended: bool
    model: str
    requests: int
    hour: int = attrs.field(converter=_to_hour)
    kind: Literal["batch", "cancel"] = attrs.field(default="batch", validator=_known_kind)


def size_class(requests: int) -> int:
    """Return the class of a batch's size: its number of digits."""
    return len(str(requests))


def _near(one: int, other: int) -> bool:
    return min((one - other) % 24, (other - one) % 24) <= _HOURS_AROUND


def _learned(curve: Curve, pool: list[Sample], model: str | None, requests: int | None, hour: int | None) -> Curve:
    """Return the curve after learning: from the samples that have least in common with the question to the nearest."""
    alike: list[Callable[[Sample], bool]] = []
    if model is not None:
        alike.append(lambda sample: sample.model == model)
    if requests is not None:
        alike.append(lambda sample: size_class(sample.requests) == size_class(requests))
    if hour is not None:
        alike.append(lambda sample: _near(sample.hour, hour))
    pools: list[list[Sample]] = [[] for _ in range(len(alike) + 1)]
    for sample in pool:  # each in one pool only: counted twice, samples would outweigh the prior
        pools[next((level for level, same in enumerate(alike) if not same(sample)), len(alike))].append(sample)
    for samples in pools:
        curve = curve.learn(((sample.duration, sample.ended) for sample in samples), STRENGTH)
    return curve


@attrs.frozen
class Forecast:
    """The distribution of how long a batch takes from `created_at` to its end, and of how long a cancel takes.

    Durations are totals since the start; `elapsed` says that the batch still ran so long after it. One that outlives
    the whole forecast (window and an hour) is expected to end within a further hour, without promise.

    Attributes:
        ends: Of `created_at` to the end.
        cancels: Of the cancel to the end.
    """

    ends: Curve
    cancels: Curve

    @classmethod
    def prior(cls, *, window: timedelta = WINDOW) -> Forecast:
        """Return the forecast without history: most batches end within the hour, some take a day, 5 % expire.

        60 % end within 1 h, 80 % within 4 h, 95 % within 24 h, all within 25 h; of cancels 50 % within a minute, 90 %
        within 10, 99 % within the hour. The API documentation states the first ("most within 1 h") and the window;
        the rest is on the cautious side of it by our choice.

        Args:
            window: The processing window; with another than 24 h all durations scale (a sandbox in fast motion).
        """
        check_positive(window, "window")
        return cls(
            Curve.through((*_PRIOR_ENDS, *_PRIOR_ENDS_LATE), _ENDS, window),
            Curve.through(_PRIOR_CANCELS, _CANCELS, window),
        )

    @classmethod
    def from_history(
        cls,
        samples: Iterable[Sample],
        *,
        model: str | None = None,
        requests: int | None = None,
        hour: int | None = None,
        window: timedelta = WINDOW,
    ) -> Forecast:
        """Return the forecast for one kind of batch from the ledger's record; with few samples it stays near the prior.

        The prior is moved by the samples of other models, the outcome by those of the model but of other sizes, then
        by those of its size too but of other hours, then by those of its hour. Each sample counts once. Each step
        starts from the curve before it, which weighs `STRENGTH` samples.

        Args:
            samples: Batches and cancels, ended or cut off; any order.
            model: The model of the batches; None: all models.
            requests: The size of the batch: sizes are pooled by the number of digits; None: any size.
            hour: The UTC hour of its start: hours are pooled with two on each side; None: any time.
            window: As for `prior`.
        """
        prior = cls.prior(window=window)
        if hour is not None:
            _to_hour(hour)
        batches: list[Sample] = []
        cancels: list[Sample] = []
        for sample in samples:
            (batches if sample.kind == "batch" else cancels).append(sample)
        return cls(
            _learned(prior.ends, batches, model, requests, hour),
            _learned(prior.cancels, cancels, model, requests, hour),
        )

    def p_end_within(self, duration: timedelta) -> float:
        """Return the chance that a batch has ended `duration` after its creation."""
        return 1 - self.ends.running(duration // _MICROSECOND)

    def quantile(self, p: float, elapsed: timedelta = ZERO) -> timedelta:
        """Return the shortest total duration by which a share `p` of batches that still run at `elapsed` has ended."""
        elapsed = check_duration(elapsed, "elapsed")
        return self.ends.quantile(check_share(p, "p"), elapsed // _MICROSECOND) * _MICROSECOND

    def expected(self, cap: timedelta) -> timedelta:
        """Return the mean time until a batch ends or `cap` has passed, whichever comes first."""
        return round(self.ends.area(check_duration(cap, "cap") // _MICROSECOND)) * _MICROSECOND

    def steps(self, cap: timedelta) -> list[timedelta]:
        """Return the ends of its buckets before `cap`, and `cap`: within a bucket all times are equally likely."""
        ends = [edge * _MICROSECOND for edge in self.ends.edges[1:]]
        return [*(end for end in ends if end < cap), check_duration(cap, "cap")]

    def expected_range(self, created_at: datetime, elapsed: timedelta = ZERO) -> tuple[datetime, datetime]:
        """Return the times (UTC) by which a batch that runs at `elapsed` has ended with 10 % and 90 % chance."""
        created_at = check_aware(created_at, "created_at")
        return created_at + self.quantile(0.1, elapsed), created_at + self.quantile(0.9, elapsed)

    def p_cancel_within(self, duration: timedelta) -> float:
        """Return the chance that a cancelled batch has ended `duration` after the cancel."""
        return 1 - self.cancels.running(duration // _MICROSECOND)


def check_share(value: float, field: str) -> float:
    """Return `value` if it is a share.

    Raises:
        InvalidValueError: It is not between 0 and 1.
    """
    if not 0 <= value <= 1:
        raise InvalidValueError(f"{field}={value!r} is not a share between 0 and 1")
    return value
