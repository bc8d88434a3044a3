"""`python -m tests.benchmarks.simulation [--quick] [--plot PATH]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .report import Bench, plot, tables


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.simulation", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="six days of traffic instead of four weeks")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="draw the first table (needs matplotlib)")
    arguments = parser.parse_args()
    bench = Bench.of(6 if arguments.quick else 28)
    rows = [row for load in (0.9, 1.1) for row in bench.rows(load)]
    print(tables(bench, rows))
    if arguments.plot is not None:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
