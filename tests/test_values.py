"""Values across processes, and at the ends of what callers may give: every public name pickles or says why not."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import batchwise as bw
from batchwise.engine.arguments import seconds
from batchwise.errors import BatchwiseError
from batchwise.ledger.values import ResultGroup, ResultRow
from tests.strategies import HOUR, NOW, params

HANDLES = {"AsyncDispatcher", "AsyncJob", "AsyncTicket", "Dispatcher", "Job", "Ticket"}
"""What belongs to one process."""


def _result() -> bw.Result:
    how = ResultGroup("nightly", bw.Outcome.SUCCEEDED, bw.Lane.BATCH, 1, "abcdefghijkl", NOW + HOUR, NOW, True, ())
    message = b'{"content":[{"type":"text","text":"4"}],"stop_reason":"end_turn","usage":{}}'
    line = b'{"custom_id":"a","result":{"type":"succeeded","message":%b}}' % message
    return bw.Result(ResultRow(7, 1, "k", line, 100, 100, 0, how))


def _running() -> bw.RunningBatch:
    return bw.RunningBatch(
        remote_id="msgbatch_1",
        requests=2,
        elapsed=HOUR,
        expected_end=(NOW, NOW + HOUR),
        rescue_at=None,
        status="in_progress",
    )


def _decision() -> bw.Decision:
    return bw.choose_lane(bw.Request(params(), latency=30 * HOUR), now=NOW)


VALUES: dict[str, Callable[[], Any]] = {
    "Cadence": lambda: bw.sla_cadence(30 * HOUR),
    "Check": lambda: _decision().checks[0],
    "Decision": _decision,
    "Limits": lambda: bw.Limits.for_tier("build"),
    "Policy": lambda: bw.Policy(max_spend=5, max_spend_period=HOUR),
    "Progress": lambda: bw.Progress(
        total=1,
        by_status={bw.Status.SETTLED: 1},
        by_outcome={bw.Outcome.SUCCEEDED: 1},
        by_lane={},
        batches=(_running(),),
        suspended={bw.Lane.SYNC: "no credit"},
    ),
    "Rates": lambda: bw.Rates(input=3, output="15", cache_read="0.3"),
    "Report": lambda: bw.Report(
        **{
            field.name: Decimal("1.5") if "Decimal" in str(field.type) else 1
            for field in bw.Report.__attrs_attrs__
            if field.name not in {"cost_by_lane", "worst_lateness", "prices", "by_label"}
        },
        cost_by_lane={bw.Lane.SYNC: Decimal(1)},
        worst_lateness=HOUR,
        prices={"genai-prices 1": date(2026, 11, 27)},
        by_label={("team", "search"): Decimal("0.1")},
    ),
    "Request": lambda: bw.Request(params(), key="k", latency=30 * HOUR, tool_use="single", betas=["b"]),
    "Result": _result,
    "ResultError": lambda: bw.ResultError("expired", "the batch's window ended", retryable=True),
    "RunningBatch": _running,
    "ToolCall": lambda: bw.ToolCall("toolu_1", "look", {"at": 1}),
    "WorkloadPlan": lambda: bw.plan_workload(
        arrivals_per_hour=100,
        sla=30 * HOUR,
        mean_input_tokens=1_000,
        mean_output_tokens=100,
        model="claude-haiku-4-5",
        request_bytes=4_000,
    ),
}
ATTRIBUTES: dict[str, Any] = {"shortest": HOUR, "nearest": HOUR, "error_type": "expired"}
"""What errors ask for beside their message."""


def _made(name: str) -> Any:
    """An instance of a public class, or the public function or enum member itself."""
    thing = getattr(bw, name)
    if name in VALUES:
        return VALUES[name]()
    if not isinstance(thing, type):
        return thing
    if issubclass(thing, Enum):
        return next(iter(thing))
    if issubclass(thing, BatchwiseError):
        wanted = inspect.signature(thing).parameters
        error = thing("what was wrong", **{name: value for name, value in ATTRIBUTES.items() if name in wanted})
        error.__notes__ = ["item #3"]  # type: ignore[attr-defined]
        return error
    return thing()


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, BatchwiseError):
        return (type(one), one.args, vars(one)) == (type(other), other.args, vars(other))
    if isinstance(one, bw.Result):
        names = [
            name for name, member in vars(bw.Result).items() if isinstance(member, property) and name != "_decoded"
        ]
        return all(getattr(one, name) == getattr(other, name) for name in names)
    if isinstance(one, bw.Decision):
        return bool(one == other and one.explanation == other.explanation and one.checks == other.checks)
    return bool(one == other)


PUBLIC = sorted(set(bw.__all__) - HANDLES)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_value_and_error_survives_pickle_and_copy(name: str) -> None:
    value = _made(name)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert _same(value, pickle.loads(pickle.dumps(value, protocol)))  # noqa: S301
    assert _same(value, copy.copy(value))
    assert _same(value, copy.deepcopy(value))


def _echo(value: Any) -> Any:
    if isinstance(value, BaseException):
        raise value
    return value


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_every_public_value_and_error_goes_through_a_process_pool(method: str) -> None:
    values = [_made(name) for name in PUBLIC]
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        for value, there in [(value, pool.submit(_echo, value)) for value in values]:
            if isinstance(value, BaseException):
                assert _same(there.exception(timeout=60), value)
            else:
                assert _same(value, there.result(timeout=60))


def test_a_decision_of_the_ledger_is_plain_data_too() -> None:
    with bw.Dispatcher(_client(), ledger=":memory:") as dispatcher:
        ticket = dispatcher.dispatch(params(), key="k", latency=bw.Latency.FLEXIBLE)
        assert _same(pickle.loads(pickle.dumps(ticket.decision)), ticket.decision)  # noqa: S301
        found = dispatcher.ticket("k").decision
        assert _same(pickle.loads(pickle.dumps(found)), found)  # noqa: S301
        dispatcher.cancel()


def _client() -> Any:
    import anthropic

    return anthropic.Anthropic(api_key="fake", base_url="http://127.0.0.1:9")


# -- times, numbers and their ends ------------------------------------------------------------------------------------


class Span(timedelta):
    """A timedelta that computes in its own way, as pendulum's does."""

    days = property(lambda _self: 1)  # type: ignore[assignment]

    def __truediv__(self, other: Any) -> Any:
        raise AssertionError("computed with")

    __gt__ = __lt__ = __le__ = __ge__ = __add__ = __radd__ = __sub__ = __rsub__ = __truediv__


