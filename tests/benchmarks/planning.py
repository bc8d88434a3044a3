"""Pure calls: `choose_lane`, `sla_cadence`, `Request`, and what routing costs each request of a bulk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from .harness import Figure, child, maker, note, serve

if TYPE_CHECKING:
    from typing_extensions import Self

_ROUNDS = 5


def _each(call: Callable[[], object], count: int) -> list[float]:
    """Seconds that one call takes, in each of the rounds."""
    call()
    found = []
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        for _ in range(count):
            call()
        found.append((time.perf_counter() - begun) / count)
    return found


def calls(count: int) -> dict[str, Any]:
    """Single calls."""
    import batchwise as bw

    now, sla, params = datetime.now(timezone.utc), timedelta(hours=30), maker(1_000)(0)
    dated, policy, prices = bw.Request(params, key="r-0", latency=sla), bw.Policy(), {}
    return {
        "sla_cadence": _each(lambda: bw.sla_cadence(sla), count),
        "choose_lane": _each(lambda: bw.choose_lane(dated, now=now, policy=policy), count),
        "choose_lane, prices": _each(lambda: bw.choose_lane(dated, now=now, policy=policy, prices=prices), count),
        "choose_lane, explanation": _each(lambda: bw.choose_lane(dated, now=now, policy=policy).explanation, count),
        "Request": _each(lambda: bw.Request(params, key="r-0", latency=sla), count),
    }


def routing(count: int) -> dict[str, Any]:
    """`Engine.accept_all` itself over requests made before, into an intake that stores nothing.

    So this is all that a bulk dispatch does but encoding and storing: signatures, the memo of routes, the decision for
    each signature, the tallies and the admission.
    """
    import batchwise as bw
    from batchwise.engine.core import Engine
    from batchwise.ledger.sqlite import SqliteLedger

    class Nothing:
        job = 1

        def __init__(self) -> None:
            self._terms: dict[int, list[Any]] = {}

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

        def stage(self, entries: Iterable[Any]) -> int:
            count = 0
            for _, body, terms in entries:
                sums = self._terms.setdefault(id(terms), [terms, 0, 0])
                sums[1] += 1
                sums[2] += len(body)
                count += 1
            return count

        @property
        def fresh(self) -> list[tuple[Any, ...]]:
            return [tuple(sums) for sums in self._terms.values()]

        def accept(self, **_: object) -> None: ...

    class Sink(SqliteLedger):
        def intake(self, **_: Any) -> Any:
            return Nothing()

    make = maker(200)

    def requests(kinds: int) -> list[bw.Request]:
        return [
            bw.Request({**make(number), "max_tokens": 100 + number % kinds}, key=f"r-{number}")
            for number in range(count)
        ]

    ledger = Sink(":memory:")
    engine = Engine(ledger, bw.Policy(limits=bw.Limits.for_tier("scale")), endpoint="http://127.0.0.1")
    found: dict[str, Any] = {}
    for kinds in (1, 100, 1_000):
        made, found[str(kinds)] = requests(kinds), []
        for _ in range(_ROUNDS):
            begun = time.perf_counter()
            engine.accepting.accept_all(iter(made), "bench", timedelta(hours=30), None)
            found[str(kinds)].append((time.perf_counter() - begun) / count)
    ledger.close()
    return found


def run(*, quick: bool) -> Iterator[tuple[str, list[Figure]]]:
    """Per call, and per request of a bulk."""
    note("planning")
    each = child("planning", "calls", count=500 if quick else 20_000)
    yield (
        f"planning: per call, {_ROUNDS} rounds",
        [Figure(f"planning/{name}", name, "s", values) for name, values in each.items()],
    )
    count = 5_000 if quick else 100_000
    bulk = child("planning", "routing", count=count)
    yield (
        f"planning: routing in bulk, amortised over {count:,} requests (Engine.accept_all, nothing stored)",
        [
            Figure(f"routing/{kinds}", f"{int(kinds):,} routing signature{'s' * (kinds != '1')}", "s", values)
            for kinds, values in bulk.items()
        ],
    )


if __name__ == "__main__":
    serve({"calls": calls, "routing": routing})
