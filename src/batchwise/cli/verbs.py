"""What the verbs do, apart from how they are written on a command line."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from batchwise.engine.progress import progress_of, report_of, tallies
from batchwise.errors import InvalidValueError
from batchwise.models import Outcome, Policy, Progress
from batchwise.planning.cadence import sla_cadence
from batchwise.planning.wording import human
from batchwise.timetext import parse_duration, parse_moment

from .answers import Answer, code_of, plain
from .ledgers import looking, working
from .words import of_progress, of_report

__all__ = ["advance", "advance_on", "cadence", "cancel", "jobs", "purge", "report", "resume", "retry", "status"]

_SHORTEST_NAP, _LONGEST_NAP = timedelta(seconds=0.2), timedelta(minutes=1)
"""Between two passes."""


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


def _standing(progress: Progress, ledger: str, job: str | None) -> Answer:
    """How the work stands."""
    values = {"ledger": ledger, "job": job, "progress": plain(progress)}
    return Answer(of_progress(progress), values, code_of(progress))


# -- looking ------------------------------------------------------------------------------------------------------


def status(job: str | None = None, *, ledger: str | None = None, policy: str | None = None) -> Answer:
    """Where a job, or everything, stands."""
    with looking(ledger, policy) as engine:
        return _standing(progress_of(engine, job), engine.ledger.name, job)


def jobs(*, ledger: str | None = None) -> Answer:
    """All jobs with their counts."""
    with looking(ledger) as engine:
        name = engine.ledger.name
        found = {job: Progress(**tallies(counts.by.items())) for job, counts in engine.ledger.jobs().items()}
    lines = [f"{job or '(no job)'}: {of_progress(progress).splitlines()[0]}" for job, progress in found.items()]
    values = [
        {
            "job": job,
            "total": progress.total,
            "settled": progress.settled,
            "done": progress.done,
            "by_status": plain(progress.by_status),
            "by_outcome": plain(progress.by_outcome),
        }
        for job, progress in found.items()
    ]
    return Answer("\n".join(lines) or "no jobs", {"ledger": name, "jobs": values})


def report(job: str | None = None, *, ledger: str | None = None) -> Answer:
    """Money and deadlines of what has settled."""
    with looking(ledger) as engine:
        found = report_of(engine, job)
        return Answer(of_report(found), {"ledger": engine.ledger.name, "job": job, "report": plain(found)})


# -- acting -------------------------------------------------------------------------------------------------------


def advance(*, ledger: str | None = None, policy: str | None = None) -> Answer:
    """One pass over all that is due."""
    with working(ledger, policy) as (dispatcher, name):
        return _standing(dispatcher.advance(), name, None)


def advance_on(*, ledger: str | None = None, policy: str | None = None) -> Answer:
    """Pass after pass, each when something is due, until nothing is left or a lane is suspended."""
    with working(ledger, policy) as (dispatcher, name):
        while True:
            found = dispatcher.advance()
            if found.done or found.suspended or found.next_due is None:
                return _standing(found, name, None)
            time.sleep(_nap(found, _utc_now()).total_seconds())


def _nap(progress: Progress, now: datetime) -> timedelta:
    """Until the next pass: batches are looked at in tenths of their age, as a dispatcher does."""
    gaps = [batch.elapsed / 10 for batch in progress.batches]
    if progress.next_due is not None:
        gaps.append(progress.next_due - now)
    return min(max(min(gaps, default=_LONGEST_NAP), _SHORTEST_NAP), _LONGEST_NAP)


def cancel(
    job: str | None = None,
    *,
    key: str | None = None,
    everything: bool = False,
    ledger: str | None = None,
    policy: str | None = None,
) -> Answer:
    """Cancel a request, a job, or all that is unsettled."""
    if job is None and key is None and not everything:
        raise InvalidValueError("name a job, or a request with --key, or say --all; nothing was cancelled")
    with working(ledger, policy) as (dispatcher, _):
        count = dispatcher.cancel(key, job=job)
    return _after(f"{count} requests cancelled", status(job, ledger=ledger, policy=policy), cancelled=count)


def retry(
    job: str,
    *,
    outcomes: Sequence[Outcome] | None = None,
    ledger: str | None = None,
    policy: str | None = None,
) -> Answer:
    """Queue requests of a job anew, and submit them."""
    with working(ledger, policy, finish=True) as (dispatcher, _):
        again = dispatcher.job(job)
        count = again.retry(outcomes) if outcomes else again.retry()
    return _after(f"{count} requests queued again", status(job, ledger=ledger, policy=policy), retried=count)


def _after(done: str, standing: Answer, **values: Any) -> Answer:
    """How the work stands, after what was done."""
    return Answer(f"{done}\n{standing.text}", {**standing.values, **values}, standing.code)


def resume(*, ledger: str | None = None) -> Answer:
    """Let suspended lanes take work again; the next pass sends it."""
    with looking(ledger) as engine:
        engine.ledger.resume()
        return Answer("both lanes take work again", {"ledger": engine.ledger.name})


def purge(before: str, *, ledger: str | None = None) -> Answer:
    """Delete what settled before a moment, or longer ago than a duration."""
    now = _utc_now()
    try:
        moment = now - parse_duration(before, "--before")
    except InvalidValueError:
        moment = parse_moment(before, "--before", now=now)
    if moment > now:
        raise InvalidValueError(f"--before {before} is in the future; nothing was deleted")
    with looking(ledger) as engine:
        count = engine.ledger.purge(before=moment)
        values = {"ledger": engine.ledger.name, "before": plain(moment), "purged": count}
        return Answer(f"{count} requests deleted that settled before {moment.isoformat(timespec='seconds')}", values)


# -- pure ---------------------------------------------------------------------------------------------------------


def cadence(sla: str, *, rounds: int = 1, policy: str | None = None) -> Answer:
    """How often to submit, and to look, so that an SLA is kept."""
    rules = None if policy is None else Policy.from_toml(policy)
    found = sla_cadence(parse_duration(sla, "SLA"), rounds=rounds, policy=rules)
    lines = [str(found), f"look at running batches every {human(found.check_every)}, or more often"]
    cron = found.cron(nearest=True) if found.interval >= timedelta(minutes=1) else None
    if cron is not None:
        lines.append(f"cron (in UTC): {cron}")
    values = {"cadence": {**plain(found), "check_every": plain(found.check_every), "cron": cron}}
    return Answer("\n".join(lines), values)
