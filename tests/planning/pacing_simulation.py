"""A sync lane and a server in virtual time: what `Pacer` is judged by."""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field

from batchwise.models import Limits
from batchwise.planning.pacing import Pacer


class Server:
    """Token buckets of its own, written apart from the pacer's; None does not limit."""

    def __init__(self, per_minute, *, burst_seconds=60.0, concurrency=None, retry_after=None):
        self.rates = [None if each is None else each / 60.0 for each in per_minute]
        self.burst_seconds = burst_seconds
        self.levels = [0.0 if rate is None else rate * burst_seconds for rate in self.rates]
        self.concurrency, self.retry_after = concurrency, retry_after
        self.at, self.running, self.refused, self.admitted = 0.0, 0, 0, 0

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
        if self.concurrency is not None and self.running >= self.concurrency:
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
) -> tuple[Books, Pacer]:
    """A lane that always has a call to make: (input, reserved output, used output) each.

    It asks again after the wait that it was told (up to `wake_late` later) and whenever a call ends.
    """
    rng = random.Random(seed)
    pacer, books, order = Pacer(limits, now=0.0), Books(), itertools.count()
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
            (tokens_in, reserved, used), took = detail
            if server is not None:
                server.running -= 1
            books.refunds.append((now, 0, reserved - used))
            pacer.done(now, input_tokens=tokens_in, output_tokens=reserved, input_tokens_used=tokens_in,
                       output_tokens_used=used, latency=took)  # fmt: skip
        elif kind == "refused":
            (tokens_in, reserved, _used), retry_after = detail
            books.refunds.append((now, tokens_in, reserved))
            pacer.throttled(now, retry_after, input_tokens=tokens_in, output_tokens=reserved)
        while call is not None:
            tokens_in, reserved, used = call
            wait = pacer.ask(now, input_tokens=tokens_in, output_tokens=reserved)
            if wait > 0.0:
                wake_at = now + wait + rng.random() * wake_late
                heapq.heappush(events, (wake_at, next(order), "wake", None))
                break
            books.starts.append((now, tokens_in, reserved))
            books.peak_running = max(books.peak_running, pacer.running)
            out = outage[0] <= now < outage[1]
            retry_after = None if out or server is None else server.admit(now, (1, tokens_in, used))
            if out or retry_after is not None:
                books.refusals.append(now)
                heapq.heappush(events, (now + round_trip, next(order), "refused", (call, retry_after)))
            else:
                took = latency(rng) if callable(latency) else latency
                books.admitted.append(now)
                heapq.heappush(events, (now + took, next(order), "done", (call, took)))
                call = next(source, None)
    return books, pacer
