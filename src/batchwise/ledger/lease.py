"""The lease of batch actions: one process acts on batches at a time, and one that was cut off can tell that it was."""

from __future__ import annotations

from . import meta
from .database import Connection, Database

__all__ = ["Lease"]

_EPOCH = "lease"


class Lease:
    """A lock that dies with its process, and an epoch, which begins when another holder takes it.

    Where a lock can be lost while its process lives, its holder may still be sending. So a batch has the epoch in which
    it was sealed, and is sent in no other one.
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
        """Try, without waiting; True if held (already or now).

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
                    if epoch != self._epoch or not epoch:  # else nobody had it since
                        epoch += 1
                        meta.put(db, _EPOCH, str(epoch))
            except BaseException:
                self._lock.release()
                raise
            self._epoch = epoch
        return True

    def leads(self, db: Connection) -> bool:
        """Whether nobody else has taken the lease since this object did."""
        return self.epoch(db) == self._epoch

    @staticmethod
    def epoch(db: Connection) -> int:
        """The epoch of the ledger's last holder; 0: it had none."""
        return int(meta.get(db, _EPOCH) or 0)

    def release(self) -> None:
        """Give it up; nothing if it is not held."""
        self._lock.release()
