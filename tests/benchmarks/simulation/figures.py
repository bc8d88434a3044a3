"""The simulation as one of the benchmarks: its table, and the figures that bounds are about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.benchmarks.harness import Figure, child, note, serve


def table(days: int) -> dict[str, Any]:
    """Everything, as `python -m tests.benchmarks.simulation` prints it, and what it is judged by."""
    from .report import HEDGE, OPTIMUM, PLAIN, Bench, tables
    from .world import total

    bench = Bench.of(days)
    rows = [row for load in (0.9, 1.1) for row in bench.rows(load)]
    found = {(row.load, row.scenario.name, row.policy): total(row.tallies) for row in rows}
    ours = [tally for (_, _, policy), tally in found.items() if policy in {PLAIN, HEDGE}]
    return {
        "text": tables(bench, rows),
        "missed": sum(tally.missed for tally in ours),
        "lost": sum(tally.requests - tally.refused - tally.settled for tally in ours),
        "refused": sum(
            tally.refused for (load, _, policy), tally in found.items() if policy in {PLAIN, HEDGE} and load < 1
        ),
        "mutants": min(tally.missed for (_, _, policy), tally in found.items() if policy.startswith("mutant")),
        "ratios": {
            name: max(found[load, name, HEDGE].cost / found[load, name, OPTIMUM].cost for load in (0.9, 1.1))
            for name in "abcd"
        },
    }


def run(*, quick: bool) -> Iterator[tuple[str, list[Figure]]]:
    """Give the figures; their title is the whole table."""
    note("simulation")
    found = child("simulation.figures", "table", days=6 if quick else 28)
    counts = {
        "missed": "deadlines missed by batchwise, promised ones",
        "lost": "accepted requests without an outcome",
        "refused": "refused while the peak rescue demand fits",
        "mutants": "deadlines missed by the best of the mutants",
    }
    yield (
        f"simulation: virtual time, the real planner, fixed seeds\n\n{found['text']}\n",
        [
            *(Figure(f"simulation/{key}", name, "", [found[key]]) for key, name in counts.items()),
            *(
                Figure(f"simulation/{name}", f"({name}) hedging against knowing the future", "x", [ratio])
                for name, ratio in found["ratios"].items()
            ),
        ],
    )


if __name__ == "__main__":
    serve({"table": table})
