"""The command line: `batchwise VERB ...`, and `python -m batchwise VERB ...`."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit code (`batchwise.cli.answers.Exit`).

    Without the extra `cli` (typer and rich) there are `advance` and `progress` alone.
    """
    try:
        import rich
        import typer
    except ImportError:
        from .plain import main as run
    else:
        del rich, typer
        from .app import main as run
    return run(arguments)
