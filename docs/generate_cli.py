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

`batchwise VERB` and `python -m batchwise VERB` are the same. Without the extra `cli` there are only `advance` and
`progress`, for cron.

- **Looking** (`status`, `jobs`, `results`, `report`, `plan`, `cadence`) needs no key, sends nothing and makes no
  ledger.
- **Working** (`run`, `submit`, `advance`, `cancel`, `retry`) reads the key and the base URL from the environment, as
  the SDK does. `resume` and `purge` change the ledger alone, and need no key.
- **A ledger that does not exist** is an error. But `run`, `submit`, `migrate` and `gateway` make it, and `plan` needs
  none unless `--ledger` names one.
- **The policy** is the one that the ledger keeps: the last under which work was accepted. `--policy FILE.toml` gives
  another, and stderr says what differs.

## From a file to results

```sh
batchwise plan requests.jsonl --within 30h
batchwise run requests.jsonl --within 30h --job nightly --out results.jsonl
```

Each line is one request as the batch API takes it, `{"custom_id": "app.py", "params": {"model": ..., ...}}`; the
custom_id becomes its key. All lines are accepted or none: a bad one is refused with its number before anything is sent.
Ctrl-C, or a process that dies, loses nothing: the same command goes on and buys nothing twice.

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
    Exit.SUSPENDED: "a lane is suspended: the API refuses work until somebody fixes the cause (a key, credit, a limit)",
    Exit.AT_RISK: "deadlines are at risk or overdue",
    Exit.NOT_FOUND: "there is no such ledger, job or request",
    Exit.INTERRUPTED: "interrupted by Ctrl-C, or `advance --watch` by SIGTERM; all that was accepted is in the ledger",
}
MIDDLE = """
3 and 4 come from the verbs that say where the work stands; if both hold, it is 3. `run` exits with 1 if some requests
have no answer in the end, so that a script does not go on with a part.

## JSON

With `--json` a verb prints one JSON object on one line:

```json
{"command": "status", "exit_code": 0, "ledger": "/srv/ledger.db", "job": "nightly", "progress": {"total": 7, "...": 0}}
```

- `command` and `exit_code` are always there.
- `progress`, `jobs`, `report`, `plan` or `cadence` is what the verb found. It has the fields of the Python value
  ([Progress and Report](policy.md#where-the-work-stands)).
- `cancelled`, `retried`, `purged` or `written` is how many requests or results the verb changed or wrote.
- `error` is there if it failed, with its `type` and `message`.
- `base_url` and `needs_key` are those of `gateway` and `sandbox`, which print them once they take calls. `needs_key` is
  true if callers have to give a certain API key.

Moments are ISO 8601 with an offset, durations seconds, money US dollars as text; what is missing is null. With
`results --json` and `run --out - --json` the object comes after the results, each of which is a line of its own
(`Result.to_dict`). Later versions may add fields, but do not change the meaning of one.

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
