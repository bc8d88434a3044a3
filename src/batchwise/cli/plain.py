"""The command line without the extra `cli`: `advance` and `progress`, for cron. Other verbs say what to install."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from batchwise import __version__

from . import standing
from .answers import Exit, note, tell

__all__ = ["OTHERS", "main"]

OTHERS = (
    "run", "submit", "plan", "status", "jobs", "results", "report", "cancel", "retry", "resume", "purge", "migrate",
    "cadence", "sandbox", "gateway",
)  # fmt: skip
"""The verbs that need the extra."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="batchwise", description="Work on a ledger. For more verbs, install batchwise-claude[cli]."
    )
    parser.add_argument(
        "--version", action="version", version=f"batchwise {__version__}", help="say which version this is"
    )
    commands = parser.add_subparsers(dest="verb", required=True)
    for name, help_ in (
        ("advance", "do all that is due (submit, poll, collect, rescue) and exit; for cron"),
        ("progress", "show where the work stands; sends nothing"),
    ):
        command = commands.add_parser(name, help=help_)
        command.add_argument("--ledger", help="the ledger; default: $BATCHWISE_LEDGER or .batchwise/ledger.db")
        command.add_argument(
            "--policy", metavar="FILE.toml", help="a file with the policy; default: the one that the ledger keeps"
        )
        command.add_argument("--json", action="store_true", help="print one JSON object")
        if name == "progress":
            command.add_argument("--job", help="the name of the job; default: all work")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given and given[0] in OTHERS:
        note(f"{given[0]} needs typer and rich; install batchwise-claude[cli]")
        return Exit.ERROR
    try:
        options = _parser().parse_args(given)
    except SystemExit as end:
        return int(end.code or 0)
    where = options.ledger, options.policy
    if options.verb == "advance":
        return tell("advance", lambda: standing.advance(*where), json=options.json)
    return tell("progress", lambda: standing.status(options.job, *where), json=options.json)
