"""The snapshot: the planner's view of the ledger."""

from __future__ import annotations

from datetime import datetime, timedelta

from batchwise.planning.cache_priming import Hits
from batchwise.planning.state import Group, Snapshot

from . import meta
from .batches import Batches
from .books import Books
from .database import Database
from .lease import Lease
from .rows import BATCH, IN_FLIGHT, LANES, QUEUED, SYNC, decode_measured, decode_setback, from_micros

__all__ = ["Snapshots"]


def _moment(value: str | None) -> datetime | None:
    return None if value is None else from_micros(int(value))


class Snapshots:
    """Reads the unsettled work, the batches and the state of the lanes at one moment."""

    def __init__(self, database: Database, books: Books, batches: Batches, lease: Lease) -> None:
        self._database, self._books, self._batches, self._lease = database, books, batches, lease

    def snapshot(self) -> Snapshot:
        """Return the snapshot. Its cost does not grow with the settled work.

        The forecast is the prior: what `history` teaches depends on the policy's window, unknown here.
        """
        with self._database.read() as db:
            places: dict[tuple[int, int, int], list[Group]] = {}
            for place, group in self._books.groups(db, "TRUE"):
                places.setdefault((place.lane, place.status, place.batch), []).append(group)
            batches = self._batches.views(db, lambda batch: places.get((BATCH, IN_FLIGHT, batch), ()))
            known = meta.everything(db)
            queued = places.get((BATCH, QUEUED, 0), ())
            shared = {group.terms.prefix for group in queued if group.terms.prefix}
            prefixes, hits = (self._books.primed(db, shared), self._books.hits(db)) if shared else ({}, Hits())
        measured = meta.with_prefix(known, meta.MEASURED)
        return Snapshot(
            batch_queue=tuple(queued),
            sync_queue=tuple(places.get((SYNC, QUEUED, 0), ())),
            sync_running=tuple(places.get((SYNC, IN_FLIGHT, 0), ())),
            batches=batches,
            suspended={lane: reason for lane in LANES if (reason := known.get(f"suspended:{lane.value}"))},
            resumes=int(known.get("resumes", 0)),
            clock_offset=timedelta(microseconds=int(known.get("clock_offset", 0))),
            batch_paused_until=_moment(known.get("batch_paused_until")),
            sizes=meta.sizes_of(known.get("sizes")),
            leased=self._lease.held,
            sync_answered_at=_moment(known.get("sync_answered_at")),
            sync_failed_at=_moment(known.get("sync_failed_at")),
            advanced_at=_moment(known.get("advanced_at")),
            setback=decode_setback(known[meta.SETBACK]) if meta.SETBACK in known else None,
            measured={name: decode_measured(value) for name, value in measured.items()},
            prefixes=prefixes,
            hits=hits,
        )
