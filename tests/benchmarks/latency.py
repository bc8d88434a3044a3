"""One request at a time: what durability adds to a blocking call, how fast single requests are accepted, and 1,000
concurrent blocking dispatches on an event loop.

The sandbox answers a Messages call at once, so that what is left is the client's own time.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from .harness import Figure, Meter, child, folder, maker, note, paired, rotate, sandbox, serve, sync_time

_PAUSE = 0.01
"""Seconds between two measured calls, so that what one leaves to do in the background does not slow the next."""
_WARM = 30


# -- in a process of its own ------------------------------------------------------------------------------------------


def blocking(url: str, where: str, count: int) -> dict[str, Any]:
    """`dispatch(...).result().text` and `messages.create(...).content[0].text`, interleaved, on one client."""
    import anthropic

    import batchwise as bw

    client, params = anthropic.Anthropic(base_url=url, api_key="sandbox"), maker(1_000)
    bare: list[float] = []
    ours: list[float] = []

    def create(number: int) -> str:
        message: Any = client.messages.create(**params(number))
        text: str = message.content[0].text
        return text

    policy = bw.Policy(limits=bw.Limits())  # no limits: pacing would be measured else
    with bw.Dispatcher(client, ledger=Path(where) / "ledger.db", policy=policy) as dispatcher:

        def dispatch(number: int) -> str:
            return dispatcher.dispatch(params(number)).result().text

        sides = [(create, bare), (dispatch, ours)]
        for number in range(_WARM + count):
            for call, times in sides if number % 2 else sides[::-1]:
                time.sleep(_PAUSE)
                begun = time.perf_counter()
                text = call(number)
                took = time.perf_counter() - begun
                assert text.startswith(f"echo: {number:07d}")
                if number >= _WARM:
                    times.append(took)
        synced = sync_time(where)
    return {"bare": bare, "ours": ours, "sync": synced}


def singles(where: str, count: int, threads: int) -> dict[str, Any]:
    """Dated requests, dispatched one by one; none is due, so nothing is sent."""
    import anthropic

    import batchwise as bw

    client, params = anthropic.Anthropic(base_url="http://127.0.0.1:9", api_key="sandbox"), maker(1_000)
    policy = bw.Policy(limits=bw.Limits.for_tier("scale"))
    dispatcher = bw.Dispatcher(client, ledger=Path(where) / "ledger.db", policy=policy)

    def work(thread: int) -> None:
        for number in range(thread, count, threads):
            dispatcher.dispatch(params(number), key=f"r-{number}", latency=timedelta(hours=30))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    with Meter() as meter:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    progress = dispatcher.progress()
    dispatcher.close(finish=False)
    assert progress.total == count, progress
    return {**meter.figures(), "sync": sync_time(where)}


def gathered(url: str, count: int, *, warm: bool = True, **_: Any) -> dict[str, Any]:
    """`asyncio.gather` over `AsyncAnthropic.messages.create`; `warm`: one call has gone before."""
    import asyncio

    import anthropic

    params = maker(1_000)

    async def main() -> Meter:
        async with anthropic.AsyncAnthropic(base_url=url, api_key="sandbox") as client:

            async def one(number: int) -> str:
                message: Any = await client.messages.create(**params(number))
                text: str = message.content[0].text
                return text

            if warm:
                await one(0)
            with Meter() as meter:
                texts = await asyncio.gather(*(one(number) for number in range(count)))
        assert len(texts) == count
        return meter

    return asyncio.run(main()).figures()


def dispatched(url: str, where: str, count: int) -> dict[str, Any]:
    """The same by `AsyncDispatcher`, every request and every result on disk."""
    import asyncio

    import anthropic

    import batchwise as bw

    params, policy = maker(1_000), bw.Policy(limits=bw.Limits())

    async def main() -> Meter:
        client = anthropic.AsyncAnthropic(base_url=url, api_key="sandbox")
        async with client, bw.AsyncDispatcher(client, ledger=Path(where) / "ledger.db", policy=policy) as dispatcher:

            async def one(number: int) -> str:
                ticket = await dispatcher.dispatch(params(number))
                return (await ticket.result()).text

            await one(0)
            with Meter() as meter:
                texts = await asyncio.gather(*(one(number) for number in range(count)))
        assert len(texts) == count
        return meter

    return asyncio.run(main()).figures()


# -- the comparisons --------------------------------------------------------------------------------------------------


def fronted(
    url: str, where: str, count: int, *, batch: bool = False, follows: bool = False, **_: Any
) -> dict[str, Any]:
    """`asyncio.gather` over `messages.create` of the client that a dispatcher gives.

    `follows`: under the default policy, which follows the account's limits as the headers tell them.
    """
    import asyncio

    import anthropic

    import batchwise as bw

    params, latency = maker(1_000), timedelta(hours=30) if batch else None

    async def main() -> Meter:
        client = anthropic.AsyncAnthropic(base_url=url, api_key="sandbox")
        policy = bw.Policy(limits=None if follows else bw.Limits())
        async with client, bw.AsyncDispatcher(client, ledger=Path(where) / "ledger.db", policy=policy) as dispatcher:
            front = dispatcher.client(latency=latency)

            async def one(number: int) -> str:
                message: Any = await front.messages.create(**params(number))
                text: str = message.content[0].text
                return text

            with Meter() as meter:
                texts = await asyncio.gather(*(one(number) for number in range(count)))
            assert all(text.startswith(f"echo: {number:07d}") for number, text in enumerate(texts))
        return meter

    return asyncio.run(main()).figures()


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def run_blocking(*, quick: bool) -> Iterator[tuple[str, list[Figure]]]:
    """What a blocking dispatch adds to `messages.create`."""
    count, rounds = (40, 1) if quick else (500, 3)
    found = []
    for number in range(rounds):
        note(f"blocking, round {number + 1} of {rounds}")
        with sandbox() as url, folder() as where:
            found.append(child("latency", "blocking", url=url, where=where, count=count))
    figures = []
    for name, key, of in (
        ("median", "median", statistics.median),
        ("p99", "p99", lambda values: _percentile(values, 0.99)),
    ):
        bare, ours = ([of(each[side]) for each in found] for side in ("bare", "ours"))
        added = [b - a for a, b in zip(bare, ours, strict=True)]
        figures.append(Figure(f"blocking/{key}/added", f"added, {name}", "s", added))
        ratios = [b / a for a, b in zip(bare, ours, strict=True)]
        ours_, bare_ = statistics.median(ours), statistics.median(bare)
        figures.append(Figure(f"blocking/{key}", f"dispatch().result(), {name}", "s", ratios, ours_, bare_))
    figures.append(Figure("blocking/sync", "two syncs of 8 KB to this disk", "s", [2 * each["sync"] for each in found]))
    yield f"blocking: dispatch().result() beside messages.create, {count} calls each, {rounds} rounds", figures


def run_singles(*, quick: bool) -> Iterator[tuple[str, list[Figure]]]:
    """How fast single batched requests are accepted."""
    cases = ((200, 1), (200, 8)) if quick else ((1_000, 1), (5_000, 1), (5_000, 8))
    rounds = 1 if quick else 3
    figures = []
    for count, threads in cases:
        found = []
        for number in range(rounds):
            note(f"singles: {count:,} by {threads} threads, round {number + 1} of {rounds}")
            with folder() as where:
                found.append(child("latency", "singles", where=where, count=count, threads=threads))
        name = f"{count:,} by {threads} thread{'s' * (threads > 1)}"
        key = f"singles/{count}x{threads}"
        figures.append(Figure(key, f"{name}: rate", "/s", [count / each["wall"] for each in found]))
        figures.append(Figure(f"{key}/cpu", f"{name}: CPU each", "s", [each["cpu"] / count for each in found]))
        figures.append(Figure(f"{key}/sync", "one sync of 8 KB to this disk", "s", [each["sync"] for each in found]))
    yield f"singles: dated requests dispatched one by one, {rounds} rounds", figures


def run_async(*, quick: bool) -> Iterator[tuple[str, list[Figure]]]:
    """1,000 concurrent blocking dispatches beside a gather over the SDK."""
    count, rounds = (50, 1) if quick else (1_000, 5)
    found = []
    for number in range(rounds):
        note(f"async, round {number + 1} of {rounds}")
        with sandbox() as url, folder() as where:
            options = {"url": url, "where": where, "count": count}
            sides = {
                "bare": lambda options=options: child("latency", "gathered", **options),
                "ours": lambda options=options: child("latency", "dispatched", **options),
            }
            found.append(rotate(sides, number))
    yield (
        f"async: {count:,} concurrent blocking dispatches beside asyncio.gather over AsyncAnthropic, {rounds} rounds",
        [
            paired(f"async/{field}", name, unit, found, "ours", "bare", field)
            for field, name, unit in (("wall", "wall", "s"), ("cpu", "client CPU", "s"), ("rss", "peak RSS", "bytes"))
        ],
    )


def run_client(*, quick: bool) -> Iterator[tuple[str, list[Figure]]]:
    """1,000 concurrent calls of the client that a dispatcher gives, into a batch and blocking, beside a bare gather.

    A Messages call takes 2 s, which is short for a real one.
    """
    count, rounds, latency = (50, 1, 0.2) if quick else (1_000, 3, 2.0)
    found = []
    for number in range(rounds):
        note(f"client, round {number + 1} of {rounds}")
        with sandbox(sync=latency) as url, folder() as one, folder() as two:
            options = {"url": url, "count": count}
            sides = {
                "bare": lambda options=options: child("latency", "gathered", **options),
                "batch": lambda options=options, one=one: child("latency", "fronted", where=one, batch=True, **options),
                "now": lambda options=options, two=two: child("latency", "fronted", where=two, batch=False, **options),
            }
            found.append(rotate(sides, number))
    yield (
        f"client: {count:,} concurrent calls of a dispatcher's client beside asyncio.gather, {rounds} rounds",
        [
            paired(f"client/{side}/{field}", f"{words}, {name}", "s", found, side, "bare", field)
            for side, words in (("batch", "into a batch"), ("now", "blocking"))
            for field, name in (("wall", "wall"), ("cpu", "client CPU"))
        ],
    )


def run_burst(*, quick: bool) -> Iterator[tuple[str, list[Figure]]]:
    """200 blocking calls at once of the client that a dispatcher gives, under the default policy, beside the bare SDK.

    A Messages call takes 0.2 s. Both processes are new: nothing is known of the account's limits, and no connection is
    open. It ends in a second, so there are many rounds.
    """
    count, rounds = (20, 1) if quick else (200, 9)
    found = []
    for number in range(rounds):
        note(f"burst, round {number + 1} of {rounds}")
        with sandbox(sync=0.2) as url, folder() as where:
            options = {"url": url, "where": where, "count": count, "warm": False, "follows": True}
            sides = {
                "bare": lambda options=options: child("latency", "gathered", **options),
                "ours": lambda options=options: child("latency", "fronted", **options),
            }
            found.append(rotate(sides, number))
    yield (
        f"burst: {count} blocking calls at once of a dispatcher's client beside asyncio.gather, {rounds} rounds",
        [
            paired(f"burst/{field}", name, "s", found, "ours", "bare", field)
            for field, name in (("wall", "wall"), ("cpu", "client CPU"))
        ],
    )


if __name__ == "__main__":
    serve(
        {"fronted": fronted, "blocking": blocking, "singles": singles, "gathered": gathered, "dispatched": dispatched}
    )
