"""The fault matrix: every fault of the sandbox, once and for ever, against a real dispatcher over real sockets.

It runs against `Dispatcher`, and against `AsyncDispatcher` on asyncio and on trio, and on a ledger in Postgres.

Once: everything settles right, nothing is lost, nothing is bought twice but in the cases that EXCEPTIONS names, which
the books admit. For ever: it ends in an answer, a failed request with its reason, or a suspended lane that whoever
waits hears of, in a bounded number of calls.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest

import batchwise as bw
from batchwise.api.faults import retry_options
from batchwise.engine import collection
from batchwise.sandbox import KNOWN_FAULTS, Sandbox
from tests.dispatchers.world import Async, Colour, Sync, listed
from tests.reliability.conftest import Store
from tests.reliability.crossing import MILLISECOND, POLICY
from tests.strategies import params

BATCH, SYNC = "batch", "sync"
ROWS = 6
CALLS = 2
JOB = "matrix"
PATIENCE = 40.0
MOST_REQUESTS = 400
"""Calls to the sandbox that a run may make at most; a spin makes thousands."""

EXCEPTIONS: dict[str, str] = {
    "create.accepted_late": "the batch appears only after the grace: it was sent again, and is cancelled when seen",
    "messages.drop_after_billing": "the answer was lost on its way: the API keeps no record to find it by",
    "results.missing_row": "a row stays missing from the results although they were read four times",
    "results.garbage_line": "the same, garbage standing in the row's place",
    "results.early_end": "the same, the stream ending cleanly and early",
    "results.cut_line": "the same, the stream ending cleanly inside a line",
    "results.stale_row": "a row is said to have expired, in four readings, that was counted as answered",
    "cancel.error_500": "a rescue's cancel is refused until the last safe moment: the batch runs on",
    "cancel.hang": "a rescue's cancel hangs until the last safe moment: what it finished comes too late",
}
"""Faults by which a request can be bought twice, if they last. The books say so in every case.

