"""The account's rate limits: token buckets that refill continuously."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from .errors import ApiError


@dataclass(frozen=True)
class RateLimits:
    """Limits of the sandbox's account; None leaves a kind unlimited.

    Attributes:
        requests_per_minute: Messages calls.
        input_tokens_per_minute: input tokens of Messages calls.
        output_tokens_per_minute: output tokens of Messages calls.
        concurrency: Messages calls that run at once.
        batch_calls_per_minute: calls of the Message Batches endpoints.
        burst: how many seconds' worth of a limit may be saved up and used at once. The API may enforce 60 a minute as
            1 a second.
    """

    requests_per_minute: int | None = None
    input_tokens_per_minute: int | None = None
    output_tokens_per_minute: int | None = None
    concurrency: int | None = None
    batch_calls_per_minute: int | None = None
    burst: float = 60.0

    @classmethod
    def of(cls, value: RateLimits | Mapping[str, Any] | None) -> RateLimits:
        """Return limits from an object, from a mapping with the same names, or from None: no limits."""
        if isinstance(value, RateLimits):
            return value
        return cls(**(value or {}))


class _Bucket:
    def __init__(self, per_minute: int | None, burst: float, now: float) -> None:
        self.per_minute = per_minute
        self.capacity = (per_minute or 0) * burst / 60.0
        self.level = self.capacity
        self.at = now

    def refill(self, now: float) -> None:
        if self.per_minute is not None:
            self.level = min(self.capacity, self.level + (now - self.at) * self.per_minute / 60.0)
            self.at = now

    def wait(self, amount: float) -> float:
        """Return the seconds until `amount` is there. An amount over the capacity needs a full bucket."""
        if self.per_minute is None:
            return 0.0
        missing = min(amount, self.capacity) - self.level
        return max(0.0, missing * 60.0 / self.per_minute)

    def take(self, amount: float) -> None:
        if self.per_minute is not None:
            self.level -= amount


# shown where there is no limit: the figures of the highest tier
_SHOWN = {"requests": 10_000, "input-tokens": 10_000_000, "output-tokens": 2_000_000}


class Limiter:
    """Counts calls and tokens against `RateLimits`."""

    def __init__(self, limits: RateLimits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self.running = 0
        now = clock()
        self._buckets = {
            "requests": _Bucket(limits.requests_per_minute, limits.burst, now),
            "input-tokens": _Bucket(limits.input_tokens_per_minute, limits.burst, now),
            "output-tokens": _Bucket(limits.output_tokens_per_minute, limits.burst, now),
        }
        self._batch_calls = _Bucket(limits.batch_calls_per_minute, limits.burst, now)

    def admit(self, input_tokens: int) -> None:
        """Admit one Messages call, or refuse it. After it has ended, `done` must be called.

        Raises:
            ApiError: 429 with `retry-after`.
        """
        with self._lock:
            now = self._clock()
            needs = {"requests": 1, "input-tokens": input_tokens, "output-tokens": 1}
            for kind, bucket in self._buckets.items():
                bucket.refill(now)
                if (wait := bucket.wait(needs[kind])) > 0:
                    raise _limited(f"your organization's rate limit of {bucket.per_minute} {kind} per minute", wait)
            if self.limits.concurrency is not None and self.running >= self.limits.concurrency:
                raise _limited("the number of concurrent connections", 1.0)
            self.running += 1
            self._buckets["requests"].take(1)
            self._buckets["input-tokens"].take(input_tokens)

    def done(self, output_tokens: int) -> None:
        """Count the end of a call that was admitted."""
        with self._lock:
            self.running -= 1
            self._buckets["output-tokens"].take(output_tokens)

    def admit_batch_call(self) -> None:
        """Admit one call of a batch endpoint, or refuse it.

        Raises:
            ApiError: 429 with `retry-after`.
        """
        with self._lock:
            self._batch_calls.refill(self._clock())
            if (wait := self._batch_calls.wait(1)) > 0:
                raise _limited("your organization's rate limit of batch requests per minute", wait)
            self._batch_calls.take(1)

    def headers(self, server_now: float) -> dict[str, str]:
        """Return the `anthropic-ratelimit-*` headers of an answer. Those of `tokens` add up input and output."""
        shown: dict[str, tuple[int, int, float]] = {}
        with self._lock:
            now = self._clock()
            for kind, bucket in self._buckets.items():
                bucket.refill(now)
                limit, remaining, wait = _SHOWN[kind], _SHOWN[kind], 0.0
                if bucket.per_minute is not None:
                    limit, remaining = bucket.per_minute, max(0, int(bucket.level))
                    wait = bucket.wait(bucket.capacity)
                shown[kind] = limit, remaining, wait
        both = shown["input-tokens"], shown["output-tokens"]
        shown["tokens"] = sum(each[0] for each in both), sum(each[1] for each in both), max(each[2] for each in both)
        headers: dict[str, str] = {}
        for kind, (limit, remaining, wait) in shown.items():
            reset = datetime.fromtimestamp(server_now + math.ceil(wait), timezone.utc)
            headers[f"anthropic-ratelimit-{kind}-limit"] = str(limit)
            headers[f"anthropic-ratelimit-{kind}-remaining"] = str(remaining)
            headers[f"anthropic-ratelimit-{kind}-reset"] = reset.strftime("%Y-%m-%dT%H:%M:%SZ")
        return headers


def _limited(what: str, wait: float) -> ApiError:
    headers = {"retry-after": str(max(1, math.ceil(wait)))}
    return ApiError("rate_limit_error", f"This request would exceed {what}.", headers=headers)
