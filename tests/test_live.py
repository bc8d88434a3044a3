"""`track`: what is shown, where, and that waiting is what it does."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import closing
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from types import SimpleNamespace

import anyio
import attrs
import pytest
from rich.console import Console

import batchwise as bw
from batchwise.ledger.sqlite import SqliteLedger
from batchwise.live import view
from batchwise.sandbox import Sandbox
from tests.dispatchers.world import many

HOURS_30 = timedelta(hours=30)
MESSAGES = [{"role": "user", "content": "hi"}]
NOW = datetime(2026, 11, 23, 12, tzinfo=timezone.utc)
with closing(SqliteLedger(":memory:")) as ledger:
    REPORT = attrs.evolve(ledger.statistics.report(job=None), cost=Decimal("1.5"), saved=Decimal("1.4"), unpriced=3)


def batch(number: int, rescue: timedelta | None) -> bw.RunningBatch:
    return bw.RunningBatch(
        remote_id=f"msgbatch_{number}\x1b[31m",
        requests=100,
        elapsed=timedelta(minutes=90, seconds=0.7),
        expected_end=(NOW + timedelta(hours=1), NOW + timedelta(hours=22)),
        rescue_at=None if rescue is None else NOW + rescue,
        status="in_progress",
    )


def drawn(progress: bw.Progress) -> str:
    console = Console(file=io.StringIO(), width=140, color_system=None)
    console.print(view(progress, REPORT, name="nightly", now=NOW))
    return console.file.getvalue()


def test_what_is_shown(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    progress = bw.Progress(
        total=2_000,
        by_status={bw.Status.QUEUED: 0, bw.Status.IN_FLIGHT: 800, bw.Status.SETTLED: 1_200},
        by_outcome={bw.Outcome.SUCCEEDED: 1_180, bw.Outcome.FAILED: 20},
        by_lane={},
        batches=(*(batch(n, timedelta(hours=n + 2)) for n in range(9)), batch(9, None)),
        at_risk=7,
        overdue=4,
        suspended={bw.Lane.BATCH: "authentication_error"},
        last_error="polling failed 3 times",
    )
    text = drawn(progress)
    assert "1,200 of 2,000 settled (1,180 succeeded, 20 failed)" in text
    assert "800 in flight" in text
    assert "queued" not in text
    assert "$1.50 so far, $1.40 saved; 3 of unknown price" in text
    assert "(in 2 h)" in text  # the first rescue
    assert "1 h 30 min" in text
    assert "2 more" in text
    assert "7 requests may miss their deadline" in text
    assert "overdue: 4 requests not settled" in text
    assert "suspended: the batch lane: authentication_error" in text
    assert "failed last: polling failed 3 times" in text
    assert "%" not in text
    assert "\x1b" not in text


def test_one_request_is_told_as_one():
    text = drawn(bw.Progress(total=1, by_status={}, by_outcome={}, by_lane={}, at_risk=1, overdue=1))
    assert "overdue: 1 request not settled" in text
    assert "1 request may miss their deadline" in text


def test_what_is_not_there_is_not_shown():
    text = drawn(bw.Progress(total=0, by_status={}, by_outcome={}, by_lane={}))
    assert "0 of 0 settled" in text
    assert not any(word in text for word in ("rescue", "batch ", "risk", "overdue", "suspended", "failed"))


@pytest.fixture
def sandbox():
    with Sandbox(batch_latency=0.2) as sandbox:
        yield sandbox


def terminal(*, is_terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=120, color_system=None)


@pytest.mark.parametrize("is_terminal", [True, False], ids=["terminal", "log"])
@pytest.mark.parametrize("colour", ["sync", "asyncio", "trio"])
def test_tracking_waits_and_shows(sandbox, colour, is_terminal):
    console = terminal(is_terminal=is_terminal)

    async def tracked() -> bw.Progress:
        async with bw.AsyncDispatcher(sandbox.async_client(), ledger=":memory:") as d:
            job = await d.dispatch_all(many(3), job="nightly", latency=HOURS_30)
            return await bw.track(job, console=console)

    if colour == "sync":
        with bw.Dispatcher(sandbox.client(), ledger=":memory:") as d:
            progress = bw.track(d.dispatch_all(many(3), job="nightly", latency=HOURS_30), console=console)
    else:
        progress = anyio.run(tracked, backend=colour)
    assert progress.by_outcome == {bw.Outcome.SUCCEEDED: 3}
    text = console.file.getvalue()
    assert "0 of 3 settled" in text
    assert "3 of 3 settled (3 succeeded)" in text
    assert ("╭" in text) is is_terminal


@pytest.mark.parametrize("colour", ["sync", "asyncio"])
def test_of_a_job_without_a_name_no_money_is_shown(sandbox, colour):
    console = terminal(is_terminal=False)

    async def tracked() -> None:
        async with bw.AsyncDispatcher(sandbox.async_client(), ledger=":memory:") as d:
            await (await d.dispatch({"model": "claude-sonnet-5", "max_tokens": 10, "messages": MESSAGES})).result()
            await bw.track(await d.dispatch_all(many(3), latency=HOURS_30), console=console)

    def wait() -> None:
        with bw.Dispatcher(sandbox.client(), ledger=":memory:") as d:
            d.dispatch({"model": "claude-sonnet-5", "max_tokens": 10, "messages": MESSAGES}).result()
            bw.track(d.dispatch_all(many(3), latency=HOURS_30), console=console)

    wait() if colour == "sync" else anyio.run(tracked)
    text = console.file.getvalue()
    assert "3 of 3 settled" in text
    assert "$" not in text


def test_a_panel_without_a_report_shows_no_money():
    console = terminal(is_terminal=False)
    console.print(view(bw.Progress(total=0, by_status={}, by_outcome={}, by_lane={}), None, name=None, now=NOW))
    assert "money" not in console.file.getvalue()


def test_without_rich_all_names_are_there_and_track_says_what_it_needs():
    code = """
