"""Results in the order of the requests, as plain dicts, and as a file that is there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pandas as pd
import pytest

from batchwise import Outcome, Request, ResultTimeoutError
from batchwise.sandbox import Reply, echo
from tests.strategies import params

from .world import HOURS_30, PATIENCE, World, listed, many


def keys(results: Iterable[Any]) -> list[str]:
    return [result.key for result in results]


async def test_results_in_the_order_of_their_requests(world: World):
    wanted = [f"r-{n}" for n in range(600)]
    async with world.open(max_batch_requests=200) as d:
        await (await d.dispatch(params("else"), job="else")).result()
        job = await d.dispatch_all(many(600), job="j", latency=HOURS_30)
        later = await d.dispatch(params("later"), key="later", job="j")
        assert (await later.result()).index == 600
        ordered = await listed(job.results(ordered=True))
        assert keys(ordered) == [*wanted, "later"]
        assert [result.index for result in ordered] == list(range(601))
        unordered = await listed(job.results())
        assert {result.key: result.index for result in unordered} == {result.key: result.index for result in ordered}
        places, everything = {result.key: result.index for result in ordered}, await listed(d.results())
        assert len(everything) == 602
        assert all(result.index == (0 if result.job == "else" else places[result.key]) for result in everything)


async def test_one_that_is_not_settled_holds_back_those_behind(world: World):
    world.sandbox.batch_latency = 3600
    async with world.open() as d:
        await d.dispatch_all(many(2), job="j", latency=HOURS_30)
        assert (await (await d.dispatch(params("now"), key="now", job="j")).result()).ok
        job = await d.job("j")
        with pytest.raises(ResultTimeoutError):
            await listed(job.results(timeout=0.3, ordered=True))
        assert keys([await anext_of(job.results(timeout=PATIENCE))]) == ["now"]
        batch = await world.until(lambda: world.books.batches)
        world.sandbox.finish(batch[0].id)
        assert keys(await listed(job.results(ordered=True))) == ["r-0", "r-1", "now"]


async def anext_of(iterable: Any) -> Any:
    iterator = aiter(iterable)
    first = await anext(iterator)
    await iterator.aclose()
    return first


async def test_a_bulk_without_a_name_keeps_its_order_whatever_was_there_before(world: World):
    async with world.open() as d:
        first = await d.dispatch_all([many(3)[2]], latency=HOURS_30)
        await first.wait()
        job = await d.dispatch_all(many(4), latency=HOURS_30)
        ordered = await listed(job.results(ordered=True))
        assert keys(ordered) == [f"r-{n}" for n in range(4)]
        assert [result.index for result in ordered] == [0, 1, 2, 3]
        assert {result.key: result.index for result in await listed(job.results())} == {f"r-{n}": n for n in range(4)}


async def test_a_file_of_results_is_there_whole_or_not_at_all(world: World):
    path = world.folder / "results.jsonl"
    path.write_text("before")
    world.sandbox.batch_latency = 3600
    world.sandbox.reply = lambda p: Reply.error("invalid_request_error") if "bad" in str(p["messages"]) else echo(p)
    async with world.open() as d:
        job = await d.dispatch_all([*many(3), Request(params("bad"), key="bad")], job="j", latency=HOURS_30)
        with pytest.raises(ResultTimeoutError):
            await job.to_jsonl(path, timeout=0.1)
        assert path.read_text() == "before"
        batches = await world.until(lambda: world.books.batches)
        world.sandbox.finish(batches[0].id)
        assert await job.to_jsonl(path, ordered=True) == 4
    assert [file.name for file in world.folder.iterdir() if "results" in file.name] == ["results.jsonl"]
    assert path.stat().st_mode & 0o077 == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["key"] for row in rows] == ["r-0", "r-1", "r-2", "bad"]
    assert [row["text"] for row in rows] == ["echo: r-0", "echo: r-1", "echo: r-2", None]
    assert rows[3]["error_type"] == "invalid_request_error"
    frame = pd.DataFrame(rows)
    assert list(frame.index[frame.ok]) == [0, 1, 2]
    assert frame.cost.sum() > 0
    assert all(not isinstance(value, (dict, list)) for row in rows for value in row.values())


async def test_the_report_counts_what_was_cut_off_until_it_is_tried_again(world: World):
    world.sandbox.reply = lambda p: Reply.text("half an ans", stop_reason="max_tokens")
    async with world.open() as d:
        await (await d.dispatch(params("sync"), job="j", key="sync")).result()
        job = await d.dispatch_all(many(3), job="j", latency=HOURS_30)
        await job.wait()
        assert ((await job.report()).truncated, (await d.report()).truncated) == (4, 4)
        world.sandbox.reply = echo
        await job.retry([Outcome.SUCCEEDED])
        await job.wait()
        assert (await job.report()).truncated == 0
