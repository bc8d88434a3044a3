"""The values: what is refused on construction, and that nothing changes afterwards."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchwise import InvalidValueError, Limits, Outcome, Policy, Progress, Status
from batchwise.errors import BatchwiseError, shown


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("window", timedelta(0)),
        ("window", 24),
        ("reserve", timedelta(seconds=-1)),
        ("min_reserve", timedelta(seconds=-1)),
        ("interval", timedelta(0)),
        ("flexible_interval", timedelta(0)),
        ("max_attempts", 0),
        ("max_attempts", True),
        ("late", "drop"),
        ("poll_every", (timedelta(seconds=2), timedelta(seconds=1))),
        ("poll_every", timedelta(seconds=2)),
        ("delay_cost_per_hour", -1),
        ("delay_cost_per_hour", "much"),
        ("max_spend", "NaN"),
        ("max_spend_period", timedelta(0)),
        ("create_grace", None),
        ("cancel_settle", timedelta(seconds=-1)),
    ],
)
def test_a_policy_refuses_by_name_and_value(field: str, value: Any) -> None:
    with pytest.raises(InvalidValueError) as raised:
        Policy(**{field: value})
    message = str(raised.value)
    assert field in message or repr(value) in message


def test_a_policy_is_frozen_and_takes_money_in_any_exact_form() -> None:
    policy = Policy(max_spend="12.50", delay_cost_per_hour=2)
    assert policy.max_spend == Decimal("12.50")
    assert policy.delay_cost_per_hour == Decimal(2)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        policy.hedge = True  # type: ignore[misc]


@pytest.mark.parametrize(
    "field",
    [
        "requests_per_minute",
        "input_tokens_per_minute",
        "output_tokens_per_minute",
        "concurrency",
        "batch_requests_in_queue",
    ],
)
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "1"])
def test_limits_are_whole_and_positive(field: str, value: Any) -> None:
    with pytest.raises(InvalidValueError, match=field):
        Limits(**{field: value})


def test_tiers_are_the_published_ones() -> None:
    start, scale = Limits.for_tier("start"), Limits.for_tier("scale")
    assert (start.requests_per_minute, start.input_tokens_per_minute) == (1_000, 2_000_000)
    assert (start.output_tokens_per_minute, start.batch_requests_in_queue) == (400_000, 200_000)
    assert (scale.requests_per_minute, scale.batch_requests_in_queue) == (10_000, 500_000)
    assert Policy().limits is None
    with pytest.raises(InvalidValueError, match="'start', 'build', 'scale'"):
        Limits.for_tier("huge")  # type: ignore[arg-type]


def test_progress_knows_when_it_is_done() -> None:
    half = Progress(total=2, by_status={Status.SETTLED: 1, Status.QUEUED: 1}, by_outcome={}, by_lane={})
    whole = Progress(total=1, by_status={Status.SETTLED: 1}, by_outcome={Outcome.SUCCEEDED: 1}, by_lane={})
    assert (half.settled, half.done, whole.done) == (1, False, True)


@given(st.text(max_size=2_000))
def test_what_is_shown_of_a_key_is_harmless(text: str) -> None:
    words = shown(text)
    assert words.isascii()
    assert words.isprintable()
    assert len(words) <= 80


def test_an_errors_message_defaults_to_its_meaning() -> None:
    assert str(BatchwiseError()) == "Something went wrong in batchwise."
