"""`choose_lane`: the README's table as named cases, each rule by itself, and what holds for every request."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.strategies import HOUR, NOW, durations, params

import batchwise as bw
from batchwise import Lane, Latency, Policy, Reason, ToolUse
from batchwise.basics.wording import human
from batchwise.planning.forecast import Forecast
from batchwise.planning.pricing import PriceBook
from batchwise.planning.reserve import reserve_for
from batchwise.planning.routing import BATCH_ONLY_BETA, case_of, check_size, decide, infer_tool_use

CLIENT_TOOL = {"name": "read_file", "input_schema": {"type": "object"}}
SERVER_TOOL = {"type": "web_search_20250305", "name": "web_search"}
DAY = timedelta(hours=24)


def request(**tags: Any) -> bw.Request:
    others = tags.pop("params", {})
    return bw.Request(params(**others), **tags)


def choose(policy: Policy | None = None, **tags: Any) -> bw.Decision:
    return bw.choose_lane(request(**tags), now=NOW, policy=policy or Policy())


# -- the README's table -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tags", "lane", "reason"),
    [
        ("pre-merge check", {}, Lane.SYNC, Reason.BLOCKING),
        ("nightly test generation", {"latency": timedelta(hours=30)}, Lane.BATCH, Reason.LATENCY_TOLERANT),
        ("weekly security audit", {"latency": timedelta(days=6)}, Lane.BATCH, Reason.LATENCY_TOLERANT),
        ("overnight report", {"latency": NOW + timedelta(hours=36)}, Lane.BATCH, Reason.LATENCY_TOLERANT),
        ("whenever", {"latency": Latency.FLEXIBLE}, Lane.BATCH, Reason.LATENCY_TOLERANT),
        ("report in 12 h", {"latency": timedelta(hours=12)}, Lane.SYNC, Reason.DEADLINE_INSIDE_WINDOW),
        (
            "iterative reviewer",
            {"latency": timedelta(hours=30), "params": {"tools": [CLIENT_TOOL]}},
            Lane.SYNC,
            Reason.ITERATIVE_TOOL_USE,
        ),
        (
            "extraction by a forced tool",
            {
                "latency": timedelta(hours=30),
                "params": {"tools": [CLIENT_TOOL], "tool_choice": {"type": "tool", "name": "read_file"}},
            },
            Lane.BATCH,
            Reason.LATENCY_TOLERANT,
        ),
        (
            "research with web search",
            {"latency": timedelta(hours=30), "params": {"tools": [SERVER_TOOL]}},
            Lane.BATCH,
            Reason.LATENCY_TOLERANT,
        ),
    ],
)
def test_the_workflows_of_the_readme(name: str, tags: dict[str, Any], lane: Lane, reason: Reason) -> None:
    decision = choose(**tags)
    assert (decision.lane, decision.reason) == (lane, reason), name


def test_thirty_hours_are_4_of_interval_24_of_window_and_2_of_reserve() -> None:
    decision = choose(latency=timedelta(hours=30))
    assert decision.deadline == NOW + 30 * HOUR
    assert decision.submit_by == NOW + 4 * HOUR
    assert decision.rescue_at == NOW + 28 * HOUR
    assert decision.explanation == (
        "deadline in 30 h leaves 6 h past the 24 h window, enough for the reserve of 2 h: goes with a batch "
        "within 4 h, at half price, and 2 h are kept to redo what fails"
    )


# -- the rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["speed", "store", "previous_thread_event_id", "cache_hint", "context_hint", "fallbacks", "thread"]
)
def test_a_parameter_that_batches_refuse_goes_sync(name: str) -> None:
    decision = choose(latency=Latency.FLEXIBLE, params={name: "fast"})
    assert (decision.lane, decision.reason) == (Lane.SYNC, Reason.SYNC_ONLY_PARAMETER)
    assert name in decision.explanation


def test_streaming_goes_sync() -> None:
    assert choose(latency=Latency.FLEXIBLE, stream=True).reason is Reason.STREAMING


def test_zero_data_retention_goes_sync() -> None:
    policy = Policy(zero_data_retention=True)
    assert choose(policy, latency=Latency.FLEXIBLE).reason is Reason.ZERO_DATA_RETENTION


def test_the_long_output_beta_goes_to_a_batch_without_a_rescue() -> None:
    decision = choose(latency=timedelta(hours=30), betas=[BATCH_ONLY_BETA])
    assert (decision.lane, decision.reason) == (Lane.BATCH, Reason.BATCH_ONLY_PARAMETER)
    assert decision.rescue_at is None
    assert "not guaranteed" in decision.explanation
    assert "not guaranteed" not in choose(latency=timedelta(hours=48), betas=[BATCH_ONLY_BETA]).explanation


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"latency": timedelta(hours=23)},
        {"latency": Latency.FLEXIBLE, "stream": True},
        {"latency": Latency.FLEXIBLE, "params": {"tools": [CLIENT_TOOL]}},
        {"latency": Latency.FLEXIBLE, "params": {"speed": "fast"}},
    ],
)
def test_what_fits_neither_lane_is_an_error_that_names_both_sides(tags: dict[str, Any]) -> None:
    with pytest.raises(bw.InvalidRequestError, match=BATCH_ONLY_BETA) as raised:
        choose(betas=[BATCH_ONLY_BETA], key="long/report", **tags)
    assert str(raised.value).startswith("request 'long/report' fits neither lane")


def test_a_deadline_inside_the_window_of_what_only_a_batch_takes_is_an_error_with_the_figures() -> None:
    with pytest.raises(bw.InvalidRequestError) as raised:
        choose(betas=[BATCH_ONLY_BETA], latency=23 * HOUR)
    assert str(raised.value) == (
        f"request fits neither lane in time: beta {BATCH_ONLY_BETA} is accepted in a batch only, and its deadline in "
        "23 h is inside the 24 h window; give it at least 24 h"
    )
    assert choose(betas=[BATCH_ONLY_BETA], latency=24 * HOUR).lane is Lane.BATCH


def test_a_cache_warm_up_takes_the_sync_lane_now_or_none() -> None:
    warm = case_of(request(params={"max_tokens": 0}), now=NOW, policy=Policy(), forecast=None, prices=None)
    assert decide(warm).lane is Lane.SYNC
    with pytest.raises(bw.InvalidRequestError) as raised:
        decide(attrs.evolve(warm, latency=Latency.FLEXIBLE), "request 'k'")
    assert str(raised.value) == (
        "request 'k': max_tokens is 0 (a cache warm-up), which a batch refuses; leave latency out or raise it"
    )


@pytest.mark.parametrize(
    ("lane", "rescue", "words"),
    [
        (
            Lane.SYNC,
            False,
            (
                "'k' has 256,000,000 bytes and a Messages call takes 32,000,000, but it goes to the sync lane; "
                "shorten it, send large content through the Files API, or give it latency=Latency.FLEXIBLE"
            ),
        ),
        (
            Lane.BATCH,
            True,
            (
                "'k' has 256,000,000 bytes and a Messages call takes 32,000,000, but its deadline needs the sync lane "
                "as its rescue; shorten it, send large content through the Files API, or give it "
                "latency=Latency.FLEXIBLE"
            ),
        ),
        (
            Lane.BATCH,
            False,
            (
                "'k': alone in a batch it needs 256,000,105 bytes, a create call takes 256,000,000; shorten it, or "
                "send large content through the Files API"
            ),
        ),
    ],
)
def test_a_refused_size_is_named_with_its_limit(lane: Lane, rescue: bool, words: str) -> None:
    with pytest.raises(bw.RequestTooLargeError) as raised:
        check_size(256_000_000, lane, rescue=rescue, where="'k'")
    assert str(raised.value) == words


def test_long_output_under_zero_data_retention_is_an_error() -> None:
    with pytest.raises(bw.InvalidRequestError, match="zero data retention"):
        choose(Policy(zero_data_retention=True), latency=Latency.FLEXIBLE, betas=[BATCH_ONLY_BETA])


def test_a_delay_that_costs_more_than_the_batch_saves_goes_sync() -> None:
    assert choose(Policy(delay_cost_per_hour=1), latency=Latency.FLEXIBLE).reason is Reason.DELAY_COSTS_MORE
    cheap = Policy(delay_cost_per_hour=Decimal("0.0000001"))
    assert choose(cheap, latency=Latency.FLEXIBLE).reason is Reason.LATENCY_TOLERANT


def test_a_delay_cost_without_a_price_goes_sync_and_says_so() -> None:
    decision = choose(Policy(delay_cost_per_hour=1), latency=Latency.FLEXIBLE, params={"model": "nobody-knows-1"})
    assert decision.reason is Reason.DELAY_COSTS_MORE
    assert "'nobody-knows-1' is unknown" in decision.explanation


def test_a_hedge_goes_to_a_batch_inside_the_window_with_a_rescue_planned() -> None:
    decision = choose(Policy(hedge=True), latency=timedelta(hours=12))
    assert (decision.lane, decision.reason) == (Lane.BATCH, Reason.HEDGED)
    assert decision.submit_by == NOW + timedelta(minutes=5)
    assert decision.rescue_at is not None
    assert NOW + timedelta(hours=11) < decision.rescue_at < NOW + timedelta(hours=12)


def test_a_hedge_needs_room_for_a_rescue() -> None:
    assert choose(Policy(hedge=True), latency=timedelta(minutes=20)).reason is Reason.DEADLINE_INSIDE_WINDOW


def test_checks_show_every_rule_and_one_decides() -> None:
    checks = choose(latency=timedelta(hours=30)).checks
    assert {check.rule for check in checks} == set(Reason)
    assert [check.rule for check in checks if check.decided] == [Reason.LATENCY_TOLERANT]
    assert all(check.verdict for check in checks)


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ({}, ToolUse.NONE),
        ({"tools": [CLIENT_TOOL]}, ToolUse.ITERATIVE),
        ({"tools": [CLIENT_TOOL], "tool_choice": {"type": "auto"}}, ToolUse.ITERATIVE),
        ({"tools": [CLIENT_TOOL], "tool_choice": {"type": "any"}}, ToolUse.SINGLE),
        ({"tools": [CLIENT_TOOL], "tool_choice": {"type": "none"}}, ToolUse.NONE),
        ({"tools": [SERVER_TOOL]}, ToolUse.SERVER),
        ({"tools": [SERVER_TOOL, CLIENT_TOOL]}, ToolUse.ITERATIVE),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, ToolUse.ITERATIVE),
        ({"tools": [{"type": "somebody_new_20300101"}]}, ToolUse.ITERATIVE),
        ({"mcp_servers": [{"url": "https://example.com"}]}, ToolUse.SERVER),
    ],
)
def test_tool_use_is_inferred_with_caution(others: dict[str, Any], expected: ToolUse) -> None:
    assert infer_tool_use(request(params=others).traits) is expected


def test_the_callers_word_on_tool_use_outranks_the_inference() -> None:
    tags = {"latency": timedelta(hours=30), "params": {"tools": [CLIENT_TOOL]}}
    assert choose(tool_use=ToolUse.SINGLE, **tags).lane is Lane.BATCH


def test_a_past_deadline_and_a_naive_now_are_refused() -> None:
    for latency in (NOW - HOUR, NOW):
        with pytest.raises(bw.InvalidRequestError) as raised:
            choose(latency=latency)
        assert str(raised.value) == (
            f"request: its deadline {latency.isoformat()} is past (now {NOW.isoformat()}); "
            "give a later one, or leave latency out for an answer now"
        )
    with pytest.raises(bw.InvalidValueError, match=r"^now=.* naive"):
        bw.choose_lane(request(), now=datetime(2026, 1, 1))  # noqa: DTZ001


# -- what always holds ------------------------------------------------------------------------------------------------

policies = st.builds(
    Policy,
    window=st.sampled_from([DAY, 2 * HOUR]),
    reserve=st.none() | st.timedeltas(timedelta(0), timedelta(hours=6)),
    min_reserve=st.timedeltas(timedelta(0), timedelta(hours=1)),
    zero_data_retention=st.booleans(),
)


@given(policies, durations, st.datetimes(timezones=st.just(timezone.utc), max_value=datetime(2100, 1, 1)))  # noqa: DTZ001
def test_never_a_batch_without_the_window_and_the_reserve(policy: Policy, sla: timedelta, now: datetime) -> None:
    decision = bw.choose_lane(request(latency=sla), now=now, policy=policy)
    reserve = reserve_for(policy, sla - policy.window)
    assert (decision.lane is Lane.BATCH) == (sla >= policy.window + reserve and not policy.zero_data_retention)
    if decision.lane is Lane.BATCH:
        assert decision.submit_by is not None
        assert decision.submit_by >= now
        assert decision.submit_by + policy.window + reserve == decision.deadline


@given(durations, durations)
def test_more_time_never_turns_a_batch_into_a_sync_call(one: timedelta, other: timedelta) -> None:
    shorter, longer = sorted((one, other))
    assume(choose(latency=shorter).lane is Lane.BATCH)
    assert choose(latency=longer).lane is Lane.BATCH


@given(durations)
def test_a_hedge_keeps_its_rescue_before_the_deadline(sla: timedelta) -> None:
    policy = Policy(hedge=True)
    decision = choose(policy, latency=sla)
    if decision.reason is Reason.HEDGED:
        assert decision.deadline is not None
        assert decision.submit_by is not None
        assert decision.rescue_at is not None
        assert NOW < decision.submit_by < decision.rescue_at
        assert decision.rescue_at <= decision.deadline - policy.min_reserve - policy.cancel_settle


@given(st.sampled_from(ToolUse), st.sampled_from([Latency.BLOCKING, Latency.FLEXIBLE, timedelta(hours=30)]))
def test_nothing_that_blocks_or_iterates_is_batched(tool_use: ToolUse, latency: Any) -> None:
    decision = choose(latency=latency, tool_use=tool_use)
    batched = tool_use is not ToolUse.ITERATIVE and latency is not Latency.BLOCKING
    assert (decision.lane is Lane.BATCH) == batched


@pytest.mark.parametrize(
    ("duration", "words"),
    [
        (timedelta(hours=30), "30 h"),
        (timedelta(hours=1, minutes=30), "1 h 30 min"),
        (timedelta(seconds=45), "45 s"),
        (timedelta(days=6), "6 d"),
        (timedelta(milliseconds=250), "250 ms"),
        (timedelta(minutes=-5), "-5 min"),
        (timedelta(0), "0 ms"),
    ],
)
def test_durations_in_words(duration: timedelta, words: str) -> None:
    assert human(duration) == words


def test_a_patient_loop_may_wait_and_an_iterative_one_may_not():
    tools = [{"name": "read", "input_schema": {"type": "object"}}]
    body = {
        "model": "claude-haiku-4-5",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "x"}],
        "tools": tools,
    }
    at = datetime(2026, 11, 27, tzinfo=timezone.utc)
    lanes = {
        use: bw.choose_lane(bw.Request(body, latency=timedelta(hours=30), tool_use=use), now=at).lane
        for use in (None, ToolUse.ITERATIVE, ToolUse.PATIENT)
    }
    assert lanes == {None: Lane.SYNC, ToolUse.ITERATIVE: Lane.SYNC, ToolUse.PATIENT: Lane.BATCH}


@pytest.mark.parametrize(("bill_to", "lane"), [("user_profile", Lane.SYNC), ("self", Lane.BATCH), (None, Lane.BATCH)])
def test_only_a_bill_to_a_user_profile_keeps_a_request_on_the_sync_lane(bill_to: str | None, lane: Lane) -> None:
    policy = {"type": "billing_policy", **({"bill_to": bill_to} if bill_to else {})}
    assert choose(latency=Latency.FLEXIBLE, params={"billing_policy": policy}).lane is lane


@pytest.mark.parametrize(
    ("tool", "lane"),
    [
        ({"type": "tool_definition", "definition": {"name": "read", "input_schema": {}}}, Lane.SYNC),
        ({"type": "tool_definition", "definition": {"type": "web_search_20260101", "name": "web_search"}}, Lane.BATCH),
        ({"type": "tool_reference", "name": "read"}, Lane.BATCH),
    ],
)
def test_a_client_tool_is_one_wherever_it_is_declared(tool: dict[str, Any], lane: Lane) -> None:
    content = [{"type": "text", "text": "x"}, {"type": "tool_addition", "tool": tool}]
    body = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": content}]}
    request = bw.Request(body, latency=Latency.FLEXIBLE, betas=["inline-tools-2026-09-15"])
    assert bw.choose_lane(request, now=datetime(2026, 11, 27, tzinfo=timezone.utc)).lane is lane


def test_what_only_a_batch_takes_is_sent_a_window_before_its_deadline_or_at_once() -> None:
    for hours in (24, 30, 48):
        decision = choose(latency=hours * HOUR, betas=[BATCH_ONLY_BETA])
        assert (decision.submit_by, decision.rescue_at) == (NOW + (hours - 24) * HOUR, None)


def window_words(latency: Any) -> str:
    return next(c.verdict for c in choose(latency=latency).checks if c.rule is Reason.DEADLINE_INSIDE_WINDOW)


def test_a_deadline_at_the_end_of_the_window_is_not_inside_it() -> None:
    tick = timedelta.resolution
    reserve = "too little for the reserve of 15 min"
    assert window_words(24 * HOUR) == f"deadline in 24 h leaves 0 ms past the 24 h window, {reserve}"
    assert window_words(24 * HOUR - tick).endswith("is inside the 24 h window of a batch")


@pytest.mark.parametrize(("step", "lane"), [("-1E-12", Lane.BATCH), ("1E-12", Lane.SYNC)])
def test_a_batch_that_is_worth_just_its_own_time_is_sent_at_once(step: str, lane: Lane) -> None:
    run = Forecast.prior().expected(24 * HOUR)
    case = case_of(request(latency=30 * HOUR), now=NOW, policy=Policy(), forecast=None, prices=PriceBook())
    saving = case.saving()
    assert saving is not None
    worth = saving * (HOUR // timedelta.resolution) / (run // timedelta.resolution)
    policy = Policy(delay_cost_per_hour=worth * (1 + Decimal(step)))
    decision = choose(policy, latency=30 * HOUR)
    assert decision.lane is lane
    assert "at once" in decision.explanation


def test_a_size_is_refused_only_above_what_a_call_takes() -> None:
    check_size(32_000_000, Lane.SYNC, rescue=False, where="it")
    check_size(32_000_000, Lane.BATCH, rescue=True, where="it")
    check_size(32_000_001, Lane.BATCH, rescue=False, where="it")
    for lane, rescue in ((Lane.SYNC, False), (Lane.BATCH, True)):
        with pytest.raises(bw.RequestTooLargeError, match=r"^it has 32,000,001 bytes"):
            check_size(32_000_001, lane, rescue=rescue, where="it")


def test_what_is_no_request_is_refused_with_what_to_write() -> None:
    with pytest.raises(bw.InvalidValueError, match=r"^request is a dict, not a Request; write Request\(params\)"):
        bw.choose_lane(params(), now=NOW)  # type: ignore[arg-type]


@pytest.mark.parametrize(("more", "hedges"), [(timedelta(0), False), (timedelta.resolution, True)])
def test_a_hedge_needs_some_time_to_run_before_its_rescue(more: timedelta, hedges: bool) -> None:
    """Of two hours, 5 min are for waiting, 1 h 45 min for the reserve, and 10 min for the cancel."""
    policy = Policy(hedge=True, min_reserve=timedelta(minutes=105))
    decision = choose(policy, latency=2 * HOUR + more)
    said = next(check.verdict for check in decision.checks if check.rule is Reason.HEDGED)
    assert ("leaves no time for a batch before a rescue had to begin" in said) == (not hedges)


def test_the_callers_forecast_is_the_one_that_is_asked() -> None:
    slow = Forecast.prior(window=48 * HOUR)
    case = case_of(request(latency=2 * HOUR), now=NOW, policy=Policy(), forecast=slow, prices=None)
    assert case.forecast is slow
    assert case.run == slow.expected(24 * HOUR) > Forecast.prior().expected(24 * HOUR)
    assert case_of(request(), now=NOW, policy=Policy(), forecast=None, prices=None).forecast == Forecast.prior()


def test_no_saving_is_known_where_the_price_on_one_lane_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    prices = PriceBook()
    rates = prices.rates
    for unknown in Lane:
        monkeypatch.setattr(prices, "rates", lambda *a, lane=unknown, **k: None if lane in a else rates(*a, **k))
        asked = case_of(request(latency=30 * HOUR), now=NOW, policy=Policy(), forecast=None, prices=prices)
        assert asked.saving() is None


def test_a_moment_near_the_end_of_all_dates_is_refused_by_name() -> None:
    last = datetime.max.replace(tzinfo=timezone.utc)
    with pytest.raises(bw.InvalidValueError, match=r"^request 'k': now=9999-12-31T.* is too near to the end of all"):
        bw.choose_lane(request(key="k", latency=HOUR), now=last)
