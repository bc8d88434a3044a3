"""The verbs of the command line: their options and help, as typer reads them, and what they do."""

from __future__ import annotations

import inspect
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime, timedelta, timezone
from functools import wraps
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchwise import __version__
from batchwise.basics.rendering import moment
from batchwise.basics.timetext import parse_duration, parse_moment
from batchwise.basics.wording import human, in_requests, in_results
from batchwise.engine.finding import job_number
from batchwise.engine.progress import progress_of, report_of, tallies
from batchwise.errors import BatchwiseError, InvalidRequestError, InvalidValueError
from batchwise.ledger.opening import migration_sql, open_ledger
from batchwise.models import LatencyTag, Outcome, Policy, Progress, parse_latency
from batchwise.planning.cadence import sla_cadence
from batchwise.results import Result, as_settled

from . import standing
from .answers import Answer, Exit, as_json, code_of, jsonable, note, refuse, say, tell
from .files import check_path, write_page, write_results
from .ledgers import looking, working
from .lines import Lines
from .options import File, Job, Json, Ledger, MaybeJob, NewJob, Outcomes, PolicyFile, Text, Within, option
from .standing import then_status

if TYPE_CHECKING:
    from batchwise.dispatcher import Dispatcher
    from batchwise.tickets import Job as DispatchedJob

__all__ = ["app", "main"]

_LOOK = 0.5
"""Seconds between two looks at what another process does."""
_SHORTEST_NAP, _LONGEST_NAP = timedelta(seconds=0.2), timedelta(minutes=1)
"""Between two passes of `advance --watch`."""

app = typer.Typer(
    name="batchwise",
    help="Half-price Claude batches that keep deadlines: submit, watch, collect.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain text, the same wherever it is read
    pretty_exceptions_enable=False,  # they show the values of variables, so prompts
)


def _verb(ask: Callable[..., Answer]) -> Callable[..., Answer]:
    """Register a function as a verb, with the option `--json`: the verb prints its answer, or why there is none."""

    @wraps(ask)
    def verb(*, json: bool, **given: Any) -> None:
        raise typer.Exit(tell(ask.__name__, lambda: ask(**given), json=json))

    own = inspect.signature(ask, eval_str=True)  # typer reads a verb's options in its signature
    last = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json)
    verb.__signature__ = own.replace(parameters=[*own.parameters.values(), last])  # type: ignore[attr-defined]
    verb.__annotations__ = {**ask.__annotations__, "json": Json}
    app.command()(verb)
    return ask


def _say_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"batchwise {__version__}\n")
        raise typer.Exit


@app.callback()
def _before_the_verb(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """What stands before a verb."""


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


def _latency(within: str) -> LatencyTag:
    """How long somebody can wait, as people write it: `now`, `flexible`, `30h`, `mon 08:00 Europe/Berlin`."""
    try:
        return parse_latency(within, "--within")
    except InvalidValueError:
        if not set(within) & set(" -:"):
            raise
        return parse_moment(within, "--within", now=_utc_now())


# -- accepting ----------------------------------------------------------------------------------------------------


def _accepted(dispatcher: Dispatcher, lines: Lines, latency: LatencyTag, job: str) -> DispatchedJob:
    try:
        return dispatcher.dispatch_all(lines, job=job, latency=latency)
    except InvalidRequestError as error:
        raise lines.named(error) from None


@_verb
def run(
    file: File,
    *,
    within: Within,
    job: NewJob,
    out: Annotated[
        Text, option(metavar="FILE", help="Write the results to a file: .jsonl, .csv, .parquet, or - for stdout.")
    ] = None,
    ledger: Ledger = None,
    policy: PolicyFile = None,
) -> Answer:
    """Submit a file of requests, and wait for the results.

    Shows the progress live. Ctrl-C loses nothing: the same command goes on later, and buys nothing twice.
    """
    from batchwise.live import track

    lines, latency = Lines(file), _latency(within)  # first: what is wrong leaves no new ledger behind
    if out is not None:
        check_path(out)
    # A URL may hold a password, and its shell knows it.
    where = f" --ledger {quote(ledger)}" if ledger and "://" not in ledger else ""
    with working(ledger, policy, must_exist=False) as (dispatcher, name):
        accepted = _accepted(dispatcher, lines, latency, job)
        try:
            progress = track(accepted)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; all is in {name}, and nothing is bought twice. Go on with the same command, look with "
                f"`batchwise status {quote(job)}{where}`, or let cron run `batchwise advance{where}`"
            ) from None
        report = accepted.report()
        written = None if out is None else write_results(accepted.results(ordered=True), out)
    values = {"ledger": name, "job": job, "progress": jsonable(progress), "report": jsonable(report)}
    told = [str(progress), str(report)]
    if written is not None:
        values["written"] = written
        told.append(f"{in_results(written)} in {out}")
    failed = progress.total - progress.by_outcome.get(Outcome.SUCCEEDED, 0)
    code: int = code_of(progress)
    if failed:
        code = code or Exit.ERROR
        have = "has" if failed == 1 else "have"
        told.append(
            f"{in_requests(failed)} {have} no answer; to queue them again: `batchwise retry {quote(job)}{where}`"
        )
    if out == "-":  # the results are on stdout
        for line in told:
            note(line)
        told = []
    return Answer("\n".join(told), values, code)


