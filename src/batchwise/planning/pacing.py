"""Paces the sync lane: fills the account's limits without passing them, and gives way when the API refuses calls.

A value without a clock: `now` is a float, in seconds of any monotonic clock. One `Pacer` paces one class of models, as
the API's limits do (API documentation, rate limits).

**Limits** are token buckets that refill continuously, as the API's are. A call may start while no bucket is in debt;
its cost may take it into debt. A bucket of a given limit holds at most 2 % of a minute (`BURST`), so within any t
seconds no more is booked than `limit * t/60 + 2 % of limit + one call`. Where no limits are given, the account's own
are followed: a bucket holds a minute, as the API's does, and all that remains by the headers may go at once. A call
that used more than was booked for it makes a debt, which is repaid at the whole limit.

**Refusals.** A 529 says that the API is busy: the lane slows by the share of its calls that was refused lately, and
is as fast as before some seconds after the last one. Only when most calls are refused it tries one call at a time. A
429 says that we are too fast, or too many at once: the lane pauses as long as the API asks, then the share that is
believed of the rates, or of the concurrency, is cut by a fifth, once for each pause. The share returns to where it
was refused within a minute or two, and feels its way upwards from there, slowly at first.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from operator import add, sub, truediv
from typing import NamedTuple

from batchwise.models import Limits

from .outcomes import Refusal

__all__ = ["BURST", "MINUTE", "Pacer", "Permit"]

BURST = 0.02
"""The share of a minute's limit that may start at once after idle time, under given limits."""
MINUTE = 1.0
"""The same under the account's own limits: a whole minute's limit, as the API's own buckets hold."""

_CUT = 0.8
_LEAST_SHARE = 0.01
_LEAST_CEILING = 10.0
_RETURN_SECONDS = 30.0
_GROWTH_PER_SECOND = 0.001
_GROWTH_DOUBLES_AFTER = 60.0
_LONGEST_BACKOFF = 60.0
_SHORTEST_WAIT = 0.001
_LONGEST_POLL = 1.0
_LIMITS = {
    "requests": "requests_per_minute",
    "input-tokens": "input_tokens_per_minute",
    "output-tokens": "output_tokens_per_minute",
}
"""The fields of `Limits` with a bucket, by their words in the API's headers."""

_WINDOW = 10.0
"""Seconds after which the weight of a call that was refused for overload has fallen to about a third (1/e)."""
_PRIOR = 5.0
"""Answered calls that are assumed in that window, so that one refusal of few calls counts little."""
_MOST_REFUSED = 0.5
_ENOUGH = 8.0
"""The lane tries single calls once so many calls of the window were made, and most of them were refused."""
_ROW = 5
"""Or once so many calls that were started one after the other were all refused."""

_REACH_WINDOW = 60.0
_REACH_SECONDS = 20.0
"""The share that the lane reaches is known once calls have waited for so many seconds of the window."""


class Permit(NamedTuple):
    """Lets one call start, with the figures booked for it. Exactly one `done` or `refused` ends it."""

    at: float
    input_tokens: int
    output_tokens: int
    single: bool
    """It is a single call that tries an overloaded lane."""
    counted: bool
    """It had to wait, so it counts for the share that the lane reaches."""
    number: int
    """Its place among the calls of the lane, in the order of their start."""


class _Bucket:
    """A token bucket of one resource; below zero it is in debt."""

    __slots__ = ("at", "burst", "given", "header_limit", "level", "limit", "owed")

    def __init__(self, limit: int | None, now: float, *, follows: bool) -> None:
        self.given = None if follows else limit
        self.limit = math.inf if limit is None else float(limit)
        self.header_limit: int | None = None
        self.burst = MINUTE if follows else BURST
        self.level = self.limit * self.burst
        self.owed = 0.0
        """The debt of finished calls that used more than was booked for them; repaid first."""
        self.at = now

    def refill(self, now: float, share: float) -> None:
        if now > self.at:
            gained, self.at = self.limit / 60.0 * (now - self.at), now
            repaid = min(self.owed, gained)
            self.owed -= repaid
            self.level += (gained - repaid) * share
        self.level = min(self.level, self.limit * share * self.burst)

    def wait(self, share: float) -> float:
        booked = max(0.0, -self.level) / share
        return (self.owed + booked) * 60.0 / self.limit

    def correct(self, more: float) -> None:
        """Correct the booking of a call that used so much more (or less)."""
        if more > 0.0:
            self.owed += more
            return
        repaid = min(self.owed, -more)
        self.owed -= repaid
        self.level -= more + repaid

    def change(self, limit: float) -> None:
        """Set another limit; bookings stay."""
        if math.isinf(self.limit):
            self.level = limit * self.burst
        self.limit = limit


