"""Lanes, latencies, tool uses, statuses, outcomes and reasons, and how callers may write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import Enum
from typing import Literal, TypeVar, Union

from batchwise.basics.times import LONGEST, check_aware, check_positive, check_reach, from_numpy
from batchwise.basics.timetext import parse_duration
from batchwise.basics.wording import exact
from batchwise.errors import InvalidValueError, shown

__all__ = [
    "Labels",
    "Lane",
    "Latency",
    "LatencyLike",
    "LatencyTag",
    "Outcome",
    "Reason",
    "Status",
    "ToolUse",
    "ToolUseLike",
    "parse_latency",
    "to_enum",
    "to_labels",
    "to_latency",
]


class Lane(str, Enum):
    """Which of the two APIs a request goes to."""

    SYNC = "sync"
    """The Messages API: full price, an answer in seconds."""
    BATCH = "batch"
    """The Message Batches API: half price, up to 24 hours."""


class Latency(str, Enum):
    """How long the caller can wait, if not a `timedelta` or a `datetime` says it."""

    BLOCKING = "blocking"
    """Somebody is waiting for the answer now."""
    FLEXIBLE = "flexible"
    """There is no deadline: answer whenever that is cheapest."""


LatencyTag = Union[Latency, timedelta, datetime]
"""`Latency`, a `timedelta` counted from the dispatch, or an aware `datetime` to be done by.

For a request that is dispatched by itself, an hour or more counts from the last full second.
"""

LatencyLike = Union[LatencyTag, Literal["blocking", "flexible"]]
"""What callers may write for it: also the string value of a `Latency`."""


class ToolUse(str, Enum):
    """What a request does with tools."""

    NONE = "none"
    SINGLE = "single"
    """Tools are declared and one turn's answer is the result (a forced tool, an extraction)."""
    SERVER = "server"
    """Only tools that the API runs itself."""
    ITERATIVE = "iterative"
    """The caller runs tools and goes on, and each turn is wanted now; a batch cannot carry that."""
    PATIENT = "patient"
    """The caller runs tools and goes on, but each turn may wait for a batch. Never inferred."""


ToolUseLike = Union[ToolUse, Literal["none", "single", "server", "iterative", "patient"]]
"""What callers may write for it: the member, or its value."""


class Status(str, Enum):
    """Where a request is."""

    QUEUED = "queued"
    IN_FLIGHT = "in_flight"
    SETTLED = "settled"


class Outcome(str, Enum):
    """How a request ended; each accepted request has exactly one."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REFUSED = "refused"
    """The model declined (`stop_reason` is `refusal`): billed, and no answer."""
    EXPIRED = "expired"
    CANCELED = "canceled"


class Reason(str, Enum):
    """Why a request goes to the lane it goes to. The values are stable."""

    ITERATIVE_TOOL_USE = "iterative_tool_use"
    BLOCKING = "blocking"
    STREAMING = "streaming"
    SYNC_ONLY_PARAMETER = "sync_only_parameter"
    BATCH_ONLY_PARAMETER = "batch_only_parameter"
    ZERO_DATA_RETENTION = "zero_data_retention"
    DEADLINE_INSIDE_WINDOW = "deadline_inside_window"
    DELAY_COSTS_MORE = "delay_costs_more"
    LATENCY_TOLERANT = "latency_tolerant"
    HEDGED = "hedged"


Labels = tuple[tuple[str, str], ...]
"""A request's labels by name."""

_E = TypeVar("_E", bound=Enum)


def to_enum(kind: type[_E], value: object, field: str) -> _E:
    """`value` as a member of `kind`, by member or by its string value.

    Raises:
        InvalidValueError: It is neither; the message lists the members.
    """
    try:
        return kind(value)
    except (ValueError, TypeError):
        known = ", ".join(repr(member.value) for member in kind)
        raise InvalidValueError(f"{field}={shown(value)} is not one of {known}") from None


def to_latency(value: object, field: str = "latency") -> LatencyTag:
    """`value` as a latency tag: a `Latency` (or its string), a positive `timedelta`, or an aware `datetime` (in UTC).

    Raises:
        InvalidValueError: It is none of these, or over a hundred years away.
    """
    value = from_numpy(value)
    if isinstance(value, timedelta):
        duration = check_positive(value, field)
        if duration > LONGEST:
            raise InvalidValueError(
                f"{field}={exact(duration)} is over a hundred years; for no deadline say Latency.FLEXIBLE"
            )
        return duration
    if isinstance(value, datetime):
        return check_reach(check_aware(value, field), field)
    try:
        return Latency(value)
    except (ValueError, TypeError):
        raise InvalidValueError(
            f"{field}={shown(value)} says nothing about how long the caller can wait; write {_meant(value)}, "
            "or an aware datetime (by then), Latency.BLOCKING (now) or Latency.FLEXIBLE (no deadline)"
        ) from None


def parse_latency(text: str, field: str) -> LatencyTag:
    """A latency as headers and command lines have it.

    Args:
        text: `now`, `flexible`, or a duration such as `30h`, `90m` or `2d`.
        field: What to call it in the error.

    Raises:
        InvalidValueError: It is none of these.
    """
    if text == "now":
        return Latency.BLOCKING
    return Latency.FLEXIBLE if text == Latency.FLEXIBLE.value else parse_duration(text, field)


def _meant(value: object) -> str:
    """The `timedelta` that a caller who wrote `value` probably meant, as Python code."""
    known = re.fullmatch(r"([0-9]{1,6})(?:\.0*)? *([a-z]*)", str(value).strip().lower())
    number, unit = (known[1], known[2]) if known and not isinstance(value, bool) else ("30", "")
    words = next((word for word in ("seconds", "minutes", "days") if unit and word.startswith(unit)), "hours")
    return f"timedelta({words}={int(number) or 30})"


_LABELS, _LABEL_LENGTH = 16, 128


def to_labels(value: object) -> Labels:
    """`value`, a mapping of names to values, as sorted pairs.

    Raises:
        InvalidValueError: It is no mapping, has over 16 names, or a name or value is not a string of 1 to 128 printable
            characters.
    """
    if not isinstance(value, Mapping):
        raise InvalidValueError(f"labels={shown(value)} is not a mapping; give e.g. labels={{'team': 'search'}}")
    if len(value) > _LABELS:
        raise InvalidValueError(f"there are {len(value)} labels, more than {_LABELS}; give fewer")
    for part in (*value, *value.values()):
        if not isinstance(part, str) or not 1 <= len(part) <= _LABEL_LENGTH or not part.isprintable():
            raise InvalidValueError(
                f"labels hold {shown(part)}; names and values of labels are strings of 1 to {_LABEL_LENGTH} printable "
                "characters; give e.g. labels={'team': 'search'}"
            )
    return tuple(sorted(value.items()))