@_verb
def submit(file: File, *, within: Within, job: NewJob, ledger: Ledger = None, policy: PolicyFile = None) -> Answer:
    """Submit a file of requests, and exit.

    The same command, run again, buys nothing twice.
    """
    lines, latency = Lines(file), _latency(within)  # first: what is wrong leaves no new ledger behind
    with working(ledger, policy, must_exist=False, finish=True) as (dispatcher, _):
        _accepted(dispatcher, lines, latency, job)
    return standing.status(job, ledger, policy)


@_verb
def plan(file: File, *, within: Within, ledger: Ledger = None, policy: PolicyFile = None) -> Answer:
    """Show what would become of a file of requests.

    Lanes and why, batches, tokens, dollars, deadlines. Sends nothing.
    """
    from .plan import plan_of

    lines = Lines(file)
    with looking(ledger, policy, or_empty=True) as engine:
        try:
            found = plan_of(engine, lines, _latency(within))
        except InvalidRequestError as error:
            raise lines.named(error) from None
        name = engine.ledger.name
    code = Exit.DONE if found.refused is None else Exit.ERROR
    return Answer(str(found), {"ledger": name, "plan": jsonable(found)}, code)


# -- looking ------------------------------------------------------------------------------------------------------


@_verb
def status(
    job: MaybeJob = None,
    *,
    watch: Annotated[bool, option("--watch", help="Show it live until all requests have settled.")] = False,
    ledger: Ledger = None,
    policy: PolicyFile = None,
) -> Answer:
    """Show where the work stands. Sends nothing, changes nothing."""
    if not watch:
        return standing.status(job, ledger, policy)
    from batchwise.live import showing

    with looking(ledger, policy) as engine:
        progress = progress_of(engine, job)
        with showing(lambda: (progress_of(engine, job), report_of(engine, job)), name=job):
            while not progress.done:
                time.sleep(_LOOK)
                progress = progress_of(engine, job)
        return standing.standing(progress, engine.ledger.name, job)


@_verb
def progress(
    *,
    job: Annotated[Text, option(metavar="JOB", help="The name of the job. Default: all work.")] = None,
    ledger: Ledger = None,
    policy: PolicyFile = None,
) -> Answer:
    """Show where the work stands, as `status` does.

    This verb works without the extra `cli`, too.
    """
    return standing.status(job, ledger, policy)


@_verb
def jobs(*, ledger: Ledger = None) -> Answer:
    """List the jobs, and how far each is."""
    with looking(ledger) as engine:
        name = engine.ledger.name
        found = {row.name: Progress(**tallies(row.counts.items())) for row in engine.ledger.jobs.all()}
    lines = [f"{job or '(no job)'}: {str(progress).splitlines()[0]}" for job, progress in found.items()]
    told = ("total", "settled", "done", "by_status", "by_outcome")
    values = [
        {"job": job, **{field: jsonable(getattr(progress, field)) for field in told}} for job, progress in found.items()
    ]
    return Answer("\n".join(lines) or "no jobs", {"ledger": name, "jobs": values})


