from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from batchwise.planning.batch_results import archived, credible


@pytest.mark.parametrize(
    ("counts", "believed"),
    [
        ({"succeeded": 2, "errored": 1}, True),
        ({"succeeded": 3, "errored": 0}, True),
        ({"succeeded": 2, "errored": 0}, False),
        ({"succeeded": 4, "errored": -1}, False),
    ],
)
def test_counts_are_believed_that_add_up(counts: dict[str, int], believed: bool) -> None:
    assert credible(counts, 3) == (counts if believed else None)


def test_results_are_gone_after_29_days_or_when_the_api_says_so():
    created = datetime(2026, 11, 1, tzinfo=timezone.utc)
    last = created + timedelta(days=29)
    assert archived(None, created, last)
    assert not archived(None, created, last - timedelta(microseconds=1))
    assert archived(created, created, created)
