"""The words of batchwise as frozen values: lanes, tags, policy, decisions and reports.

No behaviour beyond their own consistency: rules live in `batchwise.planning`, effects in the drivers.
"""

from __future__ import annotations

from .decision import Check, Decision, ResultError
from .policy import GRAIN, Limits, Policy, Rates, check_policy
from .progress import Progress, RunningBatch
from .report import BatchRecord, Report
from .tags import (
    Labels,
    Lane,
    Latency,
    LatencyLike,
    LatencyTag,
    Outcome,
    Reason,
    Status,
    ToolUse,
    ToolUseLike,
    parse_latency,
    to_enum,
    to_labels,
    to_latency,
)

__all__ = [
    "GRAIN",
    "BatchRecord",
    "Check",
    "Decision",
    "Labels",
    "Lane",
    "Latency",
    "LatencyLike",
    "LatencyTag",
    "Limits",
    "Outcome",
    "Policy",
    "Progress",
    "Rates",
    "Reason",
    "Report",
    "ResultError",
    "RunningBatch",
    "Status",
    "ToolUse",
    "ToolUseLike",
    "check_policy",
    "parse_latency",
    "to_enum",
    "to_labels",
    "to_latency",
]
