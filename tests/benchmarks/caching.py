"""Dollars for shared prefixes: as they are, with 1-hour breakpoints, primed, and by the rule; no API, no time passes.

    python -m tests.benchmarks.caching [--each]

A case is a length of the prefix, a number of requests, and how often rows really hit the cache: less often when nothing
primes them. Whatever is done, one request writes the prefix first. The rule does not know these rates. It has a record
of rows that were sent each way before, or none, or what bulks of its own have taught it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from random import Random
from typing import NamedTuple

from batchwise.models import Lane
from batchwise.planning.cache_priming import Caching, Hits, cheapest, expected_cost
from batchwise.planning.pricing import PICO, PriceBook, Tariff

MODELS = "claude-sonnet-5", "claude-opus-5-5", "claude-fable-5-1"
"""They read from the cache at 0.1, 0.05 and 0.025 of the price of input."""
PREFIXES = 2_000, 5_000, 20_000, 50_000
REQUESTS = 10, 100, 1_000, 10_000
RATES = 30, 50, 70, 90, 98
"""Percent of rows that hit the cache."""
WAYS = Caching.AS_IS, Caching.HOUR, Caching.PRIMED
WORLDS = [rates for rates in product(RATES, repeat=3) if rates[0] <= rates[1] <= rates[2]]
"""How often rows hit, in percent, by the way in which they are sent."""
RECORDS = 0, 1_000, 100_000
NEAR = 1.02


class Case(NamedTuple):
    """One simulated bulk.

    Attributes:
        costs: Dollars that the prefixes cost, by the way in which they are sent.
        chosen: What the rule takes.
    """

    model: str
    tokens: int
    requests: int
    rates: tuple[int, ...]
    costs: Mapping[Caching, float]
    chosen: Caching

    @property
    def ratio(self) -> float:
        """What the rule costs, of the best of the three."""
        return self.costs[self.chosen] / min(self.costs.values())


def cases(record: int = 0, *, bulks: int = 0, seed: int = 0) -> Iterator[Case]:
    """Every case; `record`: how many rows the rule has seen each way; `bulks`: how many alike it has sent before."""
    random, book = Random(seed), PriceBook()
    for model, tokens, requests, rates in product(MODELS, PREFIXES, REQUESTS, WORLDS):
        tariff = _tariff(book, model)
        seen = {way: (_drawn(random, record, rate / 100), record) for way, rate in zip(WAYS, rates, strict=True)}
        for _ in range(bulks):
            way = cheapest(requests, tokens, tariff, Hits(seen))
            hit, rows = seen[way]
            seen[way] = hit + _drawn(random, requests - 1, rates[WAYS.index(way)] / 100), rows + requests - 1
        chosen = cheapest(requests, tokens, tariff, Hits(seen))
        yield Case(model, tokens, requests, rates, costs(requests, tokens, tariff, rates), chosen)


def costs(requests: int, tokens: int, tariff: Tariff, rates: Iterable[int]) -> dict[Caching, float]:
    """Dollars that the prefixes cost where so many percent of the rows hit the cache, by the way they are sent."""
    certain = 10**9  # a record so long that it leaves nothing to what is assumed
    known = Hits({way: (rate * certain // 100, certain) for way, rate in zip(WAYS, rates, strict=True)})
    return {way: float(expected_cost(way, requests, tokens, tariff, known)) / PICO for way in WAYS}


def guarantee(requests: int, tariff: Tariff) -> float:
    """What no rule that takes one way before it has seen a row can stay under in every world, of the best there."""
    found = [costs(requests, 1_000, tariff, rates) for rates in WORLDS]
    return min(max(each[way] / min(each.values()) for each in found) for way in WAYS)


def divided_guarantee(requests: int, tariff: Tariff) -> float:
    """The same where the requests may be divided between being primed and being sent as they are, by hundredths.

    To send some under an hour that are not primed is never better than to prime them.
    """
    found = [costs(requests, 1_000, tariff, rates) for rates in WORLDS]
    return min(
        max((n * each[Caching.AS_IS] + (100 - n) * each[Caching.PRIMED]) / 100 / min(each.values()) for each in found)
        for n in range(101)
    )


def learner_guarantee(requests: int, tariff: Tariff) -> float:
    """Return the worst case of the best rule that knows all rates once its first batch has ended.

    Such a rule begins in one of two ways. Either its first batch is one request that primes, which is wasted if priming
    does not help. Or it is one request sent as it is, which is paid besides the primer if priming helps.
    """
    primed_first, as_is_first = [], []
    for rates in WORLDS:
        one, others, whole = (costs(count, 1_000, tariff, rates) for count in (1, requests - 1, requests))
        later = {way: whole[way] - one[way] for way in WAYS}  # what all but the first cost
        best = min(whole.values())
        primed_first.append((one[Caching.PRIMED] + min(later[Caching.AS_IS], later[Caching.PRIMED])) / best)
        as_is_first.append((one[Caching.AS_IS] + min(later[Caching.AS_IS], others[Caching.PRIMED])) / best)
    return min(max(primed_first), max(as_is_first))


def _tariff(book: PriceBook, model: str) -> Tariff:
    tariff = book.rates(model, Lane.BATCH)
    assert tariff is not None
    return tariff


def _drawn(random: Random, rows: int, rate: float) -> int:
    """How many of so many rows hit the cache (near enough to a binomial draw)."""
    return min(rows, max(0, round(random.gauss(rows * rate, (rows * rate * (1 - rate)) ** 0.5))))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.caching", description=__doc__)
    parser.add_argument("--each", action="store_true", help="every case, beside the means")
    each = parser.parse_args().each
    rules = {
        "nothing on record": cases(),
        "one bulk alike on record": cases(bulks=1),
        **{f"{record:,} rows of each way on record": cases(record) for record in RECORDS if record},
    }
    found = {name: list(of_rule) for name, of_rule in rules.items()}
    print("What the rule costs, of the best of the three:\n")
    for name, of_rule in found.items():
        worst = max(of_rule, key=lambda case: case.ratio)
        print(f"{name}: {_summary(of_rule)}; worst with {worst.model}, {worst.tokens:,} tokens, "
              f"{worst.requests:,} requests, hits {worst.rates} %")  # fmt: skip
    _table_of_guarantees(found["nothing on record"])
    print("\nDollars, where 30, 50 and 98 % of the rows hit the cache as they are, under an hour, and primed:\n")
    print("| prefix | requests | as it is | 1 hour | primed | rule |\n|---|---|---|---|---|---|")
    for case in found["nothing on record"]:
        if case.model == MODELS[0] and case.rates == (30, 50, 98) and case.tokens in {2_000, 20_000, 50_000}:
            dollars = " | ".join(f"{case.costs[way]:.4g}" for way in WAYS)
            print(f"| {case.tokens:,} | {case.requests:,} | {dollars} | {case.chosen.value} |")
    if each:
        print(
            f"\n| model | prefix | requests | hits, % | {' | '.join(found)} |\n|---|---|---|---{'|---' * len(found)}|"
        )
        for rows in zip(*found.values(), strict=True):
            ratios = " | ".join(f"{case.ratio:.3f}" for case in rows)
            print(f"| {rows[0].model} | {rows[0].tokens:,} | {rows[0].requests:,} | {rows[0].rates} | {ratios} |")


def _summary(found: Iterable[Case]) -> str:
    ratios = [case.ratio for case in found]
    near = sum(ratio <= NEAR for ratio in ratios) / len(ratios)
    mean = sum(ratios) / len(ratios)
    return f"{mean:.4f} on average, {near:.1%} of {len(ratios)} cases within {NEAR}, at most {max(ratios):.3f}"


def _table_of_guarantees(found: Iterable[Case]) -> None:
    """With nothing on record: what the rule costs, and what no rule can stay under whatever the rates are."""
    print("\nWith nothing on record, and the least that a rule can guarantee:\n")
    print(
        "| model | requests | rule: mean | rule: worst | one way | divided among the ways | all known after a batch |"
    )
    print("|---|---|---|---|---|---|---|")
    groups: dict[tuple[str, int], list[float]] = {}
    for case in found:
        groups.setdefault((case.model, case.requests), []).append(case.ratio)
    for (model, requests), ratios in groups.items():
        tariff = _tariff(PriceBook(), model)
        least = (guarantee(requests, tariff), divided_guarantee(requests, tariff), learner_guarantee(requests, tariff))
        figures = " | ".join(f"{figure:.3f}" for figure in (sum(ratios) / len(ratios), max(ratios), *least))
        print(f"| {model} | {requests:,} | {figures} |")


if __name__ == "__main__":
    main()
