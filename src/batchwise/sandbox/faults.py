"""Faults to order, by name."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ApiError
from .latency import seeded

# name -> (what happens, its parameters with their defaults)
KNOWN_FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "create.drop_before": ("the connection drops, nothing is created", {}),
    "create.drop_after": ("the batch is accepted, the connection drops without an answer", {}),
    "create.accepted_late": ("the connection drops, the batch appears `delay` seconds later", {"delay": 1.0}),
    "create.slow": ("`delay` seconds pass between acceptance and answer", {"delay": 1.0}),
    "create.hang": ("accepted, then no answer until the client gives up", {}),
    "create.error_500_before": ("500, nothing created", {}),
    "create.error_500_after": ("500 although the batch was accepted", {}),
    "create.overloaded_529": ("529, nothing created", {}),
    "create.rate_limited_429": ("429, `retry_after` seconds in the header, no header if None", {"retry_after": None}),
    "create.too_large_413": ("413, nothing created", {}),
    "create.invalid_400": ("400 with `message`, nothing created", {"message": "requests: ordered by the test"}),
    "create.unauthorized_401": ("401, nothing created", {}),
    "create.billing_402": ("402, nothing created", {}),
    "retrieve.not_found_404": ("404; with `younger_than` only for batches younger than that", {"younger_than": None}),
    "retrieve.error_500": ("500", {}),
    "retrieve.miscount": ("`request_counts` of an ended batch count an answered row as expired; `zero`: are all zero",
                          {"zero": False}),
    "retrieve.stale": ("the status of `ago` seconds ago (None: as just created)", {"ago": None}),
    "list.error_500": ("500", {}),
    "list.lag": ("batches younger than `delay` seconds are not shown", {"delay": 1.0}),
    "results.drop": ("the connection is cut after `after_rows` rows (None: half), inside a line", {"after_rows": None}),
    "results.cut_line": ("a clean end inside a line after `after_rows` rows (None: half)", {"after_rows": None}),
    "results.garbage_line": ("a line that is no JSON at row `at` (None: half); `replace`: in a row's place",
                             {"at": None, "replace": False}),
    "results.blank_line": ("an empty line at row `at` (None: half)", {"at": None}),
    "results.crlf": ("lines end with CRLF, and CR and LF come in different chunks", {}),
    "results.early_end": ("a clean end after `after_rows` rows (None: half)", {"after_rows": None}),
    "results.duplicate_row": ("the row at `at` (None: half) comes twice; then with `type`, where that is given",
                              {"at": None, "type": None}),
    "results.foreign_row": ("a row with `custom_id` nobody sent", {"custom_id": "foreign-row"}),
    "results.missing_row": ("every `every`-th row is left out, from the `first` on, always the same ones",
                            {"every": 10, "first": 0}),
    "results.unknown_type": ("every `every`-th row has a result type of `type`", {"every": 10, "type": "deferred"}),
    "results.stale_row": ("every `every`-th row, the first one too, is said to have ended as `type`, answered or not",
                          {"every": 3, "type": "expired"}),
    "results.gone": ("404, as after the retention", {}),
    "results.error_500": ("500", {}),
    "cancel.hang": ("the batch stays `canceling` for `delay` seconds", {"delay": 5.0}),
    "cancel.no_effect": ("the cancel comes too late: every row is finished and billed", {}),
    "cancel.error_500": ("500, nothing canceled", {}),
    "messages.drop_before": ("the connection drops, nothing is bought", {}),
    "messages.drop_after_billing": ("answered and billed, but the connection drops before the answer", {}),
    "messages.overloaded_529": ("529", {}),
    "messages.rate_limited_429": ("429, `retry_after` seconds in the header, or no header if None", {"retry_after": 1}),
    "messages.spend_cap": ("429 of the monthly spend limit, `enforced_spend_limit_reached`, no retry-after", {}),
    "messages.error_500": ("500", {}),
    "messages.slow": ("takes `delay` seconds more", {"delay": 1.0}),
    "messages.unauthorized_401": ("401", {}),
    "messages.billing_402": ("402", {}),
    "batch.all_rows_error": ("all rows of a batch end with one same error", {
        "type": "invalid_request_error",
        "message": "Your credit balance is too low to access the Anthropic API.",
    }),
    "batch.row_error": ("rows fail, each with the fault's probability", {
        "type": "api_error", "message": "Internal server error"}),
    "batch.row_expired": ("rows expire, each with the fault's probability", {}),
}  # fmt: skip

_PER_ROW = ("batch.row_error", "batch.row_expired")


class UnknownFaultError(ValueError):
    """A fault was ordered by a name that the sandbox does not have."""


@dataclass
class Fault:
    """One ordered fault.

    Attributes:
        name: a key of `KNOWN_FAULTS`.
        times: how often it happens; None: always.
        probability: how likely it is at each chance (of the `batch.row_*` faults: of each row).
        skip: how many chances pass before the first.
        params: its parameters, defaults included.
        fired: how often it happened.
    """

    name: str
    times: int | None = 1
    probability: float = 1.0
    skip: int = 0
    params: dict[str, Any] = field(default_factory=dict)
    fired: int = 0

    def __getitem__(self, name: str) -> Any:
        return self.params[name]

    @property
    def spent(self) -> bool:
        """Whether it will not happen again."""
        return self.times is not None and self.fired >= self.times


class FaultBox:
    """The faults ordered of one sandbox."""

    def __init__(self, seed: int) -> None:
        self._lock = threading.Lock()
        self._orders: dict[str, list[Fault]] = {}
        self._random = seeded(f"{seed}:faults")
        self.fired: Counter[str] = Counter()

    def order(self, name: str, times: int | None, probability: float, skip: int, params: Mapping[str, Any]) -> Fault:
        """Order a fault.

        Raises:
            UnknownFaultError: no fault has this name.
            TypeError: the fault has no such parameter.
        """
        if name not in KNOWN_FAULTS:
            raise UnknownFaultError(f"unknown fault {name!r}; known faults: {', '.join(KNOWN_FAULTS)}")
        defaults = KNOWN_FAULTS[name][1]
        for parameter in params:
            if parameter not in defaults:
                known = ", ".join(defaults) or "none"
                raise TypeError(f"fault {name!r} has no parameter {parameter!r}; its parameters: {known}")
        if times is not None and times < 1:
            raise ValueError(f"times must be at least 1, or None for always; got {times}")
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"probability must be from 0 to 1; got {probability}")
        fault = Fault(name, times, probability, skip, {**defaults, **params})
        with self._lock:
            self._orders.setdefault(name, []).append(fault)
        return fault

    def clear(self, name: str | None = None) -> None:
        """Forget the orders of this name, or all. What fired stays counted."""
        with self._lock:
            if name is None:
                self._orders.clear()
            else:
                self._orders.pop(name, None)

    def fire(self, name: str, when: Callable[[Fault], bool] | None = None) -> Fault | None:
        """Return the fault of this name if it happens now, and count it. `when` says whether it could happen here."""
        if name not in self._orders:  # most requests meet no fault, and need no lock
            return None
        with self._lock:
            for fault in self._orders.get(name, ()):
                if fault.spent or (when is not None and not when(fault)):
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                if name in _PER_ROW or self._random.random() < fault.probability:
                    fault.fired += 1
                    self.fired[name] += 1
                    return fault
        return None


_REFUSALS = (
    ("unauthorized_401", "authentication_error", "invalid x-api-key"),
    ("billing_402", "billing_error", "Your organization's billing is not in order."),
    ("overloaded_529", "overloaded_error", "Overloaded"),
    ("error_500_before", "api_error", "Internal server error"),
    ("error_500", "api_error", "Internal server error"),
    ("too_large_413", "request_too_large", "Request exceeds the maximum size"),
    ("invalid_400", "invalid_request_error", ""),
)


def refuse(box: FaultBox, operation: str) -> None:
    """Raise the error of the first refusing fault that happens to this operation."""
    for suffix, type_, message in _REFUSALS:
        name = f"{operation}.{suffix}"
        fault = box.fire(name) if name in KNOWN_FAULTS else None
        if fault is not None:
            raise ApiError(type_, fault.params.get("message", message))
    fault = box.fire(f"{operation}.rate_limited_429")
    if fault is not None:
        wait = fault["retry_after"]
        headers = {} if wait is None else {"retry-after": str(wait)}
        raise ApiError("rate_limit_error", "This request would exceed your rate limit.", headers=headers)
    if box.fire(f"{operation}.spend_cap"):
        raise ApiError(
            "rate_limit_error",
            "You have reached your specified API usage limits.",
            details={"error_code": "enforced_spend_limit_reached"},
        )