@_verb
def results(
    job: Job,
    *,
    out: Annotated[
        Text, option(metavar="FILE", help="Write a file: .jsonl, .csv or .parquet. Default: stdout.")
    ] = None,
    after: Annotated[int, typer.Option(metavar="CURSOR", min=0, help="Only results after this cursor.")] = 0,
    only: Outcomes = None,
    ledger: Ledger = None,
) -> Answer:
    """Write the results of a job so far.

    One JSON object a line, in the order in which they settled. With --json, one more JSON object follows them.
    """
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
    text = "" if out in {None, "-"} else f"{in_results(count)} in {out}; for later ones: --after {cursor}"
    return Answer(text, values)


@_verb
def report(
    job: MaybeJob = None,
    *,
    html: Annotated[
        Text,
        option(
            "--html", metavar="FILE", help="Write it to a file, too, as a page with charts. Needs the extra `report`."
        ),
    ] = None,
    ledger: Ledger = None,
) -> Answer:
    """Show what the work cost and saved, and which deadlines it met."""
    with looking(ledger) as engine:
        found = report_of(engine, job)
        if html is not None:
            page = found.to_html() if job is None else found.to_html(f"batchwise report: {job}")
            write_page(page, html)
        return Answer(str(found), {"ledger": engine.ledger.name, "job": job, "report": jsonable(found)})


# -- acting -------------------------------------------------------------------------------------------------------


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end the block in order: other processes go on at once with what a process that was closed leaves."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _nap(progress: Progress, now: datetime) -> timedelta:
    """Time until the next pass: batches are polled each time that they are a tenth older, as a dispatcher does."""
    gaps = [batch.elapsed / 10 for batch in progress.batches]
    if progress.next_due is not None:
        gaps.append(progress.next_due - now)
    return min(max(min(gaps, default=_LONGEST_NAP), _SHORTEST_NAP), _LONGEST_NAP)


@_verb
def advance(
    *,
    watch: Annotated[
        bool, option("--watch", help="Go on until all requests have settled, and show the progress live.")
    ] = False,
    ledger: Ledger = None,
    policy: PolicyFile = None,
) -> Answer:
    """Do all that is due (submit, poll, collect, rescue), and exit. For cron."""
    if not watch:
        return standing.advance(ledger, policy)
    from batchwise.live import showing

    with (
        _sigterm_as_ctrl_c(),
        working(ledger, policy) as (dispatcher, name),
        showing(lambda: (dispatcher.progress(), dispatcher.report())),
    ):
        while True:
            found = dispatcher.advance()
            if found.done or found.suspended or found.next_due is None:
                return standing.standing(found, name, None)
            time.sleep(_nap(found, _utc_now()).total_seconds())


@_verb
def cancel(
    job: MaybeJob = None,
    *,
    key: Annotated[Text, option(metavar="KEY", help="Cancel only the request with this key.")] = None,
    everything: Annotated[bool, option("--all", help="Cancel all unsettled requests.")] = False,
    ledger: Ledger = None,
    policy: PolicyFile = None,
) -> Answer:
    """Cancel a job, one request, or all unsettled requests. What a batch has finished is still delivered."""
    if job is None and key is None and not everything:
        raise InvalidValueError("name a job, or a request with --key, or say --all; nothing was cancelled")
    with working(ledger, policy) as (dispatcher, _):
        count = dispatcher.cancel(key, job=job)
    return then_status(f"{in_requests(count)} cancelled", job, ledger, policy, cancelled=count)


@_verb
def retry(
    job: Job,
    *,
    only: Outcomes = None,
    within: Annotated[
        Text, option(metavar="TIME", help="How long you can wait from now on. Default: the deadlines stay as they are.")
    ] = None,
    ledger: Ledger = None,
    policy: PolicyFile = None,
) -> Answer:
    """Queue what has no answer in a job again, and submit it.

    Without --only, these are the failed, expired and canceled ones.
    """
    with working(ledger, policy, finish=True) as (dispatcher, _):
        again = dispatcher.job(job)
        latency = None if within is None else _latency(within)
        count = again.retry(only, latency=latency) if only else again.retry(latency=latency)
    return then_status(f"{in_requests(count)} queued again", job, ledger, policy, retried=count)


@_verb
def resume(*, ledger: Ledger = None) -> Answer:
    """Let suspended lanes take work again, once the cause is fixed. The next run sends it."""
    with looking(ledger) as engine:
        engine.ledger.conditions.resume()
        return Answer("both lanes take work again", {"ledger": engine.ledger.name})


