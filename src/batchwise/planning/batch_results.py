"""Whether the results of an ended batch can still be read, and whether they agree with what the API counted."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

__all__ = ["UNANSWERED", "archived", "credible", "discrepancy"]

UNANSWERED = ("errored", "canceled", "expired")
"""The result types of rows without an answer."""
_RETENTION = timedelta(days=29)
"""For so long from a batch's creation the API keeps its results (API documentation)."""


def archived(archived_at: datetime | None, created_at: datetime, now: datetime) -> bool:
    """Whether the results of a batch are gone for good; all three moments are the server's."""
    return archived_at is not None or now - created_at >= _RETENTION


def credible(counts: Mapping[str, int], rows: int) -> Mapping[str, int] | None:
    """Return the API's counts of an ended batch's rows; None if they do not add up to its rows."""
    return counts if min(counts.values()) >= 0 and sum(counts.values()) == rows else None


def discrepancy(found: Mapping[str, int], counts: Mapping[str, int] | None) -> Mapping[str, int]:
    """Return how many more rows without an answer were read than the API counted, by result type; negative: fewer.

    An answer proves itself; a row without one proves nothing. If a stale row were believed, an answer that exists would
    be bought again.

    Args:
        found: The rows read, by the types of `UNANSWERED`.
        counts: What the API counted when the batch had ended; None: not known.

    Returns:
        Types that differ; none where all agree, or nothing is known.
    """
    if counts is None:
        return {}
    return {kind: found[kind] - counts[kind] for kind in UNANSWERED if found[kind] != counts[kind]}