docs/explanation/reliability.md lists the same.
"""

# what else is ordered so that the fault is really met: parameters, a slower batch, a rescue
ONCE: dict[str, dict[str, Any]] = {
    "create.accepted_late": {"delay": 0.3},
    "create.slow": {"delay": 0.3},
    "retrieve.not_found_404": {"younger_than": 5.0},
    "list.lag": {"delay": 0.5},
    "results.missing_row": {"every": 3},
    "results.unknown_type": {"every": 6},
    "results.garbage_line": {"replace": True},
    "messages.slow": {"delay": 0.2},
    "messages.rate_limited_429": {"retry_after": 0},
    "batch.row_error": {"probability": 0.5},
    "batch.row_expired": {"probability": 0.5},
    "cancel.hang": {"delay": 0.3},
}
SUSPENDED_ONCE = {
    "create.unauthorized_401",
    "create.billing_402",
    "messages.unauthorized_401",
    "messages.billing_402",
    "messages.spend_cap",
    "batch.all_rows_error",
}
FAILED_ONCE = {"results.unknown_type": {"unknown_result_type"}}


def rescued(policy: bw.Policy) -> tuple[bw.Policy, timedelta]:
    """A policy and an SLA by which a batch that outlasts its window is cancelled and rescued after four seconds.

    By the latency of calls the last safe moment is a second before the deadline: a busy machine may stand still.
    """
    limits = bw.Limits(latency=300 * MILLISECOND, concurrency=8)
    return (
        attrs.evolve(policy, window=1_000 * MILLISECOND, min_reserve=0 * MILLISECOND, limits=limits),
        timedelta(seconds=5),
    )


class Run:
    """One run of a small job and some sync calls against a sandbox."""

    def __init__(self, ledger: Path | str, fault: str, colour: Colour | None = None, **settings: Any) -> None:
        self.colour = colour or Sync()
        self.rescue = fault.startswith("cancel.")
        self.sandbox = Sandbox(**{"batch_latency": 60.0 if self.rescue else 0.15, "sync_latency": 0.01, **settings})
        self.ledger = ledger
        self.policy, self.sla = rescued(POLICY) if self.rescue else (POLICY, None)
        # A hang that lasts must not hold the test; on a busy machine any other answer may take more than a second.
        self.timeout = 1.0 if fault == "create.hang" else 10.0
        self.results: dict[str, bw.Result] = {}
        self.suspended: list[bw.LaneSuspendedError] = []

    @asynccontextmanager
    async def dispatcher(self) -> AsyncIterator[Any]:
        client = self.colour.client(self.sandbox, timeout=self.timeout)
        dispatcher = self.colour.dispatcher(getattr(client, "_inner", client), self.ledger, self.policy)
        await dispatcher.__aenter__()
        try:
            yield dispatcher
        finally:
            # leave at once, what is queued stays queued
            await dispatcher.__aexit__(KeyboardInterrupt, None, None)
            await client.close()

    def go(self, *, resume: bool = False) -> None:
        """Dispatch, and wait for everything; a suspended lane is resumed, or noted."""
        self.colour.run(partial(self._go, resume))

    async def _go(self, resume: bool) -> None:
        async with self.dispatcher() as dispatcher:
            requests = (bw.Request(params(f"row {n}"), key=f"row {n}") for n in range(ROWS))
            job = await dispatcher.dispatch_all(requests, job=JOB, latency=self.sla or bw.Latency.FLEXIBLE)
            tickets = [await dispatcher.dispatch(params(f"call {n}"), key=f"call {n}") for n in range(CALLS)]
            end = time.monotonic() + PATIENCE
            left: list[Any] = [job, *tickets]
            while left:
                try:
                    if left[0] is job:
                        results = await listed(job.results(timeout=end - time.monotonic()))
                        self.results |= {result.key: result for result in results}
                    else:
                        result = await left[0].result(timeout=end - time.monotonic())
                        self.results[result.key] = result
                    left.pop(0)
                except bw.LaneSuspendedError as error:
                    self.suspended.append(error)
                    if not resume or len(self.suspended) > 5:
                        left.pop(0)
                    else:
                        await dispatcher.resume()
            self.report = await dispatcher.report()

    @property
    def excess(self) -> int:
        return sum(times - 1 for times in self.sandbox.books.bought_twice().values())

    @property
    def requests(self) -> int:
        return self.sandbox.books.requests_by_path.total()

    def check_books(self, fault: str) -> None:
        """Nothing twice but what EXCEPTIONS names and the report admits; nobody got somebody else's answer."""
        twice = self.sandbox.books.bought_twice()
        if fault not in EXCEPTIONS:
            assert twice == {}, (fault, twice)
        assert self.excess <= self.report.possible_doubles, (fault, twice, self.report)
        for key, result in self.results.items():
            assert not result.ok or result.text == key or key in result.text, (key, result)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes minutes by default, so that a persistent fault shows its end within seconds."""
    monkeypatch.setattr(collection, "_YOUNG", timedelta(seconds=1))
    monkeypatch.setattr("batchwise.planning.pacing._LONGEST_BACKOFF", 0.1)
    monkeypatch.setattr("batchwise.api.batches.retry_options", _few_retries)
    monkeypatch.setattr("batchwise.planning.retries._FREE_REFUSALS", 3)


def _few_retries() -> dict[str, Any]:
    import tenacity

    from batchwise.api.faults import is_transient

    return {
        "retry": tenacity.retry_if_exception(is_transient),
        "stop": tenacity.stop_after_attempt(2),
        "wait": tenacity.wait_fixed(0.01),
        "reraise": True,
    }


_ALL = [Sync(), Async("asyncio"), Async("trio")]
COLOURS = pytest.mark.parametrize("colour", _ALL, ids=lambda colour: colour.name)
OFTEN_IN_POSTGRES = {"create.drop_after", "messages.drop_after_billing"}
"""Faults that each run of the tests has on Postgres, too; the soak has all."""
MATRIX = [
    *(
        pytest.param(fault, each, "sqlite", id=f"{fault}-{each.name}")
        for fault in sorted(KNOWN_FAULTS)
        for each in _ALL
    ),
    *(
        pytest.param(
            fault,
            _ALL[0],
            "postgres",
            id=f"{fault}-postgres",
            marks=[] if fault in OFTEN_IN_POSTGRES else [pytest.mark.soak],
        )
        for fault in sorted(KNOWN_FAULTS)
    ),
]


@pytest.mark.parametrize(("fault", "colour", "store"), MATRIX, indirect=["store"])
def test_once(fault: str, colour: Colour, store: Store) -> None:
    run = Run(store.ledger(), fault, colour)
    with run.sandbox as sandbox:
        order = sandbox.fault(fault, **ONCE.get(fault, {}))
        run.go(resume=True)
        assert order.fired >= 1, "the fault was never met"
        run.check_books(fault)
        assert run.results.keys() == {f"row {n}" for n in range(ROWS)} | {f"call {n}" for n in range(CALLS)}, "lost"
        failed = {result.error.type for result in run.results.values() if result.error is not None}
        assert failed == FAILED_ONCE.get(fault, set())
        assert bool(run.suspended) == (fault in SUSPENDED_ONCE), run.suspended
        assert run.requests < MOST_REQUESTS


LASTING: dict[str, dict[str, Any]] = {
    "retrieve.not_found_404": {"younger_than": None},
    "create.accepted_late": {"delay": 30.0},
    "cancel.hang": {"delay": 5.0},
    "batch.row_error": {"probability": 1.0},
    "batch.row_expired": {"probability": 1.0},
    "messages.rate_limited_429": {"retry_after": None},
}
# How a fault that never goes away ends for the job: answered, failed with these error types, or suspended.
ANSWERED, SUSPENDED = "answered", "suspended"
FOR_EVER: dict[str, str | set[str]] = {
    "create.drop_before": SUSPENDED,
    "create.drop_after": ANSWERED,
    "create.accepted_late": SUSPENDED,
    "create.slow": ANSWERED,
    "create.hang": ANSWERED,
    "create.error_500_before": SUSPENDED,
    "create.error_500_after": ANSWERED,
    "create.overloaded_529": SUSPENDED,
    "create.rate_limited_429": SUSPENDED,
    "create.too_large_413": {"request_too_large"},
    "create.invalid_400": {"invalid_request_error"},
    "create.unauthorized_401": SUSPENDED,
    "create.billing_402": SUSPENDED,
    "retrieve.not_found_404": ANSWERED,
    "retrieve.miscount": ANSWERED,
    "retrieve.error_500": SUSPENDED,
    "retrieve.stale": SUSPENDED,
    "list.error_500": SUSPENDED,
    "list.lag": ANSWERED,
    "results.drop": SUSPENDED,
    "results.cut_line": {"missing_row"},
    "results.garbage_line": {"missing_row"},
    "results.blank_line": ANSWERED,
    "results.crlf": ANSWERED,
    "results.early_end": {"missing_row"},
    "results.duplicate_row": ANSWERED,
    "results.foreign_row": ANSWERED,
    "results.missing_row": {"missing_row"},
    "results.unknown_type": {"unknown_result_type"},
    "results.stale_row": {"expired"},
    "results.gone": SUSPENDED,
    "results.error_500": SUSPENDED,
    "cancel.hang": ANSWERED,
    "cancel.no_effect": ANSWERED,
    "cancel.error_500": ANSWERED,
    "messages.drop_before": ANSWERED,
    "messages.drop_after_billing": ANSWERED,
    "messages.overloaded_529": ANSWERED,
    "messages.rate_limited_429": ANSWERED,
    "messages.spend_cap": ANSWERED,
    "messages.error_500": ANSWERED,
    "messages.slow": ANSWERED,
    "messages.unauthorized_401": ANSWERED,
    "messages.billing_402": ANSWERED,
    "batch.all_rows_error": SUSPENDED,
    "batch.row_error": {"api_error"},
    "batch.row_expired": {"expired"},
}
# The same for the calls on the sync lane, where it is not "answered".
CALLS_FOR_EVER: dict[str, str | set[str]] = {
    "messages.drop_before": {"connection_error"},
    "messages.drop_after_billing": {"connection_error"},
    "messages.overloaded_529": {"overloaded_error"},
    "messages.rate_limited_429": {"rate_limit_error"},
    "messages.spend_cap": SUSPENDED,
    "messages.error_500": {"api_error"},
    "messages.unauthorized_401": SUSPENDED,
    "messages.billing_402": SUSPENDED,
}


def ending(run: Run, prefix: str, lane: str) -> str | set[str]:
    """How the requests of this prefix ended."""
    found = [result for key, result in run.results.items() if key.startswith(prefix)]
    if any(f"the {lane} lane is suspended" in str(error) for error in run.suspended):
        return SUSPENDED
    assert len(found) == (ROWS if prefix == "row" else CALLS), "a silent wait"
    return {result.error.type for result in found if result.error is not None} or ANSWERED


@pytest.mark.parametrize(("fault", "colour", "store"), MATRIX, indirect=["store"])
def test_for_ever(fault: str, colour: Colour, store: Store) -> None:
    settings: dict[str, Any] = {"window": 1.0} if fault == "retrieve.stale" else {}
    run = Run(store.ledger(), fault, colour, **settings)
    if fault in {"retrieve.stale", "create.rate_limited_429"}:
        run.policy = attrs.evolve(run.policy, window=timedelta(seconds=1))
    with run.sandbox as sandbox:
        order = sandbox.fault(fault, times=None, **{**ONCE.get(fault, {}), **LASTING.get(fault, {})})
        started = time.monotonic()
        run.go()
        took = time.monotonic() - started
        assert order.fired >= 1, "the fault was never met"
        assert took < PATIENCE, "a silent wait"
        run.check_books(fault)
        assert run.report.possible_doubles or fault not in EXCEPTIONS, "the books do not admit it"
        assert ending(run, "row", BATCH) == FOR_EVER[fault]
        assert ending(run, "call", SYNC) == CALLS_FOR_EVER.get(fault, ANSWERED)
        assert run.requests < MOST_REQUESTS, run.sandbox.books.requests_by_path
        for error in run.suspended:
            assert "resume()" in str(error), "it does not say what to do"
        # Nothing is lost by it: once it is fixed, the rest goes on. What failed has its reason and stays.
        sandbox.clear_faults()
        run.suspended.clear()
        done = dict(run.results)
        run.go(resume=True)
        assert len(run.results) == ROWS + CALLS
        assert all(run.results[key].outcome is done[key].outcome for key in done)
        assert all(result.ok for key, result in run.results.items() if key not in done)
        run.check_books(fault)


def test_every_fault_of_the_sandbox_is_in_the_matrix() -> None:
    assert FOR_EVER.keys() == KNOWN_FAULTS.keys()
    assert EXCEPTIONS.keys() <= KNOWN_FAULTS.keys()
    assert CALLS_FOR_EVER.keys() | ONCE.keys() | SUSPENDED_ONCE | FAILED_ONCE.keys() <= KNOWN_FAULTS.keys()


def test_the_documentation_lists_the_same_exceptions() -> None:
    text = Path("docs/explanation/reliability.md").read_text(encoding="utf-8")
    named = {name for name in KNOWN_FAULTS if f"`{name}`" in text}
    assert named == set(EXCEPTIONS)


# -- more than one thing at once --------------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [-30.0, -0.1, 0.1, 30.0])
def test_skewed_clocks(hours: float, tmp_path: Path) -> None:
    run = Run(tmp_path / "ledger.db", "", clock_skew=hours * 3600)
    with run.sandbox as sandbox:
        sandbox.fault("create.drop_after")
        run.go()
        run.check_books("")
        assert all(result.ok for result in run.results.values())
        assert run.report.possible_doubles == 0


@pytest.mark.parametrize("fault", ["create.drop_after", "create.drop_before"])
@pytest.mark.parametrize("ended", [True, False])
def test_other_tools_batches_of_equal_counts(fault: str, ended: bool, tmp_path: Path) -> None:
    run = Run(tmp_path / "ledger.db", "")
    with run.sandbox as sandbox:
        foreign = []

        def meddle() -> None:  # after the watermark was taken
            while sandbox.books.requests_by_path["POST /v1/messages/batches"] == 0:
                time.sleep(0.001)
            foreign.extend(sandbox.add_foreign_batch(ROWS, ended=ended, created_ago=0.0, ends_in=2.0) for _ in range(3))

        sandbox.fault(fault)
        thread = threading.Thread(target=meddle)
        thread.start()
        run.go()
        thread.join()
        run.check_books("")
        assert all(result.ok for result in run.results.values()), run.results
        assert sandbox.books.requests_by_path["POST /v1/messages/batches/{id}/cancel"] == 0
        assert len(foreign) == 3


def test_the_server_restarts_while_everything_runs(tmp_path: Path) -> None:
    run = Run(tmp_path / "ledger.db", "", batch_latency=0.5)
    # On a busy machine the calls may begin just when it is away: then they are refused at once, again and again.
    run.policy = attrs.evolve(POLICY, max_attempts=50)
    with run.sandbox as sandbox:
        threading.Timer(0.15, sandbox.restart, (0.3,)).start()
        run.go(resume=True)
        assert all(result.ok for result in run.results.values())
        assert run.excess <= run.report.possible_doubles
        assert all(prompt.startswith("call") for prompt in sandbox.books.bought_twice())


@COLOURS
def test_rows_leave_a_batch_in_time_while_its_cancel_is_still_being_tried(
    colour: Colour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchwise.api.batches.retry_options", retry_options)  # for over three seconds
    run = Run(tmp_path / "ledger.db", "cancel.error_500", colour)
    with run.sandbox as sandbox:
        sandbox.fault("cancel.error_500", times=None)
        run.go()
        assert len(run.results) == ROWS + CALLS
        assert all(result.ok and result.met_deadline is not False for result in run.results.values())


@COLOURS
def test_a_batch_that_turns_up_after_the_grace_is_cancelled_and_what_it_did_is_booked(
    colour: Colour, tmp_path: Path
) -> None:
    run = Run(tmp_path / "ledger.db", "", colour, batch_latency=20.0)
    run.policy = attrs.evolve(POLICY, create_grace=300 * MILLISECOND, exclusive_workspace=True)
    with run.sandbox as sandbox:
        sandbox.fault("create.accepted_late", delay=3.0)

        async def go() -> None:
            async with run.dispatcher() as dispatcher:
                requests = [bw.Request(params(f"row {n}"), key=f"row {n}") for n in range(ROWS)]
                job = await dispatcher.dispatch_all(requests, job=JOB, latency=bw.Latency.FLEXIBLE)
                end = time.monotonic() + PATIENCE
                while sandbox.books.requests_by_path["POST /v1/messages/batches/{id}/cancel"] == 0:
                    assert time.monotonic() < end, "the first batch was never cancelled"
                    await colour.sleep(0.02)
                for batch in sandbox.books.batches:
                    sandbox.finish(batch.id)
                assert all([result.ok async for result in job.results(timeout=PATIENCE)])
                run.report = await dispatcher.report()

        colour.run(go)
        assert run.report.possible_doubles == ROWS
        assert sum(times - 1 for times in sandbox.books.bought_twice().values()) <= ROWS
        by_size = Counter(len(batch.rows) for batch in sandbox.books.batches)
        assert by_size[ROWS] == 1, "sent again with a count that does not tell"
