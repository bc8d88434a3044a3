"""`python -m tests.benchmarks`: the benchmarks, each beside the bare SDK in the same run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import bulk, imports, latency, ledger, pacing, planning, postgres, stages, volume
from .bounds import table
from .harness import Figure, machine
from .simulation import figures as simulation

BENCHMARKS: dict[str, Callable[..., Iterator[tuple[str, list[Figure]]]]] = {
    "imports": imports.run,
    "planning": planning.run,
    "blocking": latency.run_blocking,
    "singles": latency.run_singles,
    "async": latency.run_async,
    "client": latency.run_client,
    "burst": latency.run_burst,
    "pacing": pacing.run,
    "ledger": ledger.run,
    "stages": stages.run,
    "bulk": bulk.run,
    "postgres": postgres.run,
    "simulation": simulation.run,
    "volume": volume.run,
}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones; all: {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that the scripts work, no more")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures there, too")
    parser.add_argument("--check", action="store_true", help="exit code 1 if a bound is not kept")
    parser.add_argument("--importtime", action="store_true", help="print what the import spends its time on, and end")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if options.check and options.quick:
        parser.error("--check needs the full sizes: leave out --quick")
    return options


def _say(about: dict[str, Any]) -> None:
    print(
        f"{about['cpu']}, {about['cores']} cores; {about['system']}\n"
        f"Python {about['python']}, anthropic {about['anthropic']}, batchwise {about['batchwise']}, "
        f"SQLite {about['sqlite']}; one sync of 8 KB to the disk takes {about['disk_sync_ms']} ms"
    )
    if about["load"][0] > 0.5:
        print(f"NOT QUIET: load average {about['load'][0]} before the first benchmark; absolute figures are noise")


def main() -> int:
    """Run them, print figures and verdicts; 0 unless `--check` finds a bound that is not kept."""
    options = _options()
    if options.importtime:
        print(imports.slowest())
        return 0
    about = machine()
    _say(about)
    sections: list[dict[str, Any]] = []
    figures: dict[str, Figure] = {}
    for name in options.names or BENCHMARKS:
        for title, found in BENCHMARKS[name](quick=options.quick):
            print(f"\n{title}")
            for figure in found:
                print(figure.line(), flush=True)
                figures[figure.key] = figure
            sections.append({"benchmark": name, "title": title, "figures": [figure.json() for figure in found]})
    verdicts, text = table(figures, quick=options.quick)
    print(f"\nbounds\n{text}")
    if options.json:
        judged = [
            {"bound": each.bound.words, "at_most": each.bound.most, "measured": each.value, "kept": each.kept}
            for each in verdicts
        ]
        record = {"machine": about, "quick": options.quick, "sections": sections, "bounds": judged}
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(options.check and any(each.kept is not True for each in verdicts))


if __name__ == "__main__":
    sys.exit(main())
