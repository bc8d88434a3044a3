"""A sync lane and a server in virtual time: what `Pacer` is judged by."""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field

from batchwise.models import Limits
from batchwise.planning.outcomes import Refusal
from batchwise.planning.output_forecast import OutputForecast
from batchwise.planning.pacing import Pacer, Permit


class Server:
    """Token buckets of its own, written apart from the pacer's; None does not limit."""

    def __init__(self, per_minute, *, burst_seconds=60.0, concurrency=None, retry_after=None):
        self.rates = [None if each is None else each / 60.0 for each in per_minute]
        self.burst_seconds = burst_seconds
        self.levels = [0.0 if rate is None else rate * burst_seconds for rate in self.rates]
        self.concurrency, self.retry_after = concurrency, retry_after
        self.at, self.running, self.refused, self.admitted, self.crowded = 0.0, 0, 0, 0, False

    def admit(self, now, amounts):
        """None, or the seconds of `retry-after`."""
        for index, rate in enumerate(self.rates):
            if rate is not None:
                full = max(rate * self.burst_seconds, amounts[index])
                self.levels[index] = min(full, self.levels[index] + rate * (now - self.at))
        self.at = now
        waits = [
            (amount - level) / rate
            for amount, level, rate in zip(amounts, self.levels, self.rates, strict=True)
            if rate is not None and level < amount
        ]
        self.crowded = self.concurrency is not None and self.running >= self.concurrency
        if self.crowded:
            waits.append(1.0)
        if waits:
            self.refused += 1
            return max(waits) if self.retry_after is None else self.retry_after
        self.levels = [level - amount for level, amount in zip(self.levels, amounts, strict=True)]
        self.running += 1
        self.admitted += 1
        return None


@dataclass
class Books:
    """What happened, in order of time."""

    starts: list[tuple[float, int, int]] = field(default_factory=list)
    refunds: list[tuple[float, int, int]] = field(default_factory=list)
    used: list[tuple[float, int]] = field(default_factory=list)
    refusals: list[float] = field(default_factory=list)
    admitted: list[float] = field(default_factory=list)
    peak_running: int = 0


def simulate(
    limits: Limits,
    calls,
    *,
    seconds: float,
    server: Server | None = None,
    latency=10.0,
    round_trip=0.2,
    wake_late=0.0,
    seed=0,
    outage=(0.0, 0.0),
    overloaded=0.0,
    follows=False,
    forecast: OutputForecast | None = None,
) -> tuple[Books, Pacer]:
    """A lane that always has a call to make: (input, reserved output, used output) each.

    It asks again after the wait that it was told (up to `wake_late` later) and whenever a call ends. A call that met
    an API that was too busy (a share `overloaded` of them, all of them in an `outage`) goes again after a jittered
    wait. With a `forecast` the reserved output is the call's `max_tokens`, and what is reserved is forecast.
    """
    rng = random.Random(seed)
    pacer, books, order = Pacer(limits, now=0.0, follows=follows, jitter=rng.random), Books(), itertools.count()
    again: list[tuple] = []
    events: list[tuple] = [(0.0, next(order), "wake", None)]
    source = iter(calls)
    call = next(source, None)
    wake_at = 0.0
    while events:
        now, _, kind, detail = heapq.heappop(events)
        if now > seconds:
            break
        if kind == "wake" and now < wake_at:
            continue  # replaced by another one
        if kind == "done":
            (tokens_in, asked, used), took, permit, writing = detail
            if server is not None:
                server.running -= 1
            books.refunds.append((now, 0, permit.output_tokens - used))
            books.used.append((now, used))
            if forecast is not None:
                writing.end(used, now)
            pacer.done(now, permit, input_tokens_used=tokens_in, output_tokens_used=used, latency=took)
        elif kind == "refused":
            (tokens_in, asked, _), (retry_after, refusal), permit, writing = detail
            books.refunds.append((now, tokens_in, permit.output_tokens))
            if forecast is not None:
                writing.drop()
            pacer.refused(now, permit, refusal, retry_after)
            if refusal is Refusal.OVERLOADED:
                heapq.heappush(events, (now + rng.random(), next(order), "again", detail[0]))
        elif kind == "again":
            again.append(detail)
        while call is not None:
            tried = again[-1] if again else call
            tokens_in, asked, used = tried
            expected = asked if forecast is None else forecast.expect("model", asked, now)
            got = pacer.ask(now, input_tokens=tokens_in, output_tokens=expected)
            if not isinstance(got, Permit):
                wake_at = now + got + rng.random() * wake_late
                heapq.heappush(events, (wake_at, next(order), "wake", None))
                break
            if again:
                again.pop()
            else:
                call = next(source, None)
            writing = None if forecast is None else forecast.begin("model", asked, now)
            books.starts.append((now, tokens_in, expected))
            books.peak_running = max(books.peak_running, pacer.running)
            refusal = Refusal.OVERLOADED
            out = outage[0] <= now < outage[1] or (overloaded and rng.random() < overloaded)
            retry_after = None if out or server is None else server.admit(now, (1, tokens_in, used))
            if retry_after is not None:
                refusal = Refusal.TOO_MANY_AT_ONCE if server.crowded else Refusal.TOO_FAST
                again.append(tried)
            if out or retry_after is not None:
                books.refusals.append(now)
                told = tried, (retry_after, refusal), got, writing
                heapq.heappush(events, (now + round_trip, next(order), "refused", told))
            else:
                took = latency(rng, used) if callable(latency) else latency
                books.admitted.append(now)
                heapq.heappush(events, (now + took, next(order), "done", (tried, took, got, writing)))
    return books, pacer
