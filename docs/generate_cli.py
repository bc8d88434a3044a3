"""Writes docs/reference/cli.md from the program itself: `python docs/generate_cli.py`. A test holds it up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from batchwise.cli.answers import Exit
from batchwise.cli.app import app

PAGE = Path(__file__).parent / "reference" / "cli.md"

BEGINNING = """# Command line

```sh
pip install 'batchwise-claude[cli]'
```

`batchwise VERB` and `python -m batchwise VERB` are the same. Without the extra there are `advance` and `progress`, for
cron; other verbs say what to install.

- **Looking** (`status`, `progress`, `jobs`, `report`) needs no key, sends nothing and makes nothing. So do `cadence`
  and, of the verbs that change a ledger, `resume` and `purge` need no key either.
- **Working** (`advance`, `cancel`, `retry`) reads the key and the base URL from the environment, as the SDK does.
- **A ledger that is not there is an error** for all of these.
- **The policy comes along**: what is not given with `--policy` is the policy that the ledger keeps, the last that work
  was accepted under. What differs is said on stderr.

Durations are written as `30h`, `90m`, `2d` or `1d12h`; moments as `2026-11-30T08:00+01:00`, `2026-11-30 08:00
Europe/Berlin`, `mon 08:00 Europe/Berlin` (the next one) or `tomorrow 08:00 UTC`.

## Exit codes

| code | meaning |
|---|---|
"""
CODES = {
    Exit.DONE: "done",
    Exit.ERROR: "it could not be done; the reason is on stderr",
    Exit.USAGE: "the command line, or the file of the policy, is wrong; the reason is on stderr",
    Exit.SUSPENDED: "a lane is suspended: the API refuses work until somebody mends the cause (a key, credit, a limit)",
    Exit.AT_RISK: "deadlines are at risk or overdue",
    Exit.NOT_FOUND: "there is no such ledger, job or request",
    Exit.INTERRUPTED: "interrupted by Ctrl-C; all that was accepted is in the ledger",
}
MIDDLE = """
3 and 4 come from the verbs that say where the work stands; 3 goes before 4.

## JSON

With `--json` a verb prints one JSON object on one line:

```json
{"command": "status", "exit_code": 0, "ledger": "/srv/ledger.db", "job": "nightly", "progress": {"total": 7, "...": 0}}
```

`command` and `exit_code` are always there. Beside them stand what the verb found, under its name (`progress`, `jobs`,
`report`, `cadence`), and how many it changed (`cancelled`, `retried`, `purged`). Where it failed, `error` has the
`type` and the `message`. Values have the fields of the Python values of the same name ([Progress and
Report](dispatcher.md)): moments are ISO 8601 with an offset, durations seconds, money US dollars as text, and what is
not there null. Fields may be added; none changes its meaning.

## Environment

| variable | meaning |
|---|---|
| `BATCHWISE_LEDGER` | the ledger, where `--ledger` names none |
| `ANTHROPIC_API_KEY`, `ANTHROPIC_BASE_URL`, ... | read by the Anthropic SDK |

See [cron](../how-to/cron.md) and [the gateway](../how-to/gateway.md) for how to use it.

"""


def page() -> str:
    """The whole page."""
    text = BEGINNING + "".join(f"| {int(code)} | {CODES[code]} |\n" for code in Exit) + MIDDLE
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        context = typer.Context(command, info_name=f"batchwise {name}")
        usage = command.get_usage(context).removeprefix("Usage: ")
        text += f"## `batchwise {name}`\n\n{command.help}\n\n```sh\n{usage}\n```\n\n"
        records = [param.get_help_record(context) for param in command.params if param.name != "help"]
        if lines := [f"| `{option}` | {help_.replace('  [', ' [')} |\n" for option, help_ in filter(None, records)]:
            text += "| | |\n|---|---|\n" + "".join(lines) + "\n"
    return text.rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
