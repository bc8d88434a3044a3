"""Iterative reviewer: the model asks for files, the caller reads them and goes on, so it stays on the sync lane.

python docs/examples/iterative_reviewer.py                  # against the embedded sandbox: no key, no cost
python docs/examples/iterative_reviewer.py --live README.md
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import batchwise as bw
from batchwise.sandbox import Reply, Sandbox, turns

MAX_TURNS = 8
READ_FILE = {
    "name": "read_file",
    "description": "The text of one file.",
    "input_schema": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
}
CALL: dict[str, Any] = {"model": "claude-sonnet-5", "max_tokens": 2_048, "tools": [READ_FILE]}


def read_file(path: str, allowed: str) -> str:
    """Only the file under review: the model's wish is no permission."""
    return Path(path).read_text(encoding="utf-8")[:20_000] if path == allowed else f"{path} is not under review"


def review(d: bw.Dispatcher, path: str) -> str:
    messages: list[dict[str, Any]] = [{"role": "user", "content": f"Review {path}. Read it first."}]
    for turn in range(1, MAX_TURNS + 1):
        params = {**CALL, "messages": messages}
        ticket = d.dispatch(params, latency=timedelta(hours=30))  # it could wait, but the next turn needs this one
        result = ticket.result(timeout=120)
        print(f"turn {turn}, lane {ticket.decision.lane.value}: {ticket.decision.explanation}")
        if not result.tool_calls:
            return result.text
        messages.append({"role": "assistant", "content": result.unwrap().content})  # SDK blocks go back as they are
        answers = []
        for call in result.tool_calls:
            print(f"    {call.name}({dict(call.input)})")
            answer = read_file(call.input["path"], path)
            answers.append({"type": "tool_result", "tool_use_id": call.id, "content": answer})
        messages.append({"role": "user", "content": answers})
    raise SystemExit(f"no review within {MAX_TURNS} turns")


def main(*, live: bool, path: str) -> int:
    with ExitStack() as stack:
        client = None
        if not live:
            script = turns(Reply.tool_use("read_file", {"path": path}, text="I read it."), "Reads well: it says why.")
            client = stack.enter_context(Sandbox(reply=script)).client()
        d = stack.enter_context(bw.Dispatcher(client, ledger=None if live else ":memory:"))
        print(f"review: {review(d, path)}")
        print(f"it cost ${d.report().cost:.4f}")
    return 0


if __name__ == "__main__":
    paths = [argument for argument in sys.argv[1:] if argument != "--live"]
    sys.exit(main(live="--live" in sys.argv, path=paths[0] if paths else __file__))
