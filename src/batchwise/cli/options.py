"""The arguments and options that several verbs take, as typer reads them."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from batchwise.models import Outcome

__all__ = ["File", "Job", "Json", "Ledger", "MaybeJob", "NewJob", "Outcomes", "PolicyFile", "Text", "Within", "option"]


def option(*names: str, help: str, metavar: str | None = None) -> Any:  # noqa: A002  # typer's word
    """An option whose default is said by its help, if at all."""
    return typer.Option(*names, metavar=metavar, help=help, show_default=False)


def _argument(*, help: str, metavar: str) -> Any:  # noqa: A002
    return typer.Argument(metavar=metavar, help=help, show_default=False)


Text = Optional[str]  # typer reads it at run time, on Python 3.10 too
Ledger = Annotated[
    Text,
    option(
        metavar="LEDGER",
        help="The ledger: a path, or a postgresql:// URL. Default: $BATCHWISE_LEDGER, else .batchwise/ledger.db.",
    ),
]
PolicyFile = Annotated[
    Text,
    option(
        "--policy",
        metavar="FILE.toml",
        help="A file with the policy. Default: the policy that the ledger keeps; for a new ledger, the default values.",
    ),
]
Json = Annotated[bool, option("--json", help="Print one JSON object.")]
Job = Annotated[str, _argument(metavar="JOB", help="The name of the job.")]
MaybeJob = Annotated[Text, _argument(metavar="JOB", help="The name of the job. Default: all work.")]
File = Annotated[
    str,
    _argument(
        metavar="FILE.jsonl",
        help='Requests, one a line: {"custom_id": ..., "params": {...}}, as the batch API takes them; - is stdin.',
    ),
]
Within = Annotated[
    str,
    option(
        metavar="TIME",
        help="How long you can wait for the answers: 30h, mon 08:00 Europe/Berlin, flexible, or now.",
    ),
]
NewJob = Annotated[
    str,
    option(metavar="JOB", help="The name by which the requests are found again. Their custom_ids are their keys."),
]
Outcomes = Annotated[
    Optional[list[Outcome]],
    option(
        metavar="OUTCOME",
        help="Only those with this outcome: succeeded, failed, refused, expired or canceled. May be repeated.",
    ),
]
