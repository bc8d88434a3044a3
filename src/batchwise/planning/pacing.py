"""How fast the sync lane may go: fills the account's limits without passing them, and gives way when the API says so.

A value without a clock: `now` is a float, in seconds of any monotonic clock. One `Pacer` paces one model class, as the
API's limits do (API documentation, rate limits).

**Limits** are token buckets that refill continuously, as the API's are. A bucket holds at most 2 % of a minute
(`BURST`), and a call may start while no bucket is in debt; its cost may take it into debt. So within any t seconds no
more is booked than `limit * t/60 + 2 % of limit + one call`, and a caller that asks again in time wastes nothing.

**Refusals** (429, 529) pause the whole lane, then cut the believed share of the limits by a fifth, once for each
pause. The share returns to where it was refused within a minute or two, and feels its way upwards from there, slowly
at first. When refusals follow each other with no success between them, the lane tries one call at a time, after
pauses that double.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from batchwise.models import Limits

__all__ = ["BURST", "OutputForecast", "Pacer"]

BURST = 0.02
"""The share of a minute's limit that may start at once after idle time."""

_CUT = 0.8
_LEAST_SHARE = 0.01
_LEAST_CEILING = 10.0
_RETURN_SECONDS = 30.0
_GROWTH_PER_SECOND = 0.001
_GROWTH_DOUBLES_AFTER = 60.0
_LONGEST_BACKOFF = 60.0
_SHORTEST_WAIT = 0.001
_LONGEST_POLL = 1.0
_HEADERS = ("requests", "input-tokens", "output-tokens")


class _Bucket:
    """What of one resource may still be started; below zero it is in debt."""

    __slots__ = ("at", "configured", "level", "limit")

    def __init__(self, per_minute: int | None, now: float) -> None:
        self.configured = per_minute
        self.limit = math.inf if per_minute is None else float(per_minute)
        self.level = self.limit * BURST
        self.at = now

    def refill(self, now: float, share: float) -> None:
        if now > self.at:
            self.level += self.limit * share / 60.0 * (now - self.at)
            self.at = now
        self.level = min(self.level, self.limit * share * BURST)

    def wait(self, share: float) -> float:
        return 0.0 if self.level >= 0.0 else -self.level * 60.0 / (self.limit * share)

    def change(self, limit: float) -> None:
        """Take another limit over; what is booked stays booked."""
        if math.isinf(self.limit):
            self.level = limit * BURST
        self.limit = limit