import inspect, sys
sys.modules["rich"] = None
import batchwise as bw
from batchwise import *
assert "track" in dict(inspect.getmembers(bw))
import anthropic
d = bw.Dispatcher(anthropic.Anthropic(api_key="-", base_url="http://localhost:9"), ledger=":memory:")
job = d.dispatch_all([], job="j")
try:
    track(job)
except bw.BatchwiseError as error:
    print(error)
d.close()
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (found.stdout, found.returncode) == ("track needs rich; install batchwise-claude[cli]\n", 0), found.stderr


@pytest.mark.parametrize("colour", ["sync", "asyncio"])
def test_a_timeout_is_the_job_s_own(sandbox, colour):
    sandbox.batch_latency = 3600.0
    console = terminal(is_terminal=False)

    async def tracked() -> None:
        async with bw.AsyncDispatcher(sandbox.async_client(), ledger=":memory:") as d:
            await bw.track(await d.dispatch_all(many(3), job="nightly", latency=HOURS_30), 0.1, console=console)

    def wait() -> None:
        with bw.Dispatcher(sandbox.client(), ledger=":memory:") as d:
            bw.track(d.dispatch_all(many(3), job="nightly", latency=HOURS_30), 0.1, console=console)

    with pytest.raises(bw.ResultTimeoutError, match="3 requests of job 'nightly'"):
        wait() if colour == "sync" else anyio.run(tracked)


def test_in_a_notebook_one_output_is_replaced(sandbox, monkeypatch):
    shown: list[tuple[str, object]] = []

    def display(value: object, *, display_id: bool) -> SimpleNamespace:
        assert display_id
        shown.append(("display", value))
        return SimpleNamespace(update=lambda value: shown.append(("update", value)))

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=SimpleNamespace(display=display)))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    with bw.Dispatcher(sandbox.client(), ledger=":memory:") as d:
        job = d.dispatch_all(many(3), job="nightly", latency=HOURS_30)
        bw.track(job, console=Console(force_jupyter=True))
    kinds = [kind for kind, _ in shown]
    assert kinds == ["display", *["update"] * (len(kinds) - 1)]
    assert len(kinds) > 1
    assert "3 of 3 settled" in shown[-1][1]._repr_mimebundle_([], [])["text/html"]
