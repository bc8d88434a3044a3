"""Chooses how many requests a batch should have: its results cannot be read before all of it has ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import timedelta

from .forecast import Sample, size_class
from .packing import MAX_REQUESTS
from .state import Group

__all__ = ["SIZES", "best_size", "expected_ends", "well_known"]

SIZES = (10_000, 1_000, 100)
"""Sizes that may be chosen instead of the largest: the forecast distinguishes sizes by their number of digits."""
_MOST_BATCHES = 100
"""The most batches into which one submission is cut: each needs calls of its own (our choice)."""
_GAIN = 0.1
"""The share of the time by which a smaller size has to be earlier: a forecast is no more exact (our choice)."""
_ENOUGH = 5
"""So many batches of a model and class must have ended before their time is compared with others (our choice)."""


def well_known(samples: Iterable[Sample]) -> frozenset[tuple[str, int]]:
    """Return the models and classes of which enough batches have ended to compare their times."""
    seen = Counter(
        (sample.model, size_class(sample.requests))
        for sample in samples
        if sample.kind == "batch" and sample.ended and sample.model
    )
    return frozenset((model, where) for (model, where), times in seen.items() if times >= _ENOUGH)


def best_size(requests: int, ends: Mapping[int, timedelta]) -> int:
    """Return the most requests that each batch should have, so that answers can be read earlier for the same money.

    All batches are sent at once, so an answer can be read when its own batch has ended: smaller ones are better where
    they are expected to end earlier. Of sizes that are about as early the largest is taken.

    Args:
        requests: How many wait together, at least 1.
        ends: The mean time from a batch's creation to its end, by the class of its size; a class of which nothing is
            known is not chosen.

    Returns:
        One of `SIZES`, or the API's limit (100,000).
    """
    best, earliest = MAX_REQUESTS, ends.get(size_class(min(requests, MAX_REQUESTS)))
    for size in SIZES:
        end = ends.get(size_class(size))
        if earliest is None or end is None or not size < requests <= size * _MOST_BATCHES:
            continue
        if end <= earliest * (1 - _GAIN):
            best, earliest = size, end
    return best


def expected_ends(groups: Iterable[Group], ends: Mapping[tuple[str, int], timedelta]) -> dict[int, timedelta]:
    """Return the mean time to the end of batches in which these groups go together, by the class of their size.

    Each batch has them in the same proportions; `ends` has the mean time by model and class.
    """
    found = list(groups)
    total = sum(group.requests for group in found)
    classes = {where for _, where in ends}
    known = [where for where in classes if all((group.terms.model, where) in ends for group in found)]
    return {
        where: sum((group.requests * ends[group.terms.model, where] for group in found), timedelta(0)) / total
        for where in known
    }
