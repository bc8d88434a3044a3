"""Pre-merge check: somebody waits for it, so it goes to the sync lane, and a missing answer never passes the gate.

python docs/examples/premerge_check.py            # against the embedded sandbox: no key, no cost
git diff main | python docs/examples/premerge_check.py --live -
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

from anthropic.types import ToolParam

import batchwise as bw
from batchwise.sandbox import Reply, Sandbox

DIFF = "- return hours * price\n+ return hours * price if hours > 0 else 0\n"
VERDICT: ToolParam = {
    "name": "verdict",
    "description": "Whether the change may be merged.",
    "input_schema": {
        "type": "object",
        "properties": {"merge": {"type": "boolean"}, "why": {"type": "string"}},
        "required": ["merge", "why"],
    },
}


def main(*, live: bool, diff: str = DIFF) -> int:
    with ExitStack() as stack:
        client = None if live else stack.enter_context(Sandbox(reply=sandbox_reply)).client()
        d = stack.enter_context(bw.Dispatcher(client, ledger=None if live else ":memory:"))
        ticket = d.dispatch(
            {
                "model": "claude-sonnet-5",
                "max_tokens": 1_024,
                "messages": [{"role": "user", "content": f"May this be merged?\n\n{diff}"}],
                "tools": [VERDICT],
                "tool_choice": {"type": "tool", "name": "verdict"},  # one turn's answer is the result
            }
        )  # no latency said: somebody is waiting
        print(f"lane {ticket.decision.lane.value}: {ticket.decision.explanation}")
        try:
            (verdict,) = ticket.result(timeout=60).tool_calls
        except bw.BatchwiseError as error:
            print(f"no verdict, so no merge: {error}")
            return 1
    print(f"merge: {verdict.input['merge']}, {verdict.input['why']}")
    return 0 if verdict.input["merge"] else 1


def sandbox_reply(_params: object) -> Reply:
    return Reply.tool_use("verdict", {"merge": True, "why": "negative hours are refused now"})


if __name__ == "__main__":
    sys.exit(main(live="--live" in sys.argv, diff=sys.stdin.read() if "-" in sys.argv else DIFF))
