"""The life of a batch. Its status is a function of time, and its rows are settled when somebody looks."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from .faults import Fault
from .replies import Replier
from .rows import Caching, Settled, settle


@dataclass(frozen=True)
class Cancel:
    """A cancel that was accepted: when, when the batch ends by it, and whether it came too late to cancel a row."""

    at: float
    ends_at: float
    no_effect: bool = False


@dataclass
class Batch:
    """A batch as accepted. All times are seconds of the sandbox's clock.

    Attributes:
        duration: how long all rows take together; the window may cut it.
        row_faults: the `batch.*` faults that hit this batch.
        foreign: another tool's batch; not in the books.
    """

    id: str
    number: int
    workspace: str
    rows: list[dict[str, Any]]
    created_at: float
    duration: float
    window: float
    retention: float
    seed: str
    betas: frozenset[str] = frozenset()
    output_limit: int | None = None
    models: tuple[str, ...] | None = None
    row_faults: tuple[Fault, ...] = ()
    foreign: bool = False
    cancel: Cancel | None = None
    deleted: bool = False
    identities: list[str] | None = None
    _settled: Settled | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def ended_at(self) -> float:
        """When it ends, unless it is cancelled later."""
        if self.cancel is not None:
            return self.cancel.ends_at
        return self.created_at + min(self.duration, self.window)

    def status(self, now: float) -> str:
        """Return the `processing_status` at a time."""
        if now >= self.ended_at:
            return "ended"
        return "canceling" if self.cancel is not None and now >= self.cancel.at else "in_progress"

    def archived_at(self, now: float) -> float | None:
        """Return when its results became unavailable; None: they are available."""
        gone = max(self.created_at + self.retention, self.ended_at)
        return gone if now >= gone else None

    def finished_rows(self) -> int:
        """Return how many rows are finished at its end. Rows finish evenly over the duration."""
        if self.cancel is not None and self.cancel.no_effect:
            return len(self.rows)
        elapsed = self.window if self.cancel is None else min(self.cancel.at - self.created_at, self.window)
        if elapsed >= self.duration:
            return len(self.rows)
        return int(len(self.rows) * elapsed / self.duration)

    def settled(self, reply: Replier, caching: Caching) -> Settled:
        """Return the outcomes of the rows of an ended batch. The replies are asked for once."""
        with self._lock:
            if self._settled is None:
                self._settled = settle(self, reply, caching)
            return self._settled

    def stop(self, now: float, wait: float, *, no_effect: bool) -> None:
        """Cancel it, so that it ends after `wait` seconds, unless it has ended or is being cancelled."""
        with self._lock:
            if self._settled is None and self.cancel is None and self.status(now) != "ended":
                self.cancel = Cancel(now, now + wait, no_effect)

    @property
    def is_settled(self) -> bool:
        """Whether its rows have been settled, so that `settled` is cheap."""
        return self._settled is not None

    def drop_lines(self) -> None:
        """Free the result lines. The books do not need them."""
        if self._settled is not None:
            self._settled.lines = []

    def render(self, now: float, *, skew: float, base_url: str, counts: Mapping[str, int] | None) -> dict[str, Any]:
        """Return the API's batch object at a time. `counts` are those of the end; None: it still runs."""
        ended = counts is not None
        archived = self.archived_at(now) if ended else None
        if counts is None:
            counts = {"processing": len(self.rows), "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
        url = f"{base_url}/v1/messages/batches/{self.id}/results"
        canceled_at = self.cancel.at if self.cancel is not None and self.cancel.at <= now else None
        return {
            "id": self.id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress" if canceled_at is None else "canceling",
            "request_counts": counts,
            "created_at": rfc3339(self.created_at + skew),
            "expires_at": rfc3339(self.created_at + self.window + skew),
            "ended_at": rfc3339(self.ended_at + skew) if ended else None,
            "cancel_initiated_at": None if canceled_at is None else rfc3339(canceled_at + skew),
            "archived_at": None if archived is None else rfc3339(archived + skew),
            "results_url": url if ended and archived is None else None,
        }


def rfc3339(seconds: float) -> str:
    """Return a time as the API writes it."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="microseconds")