class Moment(datetime):
    """A datetime that computes in its own way, as pendulum's and pandas' do."""

    def astimezone(self, tz: Any = None) -> Any:
        raise AssertionError("computed with")

    def __sub__(self, other: Any) -> Any:
        raise AssertionError("computed with")

    __gt__ = __lt__ = __le__ = __ge__ = __add__ = __radd__ = __rsub__ = __sub__


def test_subclasses_are_reduced_to_plain_times() -> None:
    span = Span(hours=30, microseconds=5)
    request = bw.Request(params(), latency=span)
    assert type(request.latency) is timedelta
    assert request.latency == timedelta(hours=30, microseconds=5)
    east = timezone(timedelta(hours=9))
    request = bw.Request(params(), latency=Moment(2026, 12, 1, 9, tzinfo=east))
    assert type(request.latency) is datetime
    assert request.latency == datetime(2026, 12, 1, tzinfo=timezone.utc)
    assert request.latency.tzinfo is timezone.utc
    policy = bw.Policy(window=Span(hours=24), reserve=Span(hours=1), poll_every=(Span(seconds=1), Span(seconds=2)))
    assert {type(each) for each in (policy.window, policy.reserve, *policy.poll_every)} == {timedelta}
    assert policy.window == timedelta(hours=24)
    decision = bw.choose_lane(request, now=Moment(2026, 11, 23, tzinfo=timezone.utc), policy=policy)
    assert decision.reason is bw.Reason.LATENCY_TOLERANT
    assert seconds(Span(minutes=1)) == 60


def test_a_wait_without_end_is_no_error() -> None:
    for timeout in (None, float("inf"), timedelta.max, 1e300, 10**400):
        assert seconds(timeout) is None
    for bad in (float("nan"), -1, timedelta.min, "10", True, b"1", [1]):
        with pytest.raises(bw.InvalidValueError, match="timeout="):
            seconds(bad)  # type: ignore[arg-type]


zones = st.integers(-1_439, 1_439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.one_of(
    st.sampled_from([datetime.min, datetime.max, datetime(1, 1, 2), datetime(9999, 12, 30)]),  # noqa: DTZ001, DTZ901
    st.datetimes(),
).flatmap(lambda moment: zones.map(lambda zone: moment.replace(tzinfo=zone)))
spans = st.one_of(st.sampled_from([timedelta.max, timedelta.min, timedelta.resolution]), st.timedeltas())
numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.decimals(),
    st.sampled_from([2**63, 10**30, 10**400, -(10**400), float("inf"), Decimal("1E+999999"), Decimal("1E-999999")]),
)
anything = st.one_of(moments, spans, numbers, st.text(max_size=5), st.none(), st.booleans(), st.binary(max_size=3))


