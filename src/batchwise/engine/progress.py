"""Progress and reports of a job, or of all work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

import attrs

from batchwise.models import BatchRecord, Lane, Outcome, Progress, Report, RunningBatch, Status
from batchwise.planning import planner
from batchwise.planning.clock_skew import corrected
from batchwise.planning.deadline_risk import SAFE, risks
from batchwise.planning.forecast import Forecast
from batchwise.planning.state import BatchState, BatchView, Snapshot

from .core import Engine
from .finding import job_number

__all__ = ["progress", "progress_of", "report", "report_of", "tallies"]


def progress_of(engine: Engine, job: str | None) -> Progress:
    """Return the progress of a job, or of all work.

    Raises:
        JobNotFoundError: The ledger has no such job.
    """
    return progress(engine, None if job is None else job_number(engine.ledger, job))


def report_of(engine: Engine, job: str | None) -> Report:
    """Return the report on money and deadlines of a job, or of all work.

    Raises:
        JobNotFoundError: The ledger has no such job.
    """
    return report(engine, None if job is None else job_number(engine.ledger, job))


def report(engine: Engine, job: int | None) -> Report:
    """Return the report on a job (by its number), or on all work, with its batches."""
    batches = []
    for fields in engine.ledger.statistics.batches(job=job):
        created = fields["created_at"]
        forecast = engine.forecasts.of(fields["model"] or None, requests=fields["requests"], at=created)
        batches.append(BatchRecord(**fields, expected=(forecast.quantile(0.1), forecast.quantile(0.9))))
    return attrs.evolve(engine.ledger.statistics.report(job=job), batches=tuple(batches))


def progress(engine: Engine, job: int | None, wake_gap: timedelta = timedelta(0)) -> Progress:
    """Return the progress of a job (by its number), or of all work."""
    policy, known = engine.policy, engine.situation.read()
    now = engine.now()
    snapshot = corrected(known, now, policy)
    counts = engine.ledger.statistics.counts(job=job)
    found = risks(snapshot, now, policy)
    risk = sum(found.values(), SAFE) if job is None else found.get(job, SAFE)
    if job is None and (found or engine.emitter.in_danger):
        engine.deadlines.watch(snapshot, now)
    due = planner.next_due(snapshot, now, policy, job=job)
    return Progress(
        **tallies(counts.items()),
        batches=tuple(_running(engine, snapshot, job, now)),
        at_risk=risk.at_risk,
        overdue=risk.overdue,
        suspended=snapshot.suspended,
        next_due=due if due is None or due < now else max(now, due - wake_gap),
        last_error=engine.setbacks.last or _told_by_another(engine, snapshot),
        last_advance=snapshot.advanced_at,
    )


def _told_by_another(engine: Engine, snapshot: Snapshot) -> str | None:
    told = snapshot.setback
    return None if told is None or told.run == engine.run else f"{told.words} (told by another process)"


def _running(engine: Engine, snapshot: Snapshot, job: int | None, now: datetime) -> Iterator[RunningBatch]:
    starts = planner.safe_moments(snapshot, now, engine.policy)
    for batch in snapshot.batches:
        if job is not None and all(group.terms.job != job for group in batch.groups):
            continue
        began = batch.began(snapshot.clock_offset)
        elapsed = max(timedelta(0), now - began)
        yield RunningBatch(
            remote_id=batch.remote_id,
            requests=batch.requests,
            elapsed=elapsed,
            expected_end=_forecast_of(engine, batch, began).expected_range(began, elapsed),
            rescue_at=starts.get(batch.id),
            status="in_doubt"
            if batch.state in {BatchState.IN_DOUBT, BatchState.WATCHED}
            else "in_progress"
            if batch.state is BatchState.OPEN
            else batch.state.value,
        )


def _forecast_of(engine: Engine, batch: BatchView, began: datetime) -> Forecast:
    model = batch.groups[0].terms.model if batch.groups else None
    return engine.forecasts.of(model, requests=batch.requests, at=began)


def tallies(counts: Iterable[tuple[tuple[Lane, Status, Outcome | None], int]]) -> dict[str, Any]:
    """Return the counts of a `Progress`."""
    by_status, by_outcome, by_lane = Counter[Status](), Counter[Outcome](), Counter[Lane]()
    for (lane, status, outcome), number in counts:
        by_status[status] += number
        if outcome is not None:
            by_outcome[outcome] += number
        if status is not Status.SETTLED:
            by_lane[lane] += number
    return {
        "total": sum(by_status.values()),
        "by_status": dict(by_status),
        "by_outcome": dict(by_outcome),
        "by_lane": dict(by_lane),
    }
