"""Pre-merge check: somebody waits for it, so it goes to the sync lane, and a missing answer never passes the gate.

python docs/examples/premerge_check.py            # against the embedded sandbox: no key, no cost
git diff main | python docs/examples/premerge_check.py --live -
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

from pydantic import BaseModel

import batchwise as bw
from batchwise.sandbox import Reply, Sandbox

DIFF = "- return hours * price\n+ return hours * price if hours > 0 else 0\n"


class Verdict(BaseModel, strict=True):
    """Whether the change may be merged."""

    merge: bool
    why: str


def main(*, live: bool, diff: str = DIFF) -> int:
    with ExitStack() as stack:
        client = None if live else stack.enter_context(Sandbox(reply=sandbox_reply)).client()
        d = stack.enter_context(bw.Dispatcher(client, ledger=None if live else ":memory:"))
        ticket = d.dispatch(
            {
                "model": "claude-sonnet-5",
                "max_tokens": 1_024,
                "messages": [{"role": "user", "content": f"May this be merged?\n\n{diff}"}],
            },
            output_format=Verdict,
        )  # no latency said: somebody is waiting
        print(f"lane {ticket.decision.lane.value}: {ticket.decision.explanation}")
        try:
            verdict = ticket.result(timeout=60).parse(Verdict)
        except bw.BatchwiseError as error:  # a refusal, a cut answer, one that is no verdict, a timeout, an API error
            print(f"no verdict, so no merge: {error}")
            return 1
    print(f"merge: {verdict.merge}, {verdict.why}")
    return 0 if verdict.merge else 1


def sandbox_reply(_params: object) -> Reply:
    return Reply.text('{"merge": true, "why": "negative hours are refused now"}')


if __name__ == "__main__":
    sys.exit(main(live="--live" in sys.argv, diff=sys.stdin.read() if "-" in sys.argv else DIFF))
