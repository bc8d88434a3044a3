"""Every public name as a user would write it: checked by mypy in strict mode, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, Union

import anthropic
from anthropic.types import Message, Usage
from typing_extensions import assert_type

import batchwise as bw
from batchwise.ledger.ledger import Ledger
from batchwise.planning.forecast import Forecast

params: dict[str, Any] = {
    "model": "claude-sonnet-5",
    "max_tokens": 1_024,
    "messages": [{"role": "user", "content": "Hello"}],
}
now = datetime.now(timezone.utc)


@dataclass
class Point:
    x: int


day = timedelta(hours=30)

# -- planning --------------------------------------------------------------------------------------------------------

cadence = bw.sla_cadence(day, window=timedelta(hours=24), reserve=timedelta(hours=2), rounds=1, overhead=timedelta(0))
assert_type(cadence, bw.Cadence)
assert_type(cadence.interval, timedelta)
assert_type(cadence.sla + cadence.window + cadence.buffer + cadence.reserve + cadence.worst_case, timedelta)
assert_type(cadence.rounds, int)
assert_type(cadence.per_day, float)
assert_type(cadence.check_every, timedelta)
assert_type(cadence.cron(), str)
assert_type(cadence.submissions(now, now + day), Iterator[datetime])
assert_type(bw.worst_case_latency(timedelta(hours=4)), timedelta)
assert_type(bw.latest_submission(now + day, reserve=timedelta(hours=2)), datetime)
limits = bw.Limits.for_tier("build")
assert_type(limits, bw.Limits)
assert_type(bw.rescue_duration(1_000, limits, mean_output_tokens=500), timedelta)
assert_type(bw.largest_rescuable(timedelta(hours=2), limits), Union[int, None])
plan = bw.plan_workload(
    arrivals_per_hour=1_000,
    sla=day,
    mean_input_tokens=2_000,
    mean_output_tokens=500,
    request_bytes=8_000,
    model="claude-sonnet-5",
    limits=bw.Limits(requests_per_minute=1_000, concurrency=100, latency=timedelta(seconds=8)),
    prices={"claude-sonnet-5": bw.Rates(input=3, output="15", cache_write=3.75, cache_read=Decimal("0.3"))},
)
assert_type(plan, bw.WorkloadPlan)
table = bw.compare_slas(
    [timedelta(hours=30), timedelta(hours=72)],
    arrivals_per_hour=1,
    input_lengths={20_000: 0.5, 170_000: 0.5},
    mean_output_tokens=500,
    request_bytes=8_000,
    model="claude-sonnet-5",
)
assert_type(table, bw.PlanTable)
assert_type(table[0], bw.WorkloadPlan)
assert_type(plan.cadence, Union[bw.Cadence, None])
assert_type(plan.usd_per_month_batch, Union[Decimal, None])

policy = bw.Policy(
    window=timedelta(hours=24),
    reserve=None,
    min_reserve=timedelta(minutes=15),
    interval=None,
    flexible_interval=timedelta(hours=1),
    hedge=True,
    delay_cost_per_hour=Decimal("0.01"),
    zero_data_retention=False,
    max_attempts=3,
    max_spend=Decimal(20),
    max_spend_period=timedelta(days=1),
    late="fail",
    limits=limits,
    poll_every=(timedelta(seconds=10), timedelta(minutes=5)),
    create_grace=timedelta(minutes=15),
    cancel_settle=timedelta(minutes=10),
    exclusive_workspace=False,
    cache="prime",
    prices={"my-model": bw.Rates(input=3, output=15)},
)

request = bw.Request(
    params,
    key="src/app.py",
    latency=day,
    tool_use=bw.ToolUse.SINGLE,
    betas=["output-300k-2026-03-24"],
    stream=False,
    expected_output_tokens=400,
    output_format=Point,
    labels={"team": "search"},
)
assert_type(request.key, Union[str, None])
assert_type(request.latency, Union[bw.Latency, timedelta, datetime])
decision = bw.choose_lane(
    request,
    now=now,
    policy=policy,
    forecast=Forecast.prior(),
    prices={"claude-sonnet-5": bw.Rates(input=3, output="15", cache_write=3.75, cache_read=Decimal("0.3"))},
)
assert_type(decision, bw.Decision)
assert_type(decision.lane, bw.Lane)
assert_type(decision.reason, bw.Reason)
assert_type(decision.explanation, str)
assert_type(decision.checks, tuple[bw.Check, ...])
assert_type(decision.checks[0].verdict, str)
assert_type(decision.deadline or decision.submit_by or decision.rescue_at, Union[datetime, None])


# -- the dispatcher --------------------------------------------------------------------------------------------------


def look_at(result: bw.Result) -> None:
    assert_type(result.key, str)
    assert_type(result.job, Union[str, None])
    assert_type(result.custom_id, str)
    assert_type(result.outcome, bw.Outcome)
    assert_type(result.lane, bw.Lane)
    assert_type(result.ok, bool)
    assert_type(result.text, str)
    assert_type(result.message, Message)
    assert_type(result.unwrap(), Message)
    assert_type(result.stop_reason, Union[str, None])
    assert_type(result.truncated, bool)
    assert_type(result.parse(Point), Point)
    assert_type(result.parse(list[int]), list[int])
    assert_type(result.tool_calls, tuple[bw.ToolCall, ...])
    assert_type(result.tool_calls[0].input, Mapping[str, Any])
    assert_type(result.error, Union[bw.ResultError, None])
    if result.error is not None:
        assert_type(result.error.retryable, bool)
    assert_type(result.usage, Union[Usage, None])
    assert_type(result.cost, Union[Decimal, None])
    assert_type(result.saved, Union[Decimal, None])
    assert_type(result.attempts, int)
    assert_type(result.deadline, Union[datetime, None])
    assert_type(result.settled_at, datetime)
    assert_type(result.met_deadline, Union[bool, None])
    assert_type(result.raw, bytes)
    assert_type(result.cursor, int)


def look_over(progress: bw.Progress, report: bw.Report) -> None:
    assert_type(progress.by_status[bw.Status.SETTLED], int)
    assert_type(progress.by_outcome[bw.Outcome.EXPIRED], int)
    assert_type(progress.by_lane[bw.Lane.BATCH], int)
    assert_type(progress.batches, tuple[bw.RunningBatch, ...])
    assert_type(progress.batches[0].expected_end, tuple[datetime, datetime])
    assert_type(progress.at_risk, int)
    assert_type(progress.overdue, int)
    assert_type(progress.suspended, Mapping[bw.Lane, str])
    assert_type(progress.next_due, Union[datetime, None])
    assert_type(report.cost + report.saved + report.wasted, Decimal)
    assert_type(report.met + report.missed, int)
    assert_type(report.by_label, Mapping[tuple[str, str], Decimal])
    assert_type(report.prices, Mapping[str, date])
    assert_type((report.cache_saved, report.cache_hit_rate), tuple[Decimal, Union[float, None]])


def threads(ledger: Ledger) -> None:
    bw.Dispatcher()
    bw.Dispatcher(ledger=":memory:")
    bw.Dispatcher(ledger=Path("ledger.db"))
    with bw.Dispatcher(anthropic.Anthropic(), ledger=ledger, policy=policy) as d:
        assert_type(d, bw.Dispatcher)
        ticket = d.dispatch(params, key="a", latency=bw.Latency.FLEXIBLE, tool_use=bw.ToolUse.NONE, job="nightly")
        assert_type(ticket, bw.Ticket)
        assert_type(ticket.key, str)
        assert_type(ticket.job, Union[str, None])
        assert_type(ticket.custom_id, str)
        assert_type(ticket.decision, bw.Decision)
        assert_type(ticket.status, bw.Status)
        assert_type(ticket.refresh().status, bw.Status)
        look_at(ticket.result(timeout=timedelta(minutes=1)))
        ticket.cancel()
        d.dispatch(request)

        job = d.dispatch_all([request], job="nightly", latency=day, tool_use=bw.ToolUse.NONE)
        adopted: bw.Job = d.adopt("msgbatch_1", keys={"row-1": "src/a.py"}, job="nightly")
        adopted.progress()
        assert_type(job, bw.Job)
        assert_type(job.name, Union[str, None])
        assert_type(job.results(timeout=60), Iterator[bw.Result])
        look_over(job.progress(), job.report())
        assert_type(job.wait(timeout=timedelta(hours=1)), bw.Progress)
        job.cancel()
        job.retry(outcomes=[bw.Outcome.FAILED])

        assert_type(d.job("nightly"), bw.Job)
        assert_type(d.jobs(), list[bw.Job])
        assert_type(bw.track(d.job("nightly"), timeout=3), bw.Progress)
        assert_type(d.ticket("a", job="nightly"), bw.Ticket)
        assert_type(d.results(job="nightly", after=12), Iterator[bw.Result])
        assert_type(d.results(outcomes=[bw.Outcome.FAILED, bw.Outcome.EXPIRED]), Iterator[bw.Result])
        assert_type(len(d.job("nightly")), int)
        look_over(d.advance(), d.report())
        look_over(d.progress("nightly"), d.report("nightly"))
        d.flush()
        d.resume()
        d.cancel("a", job="nightly")
        d.purge(before=now)
        d.close()


async def tasks(ledger: Ledger) -> None:
    async with bw.AsyncDispatcher(anthropic.AsyncAnthropic(), ledger=ledger, policy=policy) as d:
        assert_type(d, bw.AsyncDispatcher)
        ticket = await d.dispatch(params, key="a", latency=now + day, job="nightly")
        assert_type(ticket, bw.AsyncTicket)
        assert_type(ticket.decision, bw.Decision)
        look_at(await ticket.result(timeout=10))
        await ticket.refresh()
        await ticket.cancel()

        job = await d.dispatch_all([request], job="nightly", latency=day)
        adopted: bw.AsyncJob = await d.adopt("msgbatch_1", keys={"row-1": "src/a.py"})
        await adopted.progress()
        assert_type(job, bw.AsyncJob)
        assert_type(job.results(), AsyncIterator[bw.Result])
        async for result in job.results(timeout=timedelta(minutes=1)):
            look_at(result)
        look_over(await job.progress(), await job.report())
        assert_type(await job.wait(), bw.Progress)
        await job.cancel()
        await job.retry(outcomes=[bw.Outcome.EXPIRED, bw.Outcome.CANCELED])

        assert_type(await d.job("nightly"), bw.AsyncJob)
        assert_type(await d.jobs(), list[bw.AsyncJob])
        assert_type(await bw.track(await d.job("nightly")), bw.Progress)
        assert_type(await d.ticket("a"), bw.AsyncTicket)
        async for result in d.results(after=0, outcomes=bw.Outcome.FAILED):
            look_at(result)
        look_over(await d.advance(), await d.report())
        look_over(await d.progress(), await d.report("nightly"))
        await d.flush()
        await d.resume()
        await d.cancel(job="nightly")
        await d.purge(before=now)


def default() -> None:
    assert_type(bw.dispatch(params, key="a", latency=day, job="nightly"), bw.Ticket)
    assert_type(bw.__version__, str)


def errors(ticket: bw.Ticket) -> None:
    try:
        ticket.result()
    except bw.RequestFailedError as error:
        assert_type(error.error_type, str)
    except bw.InfeasibleSLAError as error:
        assert_type(error.shortest, timedelta)
    except bw.NoCronExpressionError as error:
        assert_type(error.nearest, timedelta)
    except (
        bw.AdmissionError,
        bw.ClosedDispatcherError,
        bw.ForkedDispatcherError,
        bw.JobNotFoundError,
        bw.KeyConflictError,
        bw.LaneSuspendedError,
        bw.LedgerError,
        bw.LedgerNotFoundError,
        bw.RequestTooLargeError,
        bw.ResultTimeoutError,
        bw.SpendLimitError,
        bw.TicketNotFoundError,
        bw.UnknownPriceError,
        bw.WrongLoopError,
        bw.WrongWorkspaceError,
    ) as error:
        as_root: bw.BatchwiseError = error
        raise as_root from None
    timeout: TimeoutError = bw.ResultTimeoutError()
    value: ValueError = bw.InvalidRequestError()
    wrong: bw.InvalidValueError = bw.InvalidRequestError()
    raise wrong from (timeout if ticket.job else value)


# -- what has to be refused ------------------------------------------------------------------------------------------


def refused(d: bw.Dispatcher) -> None:
    bw.Policy(timedelta(hours=24))  # type: ignore[call-arg]
    bw.Policy(late="never")  # type: ignore[arg-type]
    bw.Limits.for_tier("huge")  # type: ignore[arg-type]
    bw.Dispatcher(anthropic.AsyncAnthropic())  # type: ignore[arg-type]
    bw.AsyncDispatcher(anthropic.Anthropic())  # type: ignore[arg-type]
    d.dispatch("Hello")  # type: ignore[arg-type]
    d.dispatch(params, latency=30)  # type: ignore[arg-type]
    bw.choose_lane(request)  # type: ignore[call-arg]


def the_client_of_a_dispatcher(d: bw.Dispatcher, async_d: bw.AsyncDispatcher) -> None:
    one: anthropic.Anthropic = d.client(latency=timedelta(hours=30), job="nightly", tool_use=bw.ToolUse.PATIENT)
    other: anthropic.AsyncAnthropic = async_d.client()
    with bw.tags(key="a", job="nightly", latency=bw.Latency.FLEXIBLE, tool_use=bw.ToolUse.SINGLE):
        print(one, other)
