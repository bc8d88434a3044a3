"""Fast paths on trial: the bulk job by this source, and by other ones, in turns.

A fast path that saves less than 3 % of the job's CPU is not worth its lines. To try one, take it out of a second
work tree, and compare:

    git worktree add ../without && (cd ../without && ...)
    python -m tests.benchmarks.trial ../without

It prints what the job takes by the other source, in terms of this one: the median of the rounds' ratios, and the
middle half of them. All sources are measured by the benchmark of this one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

from .bulk import LATENCY
from .harness import ROOT, child, folder, note, rotate, sandbox

_FIELDS = ("cpu", "wall", "rss")


def _job(source: Path, **case: Any) -> dict[str, Any]:
    with folder() as where:
        return child("bulk", "text", source=source, where=where, **case)


def main() -> None:
    """Run the rounds; print a line for each source and figure."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.trial", description=__doc__)
    parser.add_argument("trees", nargs="+", type=Path, metavar="TREE", help="a work tree with another `src`")
    parser.add_argument("--requests", type=int, default=20_000, help="requests of 1 KB in each job")
    parser.add_argument("--rounds", type=int, default=11, help="how often each source does the job")
    options = parser.parse_args()
    trees = [ROOT, *options.trees]
    found: list[dict[str, Any]] = []
    for number in range(options.rounds):
        with sandbox(batch=LATENCY) as url:
            job = partial(_job, url=url, requests=options.requests, size=1_000)
            found.append(rotate({str(tree): partial(job, tree.resolve() / "src") for tree in trees}, number))
        note(f"round {number + 1} of {options.rounds}")
    for tree in options.trees:
        for field in _FIELDS:
            ratios = [round_[str(tree)][field] / round_[str(ROOT)][field] for round_ in found]
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(f"{tree.name:<24} {field:<5} {middle:6.3f} x   (middle half {low:.3f} to {high:.3f})")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