def _tried(make: Callable[[], Any]) -> Any:
    """What it gives, or None if it is refused in our words."""
    try:
        return make()
    except BatchwiseError:
        return None


@given(latency=anything, tokens=anything, expected=anything, now=moments, window=anything, reserve=anything)
def test_a_request_at_the_ends_is_routed_or_refused(
    latency: Any, tokens: Any, expected: Any, now: datetime, window: Any, reserve: Any
) -> None:
    for tags in ({}, {"latency": latency}):
        for body in (params(), params(max_tokens=tokens)):
            for more in ({}, {"expected_output_tokens": expected}):
                request = _tried(lambda: bw.Request(body, **tags, **more))  # noqa: B023
                if request is None:
                    continue
                for figures in ({}, {"window": window}, {"reserve": reserve}):
                    policy = _tried(lambda: bw.Policy(hedge=True, delay_cost_per_hour="0.01", **figures))  # noqa: B023
                    for moment in (now, NOW):
                        decision = policy and _tried(lambda: bw.choose_lane(request, now=moment, policy=policy))  # noqa: B023
                        if decision is not None:
                            assert decision.explanation
                            assert len(decision.checks) == len(bw.Reason)


@pytest.mark.parametrize("kind", [bw.Policy, bw.Limits])
@given(data=st.data())
def test_a_policy_at_the_ends_serves_or_is_refused(kind: type[Any], data: st.DataObject) -> None:
    field = data.draw(st.sampled_from([each.name for each in kind.__attrs_attrs__ if each.name != "limits"]))
    value = data.draw(st.one_of(anything, st.tuples(spans, spans)))
    made = _tried(lambda: kind(**{field: value}))
    if isinstance(made, bw.Policy):
        request = bw.Request(params(), latency=26 * HOUR)
        decision = _tried(lambda: bw.choose_lane(request, now=NOW, policy=made))
        assert decision is None or decision.explanation


EXTREMES = [
    {"latency": timedelta.max},
    {"latency": timedelta(days=36_525)},
    {"latency": datetime(2999, 12, 31, tzinfo=timezone.utc)},
    {"latency": datetime.max.replace(tzinfo=timezone(-HOUR))},
    {"latency": datetime.min.replace(tzinfo=timezone(HOUR))},
    {"expected_output_tokens": 10**400},
    {"expected_output_tokens": 2**63},
    {"latency": timedelta(days=400), "expected_output_tokens": 1_000_000_000},
]


@pytest.mark.parametrize("tags", EXTREMES)
@pytest.mark.parametrize("tokens", [1, 1_000_000_000, 2**63, 10**400])
def test_a_dispatch_at_the_ends_is_accepted_or_refused(tags: dict[str, Any], tokens: int) -> None:
    policy = bw.Policy(max_spend=10**12, max_spend_period=timedelta(days=36_525), max_attempts=10**12)
    with bw.Dispatcher(_client(), ledger=":memory:", policy=policy) as dispatcher:
        body = params(max_tokens=tokens, model="claude-haiku-4-5")
        ticket = _tried(lambda: dispatcher.dispatch(body, **{"latency": bw.Latency.FLEXIBLE, **tags}))
        assert (ticket is None) == (tokens > 1_000_000_000 or tags in (*EXTREMES[:1], *EXTREMES[3:7]))
        assert dispatcher.progress().total == (ticket is not None)
        dispatcher.cancel()
        dispatcher.report()
        assert dispatcher.purge(before=datetime.min.replace(tzinfo=timezone.utc)) == 0
        assert dispatcher.purge(before=datetime.max.replace(tzinfo=timezone.utc)) == (ticket is not None)
        with pytest.raises(bw.InvalidValueError, match="before="):
            dispatcher.purge(before=datetime.max.replace(tzinfo=timezone(-HOUR)))
        with pytest.raises(bw.InvalidValueError, match="naive"):
            dispatcher.purge(before=datetime(2026, 1, 1))  # noqa: DTZ001


