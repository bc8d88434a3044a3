"""A database that is busy or full for a while, and errors inside batchwise: all is tried again, and nothing ends."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from batchwise import Lane, LedgerError, Outcome, Request, ResultTimeoutError, Status, WrongWorkspaceError
from batchwise.drivers import ending, retrying
from batchwise.engine import calls
from batchwise.ledger import sqlite_file
from batchwise.ledger.sqlite import SqliteLedger
from batchwise.ledger.values import Settlement
from batchwise.planning.state import BatchState, BatchView
from batchwise.sandbox import Reply, echo
from tests.strategies import params

from .world import HOURS_30, PATIENCE, World, listed, many

LARGE = "x" * 300_000
"""What the answer repeats: it needs pages that the file does not have yet."""

Trouble = Callable[[SqliteLedger], AbstractContextManager[None]]


@contextmanager
def busy(ledger: SqliteLedger) -> Iterator[None]:
    """Another process writes for long."""
    other = sqlite3.connect(ledger.name, isolation_level=None, check_same_thread=False)
    other.execute("PRAGMA busy_timeout = 5000")
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


@contextmanager
def full(ledger: SqliteLedger) -> Iterator[None]:
    """The file cannot grow."""
    with ledger.database.lock:
        ledger.database.connection.execute("PRAGMA max_page_count = 1")  # SQLite takes what there is for the least
    try:
        yield
    finally:
        with ledger.database.lock, suppress(sqlite3.ProgrammingError):  # a closed connection takes its limit along
            ledger.database.connection.execute("PRAGMA max_page_count = 4294967294")


@pytest.fixture(params=[busy, full])
def trouble(request: pytest.FixtureRequest) -> Trouble:
    return request.param


@pytest.fixture
def ledger(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqliteLedger]:
    monkeypatch.setattr(sqlite_file, "BUSY_SECONDS", 0.05)
    made = SqliteLedger(world.path)
    yield made
    made.close()


@pytest.fixture
def answer(world: World) -> threading.Event:
    """No call is answered before this is set: what has to be in the way of the answer is in time on any machine."""
    let_go = threading.Event()

    def reply(body: dict[str, Any]) -> Reply:
        assert let_go.wait(PATIENCE)
        return echo(body)

    world.sandbox.reply = reply
    return let_go


async def last_error(d: Any) -> str | None:
    return (await d.progress()).last_error


async def test_an_answer_that_cannot_be_stored_for_a_while_is_stored_later(
    world: World, ledger: SqliteLedger, trouble: Trouble, answer: threading.Event
):
    async with world.open(ledger=ledger) as d:
        ticket = await d.dispatch(params(LARGE), key="large")
        await world.until(lambda: world.calls)
        with trouble(ledger):
            answer.set()
            error = await world.until(lambda: storing_error(d))
            assert "Next try: 20" in error
            assert "xxx" not in error
            with pytest.raises(ResultTimeoutError, match=r"request 'large' was not settled .*What failed last: "):
                await ticket.result(timeout=0.1)
            assert world.calls == 1
        assert (await ticket.result()).text == f"echo: {LARGE}"
        assert (world.calls, (await d.report()).possible_doubles) == (1, 0)
        await world.until(lambda: no_error(d))


async def storing_error(d: Any) -> str | None:
    error = await last_error(d)
    return error if error and error.startswith("storing the outcome of a call failed ") else None


async def no_error(d: Any) -> bool:
    return await last_error(d) is None


async def test_a_batch_that_ends_while_the_ledger_cannot_be_written_is_collected_later(
    world: World, ledger: SqliteLedger, trouble: Trouble
):
    world.sandbox.batch_latency = 60
    async with world.open(ledger=ledger) as d:
        job = await d.dispatch_all([Request(params(LARGE + str(i))) for i in range(3)], latency=HOURS_30)
        await world.until(lambda: running(d))
        await world.until(lambda: not d._driver._actions.under_way)  # else it may be the sending that fails
        with trouble(ledger):
            world.sandbox.finish(world.books.batches[0].id)
            await world.until(lambda: last_error(d))
            with pytest.raises(ResultTimeoutError, match="What failed last"):
                await job.wait(timeout=0.1)
        assert (await job.wait()).by_outcome == {Outcome.SUCCEEDED: 3}
        report = await d.report()
        assert (world.creates, report.attempts, report.possible_doubles) == (1, 3, 0)
        await world.until(lambda: no_error(d))


async def running(d: Any) -> bool:
    batches = (await d.progress()).batches
    return bool(batches) and batches[0].remote_id is not None


async def test_what_is_waited_for_is_sent_when_a_busy_ledger_is_free_again(world: World, ledger: SqliteLedger):
    async with world.open(ledger=ledger) as d:
        ticket = await d.dispatch(params("a"), key="a", latency=HOURS_30)
        with busy(ledger):
            with pytest.raises(ResultTimeoutError, match="What failed last: a pass failed"):
                await ticket.result(timeout=1)
            with pytest.raises(LedgerError, match="another process") as caught:
                await d.dispatch(params("b"), key="b")
            assert caught.value.passing
            with pytest.raises(LedgerError, match="another process"):
                await d.flush()
        assert (await ticket.result()).text == "echo: a"
        assert (await (await d.dispatch(params("b"), key="b")).result()).text == "echo: b"
        assert (world.creates, world.calls) == (1, 1)


async def test_the_end_waits_until_an_answer_can_be_stored(
    world: World, ledger: SqliteLedger, trouble: Trouble, answer: threading.Event
):
    with ExitStack() as lasting:
        async with world.open(ledger=ledger) as d:
            await d.dispatch(params(LARGE), key="large")
            await world.until(lambda: world.calls)
            lasting.enter_context(trouble(ledger))
            answer.set()
            await world.until(lambda: storing_error(d))
            threading.Timer(0.7, lasting.close).start()
    assert ledger.statistics.counts(job=None) == {(Lane.SYNC, Status.SETTLED, Outcome.SUCCEEDED): 1}
    assert world.calls == 1


async def test_an_end_in_the_midst_of_trouble_comes_and_says_so(
    world: World,
    ledger: SqliteLedger,
    trouble: Trouble,
    answer: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
):
    for module in (ending, retrying):
        monkeypatch.setattr(module, "END_GRACE", 0.5)
    d = world.open(ledger=ledger)
    await d.__aenter__()
    await d.dispatch(params(LARGE), key="large", latency=timedelta(hours=2))
    await world.until(lambda: world.calls)
    with trouble(ledger):
        answer.set()
        await world.until(lambda: storing_error(d))
        begun = time.monotonic()
        with pytest.raises(LedgerError):
            await d.__aexit__(None, None, None)
        assert time.monotonic() - begun < 10
        ledger.close()  # or a thread that lives on stores the answer as soon as it can
    async with world.open() as again:
        result = await (await again.ticket("large")).result()
        assert (result.text, result.attempts) == (f"echo: {LARGE}", 2)
        assert (world.calls, (await again.report()).possible_doubles) == (2, 1)


async def test_a_bulk_that_could_not_be_taken_back_holds_up_no_later_one(
    world: World, ledger: SqliteLedger, trouble: Trouble
):
    with ExitStack() as lasting:

        def broken() -> Iterator[Request]:
            yield Request(params("never"))
            lasting.enter_context(trouble(ledger))
            raise ValueError("the caller's own")

        async with world.open(ledger=ledger) as d:
            with pytest.raises((ValueError, LedgerError)):
                await d.dispatch_all(broken(), job="j", latency=HOURS_30)
            lasting.close()
            job = await d.dispatch_all(many(2), job="j", latency=HOURS_30)
            assert [result.ok for result in await listed(job.results(timeout=PATIENCE))] == [True, True]


async def test_a_hook_that_raises_harms_nothing(world: World):
    def fail(_requests: object) -> None:
        raise RuntimeError("hook")

    async with world.open() as d:
        d._engine.announcing.listen(fail)
        for key in ("a", "b"):
            assert (await (await d.dispatch(params(key), key=key)).result(timeout=PATIENCE)).text == f"echo: {key}"
        job = await d.dispatch_all([Request(params("c"), latency=HOURS_30)])
        assert [result.text for result in await listed(job.results(timeout=PATIENCE))] == ["echo: c"]
        assert world.calls == 2


async def test_a_fault_within_a_call_has_its_recorded_end(world: World, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise RuntimeError("secret")

    async with world.open() as d:
        with monkeypatch.context() as broken:
            broken.setattr(calls, "received", fail)
            result = await (await d.dispatch(params("a"), key="a")).result(timeout=PATIENCE)
        assert (result.outcome, result.error.type, result.attempts) == (Outcome.FAILED, "internal_error", 1)
        assert "secret" not in str(result.error)
        assert (world.calls, (await d.report()).unpriced) == (1, 1)
        assert (await (await d.dispatch(params("b"), key="b")).result()).text == "echo: b"


async def test_an_answer_that_the_pacing_cannot_learn_from_is_kept(world: World, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("odd headers")

    async with world.open() as d:
        with monkeypatch.context() as broken:
            broken.setattr(d._engine.queue, "done", fail)
            for key in ("a", "b"):
                assert (await (await d.dispatch(params(key), key=key)).result(timeout=PATIENCE)).text == f"echo: {key}"
        assert (world.calls, d._engine.queue.busy) == (2, 0)


async def test_an_answer_that_cannot_be_stored_is_not_bought_again(world: World):
    class Odd(SqliteLedger):
        def begin_settle(self, settlement: Settlement, **rest: Any) -> Callable[[], None]:
            if settlement.outcome is Outcome.SUCCEEDED:
                raise KeyError("secret")
            return super().begin_settle(settlement, **rest)

    ledger = Odd(world.path)
    async with world.open(ledger=ledger) as d:
        result = await (await d.dispatch(params("a"), key="a")).result(timeout=PATIENCE)
        assert (result.outcome, result.error.type, result.attempts) == (Outcome.FAILED, "internal_error", 1)
        assert world.calls == 1
    ledger.close()


async def test_a_fault_within_an_action_is_tried_again(world: World):
    def odd(batch: BatchView, *, was: BatchView) -> bool:
        if faults and batch.state is BatchState.ENDED:
            raise faults.pop()
        return update(batch, was=was)

    ledger, faults = SqliteLedger(world.path), [KeyError("secret"), KeyError("secret")]
    update, ledger.batches.update = ledger.batches.update, odd  # type: ignore[method-assign]
    async with world.open(ledger=ledger) as d:
        job = await d.dispatch_all([Request(params("a"), latency=HOURS_30)])
        error = await world.until(lambda: last_error(d))
        assert error.startswith("asking about a batch failed ")
        assert "KeyError within batchwise" in error
        assert "secret" not in error
        assert [result.text for result in await listed(job.results(timeout=PATIENCE))] == ["echo: a"]
        assert (world.creates, faults) == (1, [])
        await world.until(lambda: no_error(d))
    ledger.close()


async def test_the_key_of_another_workspace_ends_a_dispatcher_but_not_looking(world: World):
    world.sandbox.api_keys = {"mine": "wrkspc_mine", "theirs": "wrkspc_theirs"}
    async with world.open(client=world.client(api_key="mine")) as d:
        await (await d.dispatch(params("a"), key="a")).result()
    async with world.open(client=world.client(api_key="theirs")) as d:
        ticket = await d.dispatch(params("b"), key="b")
        with pytest.raises(WrongWorkspaceError):
            await ticket.result(timeout=PATIENCE)
        await raises_wrong_workspace(d.flush)
        await raises_wrong_workspace(d.advance)
        await raises_wrong_workspace(lambda: d.dispatch(params("c"), key="c"))
        assert (await d.progress()).total == 2
    assert world.calls == 1


async def raises_wrong_workspace(work: Callable[[], Any]) -> None:
    with pytest.raises(WrongWorkspaceError):
        await work()


@pytest.mark.parametrize(("latency", "what"), [(None, "calling the sync lane"), (HOURS_30, "sending a batch")])
async def test_whoever_waits_while_the_api_is_down_is_told_what_fails_how_often_and_when_it_is_tried_next(
    world: World, caplog: pytest.LogCaptureFixture, latency: timedelta | None, what: str
):
    async with world.open(max_attempts=1_000) as d:
        await (await d.dispatch(params("the workspace is known"))).result()
        for fault in ("messages.overloaded_529", "create.rate_limited_429"):
            world.sandbox.fault(fault, times=None)
        ticket = await d.dispatch(params("a secret"), key="a", latency=latency)
        await world.until(lambda: repeated(d, ticket))
        with pytest.raises(ResultTimeoutError, match=f"{what} failed .*Next try: ") as caught:
            await ticket.result(timeout=0.05)
        assert "the API answered " in str(caught.value)
        world.sandbox.clear_faults()
        await d.resume()
        assert (await ticket.result()).ok
        await world.until(lambda: no_error(d))
    assert f"{what} failed 2 times in a row" in caplog.text
    assert "secret" not in caplog.text


async def repeated(d: Any, ticket: Any) -> bool:
    with pytest.raises(ResultTimeoutError):
        await ticket.result(timeout=0.1)
    return "times in a row" in (await last_error(d) or "")


async def test_when_advance_was_last_called_is_told(world: World):
    async with world.open() as d:
        assert (await d.progress()).last_advance is None
        before = datetime.now(timezone.utc)
        progress = await d.advance()
        assert before <= progress.last_advance <= datetime.now(timezone.utc)


async def test_whoever_waits_on_a_ledger_that_was_deleted_is_told(world: World):
    world.sandbox.sync_latency = 0.5
    d = world.open()
    await d.__aenter__()
    ticket = await d.dispatch(params("a"), key="a", latency=timedelta(hours=2))
    world.path.unlink()
    with pytest.raises(LedgerError, match="deleted") as caught:
        await ticket.result(timeout=PATIENCE)
    assert not caught.value.passing
    with pytest.raises(LedgerError, match="deleted"):
        await d.flush()
    with pytest.raises(LedgerError, match="deleted"):
        await d.__aexit__(None, None, None)
    assert world.calls <= 1
