"""Charts as SVG, and the HTML page of a report. Needs matplotlib (the extra `report`).

The charts and the page need no network.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from html import escape
from typing import Any

import attrs

from batchwise.errors import BatchwiseError

from .wording import dollars

__all__ = ["BatchRecord", "cadence_svg", "report_page"]

_HOUR = timedelta(hours=1)
_WAITING, _WINDOW, _RESERVE = "#7fb3d5", "#2e6f9e", "#e59866"
_GOOD, _BAD, _GREY = "#2e7d32", "#c0392b", "#9aa5ad"
_COLOURS = {"waiting": _WAITING, "window": _WINDOW, "lost": _GREY, "reserve": _RESERVE}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2833; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; }
svg { max-width: 100%; height: auto; } h2 { margin-top: 2rem; } figcaption { color: #566573; } figure { margin: 0; }
"""


_MONEY = "What settled requests cost on each lane, what was saved, and what was paid for answers that were not used."
_TIMELINE = (
    "Blue: the batch runs; orange: it was cancelled for a rescue and has not ended yet; diamond: its first deadline, "
    "red if the batch ended later."
)
_FORECAST = "Grey: the durations within which 80 % of such batches are expected to end; dot: the real duration."


@attrs.frozen(kw_only=True)
class BatchRecord:
    """One batch in a report.

    Attributes:
        remote_id: The API's id.
        requests: How many requests it has.
        model: The model of the first of them.
        created_at: When it was created (UTC).
        ended_at: When it ended (UTC). None: it is still running.
        canceled_at: When it was cancelled (UTC). None: it was not.
        deadline: The first deadline of its requests (UTC). None: none has a deadline.
        expected: How long such batches take: the 10 % and the 90 % point of the present forecast.
    """

    remote_id: str
    requests: int
    model: str
    created_at: datetime
    ended_at: datetime | None
    canceled_at: datetime | None
    deadline: datetime | None
    expected: tuple[timedelta, timedelta]


def _figure(width: float, height: float) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BatchwiseError("pictures need matplotlib; install batchwise-claude[report]") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    return figure, axes


def _svg(figure: Any, words: str) -> str:
    """Return a figure as an SVG element, always the same bytes; `words` describe it to people who cannot see it."""
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "batchwise", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    drawn = out.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    return drawn.replace("<svg ", f'<svg role="img" aria-label="{escape(words)}" ', 1)


def cadence_svg(parts: Sequence[tuple[str, timedelta]], sla: timedelta) -> str:
    """Draw a cadence as a time line.

    Args:
        parts: The parts of the line in their order, each with its length: `waiting`, `window`, `lost` and `reserve`.
        sla: Time from dispatch to deadline.

    Raises:
        BatchwiseError: matplotlib is not installed.
    """
    figure, axes = _figure(8, 1.7)
    drawn = [(name, length) for name, length in parts if length]
    at = timedelta(0)
    for name, length in drawn:
        axes.barh(0, length / _HOUR, left=at / _HOUR, height=0.5, color=_COLOURS[name])
        narrow = length < sla / 10
        place, side = ((at + length) / _HOUR, "right") if narrow else ((at + length / 2) / _HOUR, "center")
        axes.text(place, 0.36, f"{name} {length / _HOUR:g} h", ha=side, va="bottom", fontsize=9)
        at += length
    due = sla / _HOUR
    axes.plot([due, due], [-0.3, 0.3], color=_BAD, linewidth=2)
    axes.text(due, -0.36, f"deadline {due:g} h", ha="right", va="top", fontsize=9, color=_BAD)
    axes.set_ylim(-0.75, 0.75)
    axes.set_xlim(0, due * 1.01)
    axes.set_yticks([])
    axes.set_xlabel("hours since the dispatch")
    words = ", ".join(f"{name} {length / _HOUR:g} h" for name, length in drawn)
    return _svg(figure, f"{words}; deadline after {due:g} h")