@pytest.mark.parametrize(
    ("latency", "words"),
    [
        (30, "timedelta(hours=30)"),
        ("30h", "timedelta(hours=30)"),
        ("30 hours", "timedelta(hours=30)"),
        ("90s", "timedelta(seconds=90)"),
        ("15 min", "timedelta(minutes=15)"),
        ("2d", "timedelta(days=2)"),
        ("soon", "timedelta(hours=30)"),
        (True, "timedelta(hours=30)"),
        (timedelta.max, "Latency.FLEXIBLE"),
        (datetime.max.replace(tzinfo=timezone.utc), "outside the years 1000 to 2999"),
    ],
)
def test_a_latency_that_says_nothing_is_answered_with_what_to_write(latency: Any, words: str) -> None:
    with pytest.raises(bw.InvalidRequestError) as raised:
        bw.Request(params(), latency=latency)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"hedge": "yes"}, "hedge='yes' is neither True nor False"),
        ({"zero_data_retention": 1}, "zero_data_retention=1 is neither"),
        ({"exclusive_workspace": None}, "exclusive_workspace=None is neither"),
        ({"max_spend_period": HOUR}, "give max_spend"),
    ],
)
def test_a_policy_that_contradicts_itself_is_refused(figures: dict[str, Any], words: str) -> None:
    with pytest.raises(bw.InvalidValueError) as raised:
        bw.Policy(**figures)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("given_span", "plain"),
    [
        (np.timedelta64(30, "h"), timedelta(hours=30)),
        (np.timedelta64(2, "D"), timedelta(days=2)),
        (np.timedelta64(90_000_001, "us"), timedelta(seconds=90, microseconds=1)),
        (np.timedelta64(108_000_000_001_999, "ns"), timedelta(hours=30, microseconds=1)),
        (Span(hours=30), timedelta(hours=30)),
    ],
)
def test_durations_of_numpy_and_subclasses_are_taken(given_span: Any, plain: timedelta) -> None:
    policy = bw.Policy(window=given_span, interval=given_span, poll_every=(given_span, given_span))
    assert (policy.window, policy.interval, policy.poll_every) == (plain, plain, (plain, plain))
    assert bw.Request(params(), latency=given_span).latency == plain
    assert bw.worst_case_latency(given_span) == plain + timedelta(hours=24)
    assert bw.Limits(latency=given_span).latency == plain
    assert seconds(given_span) == plain.total_seconds()
    found = (policy.window, policy.interval, *policy.poll_every, bw.Request(params(), latency=given_span).latency)
    assert {type(each) for each in found} == {timedelta}


@pytest.mark.parametrize("span", [np.timedelta64("NaT", "s"), np.timedelta64(1, "M"), np.timedelta64(10**9, "D")])
def test_durations_of_numpy_without_a_length_are_refused(span: Any) -> None:
    for make in (
        lambda: bw.Policy(window=span),
        lambda: bw.sla_cadence(span),
        lambda: bw.Request(params(), latency=span),
        lambda: seconds(span),
    ):
        with pytest.raises(bw.InvalidValueError, match="timedelta"):
            make()


def test_counts_of_numpy_are_taken_and_kept_plain() -> None:
    limits = bw.Limits(requests_per_minute=np.int64(1_000), concurrency=np.uint8(100))  # type: ignore[arg-type]
    policy = bw.Policy(max_attempts=np.int32(4), delay_cost_per_hour=np.float32(0.5), limits=limits)  # type: ignore[arg-type]
    request = bw.Request(params(), expected_output_tokens=np.int64(7))  # type: ignore[arg-type]
    counts = (limits.requests_per_minute, limits.concurrency, policy.max_attempts, request.expected_output_tokens)
    assert counts == (1_000, 100, 4, 7)
    assert {type(count) for count in counts} == {int}
    assert policy.delay_cost_per_hour == Decimal("0.5")
    for bad in (np.int64(0), np.float64(3), np.bool_(True)):
        with pytest.raises(bw.InvalidValueError, match="whole number of at least 1"):
            bw.Limits(requests_per_minute=bad)  # type: ignore[arg-type]


@given(st.sampled_from([timedelta.max, timedelta.max - timedelta.resolution]) | st.timedeltas(timedelta(days=30_000)))
def test_latencies_at_the_end_of_time_are_our_error_or_a_right_answer(latency: timedelta) -> None:
    now = datetime(2026, 11, 27, tzinfo=timezone.utc)
    if latency > timedelta(days=36_525):
        with pytest.raises(bw.InvalidValueError, match="over a hundred years"):
            bw.Request(params(), latency=latency)
    else:
        decision = bw.choose_lane(bw.Request(params(), latency=latency), now=now)
        assert (decision.deadline, decision.lane) == (now + latency, bw.Lane.BATCH)
    said = {"mean_input_tokens": 1, "mean_output_tokens": 1, "request_bytes": 1, "model": "claude-haiku-4-5"}
    for plan in (
        lambda: bw.plan_workload(arrivals_per_hour=1, sla=latency, **said),
        lambda: bw.plan_workload(arrivals_per_hour=1, sla=30 * HOUR, interval=latency, **said),
        lambda: bw.sla_cadence(latency),
        lambda: bw.sla_cadence(latency, window=latency),
        lambda: bw.worst_case_latency(latency, rounds=2),
        lambda: bw.compare_slas([latency], arrivals_per_hour=1, **said),
    ):
        with suppress(bw.InvalidValueError):
            plan()
