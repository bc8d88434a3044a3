"""Jobs: named sets of requests."""

from __future__ import annotations

from .database import Connection, Database

__all__ = ["add_job", "job_of"]


def job_of(db: Connection, name: bytes | None) -> tuple[int | None, bool]:
    """The number of a job, and whether it has been accepted; the shared scope has number 0."""
    if name is None:
        return 0, True
    return db.execute("SELECT id, visible FROM job WHERE name = ?", (name,)).fetchone() or (None, False)


def add_job(database: Database, db: Connection, name: bytes | None) -> int:
    """A new job's number; it is visible once something of it is accepted."""
    return database.insert(db, "INSERT INTO job (name) VALUES (?)", (name,))