class _Share:
    """The share of a limit that is believed to be available: cut after a refusal, then raised step by step."""

    def __init__(self, now: float) -> None:
        self.value = self._refused_at = 1.0
        self._grown_at = self._growing_since = now

    def cut(self) -> None:
        self._refused_at = self.value
        self.value = max(_LEAST_SHARE, self.value * _CUT)

    def hold(self, until: float) -> None:
        """Do not grow before then."""
        self._grown_at = self._growing_since = max(self._grown_at, until)

    def give_back(self, factor: float) -> None:
        self.value = min(1.0, self.value * factor)
        self._refused_at = min(1.0, self._refused_at * factor)

    def grow(self, now: float) -> float:
        """Return to the share that was refused, and grow past it, faster the longer no call is refused.

        Returns:
            The factor by which it would have grown beyond 1; else 1.
        """
        if now <= self._grown_at:
            return 1.0
        if self.value < self._refused_at:
            closer = math.exp((self._grown_at - now) / _RETURN_SECONDS)
            self.value = self._refused_at - (self._refused_at - self.value) * closer
        before, after = self._grown_at - self._growing_since, now - self._growing_since
        exponent = (after - before) + (after * after - before * before) / (2.0 * _GROWTH_DOUBLES_AFTER)
        grown = self.value * math.exp(min(50.0, _GROWTH_PER_SECOND * exponent))
        self.value, self._grown_at = min(1.0, grown), now
        return max(1.0, grown)


class _Overload:
    """Counts recent calls, and those that were refused because the API was overloaded."""

    def __init__(self, now: float) -> None:
        self._at, self._made, self._refused = now, 0.0, 0.0
        self._row: deque[int] = deque(maxlen=_ROW)
        """The numbers of the last refused calls."""

    def fade(self, now: float) -> None:
        if now > self._at:
            factor = math.exp((self._at - now) / _WINDOW)
            self._made, self._refused, self._at = self._made * factor, self._refused * factor, now

    def made(self) -> None:
        self._made += 1.0

    def refused(self, number: int) -> None:
        self._refused += 1.0
        self._row.append(number)

    def forget(self) -> None:
        self._made = self._refused = 0.0
        self._row.clear()

    @property
    def accepted(self) -> float:
        """The share of calls that were not refused."""
        return max(_LEAST_SHARE, 1.0 - min(1.0, self._refused / (self._made + _PRIOR)))

    @property
    def severe(self) -> bool:
        """Whether most calls were refused."""
        if len(self._row) == _ROW and max(self._row) - min(self._row) == _ROW - 1:
            return True
        return self._made >= _ENOUGH and self._refused > _MOST_REFUSED * self._made


class _Reach:
    """Measures the share of its limits that the lane used while calls waited for it."""

    def __init__(self, now: float) -> None:
        self.waiting = False
        """Whether the last call that asked was told to wait."""
        self._at, self._seconds = now, 0.0
        self._done = [0.0, 0.0, 0.0]

    def pass_to(self, now: float) -> None:
        if now > self._at:
            elapsed, self._at = now - self._at, now
            factor = math.exp(-elapsed / _REACH_WINDOW)
            self._seconds *= factor
            self._done = [amount * factor for amount in self._done]
            if self.waiting:
                self._seconds += elapsed

    def book(self, *amounts: float) -> None:
        self._done = list(map(add, self._done, amounts))

    def share(self, limits: Iterable[float], calls_per_minute: float) -> float | None:
        """None: not known."""
        if self._seconds < _REACH_SECONDS:
            return None
        minutes: float = max(0.0, *map(truediv, self._done, limits), self._done[0] / calls_per_minute)
        return min(1.0, minutes * 60.0 / self._seconds)


