"""What all benchmarks share: the sandbox process, a process for each side, what it used, and how figures are shown.

The process that runs the benchmarks imports neither the SDK nor batchwise: on Linux a child's `ru_maxrss` begins at
its parent's peak, so a small parent is what makes a child's peak its own.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import os
import platform
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
PATIENCE = 1_800.0
"""Seconds that one workload may take; the longest takes a tenth of it."""
MODEL = "claude-sonnet-5"
_OVERHEAD = len(f'{{"model":"{MODEL}","max_tokens":100,"messages":[{{"role":"user","content":""}}]}}')


# -- requests ---------------------------------------------------------------------------------------------------------


def maker(size: int) -> Callable[[int], dict[str, Any]]:
    """A function number -> params whose encoded body has `size` bytes; the same for both sides."""
    filler = "x" * (size - _OVERHEAD - 8)

    def params(number: int) -> dict[str, Any]:
        return {
            "model": MODEL,
            "max_tokens": 100,
            "messages": [{"role": "user", "content": f"{number:07d} {filler}"}],
        }

    return params


# -- processes --------------------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """Return the environment of all measured processes. They keep byte code, as pip does for what it installs.

    To compile a package at each start takes time and a megabyte, which its user has paid once.
    """
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def note(text: str) -> None:
    """Say how far it has come."""
    print(f"  ... {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def sandbox(**latencies: float) -> Iterator[str]:
    """`python -m batchwise.sandbox` in a process of its own; gives its base URL."""
    options = [part for name, seconds in latencies.items() for part in (f"--{name}-latency", str(seconds))]
    command = [sys.executable, "-m", "batchwise.sandbox", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment()) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@contextlib.contextmanager
def folder() -> Iterator[str]:
    """A folder on the repository's disk (not one in memory), removed afterwards."""
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=BUILD) as name:
        yield name


def child(module: str, workload: str, *, source: Path | None = None, **options: Any) -> dict[str, Any]:
    """Run one workload of `tests.benchmarks.<module>` in a fresh process; gives what it found.

    `source`: the `src` folder that it imports batchwise from, if it is another than this one.
    """
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", workload, json.dumps(options)]
    env = environment() | ({} if source is None else {"PYTHONPATH": str(source)})
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=False, timeout=PATIENCE)
    if done.returncode:
        raise SystemExit(f"{module} {workload} {options} failed (exit code {done.returncode})\n{done.stdout}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def serve(workloads: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """The other end of `child`: run a workload, print what it found."""
    name, options = sys.argv[1:3]
    print(json.dumps(workloads[name](**json.loads(options))))


class Meter:
    """CPU (user and system, all threads of this process) and wall of a block.

    It begins with a collected heap, or a full collection of the SDK's objects (100 ms) that was due anyway falls into
    one side by chance; `within` another, nothing is collected, for that would be measured.
    """

    def __init__(self, *, within: bool = False) -> None:
        self._within = within

    def __enter__(self) -> Self:
        if not self._within:
            gc.collect()
        self._cpu, self._wall = _cpu(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self._wall, _cpu() - self._cpu

    def figures(self) -> dict[str, float]:
        """With the peak memory of this process so far, its imports included."""
        return {"cpu": self.cpu, "wall": self.wall, "rss": peak()}


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak() -> int:
    """Peak resident bytes of this process."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def rotate(sides: Mapping[str, Callable[[], dict[str, Any]]], round_: int) -> dict[str, dict[str, Any]]:
    """Run each side once; each round begins with another one, so that none is favoured by its place."""
    names = list(sides)
    shift = round_ % len(names)
    return {name: sides[name]() for name in names[shift:] + names[:shift]}


# -- figures ----------------------------------------------------------------------------------------------------------


@dataclass
class Figure:
    """One figure: a ratio with both sides' medians, or a plain value.

    `key` is how the bounds find it; `values` are those of the rounds (ratios where there is a `base`).
    """

    key: str
    name: str
    unit: str
    values: Sequence[float]
    ours: float | None = None
    base: float | None = None
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def line(self) -> str:
        """As it is printed, the ratio first."""
        if self.base is None:
            text = f"{show(self.median, self.unit):>12}"
        else:
            text = f"{self.median:10.3f} x   {show(self.ours or 0.0, self.unit)} against {show(self.base, self.unit)}"
        if len(self.values) > 1:
            unit = "x" if self.base is not None else self.unit
            text += f"   ({show(min(self.values), unit)} to {show(max(self.values), unit)})"
        return f"  {self.name:<44}{text}{'   ' + self.note if self.note else ''}"

    def json(self) -> dict[str, Any]:
        return {**self.__dict__, "median": self.median}


def paired(
    key: str, name: str, unit: str, rounds: Sequence[Mapping[str, Any]], side: str, base: str, field: str
) -> Figure:
    """The ratio of one side to the base: the median of the ratios of each round, which shared the moment's noise."""
    ours, theirs = ([round_[which][field] for round_ in rounds] for which in (side, base))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Figure(key, name, unit, ratios, statistics.median(ours), statistics.median(theirs))


def show(value: float, unit: str) -> str:
    """A figure for people."""
    if unit == "s":
        scale, name = next(
            (each for each in ((1, "s"), (1e3, "ms"), (1e6, "us")) if abs(value) * each[0] >= 1), (1e6, "us")
        )
        return f"{value * scale:.2f} {name}"
    if unit == "bytes":
        return f"{value / 1e6:.1f} MB" if abs(value) >= 1e5 else f"{value:,.0f} B"
    return f"{value:.3f} x" if unit == "x" else f"{value:,.0f} {unit}".strip()


# -- the machine ------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    with folder() as where:
        synced = sync_time(where)
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu_model(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "anthropic": importlib.metadata.version("anthropic"),
        "batchwise": importlib.metadata.version("batchwise-claude"),
        "sqlite": sqlite3.sqlite_version,
        "disk_sync_ms": round(synced * 1e3, 2),
        "load": [round(each, 1) for each in os.getloadavg()],
    }


def sync_time(where: str, count: int = 50) -> float:
    """Seconds that one append of 8 KB takes until it is on disk (median): what no durable write can beat."""
    times = []
    with (Path(where) / "sync").open("wb", buffering=0) as file:
        for _ in range(count):
            begun = time.perf_counter()
            file.write(b"x" * 8_192)
            getattr(os, "fdatasync", os.fsync)(file.fileno())
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
