"""`make demo LIVE=1`: two sync and three batched requests on the real API, for well under a cent.

Needs ANTHROPIC_API_KEY. A batch may take up to 24 h: run the same command again to go on from the ledger; nothing
is bought twice.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import batchwise as bw

MODEL = "claude-haiku-4-5"
LEDGER = Path(".batchwise", "demo-live.db")
JOB = "demo-live"
WAIT = timedelta(minutes=3)
TOOLS = [{"name": "read_file", "input_schema": {"type": "object", "properties": {"path": {"type": "string"}}}}]


def body(text: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": text}], **more}


def sync_lane(d: bw.Dispatcher) -> None:
    check = d.dispatch(body("In one sentence: what does a pre-merge check protect?"), key="demo-live premerge")
    print(f"\npre-merge check: lane {check.decision.lane.value}, because {check.decision.explanation}")
    print(f"    {check.result(timeout=60).text}")
    review = d.dispatch(
        body("Review README.md in one sentence.", tools=TOOLS), key="demo-live review", latency=timedelta(hours=30)
    )
    print(f"\niterative reviewer: lane {review.decision.lane.value}, because {review.decision.explanation}")
    for call in review.result(timeout=60).tool_calls:
        print(f"    it asks for {call.name}({dict(call.input)})")


def batch_lane(d: bw.Dispatcher) -> bool:
    topics = ("a leap year", "an empty list", "a full disk")
    requests = (bw.Request(body(f"Name one test for {topic}, in one sentence."), key=topic) for topic in topics)
    job = d.dispatch_all(requests, job=JOB, latency=timedelta(hours=30))
    print(f"\nnightly job: {len(topics)} requests in a batch, which may take up to 24 h; waiting {WAIT} at most ...")
    try:
        for result in job.results(timeout=WAIT):
            print(f"    {result.key}: {result.text if result.ok else result.error}")
    except bw.ResultTimeoutError:
        print("    not there yet. Nothing is lost: run the same command again (it buys nothing twice), or")
        print(f"    python -m batchwise advance --ledger {LEDGER}")
        return False
    return True


def main() -> int:
    if not os.environ.get("ANTHROPIC_API_KEY"):
        print("LIVE=1 uses the real API: set ANTHROPIC_API_KEY, or leave LIVE out for the sandbox.", file=sys.stderr)
        return 2
    print(f"This is the real API ({MODEL}). The ledger is {LEDGER.resolve()}.")
    with bw.Dispatcher(ledger=LEDGER) as d:
        sync_lane(d)
        done = batch_lane(d)
        report = d.report()
        print(f"\nso far: it cost ${report.cost:.6f}, all on sync ${report.cost + report.saved:.6f}")
    return 0 if done else 75  # EX_TEMPFAIL: come again


if __name__ == "__main__":
    sys.exit(main())
