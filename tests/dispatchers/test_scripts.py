"""`batchwise.dispatch` in a script and the command line: real processes, so the synchronous dispatcher alone."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta

import pytest

from batchwise import Latency, Policy
from batchwise.__main__ import main
from tests.strategies import params

from .world import PATIENCE, Sync, World, many

pytestmark = pytest.mark.parametrize("colour", [Sync()], ids=["sync"])


@pytest.fixture
def command(world: World, monkeypatch, capsys):
    """Runs the command line in this process; gives exit code, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", world.sandbox.base_url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sandbox")
        code = main([*arguments, "--ledger", str(world.path)])
        out, errors = capsys.readouterr()
        return code, out, errors

    return run


async def test_a_script_without_a_with_block_is_flushed_at_exit(world: World):
    world.sandbox.batch_latency = 60
    script = """
        print(bw.dispatch(params("now")).result().text)
        bw.dispatch(params("later"), key="later", latency=timedelta(hours=30))
        bw.dispatch(params("whenever"), key="whenever", latency=bw.Latency.FLEXIBLE, job="j")
        bw.dispatch(params("unread"), key="unread")
    """
    assert world.ran(script) == "echo: now\n"
    assert sorted(row["params"]["messages"][0]["content"] for b in world.books.batches for row in b.rows) == [
        "later",
        "whenever",
    ]
    assert world.books.bought("unread") == 1
    async with world.open() as d:
        assert (await (await d.ticket("unread")).result(timeout=PATIENCE)).text == "echo: unread"
        for batch in world.books.batches:
            world.sandbox.finish(batch.id)
        assert (await (await d.ticket("later")).result()).text == "echo: later"
        assert (await (await d.ticket("whenever", job="j")).result()).text == "echo: whenever"


async def test_a_script_that_fails_still_leaves_a_whole_ledger(world: World):
    with world.script("""
        bw.dispatch(params("later"), key="later", latency=timedelta(hours=30))
        raise SystemExit(3)
    """) as process:
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 3
    async with world.open() as d:
        assert (await (await d.ticket("later")).result()).text == "echo: later"
    assert world.books.bought("later") == 1


async def test_cron(world: World, command):
    world.sandbox.batch_latency = 60
    async with world.open() as d:
        await d.dispatch_all(many(3), job="nightly", latency=Latency.FLEXIBLE)
    before = dict(world.paths)
    code, seen, _ = command("progress")
    assert (code, dict(world.paths)) == (0, before)  # it sends nothing
    assert "3 requests: 3 in_flight" in seen
    assert world.books.batches[0].id in seen
    assert "next due" in seen
    world.sandbox.finish(world.books.batches[0].id)
    await world.colour.sleep(Policy().poll_every[0] / timedelta(seconds=1))  # a batch sent just now is not looked at
    process = subprocess.run(  # noqa: ASYNC221  # there is no event loop
        [sys.executable, "-m", "batchwise", "advance", "--ledger", str(world.path)],
        env={**os.environ, "ANTHROPIC_BASE_URL": world.sandbox.base_url, "ANTHROPIC_API_KEY": "sandbox"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert "3 requests: 3 settled" in process.stdout
    assert "3 succeeded" in command("progress", "--job", "nightly")[1]


async def test_a_command_that_fails_says_why(world: World, command):
    async with world.open():
        pass
    code, out, errors = command("progress", "--job", "nobody")
    assert (code, out) == (5, "")
    assert "'nobody'" in errors
    assert str(world.path) in errors


async def test_advance_from_cron_works_off_everything(world: World, command):
    with pytest.raises(OSError, match="mine"):  # noqa: PT012  # the block is what is tested
        async with world.open() as d:
            await d.dispatch(params("flexible"), key="f", latency=Latency.FLEXIBLE)
            await d.flush()
            raise OSError("mine")
    ticks = 0
    while "1 settled" not in command("advance")[1]:
        ticks += 1
        assert ticks < 50
        await world.colour.sleep(0.02)
    async with world.open() as d:
        assert (await (await d.ticket("f")).result(timeout=0)).text == "echo: flexible"
    assert world.creates == 1
