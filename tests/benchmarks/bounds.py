"""The bounds that the benchmarks have to keep, and the table that says whether they do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from .harness import Figure, show

Figures = Mapping[str, Figure]


class Bound(NamedTuple):
    """At most so much of something."""

    words: str
    most: float
    unit: str
    value: Callable[[Figures], float | None]


class Verdict(NamedTuple):
    """A bound, what was measured, and whether it is kept; None: not measured."""

    bound: Bound
    value: float | None

    @property
    def kept(self) -> bool | None:
        return None if self.value is None else self.value <= self.bound.most


def _median(key: str) -> Callable[[Figures], float | None]:
    return lambda figures: figures[key].median if key in figures else None


def _quotient(over: str, under: str) -> Callable[[Figures], float | None]:
    """One side's own figure at two sizes of job."""

    def value(figures: Figures) -> float | None:
        if over not in figures or under not in figures:
            return None
        above, below = (figures[key].ours or figures[key].median for key in (over, under))
        return above / below

    return value


def _unused(figures: Figures) -> float | None:
    """Of the limits configured as they are, the one that is used least: its unused share."""
    used = [figure.median for key, figure in figures.items() if key.startswith("pacing/") and key.endswith("/1")]
    return 100 * (1 - min(used)) if used else None


def bounds(*, quick: bool) -> Sequence[Bound]:
    """At full size; `quick` looks at the smaller jobs instead, which shows that the table works and no more."""
    kilobyte, small, middle, large = (
        ("1000x1000", "1000x200", "1000x200", "3000x200")
        if quick
        else ("100000x1000", "10000x200", "100000x200", "1000000x200")
    )
    job = f"{int(kilobyte.partition('x')[0]):,} x 1 KB"
    small_, middle_, large_ = (f"{int(each.partition('x')[0]):,}" for each in (small, middle, large))
    return (
        Bound(f"client CPU, {job}, every text decoded", 0.50, "x", _median(f"bulk/{kilobyte}/text/cpu")),
        Bound(f"client CPU, {job}, undecoded", 0.40, "x", _median(f"bulk/{kilobyte}/keys/cpu")),
        Bound(f"wall, {job}, every text decoded", 0.55, "x", _median(f"bulk/{kilobyte}/text/wall")),
        Bound(f"wall, {job}, undecoded", 0.55, "x", _median(f"bulk/{kilobyte}/keys/wall")),
        Bound(f"peak RSS, {job}, every text decoded", 0.20, "x", _median(f"bulk/{kilobyte}/text/rss")),
        Bound(f"peak RSS, {job}, undecoded", 0.20, "x", _median(f"bulk/{kilobyte}/keys/rss")),
        Bound(
            f"CPU per request, {large_} against {small_}, decoded",
            1.2,
            "x",
            _quotient(f"bulk/{large}/text/each", f"bulk/{small}/text/each"),
        ),
        Bound(
            f"CPU per request, {large_} against {small_}, undecoded",
            1.2,
            "x",
            _quotient(f"bulk/{large}/keys/each", f"bulk/{small}/keys/each"),
        ),
        Bound(
            f"peak RSS, {large_} against {middle_}",
            1.3,
            "x",
            _quotient(f"bulk/{large}/text/rss", f"bulk/{middle}/text/rss"),
        ),
        Bound(f"Postgres: client CPU, {job}, every text decoded", 0.60, "x", _median(f"postgres/{kilobyte}/text/cpu")),
        Bound(f"Postgres: wall, {job}, every text decoded", 0.90, "x", _median(f"postgres/{kilobyte}/text/wall")),
        Bound(f"Postgres: peak RSS, {job}, every text decoded", 0.25, "x", _median(f"postgres/{kilobyte}/text/rss")),
        Bound("Postgres: one of many dispatches by 8 processes, wall", 1e-3, "s", _median("postgres/singles/8x1")),
        Bound("added latency of a blocking dispatch, median", 2e-3, "s", _median("blocking/median/added")),
        Bound("client CPU, calls of a dispatcher's client into a batch", 1.3, "x", _median("client/batch/cpu")),
        Bound("wall, blocking calls of a dispatcher's client", 1.3, "x", _median("client/now/wall")),
        Bound("wall, a burst of blocking calls, the default policy", 1.3, "x", _median("burst/wall")),
        Bound("import batchwise and one sla_cadence", 80e-3, "s", _median("imports/batchwise")),
        Bound("routing in bulk, per request", 10e-6, "s", _median("routing/1")),
        Bound("pacing: unused of a limit that is configured as it is", 5, "%", _unused),
        Bound("volume: calls of a planning pass, a late day against the second", 1.1, "x", _median("volume/growth")),
        Bound("simulation: promised deadlines missed", 0, "", _median("simulation/missed")),
        Bound("simulation: accepted requests without an outcome", 0, "", _median("simulation/lost")),
        Bound("simulation: hedging against knowing the future, benign", 1.05, "x", _median("simulation/a")),
        Bound("simulation: hedging against it, heavy tail", 1.10, "x", _median("simulation/b")),
    )


def table(figures: Figures, *, quick: bool) -> tuple[list[Verdict], str]:
    """The verdicts, and the table as it is printed."""
    verdicts = [Verdict(bound, bound.value(figures)) for bound in bounds(quick=quick)]
    words = {True: "pass", False: "FAIL", None: "not run"}
    lines = [f"  {'':<56}{'at most':>12}{'measured':>14}"]
    for verdict in verdicts:
        bound, value = verdict
        measured = "" if value is None else show(value, bound.unit)
        lines.append(f"  {bound.words:<56}{show(bound.most, bound.unit):>12}{measured:>14}   {words[verdict.kept]}")
    if quick:
        lines.append("  Quick run: smaller jobs than the bounds are about, so these verdicts say nothing.")
    return verdicts, "\n".join(lines)
