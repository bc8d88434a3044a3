"""Runs everything and lays it out: the table and, with matplotlib, the plot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .policies import MUTANTS, all_batch, all_sync, batchwise, card, clairvoyant, mutant, policy_for
from .traffic import HOUR, INPUT_TOKENS, Arrival, Scenario, peak_demand, scenarios, traffic
from .world import Tallies, total

HEDGE, PLAIN, OPTIMUM = "batchwise, hedge", "batchwise", "clairvoyant"
SIMPLE = {"all sync": all_sync, "all batch": all_batch, "rule of thumb": card}
_ANY = 1e6


class Row(NamedTuple):
    load: float
    scenario: Scenario
    policy: str
    tallies: Tallies


class Bench(NamedTuple):
    """One traffic with the size of the lane that its peak rescue demand needs."""

    days: int
    arrivals: Sequence[Arrival]
    peak: float
    scenarios: Sequence[Scenario]

    @classmethod
    def of(cls, days: int) -> Bench:
        arrivals = traffic(days)
        peak, worst = peak_demand(arrivals, policy_for(_ANY))
        return cls(days, arrivals, peak, scenarios(days, worst))

    def batchwise(self, load: float, scenario: Scenario, *, hedge: bool) -> Tallies:
        return batchwise(self.arrivals, scenario, policy_for(self.peak / load, hedge=hedge)).tallies

    def mutant(self, name: str, load: float) -> Row:
        scenario = self.scenarios[2]
        world = mutant(name, self.arrivals, scenario, policy_for(self.peak / load, hedge=True))
        return Row(load, scenario, f"mutant: {name}", world.tallies)

    def rows(self, load: float) -> Iterator[Row]:
        lane = self.peak / load
        for scenario in self.scenarios:
            for name, run in SIMPLE.items():
                yield Row(load, scenario, name, run(self.arrivals, scenario, lane))
            yield Row(load, scenario, PLAIN, self.batchwise(load, scenario, hedge=False))
            hedged = batchwise(self.arrivals, scenario, policy_for(lane, hedge=True))
            yield Row(load, scenario, HEDGE, hedged.tallies)
            yield Row(load, scenario, OPTIMUM, clairvoyant(self.arrivals, scenario, hedged.instants))
        for name in MUTANTS:
            yield self.mutant(name, load)


def tables(bench: Bench, rows: Iterable[Row]) -> str:
    found = list(rows)
    requests = sum(arrival.requests for arrival in bench.arrivals)
    rate = bench.peak / INPUT_TOKENS
    lines = [
        f"{requests:,} requests in {len(bench.arrivals):,} groups over {bench.days} days",
        f"at its peak the rescue of everything needs {rate:.2f} calls a minute",
    ]
    for load in dict.fromkeys(row.load for row in found):
        lines += ["", f"Peak rescue demand {load} of the lane", ""]
        lines += _overview([row for row in found if row.load == load])
        lines += ["", f"By SLA: dollars (deadlines missed), peak rescue demand {load} of the lane", ""]
        lines += _by_sla([row for row in found if row.load == load])
    return "\n".join(lines)


def _overview(rows: Sequence[Row]) -> Iterator[str]:
    heads = {"dollars": 10, "of all sync": 13, "of optimum": 12, "waste $": 9, "missed": 8, "refused": 9, "to sync": 9}
    yield f"{'':3}{'policy':34}" + "".join(f"{head:>{width}}" for head, width in heads.items())
    for scenario in dict.fromkeys(row.scenario for row in rows):
        yield f"({scenario.name}) {scenario.words}"
        here = {row.policy: total(row.tallies) for row in rows if row.scenario is scenario}
        sync, optimum = here["all sync"].cost, here[OPTIMUM].cost
        for policy, tally in here.items():
            yield (
                f"{'':3}{policy:34}{tally.cost:>10.2f}{tally.cost / sync:>13.3f}{tally.cost / optimum:>12.3f}"
                f"{tally.wasted:>9.2f}{tally.missed:>8,}{tally.refused:>9,}{tally.moved:>9,}"
            )


def _by_sla(rows: Sequence[Row]) -> Iterator[str]:
    slas = sorted({sla for row in rows for sla in row.tallies})
    yield f"{'':3}{'policy':34}" + "".join(f"{f'{sla / HOUR:g} h':>15}" for sla in slas)
    for scenario in dict.fromkeys(row.scenario for row in rows):
        yield f"({scenario.name})"
        for row in rows:
            if row.scenario is scenario:
                cells = [row.tallies[sla] for sla in slas]
                yield f"{'':3}{row.policy:34}" + "".join(f"{f'{c.cost:.2f} ({c.missed:,})':>15}" for c in cells)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Dollars by policy and scenario, with the deadlines that each missed."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "batchwise"  # the same file for the same figures
    from matplotlib import pyplot as plt

    shown = [row for row in rows if row.load == rows[0].load and not row.policy.startswith("mutant")]
    names = list(dict.fromkeys(row.scenario.name for row in shown))
    policies = list(dict.fromkeys(row.policy for row in shown))
    figure, axes = plt.subplots(figsize=(9.5, 4.2), layout="constrained")
    width = 0.8 / len(policies)
    for index, policy in enumerate(policies):
        tallies = [total(row.tallies) for row in shown if row.policy == policy]
        places = [place + (index - (len(policies) - 1) / 2) * width for place in range(len(names))]
        bars = axes.bar(places, [tally.cost for tally in tallies], width * 0.9, label=policy)
        words = [f"{tally.missed:,} missed" if tally.missed else "" for tally in tallies]
        axes.bar_label(bars, labels=words, rotation=90, fontsize=7, padding=3)
    axes.set_xticks(
        range(len(names)), ["(a) benign", "(b) heavy tail", "(c) all expire at the worst hour", "(d) outage"]
    )
    axes.set_ylabel("dollars for four weeks")
    axes.set_title(f"Peak rescue demand {rows[0].load} of the sync lane")
    axes.margins(y=0.22)
    axes.legend(ncols=3, fontsize=8, loc="upper center")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
