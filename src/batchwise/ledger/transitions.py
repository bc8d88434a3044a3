"""The lives of a request and of a batch: which state may follow which, and why. The ledger refuses every other move.

The diagrams in docs/explanation/design.md show these tables; a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from batchwise.errors import LedgerError
from batchwise.planning.state import BatchState

__all__ = [
    "BEGINNINGS",
    "MOVES",
    "OVER",
    "REQUEST_BEGINNINGS",
    "REQUEST_MOVES",
    "RequestState",
    "beginning",
    "check",
    "check_beginning",
    "check_request",
]


class RequestState(Enum):
    """Where a request is: its status, and its lane."""

    QUEUED_BATCH = "queued_batch"
    QUEUED_SYNC = "queued_sync"
    IN_BATCH = "in_batch"
    CALLING = "calling"
    SETTLED = "settled"


REQUEST_BEGINNINGS: Mapping[RequestState, str] = {
    RequestState.QUEUED_BATCH: "dispatched, batch lane",
    RequestState.QUEUED_SYNC: "dispatched, sync lane",
    RequestState.CALLING: "dispatched, and a slot is free",
    RequestState.IN_BATCH: "its batch was adopted",
}
"""The states in which a request begins."""

REQUEST_MOVES: Mapping[RequestState, Mapping[RequestState, str]] = {
    RequestState.QUEUED_BATCH: {
        RequestState.IN_BATCH: "sealed",
        RequestState.QUEUED_SYNC: "its last safe moment, or dispatched again for an earlier deadline",
        RequestState.CALLING: "too late for any lane, and about to fail",
        RequestState.SETTLED: "cancelled, or a batch that it had left delivers it",
    },
    RequestState.QUEUED_SYNC: {
        RequestState.CALLING: "a slot is free",
        RequestState.QUEUED_BATCH: "the sync lane is suspended",
        RequestState.SETTLED: "cancelled, abandoned, or a batch that it had left delivers it",
    },
    RequestState.IN_BATCH: {
        RequestState.SETTLED: "row collected, cancelled, or failed for good",
        RequestState.QUEUED_BATCH: "not sent, expired, missing or retryable, time for another batch",
        RequestState.QUEUED_SYNC: "the same without time, or rescued",
    },
    RequestState.CALLING: {
        RequestState.SETTLED: "answered, failed for good, or abandoned",
        RequestState.QUEUED_SYNC: "retryable, or given back",
    },
    RequestState.SETTLED: {
        RequestState.QUEUED_BATCH: "begun anew, batch lane",
        RequestState.QUEUED_SYNC: "begun anew, sync lane",
    },
}
"""From each state the states that may follow, and why they do."""

BEGINNINGS: Mapping[BatchState, str] = {
    BatchState.SEALED: "rows and a random nonce are durable",
    BatchState.OPEN: "adopted, made elsewhere",
}
"""The states in which a batch begins."""

MOVES: Mapping[BatchState, Mapping[BatchState, str]] = {
    BatchState.SEALED: {
        BatchState.POSTING: "made durable before the POST",
        BatchState.VOID: "never sent, its requests went elsewhere",
    },
    BatchState.POSTING: {
        BatchState.OPEN: "the API gave its id",
        BatchState.IN_DOUBT: "the answer was lost",
        BatchState.VOID: "its create was refused",
    },
    BatchState.IN_DOUBT: {
        BatchState.OPEN: "found in the listing",
        BatchState.WATCHED: "not seen in time, its requests went elsewhere",
        BatchState.VOID: "its create was refused after all",
    },
    BatchState.WATCHED: {
        BatchState.OPEN: "turned up after all, and is cancelled next",
        BatchState.VOID: "its window has passed",
    },
    BatchState.OPEN: {
        BatchState.CANCELING: "last safe moment, or cancelled by you",
        BatchState.ENDED: "the API is done with it",
        BatchState.CLOSED: "the API has lost it",
        BatchState.VOID: "given up, its requests went elsewhere",
    },
    BatchState.CANCELING: {
        BatchState.OPEN: "the cancel did not arrive",
        BatchState.ENDED: "the API is done with it",
        BatchState.CLOSED: "the API has lost it",
        BatchState.VOID: "given up, its requests went elsewhere",
    },
    BatchState.ENDED: {
        BatchState.CLOSED: "every row ticked off",
        BatchState.VOID: "given up, its requests went elsewhere",
    },
    BatchState.CLOSED: {},
    BatchState.VOID: {
        BatchState.OPEN: "its create was answered late",
    },
}
"""From each state the states that may follow, and why they do."""

OVER = frozenset({BatchState.CLOSED, BatchState.VOID})
"""The states in which nothing more is expected of a batch."""


def beginning(state: BatchState) -> str:
    """A state in which a batch begins, as it is stored.

    Raises:
        LedgerError: No batch begins so.
    """
    if state not in BEGINNINGS:
        raise LedgerError(f"no batch begins as {state.value}; look at the snapshot again")
    return state.value


def check(batch: int, was: BatchState, to: BatchState) -> None:
    """Check that a state may follow the one that a batch has.

    Raises:
        LedgerError: It may not.
    """
    if to is not was and to not in MOVES[was]:
        before = " or ".join(state.value for state, following in MOVES.items() if to in following)
        raise LedgerError(
            f"batch {batch} is {was.value}, not {before}, and cannot become {to.value}; look at the snapshot again"
        )


def check_beginning(state: RequestState) -> None:
    """Check that a request may begin in a state.

    Raises:
        LedgerError: It may not.
    """
    if state not in REQUEST_BEGINNINGS:
        raise LedgerError(f"no request begins as {state.value}; look at the snapshot again")


def check_request(was: RequestState, to: RequestState) -> None:
    """Check that a state may follow the one that a request has. The same state may: it goes on on other terms.

    Raises:
        LedgerError: It may not.
    """
    if to is not was and to not in REQUEST_MOVES[was]:
        raise LedgerError(f"a request that is {was.value} cannot become {to.value}; look at the snapshot again")