@_verb
def migrate(
    *,
    sql: Annotated[
        bool,
        option("--sql", help="Only print the SQL that makes a Postgres ledger, for somebody who may run CREATE."),
    ] = False,
    ledger: Ledger = None,
) -> Answer:
    """Make the ledger, or bring its tables up to date."""
    if sql:
        text = migration_sql(ledger)
        return Answer(text.rstrip("\n"), {"sql": text})
    with closing(open_ledger(ledger)) as made:
        return Answer(f"the ledger {made.name} is there, with all its tables", {"ledger": made.name})


@_verb
def purge(
    *,
    before: Annotated[str, option(metavar="WHEN", help="A moment (2026-11-30T08:00Z), or how long ago (30d).")],
    ledger: Ledger = None,
) -> Answer:
    """Delete what settled before a moment, with prompts and results."""
    now = _utc_now()
    try:
        at = now - parse_duration(before, "--before")
    except InvalidValueError:
        at = parse_moment(before, "--before", now=now)
    if at > now:
        raise InvalidValueError(f"--before {before} is in the future; nothing was deleted")
    with looking(ledger) as engine:
        count = engine.ledger.purge(before=at)
        values = {"ledger": engine.ledger.name, "before": jsonable(at), "purged": count}
        return Answer(f"{in_requests(count)} deleted that settled before {moment(at)}", values)


# -- beside a ledger ----------------------------------------------------------------------------------------------


@_verb
def cadence(
    sla: Annotated[
        str, typer.Argument(metavar="SLA", help="From dispatch to deadline: 30h, 2d, 1d12h.", show_default=False)
    ],
    *,
    rounds: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many batches a request may go through, one after another.")
    ] = 1,
    policy: PolicyFile = None,
) -> Answer:
    """Show how often to submit, and to poll, so that an SLA is kept."""
    rules = None if policy is None else Policy.from_toml(policy)
    found = sla_cadence(parse_duration(sla, "SLA"), rounds=rounds, policy=rules)
    lines = [str(found), f"poll running batches every {human(found.check_every)}, or more often"]
    cron = found.cron(nearest=True) if found.interval >= timedelta(minutes=1) else None
    if cron is not None:
        lines.append(f"cron (in UTC): {cron}")
    values = {"cadence": {**jsonable(found), "check_every": jsonable(found.check_every), "cron": cron}}
    return Answer("\n".join(lines), values)


@app.command(add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def sandbox(context: typer.Context) -> None:
    """Run a server that imitates the API, until Ctrl-C. `batchwise sandbox --help` lists its options."""
    from batchwise.sandbox.__main__ import main as serve

    raise typer.Exit(serve(list(context.args)))


@app.command()
def gateway(
    *,
    host: Annotated[str, typer.Option(metavar="HOST", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", min=0, max=65_535, help="The port; 0 takes a free one.")] = 8787,
    within: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="How long calls can wait that do not say so themselves: 30h, flexible, or now."
        ),
    ] = "now",
    job: Annotated[Text, option(metavar="JOB", help="The job of calls that name none.")] = None,
    token: Annotated[
        Text, option(metavar="SECRET", help="What callers have to send as their API key. Default: anything will do.")
    ] = None,
    ledger: Ledger = None,
    policy: PolicyFile = None,
    json: Annotated[bool, option("--json", help="Once it takes calls, print one JSON object.")] = False,
) -> None:
    """Answer other programs as the Messages API does, on this machine. Needs the extra `gateway`."""

    def started(url: str) -> None:
        values = {"base_url": url, "needs_key": token is not None}
        say(as_json("gateway", Exit.DONE, values) if json else f"batchwise: set ANTHROPIC_BASE_URL={url}")

    where = {"host": host, "port": port, "job": job, "ledger": ledger, "token": token}
    try:
        _serve(within, policy, **where, started=started)
    except BatchwiseError as error:
        raise typer.Exit(refuse("gateway", error, json=json)) from None


def _serve(within: str, policy: str | None, **told: Any) -> None:
    try:
        from batchwise.gateway import serve
    except ImportError as error:
        raise BatchwiseError(f"the gateway needs {error.name}; install batchwise-claude[gateway]") from error
    import asyncio

    rules = None if policy is None else Policy.from_toml(policy)
    asyncio.run(serve(**told, latency=parse_latency(within, "within"), policy=rules))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit code."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="batchwise")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return Exit.DONE
