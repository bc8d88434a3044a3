"""Dollars for shared prefixes: as they are, with 1-hour breakpoints, primed, and by the rule; no API, no time passes.

    python -m tests.benchmarks.caching

A case is a length of the prefix, a number of requests, and how often rows really hit the cache: less often when nothing
primes them. The rule does not know these rates. It has a record of rows that were sent each way before.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from random import Random
from typing import NamedTuple

from batchwise.models import Lane
from batchwise.planning.pricing import PICO, PriceBook, Tariff
from batchwise.planning.priming import Caching, Hits, cheapest, expected_cost

MODELS = "claude-sonnet-5", "claude-opus-5-5", "claude-fable-5-2"
"""They read from the cache at 0.1, 0.05 and 0.025 of the price of input."""
PREFIXES = 2_000, 5_000, 20_000, 50_000
REQUESTS = 10, 100, 1_000, 10_000
RATES = 30, 50, 70, 90, 98
"""Percent of rows that hit the cache."""
WAYS = Caching.AS_IS, Caching.HOUR, Caching.PRIMED
RECORD = 1_000


class Case(NamedTuple):
    """One simulated bulk.

    Attributes:
        costs: Dollars that the prefixes cost, by the way in which they are sent.
        chosen: What the rule takes.
    """

    model: str
    tokens: int
    requests: int
    rates: tuple[int, int, int]
    costs: dict[Caching, float]
    chosen: Caching

    @property
    def ratio(self) -> float:
        """What the rule costs, of the best of the three."""
        return self.costs[self.chosen] / min(self.costs.values())


def cases(record: int = RECORD, seed: int = 0) -> Iterator[Case]:
    """Every case; `record`: how many rows the rule has seen each way."""
    random, book = Random(seed), PriceBook()
    triples = [rates for rates in product(RATES, repeat=3) if rates[0] <= rates[1] <= rates[2]]
    for model, tokens, requests, rates in product(MODELS, PREFIXES, REQUESTS, triples):
        tariff = book.rates(model, Lane.BATCH)
        assert tariff is not None
        true = dict(zip(WAYS, (Fraction(rate, 100) for rate in rates), strict=True))
        seen = Hits({way: (_drawn(random, record, float(rate)), record) for way, rate in true.items()})
        costs = {way: _true_cost(way, requests, tokens, tariff, true[way]) for way in WAYS}
        yield Case(model, tokens, requests, rates, costs, cheapest(requests, tokens, tariff, seen))


def _drawn(random: Random, rows: int, rate: float) -> int:
    """How many of so many rows hit the cache (near enough to a binomial draw)."""
    return min(rows, max(0, round(random.gauss(rows * rate, (rows * rate * (1 - rate)) ** 0.5))))


def _true_cost(way: Caching, requests: int, tokens: int, tariff: Tariff, rate: Fraction) -> float:
    certain = 10**9  # a record so long that it leaves nothing to what is assumed
    hits = Hits({way: (int(rate * certain), certain)})
    return float(expected_cost(way, requests, tokens, tariff, hits)) / PICO


def main() -> None:
    for record in (0, RECORD, 100 * RECORD):
        found = list(cases(record))
        worst = max(found, key=lambda case: case.ratio)
        mean = sum(case.ratio for case in found) / len(found)
        near = sum(case.ratio <= 1.02 for case in found) / len(found)
        print(
            f"{len(found)} cases, a record of {record:,} rows each way: {mean:.4f} x the best, {near:.1%} within 1.02"
        )
        at = f"{worst.model}, {worst.tokens:,} tokens, {worst.requests:,} requests, hits {worst.rates} %"
        print(f"  worst {worst.ratio:.3f}: {at}")
    print("| prefix | requests | as it is | 1 hour | primed | rule |\n|---|---|---|---|---|---|")
    for case in found:
        if case.model == MODELS[0] and case.rates == (30, 50, 98) and case.tokens in {2_000, 20_000, 50_000}:
            dollars = " | ".join(f"{case.costs[way]:.4g}" for way in WAYS)
            print(f"| {case.tokens:,} | {case.requests:,} | {dollars} | {case.chosen.value} |")


if __name__ == "__main__":
    main()
