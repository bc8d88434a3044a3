"""Hypothesis strategies that several test modules share."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from hypothesis import strategies as st

from batchwise.models import Latency, Limits
from batchwise.request import Request

HOUR = timedelta(hours=1)
NOW = datetime(2026, 11, 23, 12, tzinfo=timezone.utc)

instants = st.datetimes(
    min_value=datetime(2025, 1, 1),  # noqa: DTZ001
    max_value=datetime(2030, 1, 1),  # noqa: DTZ001
    timezones=st.just(timezone.utc),
)
durations = st.timedeltas(min_value=timedelta(microseconds=1), max_value=timedelta(days=30))
slas = st.timedeltas(min_value=timedelta(hours=25), max_value=timedelta(days=14))
latencies = st.one_of(st.sampled_from(Latency), durations)
keys = st.text(min_size=1, max_size=1_024)
limits = st.builds(
    Limits,
    requests_per_minute=st.none() | st.integers(1, 20_000),
    input_tokens_per_minute=st.none() | st.integers(1_000, 20_000_000),
    output_tokens_per_minute=st.none() | st.integers(1_000, 5_000_000),
    concurrency=st.none() | st.integers(1, 2_000),
    latency=st.timedeltas(min_value=timedelta(milliseconds=50), max_value=timedelta(minutes=10)),
    batch_requests_in_queue=st.none() | st.integers(1, 500_000),
)


def params(text: str = "Hello", **others: Any) -> dict[str, Any]:
    """The body of a small Messages call."""
    return {
        "model": "claude-sonnet-4-5",
        "max_tokens": 1_024,
        "messages": [{"role": "user", "content": text}],
        **others,
    }


requests = st.builds(
    Request, st.builds(params, st.text(max_size=50)), key=st.none() | keys, latency=st.none() | latencies
)


_tokens = st.one_of(st.integers(0, 2_000), st.integers(0, 2_000_000))


@st.composite
def usages(draw: st.DrawFn) -> dict[str, Any]:
    """An answer's `usage`, as the API words it."""
    five, hour = draw(_tokens), draw(_tokens)
    usage: dict[str, Any] = {
        "input_tokens": draw(_tokens),
        "output_tokens": draw(_tokens),
        "cache_creation_input_tokens": draw(st.sampled_from([five + hour, None])) if five + hour == 0 else five + hour,
        "cache_read_input_tokens": draw(st.none() | _tokens),
        "service_tier": "standard",
    }
    if hour or draw(st.booleans()):
        usage["cache_creation"] = {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": hour}
    return usage
