"""`python -m batchwise advance|progress|gateway --ledger PATH`: for cron, for a look, and for other programs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing

from .errors import BatchwiseError, printable
from .models import Progress


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m batchwise", description="Work on a ledger from the command line.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_ in (
        ("advance", "do all that is due (submit, poll, collect, rescue) and exit; for cron"),
        ("progress", "print where the work stands; sends nothing"),
    ):
        command = commands.add_parser(name, help=help_)
        command.add_argument("--ledger", help="the ledger's path; default: $BATCHWISE_LEDGER or .batchwise/ledger.db")
        if name == "progress":
            command.add_argument("--job", help="of this job only")
    gateway = commands.add_parser("gateway", help="answer other programs as the Messages API does, on this machine")
    gateway.add_argument("--host", default="127.0.0.1", help="the address to listen on; default: %(default)s")
    gateway.add_argument("--port", type=int, default=8787, help="the port; 0 takes a free one; default: %(default)s")
    gateway.add_argument("--within", default="now", help="how long a call can wait that does not say so: 30h, now, ...")
    gateway.add_argument("--job", help="the job of calls that name none")
    gateway.add_argument("--token", help="what callers have to give as their API key; default: nothing")
    gateway.add_argument("--ledger", help="the ledger's path; default: $BATCHWISE_LEDGER or .batchwise/ledger.db")
    return parser


def _serve(options: argparse.Namespace) -> int:
    try:
        from .gateway import serve, within
    except ImportError as error:
        sys.stderr.write(f"batchwise: the gateway needs {error.name}; install batchwise-claude[gateway]\n")
        return 1
    import asyncio

    def started(url: str) -> None:
        sys.stdout.write(f"batchwise: set ANTHROPIC_BASE_URL={url}\n")
        sys.stdout.flush()

    told = {name: getattr(options, name) for name in ("host", "port", "job", "ledger", "token")}
    try:
        asyncio.run(serve(**told, latency=within(options.within), started=started))
    except BatchwiseError as error:
        sys.stderr.write(f"batchwise: {error}\n")
        return 1
    return 0


def _words(progress: Progress) -> str:
    by_status = ", ".join(f"{number} {status.value}" for status, number in progress.by_status.items() if number)
    by_outcome = ", ".join(f"{number} {outcome.value}" for outcome, number in progress.by_outcome.items() if number)
    lines = [f"{progress.total} requests: {by_status or 'none'}"]
    if by_outcome:
        lines.append(f"outcomes: {by_outcome}")
    for batch in progress.batches:
        first, last = (moment.isoformat(timespec="seconds") for moment in batch.expected_end)
        rescue = "" if batch.rescue_at is None else f", rescue at {batch.rescue_at.isoformat(timespec='seconds')}"
        lines.append(
            f"batch {printable(batch.remote_id or '(id unknown)')}: {batch.requests} requests, {batch.status} for "
            f"{str(batch.elapsed).partition('.')[0]}, expected to end between {first} and {last}{rescue}"
        )
    lines += [f"suspended: the {lane.value} lane: {reason}" for lane, reason in progress.suspended.items()]
    if progress.at_risk:
        lines.append(f"at risk: {progress.at_risk} requests may miss their deadline")
    if progress.next_due is not None:
        lines.append(f"next due: {progress.next_due.isoformat(timespec='seconds')}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 with a message on stderr, or 3 where `advance` met a stop sign."""
    options = _parser().parse_args(arguments)
    if options.command == "gateway":
        return _serve(options)
    from .dispatcher import Dispatcher
    from .ledger.sqlite import open_ledger

    try:
        with closing(open_ledger(options.ledger, must_exist=options.command == "progress")) as ledger:
            dispatcher = Dispatcher(ledger=ledger)
            try:
                found = dispatcher.advance() if options.command == "advance" else dispatcher.progress(options.job)
            finally:
                dispatcher.close(finish=False)
    except BatchwiseError as error:
        sys.stderr.write(f"batchwise: {error}\n")
        return 1
    sys.stdout.write(f"{_words(found)}\n")
    return 3 if options.command == "advance" and found.suspended else 0


if __name__ == "__main__":
    sys.exit(main())
