"""Single values by name (the table `meta`): the workspace, what is known of the lanes, the sum that is reserved."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from batchwise.planning.packing import Sizes

from .database import Connection

__all__ = [
    "FAILURES",
    "MEASURED",
    "POLICY",
    "PRICES",
    "SETBACK",
    "everything",
    "forget_failures",
    "get",
    "put",
    "resumes",
    "sizes_of",
    "with_prefix",
]

FAILURES = "failures:"
"""Prefix of the names that `note_failure` counts."""
MEASURED = "measured:"
"""Prefix of the names of classes of models with a measurement of the sync lane."""

POLICY = "policy"
"""The name of the policy under which work was last accepted."""

SETBACK = "setback"
"""The name of the last setback that a process stored."""

PRICES = "prices:"
"""Prefix of the descriptions of the prices by which answers were billed."""


def get(db: Connection, name: str) -> str | None:
    """Return the value of a name; None: there is none."""
    row = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def everything(db: Connection) -> dict[str, str]:
    """Return all values by name. They are a few dozen: to read all of them costs hardly more than to read one."""
    return dict(db.execute("SELECT name, value FROM meta").fetchall())


def with_prefix(values: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Return the values of all names with this prefix, by the rest of their names."""
    return {name[len(prefix) :]: value for name, value in values.items() if name.startswith(prefix)}


def put(db: Connection, name: str, value: str | None) -> None:
    """Store a value under a name; None: delete it."""
    if value is None:
        db.execute("DELETE FROM meta WHERE name = ?", (name,))
    else:  # a transaction that puts what is there changes nothing, and is not committed
        db.execute(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value "
            "WHERE meta.value <> excluded.value",
            (name, value),
        )


def resumes(db: Connection) -> int:
    """Return how often suspended lanes were resumed."""
    return int(get(db, "resumes") or 0)


def forget_failures(db: Connection) -> None:
    """Count failures of the batch lane anew, after a batch was created."""
    db.execute("DELETE FROM meta WHERE name LIKE ?", (f"{FAILURES}%",))


def sizes_of(value: str | None) -> Sizes:
    """Return how many requests a batch may have, from the value of `sizes`."""
    return Sizes(**orjson.loads(value or "{}"))
