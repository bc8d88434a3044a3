"""Tables: in plain text for `print`, in HTML for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape

__all__ = ["moment", "to_html", "to_text"]


def moment(at: datetime | None) -> str:
    """Write a moment to the second: `2026-11-27 20:00:00 UTC`; None is written as a dash."""
    return "-" if at is None else f"{at:%Y-%m-%d %H:%M:%S} UTC"


def to_text(rows: Iterable[Sequence[str]], title: str = "") -> str:
    """Return rows as plain text, in columns of equal width, with the title above them."""
    lines = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([title, *table] if title else table)


def to_html(rows: Iterable[Sequence[str]], title: str = "", *, head: Sequence[str] = ()) -> str:
    """Return rows as an HTML table. All text is escaped. `head` names the columns."""
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{caption}{f'<thead><tr>{names}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"
