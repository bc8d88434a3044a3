"""The public names: all there, nothing else, and cheap to import."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import batchwise

# The public names; they are a contract.
CONTRACT = {
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
}


def _tree() -> ast.Module:
    return ast.parse(Path(inspect.getfile(batchwise)).read_text(encoding="utf-8"))


def _imported(body: list[ast.stmt]) -> dict[str, str]:
    """The public names that these statements import, with the module that each comes from."""
    return {
        alias.asname or alias.name: node.module or ""
        for node in body
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }


def _for_type_checkers() -> dict[str, str]:
    (block,) = (node for node in _tree().body if isinstance(node, ast.If))
    return _imported(block.body)


def test_all_is_sorted_and_has_no_name_twice():
    assert batchwise.__all__ == sorted(set(batchwise.__all__))


def test_all_equals_what_is_exported():
    assert set(batchwise.__all__) == {*_imported(_tree().body), *batchwise._LAZY}


@pytest.mark.parametrize("name", batchwise.__all__)
def test_every_name_resolves(name):
    value = getattr(batchwise, name)
    assert value is not None
    assert inspect.getdoc(value), f"{name} has no docstring"


def test_what_a_user_sees_is_the_contract_and_nothing_else():
    assert set(batchwise.__all__) == CONTRACT
    assert dir(batchwise) == batchwise.__all__


def _errors() -> set[str]:
    errors = importlib.import_module("batchwise.errors")
    return {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}


def test_every_error_is_exported():
    assert _errors() <= set(batchwise.__all__)
    assert all(issubclass(getattr(batchwise, name), batchwise.BatchwiseError) for name in _errors())


def test_every_error_is_made_somewhere():
    source = Path(inspect.getfile(batchwise)).parent
    made = {
        node.func.id
        for file in source.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert _errors() - {"BatchwiseError"} <= made  # the root is what users catch, never made itself


def test_star_import_brings_all():
    namespace: dict[str, object] = {}
    exec("from batchwise import *", namespace)  # noqa: S102  # a star import is only allowed at module level
    assert set(batchwise.__all__) <= set(namespace)


def test_lazy_names_are_those_under_type_checking():
    assert _for_type_checkers() == batchwise._LAZY


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'batchify'"):
        batchwise.batchify  # noqa: B018  # the access is the test


def test_the_typing_tests_use_every_name():
    text = Path(__file__).with_name("typing").joinpath("api.py").read_text(encoding="utf-8")
    assert set(re.findall(r"\bbw\.(\w+)", text)) >= set(batchwise.__all__)


HEAVY = {
    "anthropic",
    "pydantic",
    "httpx2",
    "httpx",
    "genai_prices",
    "sqlite3",
    "tenacity",
    "anyio",
    "asyncio",
    "batchwise.models",
    "batchwise.basics.pictures",
}
CADENCE = "import batchwise; from datetime import timedelta; batchwise.sla_cadence(timedelta(hours=30))"
ROUTING = """
import batchwise
from datetime import datetime, timedelta, timezone
params = {"model": "claude-sonnet-5", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]}
request = batchwise.Request(params, latency=timedelta(hours=30))
assert batchwise.choose_lane(request, now=datetime.now(timezone.utc)).explanation
"""


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("import batchwise", HEAVY),
        (CADENCE, HEAVY),
        ("import batchwise; dir(batchwise)", HEAVY),
        (ROUTING, {"anthropic", "httpx2", "httpx", "sqlite3"}),
    ],
    ids=["import", "cadence", "dir", "routing"],
)
def test_planning_costs_no_heavy_import(code, forbidden):
    script = f"{code}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    assert not forbidden & set(done.stdout.split())
