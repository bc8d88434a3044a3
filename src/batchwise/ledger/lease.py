"""The lease of batch actions: one process at a time acts on batches, and a process that lost the lease notices that."""

from __future__ import annotations

from . import meta
from .database import Connection, Database

__all__ = ["Lease"]

_EPOCH = "lease"


class Lease:
    """A lock that ends with its process, and an epoch, which begins when another holder takes it.

    A process that lives may lose the lock (in Postgres) and still be sending. So a batch has the epoch in which it was
    sealed, and is sent in no other.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = database.process_lock("lease")
        self._epoch = 0

    @property
    def held(self) -> bool:
        """Whether the lock is held, as far as this process knows."""
        return self._lock.held

    def acquire(self) -> bool:
        """Try to take it, without waiting; returns whether it is held.

        Raises:
            LedgerError: The database failed or is busy; it is not held.
        """
        if self._lock.held:
            return True
        with self._database.lock:
            if not self._lock.acquire():
                return False
            try:
                with self._database.write("lead", quiet=True) as db:
                    epoch = self.epoch(db)
                    if epoch != self._epoch or not epoch:  # else no other process had it since
                        epoch += 1
                        meta.put(db, _EPOCH, str(epoch))
            except BaseException:
                self._lock.release()
                raise
            self._epoch = epoch
        return True

    def leads(self, db: Connection) -> bool:
        """Whether no other process has taken the lease since this object did."""
        return self.epoch(db) == self._epoch

    @staticmethod
    def epoch(db: Connection) -> int:
        """Return the epoch of the lease's last holder; 0: there was none."""
        return int(meta.get(db, _EPOCH) or 0)

    def release(self) -> None:
        """Release the lease, if it is held."""
        self._lock.release()