class Pacer:
    """Says when the next sync call may start. Not thread-safe: the lane holds a lock.

    Args:
        limits: The limits to begin with. `latency` is the mean time of a call until some were seen.
        now: Seconds of a monotonic clock.
        follows: The account's limits are not given: the API's headers raise them, too. Given limits are caps, which
            the headers may lower and never raise.
        jitter: A random number from 0 to 1.
    """

    def __init__(
        self, limits: Limits, *, now: float, follows: bool = False, jitter: Callable[[], float] = random.random
    ) -> None:
        self._buckets = [_Bucket(getattr(limits, field), now, follows=follows) for field in _LIMITS.values()]
        self._follows, self._jitter = follows, jitter
        self._ceiling = math.inf if limits.concurrency is None else float(limits.concurrency)
        self._learned_ceiling = False
        self._latency = self._planned_latency = limits.latency / timedelta(seconds=1)
        self._running = [0, 0, 0]
        """Calls that run, and the tokens booked for them."""
        self._rates, self._crowd = _Share(now), _Share(now)
        self._overload, self._reach = _Overload(now), _Reach(now)
        self._paused_at = self.paused_until = -math.inf
        """When the last pause began, and when the lane may go on; minus infinity if it was never paused."""
        self._series = 0
        """Pauses since the last answer."""
        self._outage = False
        """Whether the pauses are because most calls met an overloaded API."""
        self._single = False
        """Whether a single call that tries the lane is running."""
        self._started = 0

    @property
    def running(self) -> int:
        """How many calls have started and not ended."""
        return self._running[0]

    @property
    def share(self) -> float:
        """The share of the limits that the lane uses: 1.0, less after refusals."""
        return self._rates.value * self._overload.accepted

    @property
    def header_limits(self) -> tuple[int | None, int | None, int | None]:
        """The limits in the API's headers: requests, input and output tokens a minute; None: not named yet."""
        requests, tokens_in, tokens_out = (bucket.header_limit for bucket in self._buckets)
        return requests, tokens_in, tokens_out

    @property
    def concurrency(self) -> float:
        """How many calls may run at once now: at least 1; infinite if nothing limits them."""
        if math.isinf(self._ceiling):
            return self._ceiling
        return max(1.0, math.floor(self._ceiling * self._crowd.value * self._overload.accepted + 1e-9))

    def reached(self, now: float) -> float:
        """Return the share of the limits at which calls are answered, to plan with."""
        self._advance(now)
        expected = self.share * self._crowd.value * self._overload.accepted
        calls = self._ceiling * 60.0 / self._planned_latency
        measured = self._reach.share((bucket.limit for bucket in self._buckets), calls)
        return expected if measured is None else min(expected, measured)

    def ask(self, now: float, *, input_tokens: int, output_tokens: int) -> Permit | float:
        """Return a permit if a call may start now, else the seconds to wait.

        Ask in the order of urgency: a call that had to wait has no right before another.

        Args:
            now: Seconds of the monotonic clock.
            input_tokens: What it will be billed as uncached input, estimated.
            output_tokens: What it is expected to write (see `OutputForecast`); at worst its `max_tokens`.

        Returns:
            The permit: the call may start. Else the seconds until the next question; earlier if a call ends.
        """
        self._advance(now)
        wait = self._wait(now)
        waited, self._reach.waiting = self._reach.waiting, wait > 0.0
        if wait > 0.0:
            return max(_SHORTEST_WAIT, wait)
        amounts = (1, input_tokens, output_tokens)
        for bucket, amount in zip(self._buckets, amounts, strict=True):
            bucket.level -= amount
        self._running = list(map(add, self._running, amounts))
        self._overload.made()
        if waited:
            self._reach.book(*amounts)
        self._single = self._trying
        self._started += 1
        return Permit(now, input_tokens, output_tokens, self._single, waited, self._started)

    @property
    def _trying(self) -> bool:
        """Whether the lane tries single calls, because most calls are refused."""
        return self._series >= 2

    def _wait(self, now: float) -> float:
        if now < self.paused_until:
            return self.paused_until - now
        if self._single or self.running >= self.concurrency:
            return min(_LONGEST_POLL, max(_SHORTEST_WAIT, self._latency / max(1, self.running)))
        return max(bucket.wait(self.share) for bucket in self._buckets)

    def limited_by(self, now: float) -> str:
        """Return what the next call waits for: a field of `Limits`, or "refusals"."""
        if now < self.paused_until or self._single:
            return "refusals"
        if self.running >= self.concurrency:
            return "concurrency"
        waits = [bucket.wait(self.share) for bucket in self._buckets]
        return list(_LIMITS.values())[waits.index(max(waits))]

    def done(
        self,
        now: float,
        permit: Permit,
        *,
        input_tokens_used: int = 0,
        output_tokens_used: int = 0,
        latency: float | None = None,
    ) -> None:
        """Note that a call ended without a refusal, and correct what was booked for it to what it used.

        Args:
            now: Seconds of the monotonic clock.
            permit: What `ask` returned.
            input_tokens_used: Uncached input tokens, cache writes included, cache reads not; 0 if the call failed.
            output_tokens_used: Output tokens; 0 if the call failed.
            latency: How long it took, in seconds; None if that says nothing (a failed call).
        """
        self._advance(now)
        self._end(permit, 0, input_tokens_used - permit.input_tokens, output_tokens_used - permit.output_tokens)
        began_after = permit.at >= self._paused_at  # a call that began before an outage says nothing about it
        if began_after or (now >= self.paused_until and not self._outage):
            if self._outage:
                self._overload.forget()
            self._series, self._outage = 0, False
        if latency is not None:
            self._latency += (latency - self._latency) / 20.0

    def refused(self, now: float, permit: Permit, refusal: Refusal, retry_after: float | None = None) -> None:
        """Note that a call was refused for load.

        Args:
            now: Seconds of the monotonic clock.
            permit: What `ask` returned.
            refusal: What the API said.
            retry_after: The header's seconds; None if it was not sent.
        """
        self._advance(now)
        running = self.running
        self._end(permit, -1, -permit.input_tokens, -permit.output_tokens)
        new = permit.at >= self._paused_at  # else it started before the pause: the same event
        if refusal is Refusal.OVERLOADED:
            self._overload.refused(permit.number)
            if new and (self._trying or self._overload.severe):
                self._series, self._outage = max(2, self._series + 1), True
                self._pause(now, self._backoff() * (3.0 + self._jitter()) / 4.0)
            return
        pause = max(0.0, retry_after or 0.0)
        if new:
            self._series += 1
            if retry_after is None or self._trying:
                pause = max(pause, self._backoff())
            if not self._trying:
                self._cut(refusal, running)
        self._pause(now, pause)
        for bucket in self._buckets:  # so that no burst follows the pause
            bucket.level = min(bucket.level, 0.0)
            bucket.at = self.paused_until

    def observe(self, now: float, headers: Mapping[str, str]) -> None:
        """Take over the API's limits from the headers (`anthropic-ratelimit-*`) of any answer.

        A limit below the given one replaces it, and follows the API up to the given one again; where none was given,
        without bound. The remaining amount is taken over where it is less than believed (others use the account, too),
        and, under the account's own limits, where it is more than all running calls could still use. `-reset` says
        when a bucket will be full, by the server's time; the limit and the remaining amount say that already. The
        headers are found by lower-case names.
        """
        self._advance(now)
        lowered = 1.0
        for kind, bucket, running in zip(_LIMITS, self._buckets, self._running, strict=True):
            limit = _number(headers.get(f"anthropic-ratelimit-{kind}-limit"))
            if limit is not None and limit >= 1:
                bucket.header_limit = int(limit)
                new = limit if bucket.given is None else min(limit, float(bucket.given))
                if not math.isinf(bucket.limit):
                    lowered = min(lowered, new / bucket.limit)
                bucket.change(new)
            remaining = _number(headers.get(f"anthropic-ratelimit-{kind}-remaining"))
            if remaining is not None and not math.isinf(bucket.limit):
                bucket.level = min(bucket.level, max(0.0, remaining))
                if self._follows and remaining - running > bucket.level and now >= self.paused_until:
                    bucket.level, bucket.owed = remaining - running, 0.0
        self._rates.give_back(1.0 / lowered)  # the new limits explain the refusals, so undo the cuts

    def _advance(self, now: float) -> None:
        self._overload.fade(now)
        self._reach.pass_to(now)
        self._rates.grow(now)
        grown = self._crowd.grow(now)
        if self._learned_ceiling:
            self._ceiling *= grown
        for bucket in self._buckets:
            bucket.refill(now, self.share)

    def _end(self, permit: Permit, requests: int, input_tokens: int, output_tokens: int) -> None:
        """End a call that used so much more (or less) than was booked; its request stays booked in the limits."""
        self._running = list(map(sub, self._running, (1, permit.input_tokens, permit.output_tokens)))
        if permit.single:
            self._single = False
        for bucket, more in zip(self._buckets, (0, input_tokens, output_tokens), strict=True):
            bucket.correct(more)
        if permit.counted:
            self._reach.book(requests, input_tokens, output_tokens)

    def _backoff(self) -> float:
        return min(_LONGEST_BACKOFF, 2.0 ** min(self._series - 1, 10))

    def _pause(self, now: float, seconds: float) -> None:
        self._paused_at = now
        self.paused_until = max(self.paused_until, now + max(seconds, _SHORTEST_WAIT))
        for share in (self._rates, self._crowd):
            share.hold(self.paused_until)

    def _cut(self, refusal: Refusal, running: int) -> None:
        unlimited = all(math.isinf(bucket.limit) for bucket in self._buckets)
        if refusal is Refusal.TOO_MANY_AT_ONCE or unlimited:
            if math.isinf(self._ceiling):
                # There is no limit that a cut could lower: the number of running calls is the first guess.
                self._ceiling, self._learned_ceiling = max(_LEAST_CEILING, float(running)), True
            self._crowd.cut()
            return
        self._rates.cut()
        for bucket in self._buckets:  # the API's bucket is less deep than ours
            bucket.burst = BURST


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text else None
    except ValueError:
        return None
    return number if number is not None and math.isfinite(number) else None
