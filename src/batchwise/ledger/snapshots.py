"""The snapshot: the planner's view of the ledger."""

from __future__ import annotations

from datetime import timedelta

from batchwise.planning.cache_priming import Hits
from batchwise.planning.state import Group, Snapshot

from . import meta
from .batches import Batches
from .books import Books
from .database import Database
from .lease import Lease
from .rows import BATCH, IN_FLIGHT, LANES, QUEUED, SYNC, decode_measured, decode_setback, from_micros

__all__ = ["Snapshots"]


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
            offset, paused = meta.get(db, "clock_offset"), meta.get(db, "batch_paused_until")
            answered, failed = meta.get(db, "sync_answered_at"), meta.get(db, "sync_failed_at")
            setback = meta.get(db, meta.SETBACK)
            advanced, sizes = meta.get(db, "advanced_at"), meta.sizes(db)
            measured = {name: decode_measured(value) for name, value in meta.beginning(db, meta.MEASURED).items()}
            queued = places.get((BATCH, QUEUED, 0), ())
            shared = {group.terms.prefix for group in queued if group.terms.prefix}
            prefixes, hits = (self._books.primed(db, shared), self._books.hits(db)) if shared else ({}, Hits())
            resumes = meta.resumes(db)
            suspended = {lane: reason for lane in LANES if (reason := meta.get(db, f"suspended:{lane.value}"))}
        return Snapshot(
            batch_queue=tuple(queued),
            sync_queue=tuple(places.get((SYNC, QUEUED, 0), ())),
            sync_running=tuple(places.get((SYNC, IN_FLIGHT, 0), ())),
            batches=batches,
            suspended=suspended,
            resumes=resumes,
            clock_offset=timedelta(microseconds=int(offset or 0)),
            batch_paused_until=from_micros(int(paused)) if paused else None,
            sizes=sizes,
            leased=self._lease.held,
            sync_answered_at=from_micros(int(answered)) if answered else None,
            sync_failed_at=from_micros(int(failed)) if failed else None,
            advanced_at=from_micros(int(advanced)) if advanced else None,
            setback=None if setback is None else decode_setback(setback),
            measured=measured,
            prefixes=prefixes,
            hits=hits,
        )
