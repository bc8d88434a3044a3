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
        "model": "claude-sonnet-5",
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


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
"""Anything that Python's `json` reads, lone surrogates and integers beyond 64 bits among it."""
_words = st.sampled_from(
    [
        "text",
        "tool_use",
        "thinking",
        "server_tool_use",
        "end_turn",
        "pause_turn",
        "compaction",
        "refusal",
        "max_tokens",
        "x",
    ]
)
_blocks = st.dictionaries(
    st.sampled_from(["type", "text", "id", "name", "input", "caller", "citations"]), _words | json_values, max_size=5
)
messages = json_values | st.fixed_dictionaries(
    {},
    optional={
        "id": _words | json_values,
        "type": st.just("message") | json_values,
        "role": st.just("assistant") | json_values,
        "model": st.just("claude-sonnet-5") | json_values,
        "content": st.lists(_blocks | json_values, max_size=3) | json_values,
        "stop_reason": _words | json_values,
        "usage": usages() | json_values,
        "container": st.fixed_dictionaries({"id": json_values}) | json_values,
    },
)
"""Answers, right and wrong: anything that may stand where a message is expected."""
