"""Which request a key belongs to."""

# ruff: noqa: S608 (statements are made of constants and question marks)

from __future__ import annotations

from typing import NamedTuple

from batchwise.encoding import canonical
from batchwise.errors import KeyConflictError, shown

from .database import Connection

__all__ = ["Found", "StagedError", "conflict", "find", "is_position", "same_body"]


class StagedError(Exception):
    """The key belongs to a bulk that has not been accepted yet."""

    def __init__(self, intake: int) -> None:
        super().__init__()
        self.intake = intake


class Found(NamedTuple):
    """The request that has a key."""

    id: int
    staged: int
    """The bulk dispatch that has not been accepted yet; 0: none."""
    terms: int


def find(db: Connection, job: int, key: bytes) -> Found | None:
    """The request under this key, staged ones included."""
    found = db.execute(
        "SELECT q.id, t.staged, q.terms FROM request q JOIN terms t ON t.id = q.terms WHERE q.job = ? AND q.key = ?",
        (job, key),
    ).fetchone()
    return None if found is None else Found._make(found)


def same_body(db: Connection, request: int, body: bytes) -> bool:
    """Whether a request's body, as it was dispatched, says the same as this one."""
    first = "SELECT body FROM turn WHERE request = b.id AND body IS NOT NULL ORDER BY n LIMIT 1"
    (stored,) = db.execute(f"SELECT coalesce(({first}), params) FROM body b WHERE id = ?", (request,)).fetchone()
    # The order of names is all that may differ.
    return stored == body or (len(stored) == len(body) and canonical(stored) == canonical(body))


def is_position(key: bytes) -> bool:
    """Whether this key, which begins with a `#`, is one that a request without a key is given."""
    digits = key[1:]
    return digits.isdigit() and (digits == b"0" or digits[:1] != b"0")


def conflict(
    key: str, job: str | None, *, adopted: bool = False, item: int | None = None, earlier: int | None = None
) -> KeyConflictError:
    """The error for a key that belongs to other content, or to content that only the maker of a batch knows.

    Args:
        key: The key.
        job: The name of its job.
        adopted: Whether it belongs to an adopted batch.
        item: The place in a bulk of what was to have it.
        earlier: The place in the same bulk of what it belongs to.
    """
    if earlier is not None:
        return KeyConflictError(
            f"items #{earlier} and #{item} of dispatch_all have the key {shown(key)} and different content; "
            "give each its own key"
        )
    where = "without a job" if job is None else f"in the job {shown(job)}"
    other = "of an adopted batch, whose content the ledger does not have" if adopted else "with other content"
    what = "" if item is None else f"item #{item} of dispatch_all: "
    return KeyConflictError(
        f"{what}the key {shown(key)} {where} belongs to a request {other}; "
        "give this one another key, or dispatch it under another job name"
    )
