"""What the verbs do, apart from how they are written on a command line."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime, timedelta, timezone
from shlex import quote
from typing import TYPE_CHECKING, Any

from batchwise.basics.timetext import parse_duration, parse_moment
from batchwise.basics.wording import human, in_requests, in_results
from batchwise.engine.finding import job_number
from batchwise.engine.progress import progress_of, report_of, tallies
from batchwise.errors import InvalidRequestError, InvalidValueError
from batchwise.ledger.opening import migration_sql, open_ledger
from batchwise.models import Latency, LatencyTag, Outcome, Policy, Progress
from batchwise.planning.cadence import sla_cadence
from batchwise.results import Result, as_settled

from .answers import Answer, Exit, code_of, jsonable, note
from .files import check_path, write_page, write_results
from .ledgers import looking, planning, working
from .lines import Lines

__all__ = [
    "advance",
    "advance_on",
    "cadence",
    "cancel",
    "jobs",
    "migrate",
    "plan",
    "purge",
    "report",
    "results",
    "resume",
    "retry",
    "run",
    "status",
    "submit",
    "watch",
]

if TYPE_CHECKING:
    from batchwise.dispatcher import Dispatcher
    from batchwise.tickets import Job

_LOOK = 0.5
"""Seconds between two looks at what somebody else does."""
_SHORTEST_NAP, _LONGEST_NAP = timedelta(seconds=0.2), timedelta(minutes=1)
"""Between two passes."""


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


def _standing(progress: Progress, ledger: str, job: str | None) -> Answer:
    """How the work stands."""
    values = {"ledger": ledger, "job": job, "progress": jsonable(progress)}
    return Answer(str(progress), values, code_of(progress))


# -- looking ------------------------------------------------------------------------------------------------------


def status(job: str | None = None, *, ledger: str | None = None, policy: str | None = None) -> Answer:
    """Where a job, or everything, stands."""
    with looking(ledger, policy) as engine:
        return _standing(progress_of(engine, job), engine.ledger.name, job)


def watch(job: str | None = None, *, ledger: str | None = None, policy: str | None = None) -> Answer:
    """As `status`, shown live until all is settled, by whatever process."""
    from batchwise.live import showing

    with looking(ledger, policy) as engine:
        progress = progress_of(engine, job)
        with showing(lambda: (progress_of(engine, job), report_of(engine, job)), name=job):
            while not progress.done:
                time.sleep(_LOOK)
                progress = progress_of(engine, job)
        return _standing(progress, engine.ledger.name, job)


def jobs(*, ledger: str | None = None) -> Answer:
    """All jobs with their counts."""
    with looking(ledger) as engine:
        name = engine.ledger.name
        found = {row.name: Progress(**tallies(row.counts.by.items())) for row in engine.ledger.jobs.all()}
    lines = [f"{job or '(no job)'}: {str(progress).splitlines()[0]}" for job, progress in found.items()]
    values = [
        {
            "job": job,
            "total": progress.total,
            "settled": progress.settled,
            "done": progress.done,
            "by_status": jsonable(progress.by_status),
            "by_outcome": jsonable(progress.by_outcome),
        }
        for job, progress in found.items()
    ]
    return Answer("\n".join(lines) or "no jobs", {"ledger": name, "jobs": values})


def report(job: str | None = None, *, html: str | None = None, ledger: str | None = None) -> Answer:
    """Money and deadlines of what has settled; `html`: as a page in this file, too."""
    with looking(ledger) as engine:
        found = report_of(engine, job)
        if html is not None:
            page = found.to_html() if job is None else found.to_html(f"batchwise report: {job}")
            write_page(page, html)
        return Answer(str(found), {"ledger": engine.ledger.name, "job": job, "report": jsonable(found)})


def results(
    job: str,
    *,
    out: str | None = None,
    after: int = 0,
    only: Sequence[Outcome] | None = None,
    ledger: str | None = None,
) -> Answer:
    """What has settled of a job so far, behind a cursor, as lines or a file."""
    with looking(ledger) as engine:
        name, cursor, wanted = engine.ledger.name, after, set(only or Outcome)

        def found() -> Iterator[Result]:
            nonlocal cursor
            for result in as_settled(engine.ledger, job_number(engine.ledger, job), after):
                cursor = result.cursor
                if result.outcome in wanted:
                    yield result

        count = write_results(found(), out or "-")
    values = {"ledger": name, "job": job, "written": count, "cursor": cursor}
    return Answer("" if out in {None, "-"} else f"{in_results(count)} in {out}; the next: --after {cursor}", values)


def plan(file: str, *, within: str, ledger: str | None = None, policy: str | None = None) -> Answer:
    """What a file of requests would become."""
    from .plan import plan_of

    lines = Lines(file)
    with planning(ledger, policy) as engine:
        try:
            found = plan_of(engine, lines, _latency(within))
        except InvalidRequestError as error:
            raise lines.named(error) from None
        name = engine.ledger.name
    code = Exit.DONE if found.refused is None else Exit.ERROR
    return Answer(str(found), {"ledger": name, "plan": jsonable(found)}, code)


# -- accepting ----------------------------------------------------------------------------------------------------


def submit(file: str, *, within: str, job: str, ledger: str | None = None, policy: str | None = None) -> Answer:
    """Accept a file of requests and send what goes to a batch; sync calls are run."""
    with working(ledger, policy, must_exist=False, finish=True) as (dispatcher, _):
        _accepted(dispatcher, file, within, job)
    return status(job, ledger=ledger, policy=policy)


def run(
    file: str,
    *,
    within: str,
    job: str,
    out: str | None = None,
    ledger: str | None = None,
    policy: str | None = None,
) -> Answer:
    """Accept a file of requests, wait for the results, and write them."""
    from batchwise.live import track

    if out is not None:
        check_path(out)
    with working(ledger, policy, must_exist=False) as (dispatcher, name):
        accepted = _accepted(dispatcher, file, within, job)
        try:
            progress = track(accepted)
        except KeyboardInterrupt:
            # A URL may hold a password, and its shell knows it.
            where = f" --ledger {quote(ledger)}" if ledger and "://" not in ledger else ""
            raise KeyboardInterrupt(
                f"interrupted; all is in {name}, and nothing is bought twice. Go on with the same command, look with "
                f"`batchwise status {quote(job)}{where}`, or let cron run `batchwise advance{where}`"
            ) from None
        report = accepted.report()
        written = None if out is None else write_results(accepted.results(ordered=True), out)
    values = {"ledger": name, "job": job, "progress": jsonable(progress), "report": jsonable(report)}
    lines = [str(progress), str(report)]
    if written is not None:
        values["written"] = written
        lines.append(f"{in_results(written)} in {out}")
    failed = progress.total - progress.by_outcome.get(Outcome.SUCCEEDED, 0)
    code: int = code_of(progress)
    if failed:
        code = code or Exit.ERROR
        lines.append(f"{failed:,} have no answer; `batchwise retry {quote(job)}` queues them again")
    if out == "-":  # the results are there
        for line in lines:
            note(line)
        lines = []
    return Answer("\n".join(lines), values, code)


def _accepted(dispatcher: Dispatcher, file: str, within: str, job: str) -> Job:
    lines = Lines(file)
    try:
        return dispatcher.dispatch_all(lines, job=job, latency=_latency(within))
    except InvalidRequestError as error:
        raise lines.named(error) from None


def _latency(within: str) -> LatencyTag:
    """How long somebody can wait, as people write it: `now`, `flexible`, `30h`, `mon 08:00 Europe/Berlin`."""
    if within == "now":
        return Latency.BLOCKING
    if within == Latency.FLEXIBLE.value:
        return Latency.FLEXIBLE
    try:
        return parse_duration(within, "--within")
    except InvalidValueError:
        if " " not in within and "-" not in within and ":" not in within:
            raise
        return parse_moment(within, "--within", now=_utc_now())


# -- acting -------------------------------------------------------------------------------------------------------


def advance(*, ledger: str | None = None, policy: str | None = None) -> Answer:
    """One pass over all that is due."""
    with working(ledger, policy) as (dispatcher, name):
        return _standing(dispatcher.advance(), name, None)


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does: others go on at once with what a process that was closed leaves."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def advance_on(*, ledger: str | None = None, policy: str | None = None) -> Answer:
    """Pass after pass, each when something is due, until nothing is left or a lane is suspended."""
    from batchwise.live import showing

    with (
        _ended_in_order(),
        working(ledger, policy) as (dispatcher, name),
        showing(lambda: (dispatcher.progress(), dispatcher.report())),
    ):
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
    return _after(f"{in_requests(count)} cancelled", status(job, ledger=ledger, policy=policy), cancelled=count)


def retry(
    job: str,
    *,
    outcomes: Sequence[Outcome] | None = None,
    within: str | None = None,
    ledger: str | None = None,
    policy: str | None = None,
) -> Answer:
    """Queue requests of a job anew, and submit them."""
    with working(ledger, policy, finish=True) as (dispatcher, _):
        again = dispatcher.job(job)
        latency = None if within is None else _latency(within)
        count = again.retry(outcomes, latency=latency) if outcomes else again.retry(latency=latency)
    return _after(f"{in_requests(count)} queued again", status(job, ledger=ledger, policy=policy), retried=count)


def _after(done: str, standing: Answer, **values: Any) -> Answer:
    """How the work stands, after what was done."""
    return Answer(f"{done}\n{standing.text}", {**standing.values, **values}, standing.code)


def migrate(*, sql: bool = False, ledger: str | None = None) -> Answer:
    """Make the ledger, or bring its tables up to date; `sql`: only say what makes a Postgres ledger."""
    if sql:
        text = migration_sql(ledger)
        return Answer(text.rstrip("\n"), {"sql": text})
    with closing(open_ledger(ledger)) as made:
        return Answer(f"the ledger {made.name} is there, with all its tables", {"ledger": made.name})


def resume(*, ledger: str | None = None) -> Answer:
    """Let suspended lanes take work again; the next pass sends it."""
    with looking(ledger) as engine:
        engine.ledger.conditions.resume()
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
        values = {"ledger": engine.ledger.name, "before": jsonable(moment), "purged": count}
        return Answer(
            f"{in_requests(count)} deleted that settled before {moment.isoformat(timespec='seconds')}", values
        )


# -- pure ---------------------------------------------------------------------------------------------------------


def cadence(sla: str, *, rounds: int = 1, policy: str | None = None) -> Answer:
    """How often to submit, and to look, so that an SLA is kept."""
    rules = None if policy is None else Policy.from_toml(policy)
    found = sla_cadence(parse_duration(sla, "SLA"), rounds=rounds, policy=rules)
    lines = [str(found), f"look at running batches every {human(found.check_every)}, or more often"]
    cron = found.cron(nearest=True) if found.interval >= timedelta(minutes=1) else None
    if cron is not None:
        lines.append(f"cron (in UTC): {cron}")
    values = {"cadence": {**jsonable(found), "check_every": jsonable(found.check_every), "cron": cron}}
    return Answer("\n".join(lines), values)
