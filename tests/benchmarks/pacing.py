"""The sync lane at its limits, over real sockets: what it uses of each, and what it is refused when told too much.

The sandbox keeps limits of its own, as the account's would be. A minute of real time is too long for a benchmark, so
its buckets hold two seconds of a limit instead of a minute's.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from .harness import Figure, child, folder, maker, note, sandbox, serve

_LATENCY, _BURST = 0.2, 2.0
_JITTER = 0.05
"""Without it calls go in step, and a span holds one wave of them more or less."""
_AMPLE = {"concurrency": 64}
_CASES: Mapping[str, tuple[Mapping[str, int], int]] = {
    "requests": ({"requests_per_minute": 6_000, **_AMPLE}, 200),
    "input tokens": ({"input_tokens_per_minute": 1_200_000, **_AMPLE}, 1_000),
    "output tokens": ({"output_tokens_per_minute": 1_200_000, **_AMPLE}, 1_000),
    "concurrency": ({"concurrency": 16}, 200),
}
"""By what binds: the account's limits, and the bytes of a request."""


def _ask(url: str, path: str, body: object = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/_sandbox/{path}", data=data)) as answer:  # noqa: S310
        found: dict[str, Any] = json.load(answer)
        return found


def lane(url: str, where: str, limits: dict[str, int], size: int, factor: float, spans: list[float]) -> dict[str, Any]:
    """Dated work for longer than it takes; the books before and after the measured span.

    `factor`: so many times the account's limits are configured.
    """
    import anthropic

    import batchwise as bw

    latency = {"kind": "uniform", "low": _LATENCY - _JITTER, "high": _LATENCY + _JITTER}
    _ask(url, "settings", {"rate_limits": {**limits, "burst": _BURST}, "sync_latency": latency})
    told = {name: round(factor * limit) for name, limit in limits.items()}
    policy = bw.Policy(limits=bw.Limits(**told, latency=timedelta(seconds=_LATENCY)))
    params, client = maker(size), anthropic.Anthropic(base_url=url, api_key="sandbox")
    requests = [bw.Request(params(n), key=f"r-{n}", latency=timedelta(hours=1)) for n in range(3_000)]
    dispatcher = bw.Dispatcher(client, ledger=Path(where) / "ledger.db", policy=policy)
    job = dispatcher.dispatch_all(requests, job="pacing")
    next(iter(job.results()))
    begun = time.monotonic()
    looks = []
    for span in (0.0, *spans):
        time.sleep(max(0.0, begun + span - time.monotonic()))
        books = _ask(url, "books")
        looks.append(
            {
                "at": time.monotonic() - begun,
                "calls": books["billed"]["sync"],
                "tried": books["requests_by_path"].get("POST /v1/messages", 0),
                "running": books["running"]["sync"],
                **books["tokens"]["sync"],
            }
        )
    dispatcher.close(finish=False)
    return {"looks": looks}


def _used(found: Mapping[str, Any], name: str, limits: Mapping[str, int]) -> float:
    """The share of what the binding limit allows between the last two looks."""
    before, after = found["looks"][-2:]
    span = after["at"] - before["at"]
    if name == "concurrency":
        return (after["calls"] - before["calls"]) * _LATENCY / (limits["concurrency"] * span)
    field, limit = {
        "requests": ("calls", "requests_per_minute"),
        "input tokens": ("input", "input_tokens_per_minute"),
        "output tokens": ("output", "output_tokens_per_minute"),
    }[name]
    return (after[field] - before[field]) * 60 / (limits[limit] * span)


def _refused(found: Mapping[str, Any]) -> int:
    last = found["looks"][-1]
    return last["tried"] - last["calls"] - last["running"]  # type: ignore[no-any-return] # JSON


def _figures(cases: Sequence[str], factor: float, spans: list[float]) -> Iterator[Figure]:
    for name in cases:
        limits, size = _CASES[name]
        note(f"pacing: {name}, limits times {factor:g}")
        with sandbox() as url, folder() as where:
            options = {"limits": limits, "size": size, "factor": factor, "spans": spans}
            found = child("pacing", "lane", url=url, where=where, **options)
        key = f"pacing/{name}/{factor:g}"
        yield Figure(key, f"{name}: used of what is allowed", "x", [_used(found, name, limits)])
        yield Figure(
            f"{key}/refused", f"{name}: refused (429), of {found['looks'][-1]['tried']:,}", "", [_refused(found)]
        )


def run(*, quick: bool) -> Iterator[tuple[str, list[Figure]]]:
    """Each limit as it is; then some three times too high, of which the concurrency has to be felt for."""
    spans = [0.5, 1.0] if quick else [1.5, 5.5]
    words = f"{spans[1] - spans[0]:g} s after {spans[0]:g} s of warming up"
    yield f"pacing: the sync lane at a limit, {words}", [*_figures([*_CASES], 1.0, spans)]
    yield (
        f"pacing: with Policy.limits three times too high, {words}",
        [*_figures(["requests", "output tokens"], 3.0, spans)],
    )
    spans = [0.5, 1.0] if quick else [13.0, 18.0]
    words = f"{spans[1] - spans[0]:g} s after {spans[0]:g} s of finding out"
    yield f"pacing: with a concurrency three times too high, {words}", [*_figures(["concurrency"], 3.0, spans)]


if __name__ == "__main__":
    serve({"lane": lane})
