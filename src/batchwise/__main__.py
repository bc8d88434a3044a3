"""`python -m batchwise advance|progress --ledger PATH`: for cron, and for a look."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing

from .errors import BatchwiseError
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
    return parser


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
            f"batch {batch.remote_id or '(id unknown)'}: {batch.requests} requests, {batch.status} for "
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
    from .dispatcher import Dispatcher
    from .ledger.sqlite import open_ledger

    try:
        with closing(open_ledger(options.ledger, must_exist=options.command == "progress")) as ledger:
            dispatcher = Dispatcher(ledger=ledger)
            try:
                found = dispatcher.advance() if options.command == "advance" else dispatcher.progress(options.job)
            finally:
                dispatcher.halt()
    except BatchwiseError as error:
        sys.stderr.write(f"batchwise: {error}\n")
        return 1
    sys.stdout.write(f"{_words(found)}\n")
    return 3 if options.command == "advance" and found.suspended else 0


if __name__ == "__main__":
    sys.exit(main())