def _timeline(batches: Sequence[BatchRecord], now: datetime) -> str:
    figure, axes = _figure(9, 1.2 + 0.28 * len(batches))
    start = min(batch.created_at for batch in batches)

    def hours(moment: datetime) -> float:
        return (moment - start) / _HOUR

    for row, batch in enumerate(batches):
        end = batch.ended_at or now
        last = batch.canceled_at or end
        axes.barh(row, hours(last) - hours(batch.created_at), left=hours(batch.created_at), height=0.6, color=_WINDOW)
        if batch.canceled_at is not None:  # cancelled for its rescue, until it ended
            axes.barh(row, max(0.0, hours(end) - hours(last)), left=hours(last), height=0.6, color=_RESERVE)
            axes.plot([hours(last)], [row], marker="|", markersize=14, color=_RESERVE)
        if batch.deadline is not None:
            late = end > batch.deadline
            axes.plot([hours(batch.deadline)], [row], marker="D", markersize=5, color=_BAD if late else _GOOD)
    axes.set_yticks(range(len(batches)), [f"{batch.remote_id[-8:]} ({batch.requests:,})" for batch in batches])
    axes.invert_yaxis()
    axes.set_xlabel(f"hours since {start:%Y-%m-%d %H:%M} UTC")
    return _svg(figure, f"{len(batches)} batches against their deadlines")


def _money(parts: Sequence[tuple[str, Decimal]]) -> str:
    figure, axes = _figure(7, 0.8 + 0.4 * len(parts))
    names, amounts = [name for name, _ in parts], [float(amount) for _, amount in parts]
    bars = axes.barh(names, amounts, height=0.6, color=[_WINDOW, _WAITING, _GOOD, _BAD][: len(parts)])
    axes.bar_label(bars, [dollars(amount) for _, amount in parts], padding=4)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.margins(x=0.15)
    return _svg(figure, ", ".join(f"{name} {dollars(amount)}" for name, amount in parts))


def _forecast(batches: Sequence[BatchRecord]) -> str:
    ended = [(batch, batch.ended_at - batch.created_at) for batch in batches if batch.ended_at is not None]
    figure, axes = _figure(9, 1.2 + 0.28 * len(ended))
    for row, (batch, took) in enumerate(ended):
        early, late = (length / _HOUR for length in batch.expected)
        axes.plot([early, late], [row, row], color=_GREY, linewidth=6, solid_capstyle="butt", alpha=0.6)
        axes.plot([took / _HOUR], [row], marker="o", markersize=6, color=_GOOD if took / _HOUR <= late else _BAD)
    axes.set_yticks(range(len(ended)), [batch.remote_id[-8:] for batch, _ in ended])
    axes.invert_yaxis()
    axes.set_xlabel("hours from creation to end: forecast (10 % to 90 %) and what it took")
    return _svg(figure, f"forecast and duration of {len(ended)} batches")


def report_page(
    title: str, table: str, money: Sequence[tuple[str, Decimal]], batches: Iterable[BatchRecord], now: datetime
) -> str:
    """Return a page of HTML with a table and charts.

    Args:
        title: The heading of the page.
        table: The report as an HTML table.
        money: The amounts to draw: names and US dollars.
        batches: The batches, the oldest first.
        now: The moment until which running batches are drawn.

    Raises:
        BatchwiseError: matplotlib is not installed.
    """
    drawn = list(batches)
    figures = [("Money", _MONEY, _money(money))]
    if drawn:
        figures.append(("Batches against their deadlines", _TIMELINE, _timeline(drawn, now)))
    if any(batch.ended_at is not None for batch in drawn):
        figures.append(("Forecast against what it took", _FORECAST, _forecast(drawn)))
    parts = [
        f"<h2>{escape(name)}</h2><figure>{svg}<figcaption>{escape(words)}</figcaption></figure>"
        for name, words, svg in figures
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{table}{''.join(parts)}</body></html>"
    )
