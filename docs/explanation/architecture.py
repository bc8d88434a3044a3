"""Draws architecture.svg from the floors below: `python docs/explanation/architecture.py`."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

FLOORS = [
    (
        "What you use",
        "#dbeafe",
        [
            ("dispatcher, tickets", "dispatch, wait, read results", "for threads and for tasks"),
            ("client", "the SDK's own client,", "each call becomes a dispatch"),
            ("gateway, cli", "other programs,", "the command line and cron"),
        ],
    ),
    (
        "Execution",
        "#dcfce7",
        [
            ("drivers", "threads and tasks: they decide", "when things are done, never what"),
            ("engine", "one procedure for each action:", "submit, reconcile, collect, call"),
        ],
    ),
    (
        "Storage and API",
        "#fef3c7",
        [
            ("ledger", "all that is durable:", "SQLite, or Postgres"),
            ("api", "all that talks to the API:", "messages, message batches"),
        ],
    ),
    (
        "Decisions, pure",
        "#fae8ff",
        [
            (
                "planning",
                "plan(snapshot, now, policy) -> actions",
                "routing, cadence, packing, pacing, pricing, rescue",
            ),
        ],
    ),
    (
        "Values",
        "#e5e7eb",
        [
            ("request, models, errors", "frozen, checked when they are made", "no effects"),
        ],
    ),
]
"""From the top: the title of a floor, its colour, and its boxes: modules of `batchwise`, and what they do."""
SANDBOX = ("sandbox", "imitates both", "APIs; shares", "no code with", "what it judges")

_WIDTH, _HEIGHT, _GAP, _LEFT, _SIDE, _MARGIN = 900, 84, 12, 130, 130, 16


def _text(x: float, y: float, words: str, style: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" {style}>{escape(words)}</text>'


def _box(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" fill="{fill}" stroke="#94a3b8"/>'


def drawn() -> str:
    """The picture as SVG."""
    total = _MARGIN * 2 + len(FLOORS) * (_HEIGHT + _GAP) - _GAP
    bold, middle = 'font-weight="bold"', 'text-anchor="middle"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {total}" role="img"',
        'font-family="sans-serif" font-size="13" fill="#0f172a">',
        "<title>The floors of batchwise: each imports only floors below it</title>",
        f'<rect width="{_WIDTH}" height="{total}" rx="8" fill="#ffffff"/>',
    ]
    for number, (title, colour, boxes) in enumerate(FLOORS):
        top = _MARGIN + number * (_HEIGHT + _GAP)
        parts.append(_text(_MARGIN, top + _HEIGHT / 2 + 4, title, bold))
        width = (_WIDTH - _LEFT - _SIDE - _MARGIN - _GAP * len(boxes)) / len(boxes)
        for place, (name, *words) in enumerate(boxes):
            left = _LEFT + place * (width + _GAP)
            parts.append(_box(left, top, width, _HEIGHT, colour))
            parts += [
                _text(left + width / 2, top + 24 + 21 * line, text, f"{middle} {bold}" if line == 0 else middle)
                for line, text in enumerate((name, *words))
            ]
    side = _WIDTH - _SIDE - _MARGIN
    parts.append(_box(side, _MARGIN, _SIDE, total - 2 * _MARGIN, "#f8fafc"))
    parts += [
        _text(side + _SIDE / 2, total / 2 - 40 + 21 * line, text, f"{middle} {bold}" if line == 0 else middle)
        for line, text in enumerate(SANDBOX)
    ]
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(drawn(), encoding="utf-8")
