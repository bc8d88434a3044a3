"""What arrives, how long batches take (exogenous: a function of when they are created), and how large the lane is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from math import exp
from typing import NamedTuple

import attrs

from batchwise.models import Limits, Policy
from batchwise.planning.reserve import margin_of, noticing_of, reserve_for
from batchwise.planning.sync_schedule import Cohort, Pace, fits

START = datetime(2026, 11, 2, tzinfo=timezone.utc)  # a Monday
MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0
WINDOW = 24 * HOUR
INPUT_TOKENS, OUTPUT_TOKENS, BODY = 2_000, 500, 8_000
LATENCY = timedelta(seconds=10)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def since(moment: datetime) -> float:
    return (moment - START).total_seconds()


class Arrival(NamedTuple):
    """Requests that come together: one `dispatch_all` (bulk), or single dispatches within a moment."""

    time: float
    sla: float
    requests: int
    bulk: bool


class _Stream(NamedTuple):
    sla: float  # hours
    times: Sequence[float]  # hours of the day
    mean: int
    bulk: bool = False
    weekend: bool = True


_STREAMS = (
    _Stream(2, range(8, 20), 25, weekend=False),
    _Stream(6, range(8, 22, 2), 40),
    _Stream(12, range(1, 24, 3), 50),
    _Stream(24.5, range(2, 24, 4), 8),
    _Stream(26, range(0, 24, 3), 40),
    _Stream(26, (19,), 250, bulk=True),
    _Stream(30, range(1, 24, 2), 40),
    _Stream(30, (18,), 700, bulk=True),
    _Stream(36, (17,), 1_000, bulk=True),
    _Stream(48, range(2, 24, 3), 40),
)


def traffic(days: int, seed: int = 1) -> list[Arrival]:
    rng = random.Random(seed)
    found = []
    for day in range(days):
        for stream in _STREAMS:
            if day % 7 >= 5 and not stream.weekend:
                continue
            for hour in stream.times:
                moment = day * DAY + hour * HOUR + rng.uniform(0, 20 * MINUTE)
                found.append(
                    Arrival(moment, stream.sla * HOUR, round(stream.mean * rng.uniform(0.5, 1.5)), stream.bulk)
                )
    return sorted(found)


def _rescues(arrivals: Sequence[Arrival], policy: Policy) -> list[Cohort]:
    """Every request on the sync lane as late as it can get there: at its batch's expiry, or when it arrives."""
    window, found = policy.window, []
    for arrival in arrivals:
        now, sla = at(arrival.time), timedelta(seconds=arrival.sla)
        reserve = reserve_for(policy, sla - window)
        release = now
        if sla >= window + reserve:
            wait = timedelta(0) if arrival.bulk else sla - window - reserve
            release = now + wait + window + noticing_of(policy)
        found.append(
            Cohort(
                deadline=now + sla,
                requests=arrival.requests,
                input_tokens=arrival.requests * INPUT_TOKENS,
                release=release,
            )
        )
    return found


def limits_for(tokens_per_minute: float) -> Limits:
    return Limits(input_tokens_per_minute=max(1, round(tokens_per_minute)), concurrency=64, latency=LATENCY)


def peak_demand(arrivals: Sequence[Arrival], policy: Policy) -> tuple[float, float]:
    """The input tokens a minute that the rescue of everything needs at its peak, and the end of that peak (seconds)."""
    cohorts, low, high = _rescues(arrivals, policy), 0.0, 1e7
    worst = None
    while high - low > high / 10_000:
        middle = (low + high) / 2
        shortfall = fits(cohorts, Pace(limits=limits_for(middle)), now=START, tail=margin_of(policy))
        if shortfall is None:
            high = middle
        else:
            low, worst = middle, shortfall
    assert worst is not None
    return high, since(worst.end)


@attrs.frozen
class Scenario:
    """How batches fare. `stuck` and `outages` are spans of time (seconds)."""

    name: str
    words: str
    heavy: bool = False
    stuck: tuple[tuple[float, float], ...] = ()
    outages: tuple[tuple[float, float], ...] = ()
    seed: int = 7

    def down(self, time: float) -> bool:
        return any(start <= time < end for start, end in self.outages)

    def up_again(self, time: float) -> float:
        return next((end for start, end in self.outages if start <= time < end), time)

    def takes(self, created: float) -> float:
        """The seconds of work in a batch created then; the same for every policy."""
        if any(start <= created < end for start, end in self.stuck):
            return float("inf")
        rng = random.Random(f"{self.seed}:{int(created // 300)}")
        if self.heavy:
            return 0.3 * HOUR / max(1e-9, 1 - rng.random())  # P(T > x h) = 0.3 / x
        return 20 * MINUTE * exp(rng.gauss(0, 0.7))  # 94 % within the hour

    def worked(self, created: float, now: float) -> float:
        """The seconds that the API worked on it."""
        idle = sum(max(0.0, min(now, end) - max(created, start)) for start, end in self.outages)
        return max(0.0, now - created - idle)

    def ends(self, created: float) -> float:
        """When it ends by itself: done, or expired."""
        end = created + self.takes(created)
        for start, stop in self.outages:
            if created < stop and end > start:
                end += stop - max(created, start)
        return min(end, created + WINDOW)

    def share_done(self, created: float, now: float) -> float:
        """The share of its rows that are done; most come late."""
        return min(1.0, self.worked(created, now) / self.takes(created)) ** 2


def scenarios(days: int, worst: float) -> tuple[Scenario, ...]:
    week = 7 * DAY
    moments = [worst + k * week for k in range(-4, 5) if 0 < worst + k * week <= days * DAY + 3 * DAY]
    outages = tuple(
        (week * k + offset, week * k + offset + 6 * HOUR)
        for k, offset in enumerate((DAY + 17 * HOUR, 2 * DAY + 8 * HOUR, 3 * DAY + 21 * HOUR, DAY + 2 * HOUR))
        if week * k + offset < days * DAY
    )
    return (
        Scenario("a", "benign: 94 % end within the hour"),
        Scenario("b", "heavy tail: P(T > x h) = 0.3/x", heavy=True),
        Scenario(
            "c",
            "each week at the worst hour all batches of two days expire, nothing done",
            stuck=tuple((m - 48 * HOUR, m) for m in moments),
        ),
        Scenario("d", "each week the batch API is down for six hours", outages=outages),
    )
