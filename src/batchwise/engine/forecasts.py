"""Forecasts of how long batches take, from the ledger's record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from time import monotonic

from batchwise.ledger.ledger import Ledger
from batchwise.models import Policy
from batchwise.planning.batch_size import SIZES, well_known
from batchwise.planning.forecast import Forecast, Sample, size_class
from batchwise.planning.packing import MAX_REQUESTS

__all__ = ["Forecasts"]

_READ_ANEW = 60.0
"""Seconds until the ledger's record is read anew."""


class Forecasts:
    """Makes each forecast once from the ledger's record, which is read anew every minute."""

    def __init__(self, ledger: Ledger, policy: Policy) -> None:
        self._ledger, self._policy = ledger, policy
        self._read = -1e9
        self._history: Sequence[Sample] = ()
        self._made: dict[object, Forecast] = {}

    def of(self, model: str | None = None, *, requests: int | None = None, at: datetime | None = None) -> Forecast:
        """Return the forecast of how long batches of this kind take."""
        if monotonic() - self._read > _READ_ANEW:
            self._history, self._made, self._read = self._ledger.statistics.history(), {}, monotonic()
        hour = None if at is None else at.hour
        kind = (model, None if requests is None else size_class(requests), hour)
        history, made = self._history, self._made
        if kind not in made:
            made[kind] = Forecast.from_history(
                history, model=model, requests=requests, hour=hour, window=self._policy.window
            )
        return made[kind]

    def ends(self, models: Iterable[str]) -> dict[tuple[str, int], timedelta]:
        """Return how long batches of these models are expected to take, by model and size; empty for a fixed size."""
        if self._policy.max_batch_requests != "auto":
            return {}
        self.of()  # reads the record anew
        compared = well_known(self._history)
        return {
            (model, size_class(size)): self.of(model, requests=size).expected(self._policy.window)
            for model in set(models)
            for size in (MAX_REQUESTS, *SIZES)
            if (model, size_class(size)) in compared
        }
