"""Where the batches are kept, found and listed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

from .batches import Batch
from .errors import ApiError


class BatchStore:
    """All batches of a sandbox, found by id and listed by time."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._by_id: dict[str, Batch] = {}

    def add(self, batch: Batch) -> None:
        """Accept a batch; one with a later `created_at` shows from then on."""
        with self.lock:
            self._by_id[batch.id] = batch

    def get(self, batch_id: str) -> Batch:
        """The batch of this id, whoever asks.

        Raises:
            KeyError: there is none.
        """
        return self._by_id[batch_id]

    def find(self, batch_id: str, workspace: str, now: float) -> Batch | None:
        """The batch that a caller in the workspace sees under this id."""
        batch = self._by_id.get(batch_id)
        if batch is None or batch.deleted or batch.workspace != workspace or batch.created_at > now:
            return None
        return batch

    def accepted(self, now: float) -> list[Batch]:
        """Every batch that was accepted by now, deleted ones too, oldest first."""
        with self.lock:
            found = [batch for batch in self._by_id.values() if batch.created_at <= now]
        return sorted(found, key=lambda batch: (batch.created_at, batch.number))

    def visible(self, workspace: str, now: float, keep: Callable[[Batch], bool]) -> list[Batch]:
        """What a list in the workspace shows, newest first."""
        found = [b for b in self.accepted(now) if not b.deleted and b.workspace == workspace and keep(b)]
        found.reverse()
        return found

    def queued_rows(self, now: float) -> int:
        """Rows of all unfinished batches of the account."""
        return sum(len(batch.rows) for batch in self.accepted(now) if batch.status(now) != "ended")


def page(ids: Sequence[str], query: Mapping[str, str]) -> tuple[int, int, bool]:
    """Start, end and `has_more` of the page that a list query asks for.

    Args:
        ids: all there is, newest first.
        query: `limit`, `after_id` (further down), `before_id` (further up).

    Raises:
        ApiError: 400, a parameter is wrong.
    """
    count = len(ids)
    limit = _limit(query.get("limit", "20"))
    after, before = query.get("after_id"), query.get("before_id")
    if after and before:
        raise ApiError("invalid_request_error", "after_id and before_id cannot both be set")
    cursor = after or before
    if cursor and cursor not in ids:
        raise ApiError("invalid_request_error", f"Invalid cursor: {cursor[:100]!r} not found")
    if before:
        end = ids.index(before)
        start = max(0, end - limit)
        return start, end, start > 0
    start = ids.index(after) + 1 if after else 0
    end = min(count, start + limit)
    return start, end, end < count


def _limit(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise ApiError("invalid_request_error", "limit: Input should be from 1 to 1000")
    return int(text)
