"""Single values by name (the table `meta`): the workspace, what is known of the lanes, the sum that is reserved."""

from __future__ import annotations

import orjson

from batchwise.planning.packing import Sizes

from .database import Connection

__all__ = [
    "FAILURES",
    "MEASURED",
    "POLICY",
    "PRICES",
    "SETBACK",
    "beginning",
    "forget_failures",
    "get",
    "put",
    "resumes",
    "sizes",
]

FAILURES = "failures:"
"""Before the names of what `note_failure` counts."""
MEASURED = "measured:"
"""Before the names of the classes of models of which is known how the sync lane does."""

POLICY = "policy"
"""The name of the policy under which work was last accepted."""

SETBACK = "setback"
"""The name of what some process told that failed last."""

PRICES = "prices:"
"""Before the words for the prices by which answers were reckoned."""


def get(db: Connection, name: str) -> str | None:
    """The value under a name; None: there is none."""
    row = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def beginning(db: Connection, prefix: str) -> dict[str, str]:
    """The values under all names that begin so, by the rest of their names."""
    rows = db.execute("SELECT name, value FROM meta WHERE name LIKE ?", (f"{prefix}%",))
    return {name[len(prefix) :]: value for name, value in rows}


def put(db: Connection, name: str, value: str | None) -> None:
    """Store a value under a name; None: store none."""
    if get(db, name) == value:
        return
    if value is None:
        db.execute("DELETE FROM meta WHERE name = ?", (name,))
    else:
        db.execute(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (name, value)
        )


def resumes(db: Connection) -> int:
    """How often suspended lanes were resumed."""
    return int(get(db, "resumes") or 0)


def forget_failures(db: Connection) -> None:
    """A batch was created: failures of the batch lane are counted anew."""
    db.execute("DELETE FROM meta WHERE name LIKE ?", (f"{FAILURES}%",))


def sizes(db: Connection) -> Sizes:
    """How many requests a batch may have."""
    return Sizes(**orjson.loads(get(db, "sizes") or "{}"))
