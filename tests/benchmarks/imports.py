"""Import time: `import batchwise` and one `sla_cadence`, over an empty interpreter."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

from .harness import ROOT, Figure, environment, note, rotate

STATEMENT = "import batchwise; from datetime import timedelta; batchwise.sla_cadence(timedelta(hours=30))"
_SIDES = {
    "empty": "",
    "batchwise": STATEMENT,
    "dispatcher": "from batchwise import Dispatcher",
    "sdk": "import anthropic",
}


def _time(code: str) -> dict[str, float]:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment())
    return {"wall": time.perf_counter() - begun}


def run(*, quick: bool) -> Iterator[tuple[str, list[Figure]]]:
    """The difference of each round's two starts, and the SDK's import beside it."""
    count = 3 if quick else 15
    sides = {name: lambda code=code: _time(code) for name, code in _SIDES.items()}
    rotate(sides, 0)  # byte code and disk cache
    note(f"imports, {count} rounds")
    rounds = [rotate(sides, number) for number in range(count)]

    def over(name: str) -> list[float]:
        return [round_[name]["wall"] - round_["empty"]["wall"] for round_ in rounds]

    yield (
        f"imports: wall over an empty interpreter, {count} rounds",
        [
            Figure("imports/batchwise", "batchwise and one sla_cadence", "s", over("batchwise")),
            Figure("imports/dispatcher", "batchwise.Dispatcher (with the SDK)", "s", over("dispatcher")),
            Figure("imports/sdk", "anthropic", "s", over("sdk")),
            Figure("imports/empty", "the empty interpreter itself", "s", [each["empty"]["wall"] for each in rounds]),
        ],
    )


def slowest(count: int = 25) -> str:
    """`-X importtime` of the same statement: the modules that take longest by themselves (microseconds)."""
    command = [sys.executable, "-X", "importtime", "-c", STATEMENT]
    done = subprocess.run(command, check=True, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    lines = [line.removeprefix("import time:") for line in done.stderr.splitlines() if line.startswith("import time:")]
    head, *rest = lines
    rest.sort(key=lambda line: int(line.partition("|")[0]), reverse=True)
    return "\n".join([head, *rest[:count]])