class Pacer:
    """Says when the next sync call may start. Not thread-safe: the lane holds a lock.

    Each call that `ask` let go is ended by exactly one `done` or `throttled`, with the figures it asked with.

    Args:
        limits: The configured limits: caps, which the API's headers may lower but not raise. `latency` is the mean
            time of a call until some were seen.
        now: Seconds of a monotonic clock.
    """

    def __init__(self, limits: Limits, *, now: float) -> None:
        self._buckets = (
            _Bucket(limits.requests_per_minute, now),
            _Bucket(limits.input_tokens_per_minute, now),
            _Bucket(limits.output_tokens_per_minute, now),
        )
        self._ceiling = math.inf if limits.concurrency is None else float(limits.concurrency)
        self._learned_ceiling = False
        self._latency = limits.latency.total_seconds()
        self._running = 0
        self._share = 1.0
        self._refused_at_share = 1.0
        self._grown_at = self._growing_since = now
        self._paused_until = -math.inf
        self._refusals = 0

    @property
    def paused_until(self) -> float:
        """When the lane may go on, in seconds of the caller's clock; minus infinity if it was never paused."""
        return self._paused_until

    @property
    def running(self) -> int:
        """Calls that were let go and have not ended."""
        return self._running

    @property
    def share(self) -> float:
        """The share of the limits that is believed to be there: 1.0, less after refusals."""
        return self._share

    @property
    def concurrency(self) -> float:
        """How many calls may run at once now: at least 1; infinite if nothing limits them."""
        if self._refusals >= 2:
            return 1.0
        return self._ceiling if math.isinf(self._ceiling) else max(1.0, math.floor(self._ceiling * self._share + 1e-9))

    def ask(self, now: float, *, input_tokens: int, output_tokens: int) -> float:
        """Whether a call may start.

        Ask in the order of urgency: a call that was told to wait has no claim before another.

        Args:
            now: Seconds of the monotonic clock.
            input_tokens: What it will be billed as uncached input, estimated.
            output_tokens: What it is expected to write (see `OutputForecast`); at worst its `max_tokens`.

        Returns:
            0.0: go; it is booked as running. Otherwise the seconds after which to ask again, earlier if a call ends.
        """
        if now < self._paused_until:
            return max(_SHORTEST_WAIT, self._paused_until - now)
        self._refill(now)
        if self._running >= self.concurrency:
            return min(_LONGEST_POLL, max(_SHORTEST_WAIT, self._latency / self._running))
        wait = max(bucket.wait(self._share) for bucket in self._buckets)
        if wait > 0.0:
            return max(_SHORTEST_WAIT, wait)
        self._book(1, input_tokens, output_tokens)
        self._running += 1
        return 0.0

    def done(
        self,
        now: float,
        *,
        input_tokens: int,
        output_tokens: int,
        input_tokens_used: int = 0,
        output_tokens_used: int = 0,
        latency: float | None = None,
    ) -> None:
        """A call ended otherwise than by a refusal: its reservation is corrected to what it used.

        Args:
            now: Seconds of the monotonic clock.
            input_tokens: What `ask` was given.
            output_tokens: What `ask` was given.
            input_tokens_used: Uncached input tokens, cache writes included, cache reads not; 0 if the call failed.
            output_tokens_used: Output tokens; 0 if the call failed.
            latency: How long it took, in seconds; None if that says nothing (a failed call).
        """
        self._refill(now)
        self._running -= 1
        self._book(0, input_tokens_used - input_tokens, output_tokens_used - output_tokens)
        if now >= self._paused_until:
            self._refusals = 0
        if latency is not None:
            self._latency += (latency - self._latency) / 20.0

    def throttled(self, now: float, retry_after: float | None, *, input_tokens: int, output_tokens: int) -> None:
        """A call was refused with 429 or 529: the whole lane pauses, and goes on more slowly.

        Args:
            now: Seconds of the monotonic clock.
            retry_after: The header's seconds; None if it was not sent.
            input_tokens: What `ask` was given.
            output_tokens: What `ask` was given.
        """
        self._refill(now)
        running, self._running = self._running, self._running - 1
        self._book(0, -input_tokens, -output_tokens)
        pause = max(0.0, retry_after or 0.0)
        if now >= self._paused_until:  # else it started before the pause: one event, one cut
            self._refusals += 1
            if retry_after is None or self._refusals > 1:
                pause = max(pause, min(_LONGEST_BACKOFF, 2.0 ** min(self._refusals - 1, 10)))
            if self._refusals == 1:
                self._cut(running)
        self._paused_until = max(self._paused_until, now + max(pause, _SHORTEST_WAIT))
        self._grown_at = self._growing_since = self._paused_until
        for bucket in self._buckets:  # nothing is saved up for the end of the pause
            bucket.level = min(bucket.level, 0.0)
            bucket.at = self._paused_until

    def observe(self, now: float, headers: Mapping[str, str]) -> None:
        """Take over what the API says of its limits (`anthropic-ratelimit-*` of any answer).

        A limit below the configured one takes its place, and follows the API up to it again; what remains is taken
        over where it is less than believed (others use the account too). `-reset` says when a bucket will be full,
        which the limit and what remains say already, and in the server's time: it is not needed.

        Args:
            now: Seconds of the monotonic clock.
            headers: The answer's headers, found by lower-case names.
        """
        self._refill(now)
        lowered = 1.0
        for kind, bucket in zip(_HEADERS, self._buckets, strict=True):
            limit = _number(headers.get(f"anthropic-ratelimit-{kind}-limit"))
            if limit is not None and limit > 0:
                new = limit if bucket.configured is None else min(limit, float(bucket.configured))
                if new < bucket.limit and not math.isinf(bucket.limit):
                    lowered = min(lowered, new / bucket.limit)
                if new != bucket.limit:
                    bucket.change(new)
            remaining = _number(headers.get(f"anthropic-ratelimit-{kind}-remaining"))
            if remaining is not None and not math.isinf(bucket.limit):
                bucket.level = min(bucket.level, max(0.0, remaining))
        if lowered < 1.0:  # the refusals are explained: what was cut for them is given back
            self._share = min(1.0, self._share / lowered)
            self._refused_at_share = min(1.0, self._refused_at_share / lowered)

    def _book(self, requests: int, input_tokens: int, output_tokens: int) -> None:
        for bucket, amount in zip(self._buckets, (requests, input_tokens, output_tokens), strict=True):
            bucket.level -= amount

    def _refill(self, now: float) -> None:
        if self._share < 1.0 or self._learned_ceiling:
            self._grow(now)
        for bucket in self._buckets:
            bucket.refill(now, self._share)

    def _cut(self, running: int) -> None:
        if math.isinf(self._ceiling) and all(math.isinf(bucket.limit) for bucket in self._buckets):
            # Nothing was configured that a cut could lower: what ran is the first guess.
            self._ceiling, self._learned_ceiling = max(_LEAST_CEILING, float(running)), True
        self._refused_at_share = self._share
        self._share = max(_LEAST_SHARE, self._share * _CUT)

    def _grow(self, now: float) -> None:
        """Let the share return to where it was refused, and grow past that, faster the longer nothing is refused."""
        if now <= self._grown_at:
            return
        if self._share < self._refused_at_share:
            closer = math.exp((self._grown_at - now) / _RETURN_SECONDS)
            self._share = self._refused_at_share - (self._refused_at_share - self._share) * closer
        before, after = self._grown_at - self._growing_since, now - self._growing_since
        exponent = (after - before) + (after * after - before * before) / (2.0 * _GROWTH_DOUBLES_AFTER)
        factor = math.exp(min(50.0, _GROWTH_PER_SECOND * exponent))
        if self._learned_ceiling and self._share * factor > 1.0:
            self._ceiling *= self._share * factor
        self._share = min(1.0, self._share * factor)
        self._grown_at = now


class OutputForecast:
    """How much calls write, as a share of their `max_tokens`, by model: what to reserve before one is written.

    Without it a lane of short answers under large `max_tokens` would hold far more than it uses, and start slowly.
    A mean, weighted by tokens and towards recent calls; `Pacer.done` corrects every single reservation.
    """

    _FORGET = 0.98
    _SAMPLES = 5

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float, float]] = {}

    def expect(self, model: str, max_tokens: int) -> int:
        """The tokens to reserve: `max_tokens` until five calls of the model were seen."""
        samples, asked, used = self._seen.get(model, (0, 0.0, 0.0))
        if samples < self._SAMPLES or not asked:
            return max_tokens
        return min(max_tokens, math.ceil(max_tokens * used / asked))

    def learn(self, model: str, max_tokens: int, used: int) -> None:
        """A call of the model wrote `used` tokens."""
        samples, asked, written = self._seen.get(model, (0, 0.0, 0.0))
        self._seen[model] = (samples + 1, asked * self._FORGET + max_tokens, written * self._FORGET + used)


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text else None
    except ValueError:
        return None
    return number if number is not None and math.isfinite(number) else None
