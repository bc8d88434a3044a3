"""What a verb answers: text for people, one JSON object for programs, and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any

import attrs
import orjson

from batchwise.errors import (
    BatchwiseError,
    InfeasibleSLAError,
    InvalidRequestError,
    InvalidValueError,
    JobNotFoundError,
    LaneSuspendedError,
    LedgerNotFoundError,
    TicketNotFoundError,
)
from batchwise.models import Progress

__all__ = ["Answer", "Exit", "as_json", "code_of", "jsonable", "note", "refuse", "say", "tell"]


class Exit(IntEnum):
    """The exit codes."""

    DONE = 0
    ERROR = 1
    """The verb failed; the reason is on stderr."""
    USAGE = 2
    """The command line, or the file of the policy, is wrong; the reason is on stderr."""
    SUSPENDED = 3
    """A lane is suspended: the API refuses work until somebody fixes the cause."""
    AT_RISK = 4
    """Deadlines are at risk or overdue."""
    NOT_FOUND = 5
    """There is no such ledger, job or request."""
    INTERRUPTED = 130
    """Ctrl-C, or SIGTERM in `advance --watch`. All accepted requests are in the ledger."""


@attrs.frozen
class Answer:
    """What a verb answers.

    Attributes:
        text: For people.
        values: For programs, as `jsonable` makes them.
        code: The exit code.
    """

    text: str
    values: Mapping[str, Any]
    code: int = Exit.DONE


_CODES: tuple[tuple[type[BaseException], Exit], ...] = (
    (LedgerNotFoundError, Exit.NOT_FOUND),
    (JobNotFoundError, Exit.NOT_FOUND),
    (TicketNotFoundError, Exit.NOT_FOUND),
    (LaneSuspendedError, Exit.SUSPENDED),
    (InvalidRequestError, Exit.ERROR),
    (InfeasibleSLAError, Exit.ERROR),
    (InvalidValueError, Exit.USAGE),
    (KeyboardInterrupt, Exit.INTERRUPTED),
)


def code_of(found: Progress | BaseException) -> Exit:
    """Return the exit code for a progress or an error."""
    if isinstance(found, Progress):
        if found.suspended:
            return Exit.SUSPENDED
        return Exit.AT_RISK if found.at_risk or found.overdue else Exit.DONE
    return next((code for kind, code in _CODES if isinstance(found, kind)), Exit.ERROR)


def jsonable(value: Any) -> Any:
    """Return a value as JSON has it: fields by name, moments in ISO 8601, durations in seconds, money as text."""
    if isinstance(value, Progress):
        return {**_fields(value), "settled": value.settled, "done": value.done}
    if attrs.has(type(value)):
        return _fields(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, date):  # a datetime is one
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, Mapping):
        return _table(value)
    return [jsonable(each) for each in value] if isinstance(value, (tuple, list)) else value


def _table(value: Mapping[Any, Any]) -> dict[str, Any]:
    """A mapping as JSON has it. Keys that are tuples become nested objects: `{("a", "b"): 1}` is `{"a": {"b": 1}}`."""
    table: dict[str, Any] = {}
    for name, each in value.items():
        *outer, last = name if isinstance(name, tuple) else (jsonable(name),)
        inner = table
        for word in outer:
            inner = inner.setdefault(word, {})
        inner[last] = jsonable(each)
    return table


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: jsonable(getattr(value, field.name)) for field in attrs.fields(type(value))}


def as_json(verb: str, code: int, values: Mapping[str, Any]) -> str:
    """Return a verb's answer as JSON. All verbs have the same shape: `{"command": ..., "exit_code": ..., ...}`."""
    return orjson.dumps({"command": verb, "exit_code": int(code), **values}).decode()


def note(words: str) -> None:
    """Print a line on stderr."""
    sys.stderr.write(f"batchwise: {words}\n")
    sys.stderr.flush()


def say(text: str) -> None:
    """Print text on stdout at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def refuse(verb: str, error: BaseException, *, json: bool) -> int:
    """Print why a verb failed; returns the exit code."""
    words, code = str(error) or "interrupted", code_of(error)
    note(words)
    if json:
        say(as_json(verb, code, {"error": {"type": type(error).__name__, "message": words}}))
    return code


def tell(verb: str, ask: Callable[[], Answer], *, json: bool) -> int:
    """Print what a verb answers, or why it failed; returns the exit code."""
    try:
        answer = ask()
    except (BatchwiseError, KeyboardInterrupt) as error:
        return refuse(verb, error, json=json)
    text = as_json(verb, answer.code, answer.values) if json else answer.text
    if text:
        say(text)
    return answer.code
