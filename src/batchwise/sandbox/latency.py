"""How long things take in the sandbox: fixed times and seeded distributions."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Union


class Distribution:
    """A distribution of durations in seconds.

    With a `seed` it draws from a random stream of its own, in the order of asking; without one from the stream
    of the sandbox that asks.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._lock = threading.Lock()
        self._own = None if seed is None else seeded(seed)

    def sample(self, rng: random.Random) -> float:
        """One duration in seconds, never negative."""
        if self._own is None:
            return max(0.0, self._draw(rng))
        with self._lock:
            return max(0.0, self._draw(self._own))

    def _draw(self, rng: random.Random) -> float:
        raise NotImplementedError


class Fixed(Distribution):
    """Always the same duration."""

    def __init__(self, seconds: float | timedelta) -> None:
        super().__init__()
        self.seconds = to_seconds(seconds)

    def _draw(self, rng: random.Random) -> float:  # noqa: ARG002
        return self.seconds


class Uniform(Distribution):
    """Anything from `low` to `high`, all equally likely."""

    def __init__(self, low: float | timedelta, high: float | timedelta, *, seed: int | None = None) -> None:
        super().__init__(seed)
        self.low, self.high = to_seconds(low), to_seconds(high)

    def _draw(self, rng: random.Random) -> float:
        return rng.uniform(self.low, self.high)


class Exponential(Distribution):
    """Exponential with the given mean."""

    def __init__(self, mean: float | timedelta, *, seed: int | None = None) -> None:
        super().__init__(seed)
        self.mean = to_seconds(mean)

    def _draw(self, rng: random.Random) -> float:
        return rng.expovariate(1.0 / self.mean) if self.mean > 0 else 0.0


class LogNormal(Distribution):
    """Log-normal with the given median; `sigma` is the standard deviation of the logarithm (the tail's weight)."""

    def __init__(self, median: float | timedelta, sigma: float = 1.0, *, seed: int | None = None) -> None:
        super().__init__(seed)
        self.median, self.sigma = to_seconds(median), sigma

    def _draw(self, rng: random.Random) -> float:
        return self.median * rng.lognormvariate(0.0, self.sigma)


Latency = Union[float, int, timedelta, Distribution, Callable[[], Union[float, timedelta]]]


def to_seconds(value: float | timedelta) -> float:
    """Seconds as a float, of a number or a `timedelta`."""
    return value.total_seconds() if isinstance(value, timedelta) else float(value)


def seeded(seed: object) -> random.Random:
    """A random stream that starts from a seed."""
    return random.Random(str(seed))  # noqa: S311 - repeatable on purpose, protects nothing


def draw(latency: Latency, rng: random.Random) -> float:
    """One duration in seconds from whatever a latency was ordered as."""
    if isinstance(latency, Distribution):
        return latency.sample(rng)
    if isinstance(latency, (int, float, timedelta)):
        return max(0.0, to_seconds(latency))
    return max(0.0, to_seconds(latency()))


_KINDS: dict[str, Callable[..., Distribution]] = {
    "fixed": Fixed,
    "uniform": Uniform,
    "exponential": Exponential,
    "lognormal": LogNormal,
}


def from_json(value: Any) -> Latency:
    """A latency from JSON: a number of seconds, or `{"kind": "uniform", "low": 1, "high": 2, "seed": 3}`."""
    if isinstance(value, Mapping):
        arguments = dict(value)
        kind = arguments.pop("kind", None)
        if kind not in _KINDS:
            raise ValueError(f"unknown latency kind {kind!r}; known: {', '.join(_KINDS)}")
        return _KINDS[kind](**arguments)
    return float(value)
