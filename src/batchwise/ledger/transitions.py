"""The life of a batch: which state may follow which, and why. The ledger refuses every other move.

The diagram in docs/explanation/design.md shows this table; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping

from batchwise.errors import LedgerError
from batchwise.planning.state import BatchState

__all__ = ["BEGINNINGS", "MOVES", "OVER", "check"]

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


def check(batch: int, was: BatchState, to: BatchState) -> None:
    """See that a state may follow the one that a batch has.

    Raises:
        LedgerError: It may not.
    """
    if to is not was and to not in MOVES[was]:
        before = " or ".join(state.value for state, following in MOVES.items() if to in following)
        raise LedgerError(
            f"batch {batch} is {was.value}, not {before}, and cannot become {to.value}; look at the snapshot again"
        )
