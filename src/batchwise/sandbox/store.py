"""The store of all batches: it keeps, finds and lists them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

from .batches import Batch
from .errors import invalid


class BatchStore:
    """All batches of a sandbox, found by id and listed by time."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._by_id: dict[str, Batch] = {}

    def add(self, batch: Batch) -> None:
        """Accept a batch. It is visible from its `created_at` on, which may be in the future."""
        with self.lock:
            self._by_id[batch.id] = batch

    def get(self, batch_id: str) -> Batch:
        """Return the batch of this id, in whatever workspace it is.

        Raises:
            KeyError: there is none.
        """
        return self._by_id[batch_id]

    def find(self, batch_id: str, workspace: str, now: float) -> Batch | None:
        """Return the batch of this id that a caller in the workspace sees; None: it sees none."""
        batch = self._by_id.get(batch_id)
        if batch is None or batch.deleted or batch.workspace != workspace or batch.created_at > now:
            return None
        return batch

    def accepted(self, now: float) -> list[Batch]:
        """Return every batch that was accepted by now, deleted ones too, oldest first."""
        with self.lock:
            found = [batch for batch in self._by_id.values() if batch.created_at <= now]
        return sorted(found, key=lambda batch: (batch.created_at, batch.number))

    def visible(self, workspace: str, now: float, keep: Callable[[Batch], bool]) -> list[Batch]:
        """Return the batches that a list in the workspace shows, newest first."""
        found = [b for b in self.accepted(now) if not b.deleted and b.workspace == workspace and keep(b)]
        found.reverse()
        return found

    def queued_rows(self, now: float) -> int:
        """Return how many rows the unfinished batches of the account have."""
        return sum(len(batch.rows) for batch in self.accepted(now) if batch.status(now) != "ended")


def page(ids: Sequence[str], query: Mapping[str, str]) -> tuple[int, int, bool]:
    """Return start, end and `has_more` of the page that a list query asks for.

    Args:
        ids: of all items, newest first.
        query: `limit`, `after_id` (further down), `before_id` (further up).

    Raises:
        ApiError: 400, a parameter is wrong.
    """
    count = len(ids)
    limit = _limit(query.get("limit", "20"))
    after, before = query.get("after_id"), query.get("before_id")
    if after and before:
        raise invalid("after_id and before_id cannot both be set")
    cursor = after or before
    if cursor and cursor not in ids:
        raise invalid(f"Invalid cursor: {cursor[:100]!r} not found")
    if before:
        end = ids.index(before)
        start = max(0, end - limit)
        return start, end, start > 0
    start = ids.index(after) + 1 if after else 0
    end = min(count, start + limit)
    return start, end, end < count


def _limit(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise invalid("limit: Input should be from 1 to 1000")
    return int(text)
