"""Keys: finds the request of a key, and explains conflicts."""

# ruff: noqa: S608 (statements are made of constants and question marks)

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import attrs

from batchwise.basics.encoding import canonical
from batchwise.basics.jsontext import UnreadableError, decode
from batchwise.errors import KeyConflictError, printable, shown

from .database import Connection

__all__ = ["Found", "Positions", "StagedError", "conflict", "differing", "find", "is_position", "same_body"]


_MISSING = object()


class StagedError(Exception):
    """The key belongs to a bulk that has not been accepted yet."""

    def __init__(self, intake: int) -> None:
        super().__init__()
        self.intake = intake


class Found(NamedTuple):
    """The request that has a key."""

    id: int
    staged: int
    """The number of the bulk dispatch that stages it; 0: it is accepted."""
    terms: int


def find(db: Connection, job: int, key: bytes) -> Found | None:
    """Return the request of this key, staged ones included; None: there is none."""
    found = db.execute(
        "SELECT q.id, t.staged, q.terms FROM request q JOIN terms t ON t.id = q.terms WHERE q.job = ? AND q.key = ?",
        (job, key),
    ).fetchone()
    return None if found is None else Found._make(found)


def same_body(db: Connection, request: int, body: bytes) -> bool:
    """Whether a request's body, as it was dispatched, has the same content as this one."""
    stored = _dispatched(db, request)
    # The order of names is all that may differ.
    return stored == body or (len(stored) == len(body) and canonical(stored) == canonical(body))


def differing(db: Connection, request: int, body: bytes) -> list[str]:
    """Return the names of the parameters in which this body differs from the body of a request at its dispatch."""
    try:
        old, new = decode(_dispatched(db, request)), decode(body)
    except UnreadableError:
        return []
    return sorted(name for name in {*old, *new} if old.get(name, _MISSING) != new.get(name, _MISSING))


def _dispatched(db: Connection, request: int) -> bytes:
    first = "SELECT body FROM turn WHERE request = b.id AND body IS NOT NULL ORDER BY n LIMIT 1"
    (stored,) = db.execute(f"SELECT coalesce(({first}), params) FROM body b WHERE id = ?", (request,)).fetchone()
    return bytes(stored)


def is_position(key: bytes) -> bool:
    """Whether this key, which begins with a `#`, has the form of a generated one."""
    digits = key[1:]
    return digits.isdigit() and (digits == b"0" or digits[:1] != b"0")


def conflict(
    key: str,
    job: str | None,
    *,
    adopted: bool = False,
    item: int | None = None,
    earlier: int | None = None,
    differs: Sequence[str] = (),
) -> KeyConflictError:
    """Return the error for a key that belongs to other content, or to an adopted batch.

    Args:
        key: The key.
        job: The name of its job.
        adopted: Whether it belongs to an adopted batch.
        item: The position in a bulk of the item that asks for the key.
        earlier: The position in the same bulk of the item that has the key.
        differs: The names of the parameters that differ.
    """
    names = f" ({', '.join(map(printable, differs))})" if differs else ""
    if earlier is not None:
        return KeyConflictError(
            f"items #{earlier} and #{item} of dispatch_all have the key {shown(key)} and different content{names}; "
            "give each its own key"
        )
    where = "without a job" if job is None else f"in the job {shown(job)}"
    other = "of an adopted batch, whose content the ledger does not have" if adopted else f"with other content{names}"
    what = "" if item is None else f"item #{item} of dispatch_all: "
    return KeyConflictError(
        f"{what}the key {shown(key)} {where} belongs to a request {other}; "
        "give this one another key, or dispatch it under another job name"
    )


@attrs.define
class _Used:
    """The positions of a job that this process has used: those below `next`, and `ahead`."""

    next: int = 0
    ahead: set[int] = attrs.field(factory=set)

    def use(self, position: int) -> None:
        """Note that a position is used."""
        self.ahead.add(position)
        while self.next in self.ahead:
            self.ahead.remove(self.next)
            self.next += 1


class Positions:
    """The positions of named jobs that this process has used for requests without a key."""

    def __init__(self) -> None:
        self._by_job: dict[int, _Used] = {}

    def used(self, job: int) -> _Used:
        """Return the used positions of one job."""
        return self._by_job.setdefault(job, _Used())

    def take_all(self, job: int, count: int) -> None:
        """Note that a bulk dispatch has taken the first `count` positions of a job."""
        self._by_job[job] = _Used(count)

    def forget(self) -> None:
        """Forget all: a transaction was rolled back, so its positions are free again. The others are read anew."""
        self._by_job.clear()
