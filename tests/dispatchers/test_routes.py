"""Remembered routes: each is what routing would decide now."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import batchwise as bw
from batchwise import InvalidRequestError, Latency, Policy, ToolUse
from batchwise.engine.admissions import Admissions
from batchwise.engine.routes import Router, moment_of
from batchwise.ledger.sqlite import SqliteLedger
from batchwise.planning.forecast import Forecast
from batchwise.planning.pricing import PriceBook
from batchwise.planning.state import Group
from tests.strategies import NOW, params

TOOL = {"name": "read_file", "input_schema": {"type": "object"}}
CHOICES: dict[str, list[object]] = {
    "text": ["short", "x" * 5_000],
    "model": ["claude-sonnet-5", "claude-haiku-4-5"],
    "max_tokens": [0, 100, 30_000],
    "tools": [[], [TOOL]],
    "latency": [None, Latency.BLOCKING],
    "tool_use": [None, ToolUse.SINGLE],
    "betas": [(), ("interleaved-thinking-2025-05-14",), ("output-300k-2026-03-24",)],
    "stream": [False, True],
    "expected_output_tokens": [None, 7],
}
said = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in CHOICES.items()})
policies = st.sampled_from([Policy(), Policy(hedge=True), Policy(delay_cost_per_hour=1), Policy(max_spend=10)])


def asked(said: dict[str, Any]) -> bw.Request:
    body = {name: said[name] for name in ("text", "model", "max_tokens", "tools")}
    return bw.Request(params(**body), **{name: value for name, value in said.items() if name not in body})


def router_of(policy: Policy) -> Router:
    return Router(policy, PriceBook(), lambda _model, *, at: Forecast.prior())


def same(router: Router, request: bw.Request, now: datetime) -> bool:
    """Whether both ways give the same decision and terms, or the same refusal."""
    found: list[object] = []
    capped = router._policy.max_spend is not None
    for route, at in ((router.recall, now), (router.route, now if capped else moment_of(request.latency, now))):
        try:
            decision, terms = route(request, at)
        except InvalidRequestError as error:
            found.append(str(error))
        else:
            found.append((decision.lane, decision.reason, decision.explanation, decision.checks, terms))
    return found[0] == found[1]


@pytest.mark.parametrize("name", CHOICES)
@given(said, policies, st.timedeltas(timedelta(0), timedelta(days=400)))
def test_a_remembered_route_is_the_one_that_would_be_decided_now(
    name: str, said: dict[str, Any], policy: Policy, gap: timedelta
) -> None:
    router = router_of(policy)
    requests = [asked({**said, name: value}) for value in CHOICES[name]]  # alike in all but one thing
    for number, request in enumerate([*requests, *requests]):
        assert same(router, request, NOW + number * gap / len(requests))


@pytest.mark.parametrize(
    ("latency", "policy"),
    [
        (timedelta(hours=30), Policy()),
        (NOW + timedelta(days=3), Policy()),
        (Latency.FLEXIBLE, Policy()),
        (None, Policy(max_spend=10)),  # prices may change meanwhile
    ],
)
def test_a_route_that_depends_on_the_time_is_decided_anew(latency: bw.LatencyTag | None, policy: Policy) -> None:
    router, request = router_of(policy), bw.Request(params(), latency=latency)
    for now in (NOW, NOW + timedelta(hours=1)):
        assert same(router, request, now)


def test_requests_that_come_one_by_one_within_a_second_share_their_terms() -> None:
    router = router_of(Policy())
    asked_for = [bw.Request(params(str(n)), latency=timedelta(hours=30)) for n in range(100)]
    moments = [NOW + n * timedelta(milliseconds=9) for n in range(100)]
    found = {id(router.recall(request, now)[1]) for request, now in zip(asked_for, moments, strict=True)}
    assert len(found) == 1
    later = bw.Request(params("later"), latency=timedelta(hours=30))
    assert router.recall(later, NOW + timedelta(seconds=1))[1].deadline == NOW + timedelta(hours=30, seconds=1)


@given(
    st.sampled_from(Latency) | st.timedeltas(timedelta(seconds=1), timedelta(days=3)),
    st.booleans(),
    st.timedeltas(timedelta(0), timedelta(seconds=5)),
)
def test_a_moment_is_never_late_nor_a_second_early_and_exact_within_the_hour(
    latency: bw.Latency | timedelta, absolute: bool, since: timedelta
) -> None:
    now = NOW + since
    moment = moment_of(now + latency if absolute and isinstance(latency, timedelta) else latency, now)
    assert timedelta(0) <= now - moment < timedelta(seconds=1)
    if isinstance(latency, timedelta) and latency < timedelta(hours=1):
        assert moment == now
    else:
        assert moment.microsecond == 0


def test_an_explanation_says_first_what_was_changed_so_that_the_deadline_is_kept() -> None:
    policy = Policy(limits=bw.Limits(requests_per_minute=100))
    _, terms = router_of(policy).route(bw.Request(params(), latency=timedelta(hours=30)), NOW)
    ledger = SqliteLedger(":memory:")
    group = Group(terms=terms, requests=40_000, size=40_000, since=NOW)
    ((count, moved),) = Admissions(ledger, policy).all([group], NOW).values()
    ledger.close()
    assert moved.lane is bw.Lane.SYNC
    assert moved.explanation.startswith(f"{count:,} of 40,000 run on the sync lane now, since a rescue of all")
    assert moved.explanation.endswith(f" (by itself: {terms.explanation})")
