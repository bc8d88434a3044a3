"""Jobs: named sets of requests."""

from __future__ import annotations

from .database import Connection, Database
from .records import Records
from .rows import decode_key, encode_key
from .statistics import counts_by_job
from .values import JobRow

__all__ = ["Jobs", "add_job", "job_of"]


def job_of(db: Connection, name: bytes | None) -> tuple[int | None, bool]:
    """Return the number of a job, and whether it has been accepted; the shared scope has number 0."""
    if name is None:
        return 0, True
    return db.execute("SELECT id, visible FROM job WHERE name = ?", (name,)).fetchone() or (None, False)


def add_job(database: Database, db: Connection, name: bytes | None) -> int:
    """Add a job; returns its number. It is visible once a request of it is accepted."""
    return database.insert(db, "INSERT INTO job (name) VALUES (?)", (name,))


class Jobs:
    """Reads jobs."""

    def __init__(self, database: Database, records: Records) -> None:
        self._database, self._records = database, records

    def number(self, name: str) -> int | None:
        """Return the number of a job that has been accepted; None: there is none."""
        with self._database.read() as db:
            row = db.execute("SELECT id FROM job WHERE name = ? AND visible = 1", (encode_key(name),)).fetchone()
            return None if row is None else int(row[0])

    def name(self, job: int) -> str | None:
        """Return the name of a job by its number; None for 0, the shared scope."""
        with self._database.read() as db:
            return self._records.job_name(db, job)

    def all(self) -> list[JobRow]:
        """Return all jobs in the order of their creation; with the shared scope if there are requests without a job."""
        with self._database.read() as db:
            names = dict(db.execute("SELECT id, name FROM job WHERE visible = 1 ORDER BY id").fetchall())
            found = counts_by_job(db)
        return [
            JobRow(job, None if name is None else decode_key(name), found[job])
            for job, name in names.items()
            if name is not None or found[job]
        ]
