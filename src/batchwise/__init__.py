"""Half-price Claude batches that keep deadlines.

Give it requests and say how long each may take; it spends the least money that meets every deadline, loses none of
them across crashes, and hands each result back to the request that it came from.

Importing this module is cheap: all but the arithmetic of cadences is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    AdmissionError,
    BatchwiseError,
    ClosedDispatcherError,
    ForkedDispatcherError,
    InfeasibleSLAError,
    InvalidRequestError,
    InvalidValueError,
    JobNotFoundError,
    KeyConflictError,
    LaneSuspendedError,
    LedgerError,
    LedgerNotFoundError,
    NoCronExpressionError,
    RequestFailedError,
    RequestTooLargeError,
    ResultTimeoutError,
    SpendLimitError,
    TicketNotFoundError,
    UnknownPriceError,
    WrongLoopError,
    WrongWorkspaceError,
)
from .planning.cadence import (
    Cadence,
    largest_rescuable,
    latest_submission,
    rescue_duration,
    sla_cadence,
    worst_case_latency,
)

if TYPE_CHECKING:
    from .async_dispatcher import AsyncDispatcher
    from .async_tickets import AsyncJob, AsyncTicket
    from .client.tagging import tags
    from .default import dispatch
    from .dispatcher import Dispatcher
    from .live import track
    from .models import (
        Check,
        Decision,
        Lane,
        Latency,
        Limits,
        Outcome,
        Policy,
        Progress,
        Rates,
        Reason,
        Report,
        ResultError,
        RunningBatch,
        Status,
        ToolUse,
    )
    from .planning.routing import choose_lane
    from .planning.workload import PlanTable, WorkloadPlan, compare_slas, plan_workload
    from .request import Request
    from .results import Result, ToolCall
    from .tickets import Job, Ticket

__version__ = "0.1.0"

__all__ = [
    "AdmissionError",
    "AsyncDispatcher",
    "AsyncJob",
    "AsyncTicket",
    "BatchwiseError",
    "Cadence",
    "Check",
    "ClosedDispatcherError",
    "Decision",
    "Dispatcher",
    "ForkedDispatcherError",
    "InfeasibleSLAError",
    "InvalidRequestError",
    "InvalidValueError",
    "Job",
    "JobNotFoundError",
    "KeyConflictError",
    "Lane",
    "LaneSuspendedError",
    "Latency",
    "LedgerError",
    "LedgerNotFoundError",
    "Limits",
    "NoCronExpressionError",
    "Outcome",
    "PlanTable",
    "Policy",
    "Progress",
    "Rates",
    "Reason",
    "Report",
    "Request",
    "RequestFailedError",
    "RequestTooLargeError",
    "Result",
    "ResultError",
    "ResultTimeoutError",
    "RunningBatch",
    "SpendLimitError",
    "Status",
    "Ticket",
    "TicketNotFoundError",
    "ToolCall",
    "ToolUse",
    "UnknownPriceError",
    "WorkloadPlan",
    "WrongLoopError",
    "WrongWorkspaceError",
    "choose_lane",
    "compare_slas",
    "dispatch",
    "largest_rescuable",
    "latest_submission",
    "plan_workload",
    "rescue_duration",
    "sla_cadence",
    "tags",
    "track",
    "worst_case_latency",
]

_LAZY = {
    "AsyncDispatcher": "async_dispatcher",
    "AsyncJob": "async_tickets",
    "AsyncTicket": "async_tickets",
    "Check": "models",
    "Decision": "models",
    "Dispatcher": "dispatcher",
    "Job": "tickets",
    "Lane": "models",
    "Latency": "models",
    "Limits": "models",
    "Outcome": "models",
    "PlanTable": "planning.workload",
    "Policy": "models",
    "Progress": "models",
    "Rates": "models",
    "Reason": "models",
    "Report": "models",
    "Request": "request",
    "Result": "results",
    "ResultError": "models",
    "RunningBatch": "models",
    "Status": "models",
    "Ticket": "tickets",
    "ToolCall": "results",
    "ToolUse": "models",
    "WorkloadPlan": "planning.workload",
    "choose_lane": "planning.routing",
    "compare_slas": "planning.workload",
    "dispatch": "default",
    "plan_workload": "planning.workload",
    "tags": "client.tagging",
    "track": "live",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
