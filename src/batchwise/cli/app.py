"""The command line as typer sees it: options and help. What the verbs do is in `verbs`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Optional

import typer

from batchwise import __version__
from batchwise.errors import BatchwiseError
from batchwise.models import Outcome

from . import verbs
from .answers import Answer, Exit, as_json, refuse, say, tell

__all__ = ["app", "main"]

app = typer.Typer(
    name="batchwise",
    help="Half-price Claude batches that keep deadlines: submit, watch, collect.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain text, the same wherever it is read
    pretty_exceptions_enable=False,  # with the values of variables: prompts
)


def _option(*names: str, help: str, metavar: str | None = None) -> Any:  # noqa: A002  # typer's word
    return typer.Option(*names, metavar=metavar, help=help, show_default=False)


def _argument(*, help: str, metavar: str) -> Any:  # noqa: A002
    return typer.Argument(metavar=metavar, help=help, show_default=False)


_Text = Optional[str]  # typer reads it at run time, on Python 3.10 too
Ledger = Annotated[
    _Text,
    _option(
        metavar="LEDGER",
        help="The ledger: a path, or a postgresql:// URL. Default: $BATCHWISE_LEDGER, else .batchwise/ledger.db.",
    ),
]
PolicyFile = Annotated[
    _Text,
    _option(
        "--policy",
        metavar="FILE.toml",
        help="The policy. Default: the one that the ledger keeps, else the usual figures.",
    ),
]
Json = Annotated[bool, _option("--json", help="Print one JSON object.")]
Job = Annotated[str, _argument(metavar="JOB", help="The job's name.")]
MaybeJob = Annotated[_Text, _argument(metavar="JOB", help="The job's name; left out: all work.")]
Watch = Annotated[bool, _option("--watch", help="Go on until all is settled, and show it live.")]


File = Annotated[
    str,
    _argument(metavar="FILE.jsonl", help='Lines of {"custom_id", "params"}, as the batch API takes them; - is stdin.'),
]
Within = Annotated[
    str,
    _option(metavar="TIME", help="How long the answers can take: 30h, mon 08:00 Europe/Berlin, flexible, or now."),
]
NewJob = Annotated[str, _option(metavar="JOB", help="The name to find them again by. The custom_ids are their keys.")]
Outcomes = Annotated[
    Optional[list[Outcome]],
    _option(metavar="OUTCOME", help="Those that ended so: succeeded, failed, refused, expired, canceled; repeatable."),
]


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


def _answer(verb: str, ask: Callable[[], Answer], *, json: bool) -> None:
    raise typer.Exit(tell(verb, ask, json=json))


@app.command()
def run(
    file: File,
    *,
    within: Within,
    job: NewJob,
    out: Annotated[
        _Text, _option(metavar="FILE", help="Write the results to a file: .jsonl, .csv, .parquet, or - for stdout.")
    ] = None,
    ledger: Ledger = None,
    policy: PolicyFile = None,
    json: Json = False,
) -> None:
    """Submit a file of requests, and wait for the results.

    Shows live where they stand. Ctrl-C loses nothing. Run again, it goes on and buys nothing twice.
    """
    where = {"ledger": ledger, "policy": policy}
    _answer("run", lambda: verbs.run(file, within=within, job=job, out=out, **where), json=json)


@app.command()
def submit(
    file: File,
    *,
    within: Within,
    job: NewJob,
    ledger: Ledger = None,
    policy: PolicyFile = None,
    json: Json = False,
) -> None:
    """Submit a file of requests, and exit.

    Run again, it buys nothing twice.
    """
    where = {"ledger": ledger, "policy": policy}
    _answer("submit", lambda: verbs.submit(file, within=within, job=job, **where), json=json)


@app.command()
def plan(file: File, *, within: Within, ledger: Ledger = None, policy: PolicyFile = None, json: Json = False) -> None:
    """Say what a file of requests would become.

    Lanes and why, batches, tokens, dollars, deadlines. Sends nothing.
    """
    _answer("plan", lambda: verbs.plan(file, within=within, ledger=ledger, policy=policy), json=json)


@app.command()
def status(
    job: MaybeJob = None,
    *,
    watch: Watch = False,
    ledger: Ledger = None,
    policy: PolicyFile = None,
    json: Json = False,
) -> None:
    """Say where the work stands. Sends nothing, changes nothing."""
    _answer("status", lambda: (verbs.watch if watch else verbs.status)(job, ledger=ledger, policy=policy), json=json)


@app.command()
def progress(
    *,
    job: Annotated[_Text, _option(metavar="JOB", help="Of this job only.")] = None,
    ledger: Ledger = None,
    policy: PolicyFile = None,
    json: Json = False,
) -> None:
    """Say where the work stands, as `status` does.

    There without the extra `cli`, too.
    """
    _answer("progress", lambda: verbs.status(job, ledger=ledger, policy=policy), json=json)


@app.command()
def jobs(*, ledger: Ledger = None, json: Json = False) -> None:
    """List the jobs, and how far each is."""
    _answer("jobs", lambda: verbs.jobs(ledger=ledger), json=json)


@app.command()
def results(
    job: Job,
    *,
    out: Annotated[
        _Text, _option(metavar="FILE", help="Write a file: .jsonl, .csv or .parquet. Default: stdout.")
    ] = None,
    after: Annotated[int, typer.Option(metavar="CURSOR", min=0, help="Only those behind this cursor.")] = 0,
    only: Outcomes = None,
    ledger: Ledger = None,
    json: Annotated[bool, _option("--json", help="After the results, print one JSON object.")] = False,
) -> None:
    """Write the results of a job that are there.

    One JSON object a line, in the order of settling.
    """
    _answer("results", lambda: verbs.results(job, out=out, after=after, only=only, ledger=ledger), json=json)


@app.command()
def report(
    job: MaybeJob = None,
    *,
    html: Annotated[
        _Text,
        _option("--html", metavar="FILE", help="Write it as a page that needs no network. Needs the extra `report`."),
    ] = None,
    ledger: Ledger = None,
    json: Json = False,
) -> None:
    """Say what the work cost and saved, and which deadlines it met."""
    _answer("report", lambda: verbs.report(job, html=html, ledger=ledger), json=json)


@app.command()
def advance(*, watch: Watch = False, ledger: Ledger = None, policy: PolicyFile = None, json: Json = False) -> None:
    """Do all that is due (submit, poll, collect, rescue), and exit. For cron."""
    _answer("advance", lambda: (verbs.advance_on if watch else verbs.advance)(ledger=ledger, policy=policy), json=json)


@app.command()
def cancel(
    job: MaybeJob = None,
    *,
    key: Annotated[_Text, _option(metavar="KEY", help="One request of it, by its key.")] = None,
    everything: Annotated[bool, _option("--all", help="All that is unsettled.")] = False,
    ledger: Ledger = None,
    policy: PolicyFile = None,
    json: Json = False,
) -> None:
    """Cancel a job, one request, or all that is unsettled. What a batch has finished is delivered all the same."""
    _answer(
        "cancel",
        lambda: verbs.cancel(job, key=key, everything=everything, ledger=ledger, policy=policy),
        json=json,
    )


@app.command()
def retry(
    job: Job,
    *,
    only: Outcomes = None,
    within: Annotated[
        _Text, _option(metavar="TIME", help="How long they can take from now on. Default: their deadlines stand.")
    ] = None,
    ledger: Ledger = None,
    policy: PolicyFile = None,
    json: Json = False,
) -> None:
    """Queue what has no answer in a job anew, and submit it.

    Without --only: failed, expired, canceled.
    """
    _answer("retry", lambda: verbs.retry(job, outcomes=only, within=within, ledger=ledger, policy=policy), json=json)


@app.command()
def resume(*, ledger: Ledger = None, json: Json = False) -> None:
    """Let suspended lanes take work again, once the cause is mended. The next run sends it."""
    _answer("resume", lambda: verbs.resume(ledger=ledger), json=json)


@app.command()
def migrate(
    *,
    sql: Annotated[
        bool,
        _option("--sql", help="Only print what makes a Postgres ledger, for somebody who may CREATE."),
    ] = False,
    ledger: Ledger = None,
    json: Json = False,
) -> None:
    """Make the ledger, or bring its tables up to date."""
    _answer("migrate", lambda: verbs.migrate(sql=sql, ledger=ledger), json=json)


@app.command()
def purge(
    *,
    before: Annotated[
        str,
        _option(metavar="WHEN", help="A moment (2026-11-30T08:00Z), or how long ago (30d)."),
    ],
    ledger: Ledger = None,
    json: Json = False,
) -> None:
    """Delete what settled before then, prompts and results included."""
    _answer("purge", lambda: verbs.purge(before, ledger=ledger), json=json)


@app.command()
def cadence(
    sla: Annotated[str, _argument(metavar="SLA", help="From dispatch to deadline: 30h, 2d, 1d12h.")],
    *,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="Batches that a request may go through.")] = 1,
    policy: PolicyFile = None,
    json: Json = False,
) -> None:
    """Say how often to submit, and to look, so that an SLA is kept."""
    _answer("cadence", lambda: verbs.cadence(sla, rounds=rounds, policy=policy), json=json)


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
        str, typer.Option(metavar="TIME", help="How long a call can wait that does not say so: 30h, flexible, now.")
    ] = "now",
    job: Annotated[_Text, _option(metavar="JOB", help="The job of calls that name none.")] = None,
    token: Annotated[_Text, _option(metavar="SECRET", help="What callers have to give as their API key.")] = None,
    ledger: Ledger = None,
    policy: PolicyFile = None,
    json: Annotated[bool, _option("--json", help="Once it takes calls, print one JSON object.")] = False,
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


def _serve(within: str, policy: Optional[str], **told: Any) -> None:
    try:
        from batchwise.gateway import serve
        from batchwise.gateway import within as to_latency
    except ImportError as error:
        raise BatchwiseError(f"the gateway needs {error.name}; install batchwise-claude[gateway]") from error
    import asyncio

    from batchwise.models import Policy

    rules = None if policy is None else Policy.from_toml(policy)
    asyncio.run(serve(**told, latency=to_latency(within), policy=rules))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit code."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="batchwise")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return Exit.DONE
