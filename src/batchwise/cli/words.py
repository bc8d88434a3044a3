"""Progress and reports in words, one fact a line."""

from __future__ import annotations

from datetime import datetime

from batchwise.errors import printable
from batchwise.models import Progress, Report
from batchwise.planning.wording import dollars, human

__all__ = ["of_progress", "of_report"]


def of_progress(progress: Progress) -> str:
    """Where the work stands."""
    by_status = ", ".join(f"{number} {status.value}" for status, number in progress.by_status.items() if number)
    by_outcome = ", ".join(f"{number} {outcome.value}" for outcome, number in progress.by_outcome.items() if number)
    lines = [f"{progress.total} requests: {by_status or 'none'}"]
    if by_outcome:
        lines.append(f"outcomes: {by_outcome}")
    for batch in progress.batches:
        first, last = map(_moment, batch.expected_end)
        rescue = "" if batch.rescue_at is None else f", rescue at {_moment(batch.rescue_at)}"
        lines.append(
            f"batch {printable(batch.remote_id or '(id unknown)')}: {batch.requests} requests, {batch.status} for "
            f"{str(batch.elapsed).partition('.')[0]}, expected to end between {first} and {last}{rescue}"
        )
    lines += [f"suspended: the {lane.value} lane: {reason}" for lane, reason in progress.suspended.items()]
    if progress.at_risk:
        lines.append(f"at risk: {progress.at_risk} requests may miss their deadline")
    if progress.overdue:
        lines.append(f"overdue: {progress.overdue} requests are not settled, and their deadline has passed")
    if progress.last_error is not None:
        lines.append(f"failed last: {progress.last_error}")
    if progress.next_due is not None:
        lines.append(f"next due: {_moment(progress.next_due)}")
    return "\n".join(lines)


def of_report(report: Report) -> str:
    """Money and deadlines of what has settled."""
    lanes = ", ".join(f"{dollars(cost)} on the {lane.value} lane" for lane, cost in report.cost_by_lane.items() if cost)
    lines = [
        f"{report.requests} requests settled, {report.refused} of them refused; {report.attempts} attempts",
        f"cost: {dollars(report.cost)}{f' ({lanes})' if lanes else ''}; saved: {dollars(report.saved)}",
        f"deadlines: {report.met} met, {report.missed} missed",
    ]
    if report.missed:
        lines[-1] += f", the worst by {human(report.worst_lateness)}"
    if report.cache_hit_rate is not None:
        asked = report.cache_read_tokens + report.cache_written_tokens
        rate = f"{report.cache_hit_rate:.1%} of {asked:,} tokens read"
        lines.append(f"prompt cache: {rate}, the rest written; saved: {dollars(report.cache_saved)}")
    lines += [
        f"label {printable(name)}={printable(value)}: {dollars(cost)}"
        for (name, value), cost in sorted(report.by_label.items())
    ]
    lines += [f"by the prices of {source}, last on {day.isoformat()}" for source, day in report.prices.items()]
    if report.wasted:
        lines.append(f"paid for rows that were not used: {dollars(report.wasted)}")
    if report.unpriced:
        lines.append(f"of unknown price, and in none of the amounts: {report.unpriced} requests")
    if report.possible_doubles:
        lines.append(f"possibly bought twice: {report.possible_doubles}")
    return "\n".join(lines)


def _moment(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
