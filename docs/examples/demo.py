"""`make demo`: what batchwise does, step by step, against the sandbox in a process of its own.

Real HTTP, a real SQLite ledger, real processes, one of them killed; no key, no network, no cost.
Exit code 0 says that every check at the end held. `make demo LIVE=1` runs demo_live.py instead.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import batchwise as bw

MODEL = "claude-sonnet-5"
USD_PER_TOKEN = {"input": Decimal(2) / 1_000_000, "output": Decimal(10) / 1_000_000}  # its list price, sync lane
JOB = "nightly-tests"
SIZE = 500
BROKEN = frozenset(range(60, SIZE, 100))  # five requests ask for more output than the model gives
POLICY = bw.Policy(poll_every=(timedelta(milliseconds=200), timedelta(seconds=1)))  # the sandbox's batches take 1 s
say = partial(print, flush=True)  # lines of several processes, in their order
TOOLS = [{"name": "read_file", "input_schema": {"type": "object", "properties": {"path": {"type": "string"}}}}]


def body(text: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 2_048, "messages": [{"role": "user", "content": text}], **more}


def nightly() -> Iterator[bw.Request]:
    for number in range(SIZE):
        path = f"src/module_{number:03}.py"
        source = f"def rate_{number}(hours, price):\n    return hours * price + {number}\n\n" * 12
        limit = 1_000_000 if number in BROKEN else 2_048
        yield bw.Request(body(f"Write pytest tests for {path}:\n\n{source}", max_tokens=limit), key=path)


# -- the nightly job: what each of the two worker processes runs -----------------------------------------------------


def work(ledger: str) -> int:
    def report(text: str) -> None:
        say(f"    process {os.getpid()} | {text}")

    with bw.Dispatcher(ledger=ledger, policy=POLICY) as d:
        job = d.dispatch_all(nightly(), job=JOB, latency=timedelta(hours=30))
        report(f"{SIZE} requests are in the ledger as job {JOB!r}; each may take 30 h")
        results = list(job.results(timeout=60))
        failures = [result for result in results if not result.ok]
        again = sum(1 for result in results if result.attempts > 1)
        report(
            f"{len(results) - len(failures)} of {len(results)} have their tests; {again} of them took a second attempt"
        )
        for result in failures:
            if result.error is not None:
                report(f"no answer for {result.key}: {result.error.type}: {result.error.message}")
    return 0


# -- the sandbox as a process of its own -----------------------------------------------------------------------------


@contextmanager
def sandbox() -> Iterator[str]:
    command = [sys.executable, "-m", "batchwise.sandbox", "--batch-latency", "1", "--sync-latency", "0.2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip() if process.stdout else ""
        finally:
            process.terminate()


def control(url: str, path: str, **order: Any) -> Any:
    data = json.dumps(order).encode() if order else None
    with urllib.request.urlopen(f"{url}/_sandbox/{path}", data, timeout=30) as response:
        return json.load(response)


# -- the steps -------------------------------------------------------------------------------------------------------


def step(number: int, text: str) -> None:
    say(f"\n{number}. {text}")


def premerge(d: bw.Dispatcher) -> bool:
    step(1, "A pre-merge check: somebody waits for it.")
    began = time.monotonic()
    ticket = d.dispatch(body("Review this diff: - return a - b\n+ return a + b"), key="premerge-4711")
    say(f"    lane {ticket.decision.lane.value}, because {ticket.decision.explanation}")
    text = ticket.result(timeout=30).text
    say(f"    answered after {time.monotonic() - began:.1f} s: {text!r}")
    return ticket.decision.reason is bw.Reason.BLOCKING


def reviewer(d: bw.Dispatcher) -> bool:
    step(2, "An iterative reviewer: it may take 30 h, but it reads files with the caller's tools.")
    ticket = d.dispatch(body("Review the repository.", tools=TOOLS), key="review", latency=timedelta(hours=30))
    say(f"    lane {ticket.decision.lane.value}, because {ticket.decision.explanation}")
    ticket.result(timeout=30)
    return ticket.decision.lane is bw.Lane.SYNC and ticket.decision.reason is bw.Reason.ITERATIVE_TOOL_USE


def killed_and_finished(url: str, ledger: str) -> bool:
    step(3, f"{SIZE} nightly requests. The process that sends them is killed; another finishes the job.")
    control(url, "faults", name="batch.row_error", probability=0.03)
    control(url, "faults", name="create.slow", delay=20)
    say("    ordered of the sandbox: 3 % of the rows fail in passing, and the create is answered late;")
    say(f"    besides, {len(BROKEN)} requests ask for more output than the model gives")
    command = [sys.executable, __file__, "--work", ledger]
    with subprocess.Popen(command) as first:
        while not control(url, "books")["batches"] and first.poll() is None:
            time.sleep(0.05)
        first.kill()
    say(f"    the API has accepted the batch, the answer is not there yet: SIGKILL to process {first.pid}")
    say(f"    it is dead (exit code {first.returncode}) and never learnt the batch's id; the same command again:")
    second = subprocess.run(command, check=False, timeout=120)
    return first.returncode == -9 and second.returncode == 0


def bill(d: bw.Dispatcher) -> bw.Report:
    step(4, "The bill.")
    report = d.report()
    say(f"    it cost           ${report.cost:8.4f}")
    say(f"    all on sync       ${report.cost + report.saved:8.4f}")
    say(f"    saved             ${report.saved:8.4f}  ({report.saved / (report.cost + report.saved):.0%})")
    return report


def billed_by(books: dict[str, Any]) -> Decimal:
    """What the sandbox, which shares no code with batchwise, would put on its invoice."""
    sync, batch = (sum(books["tokens"][lane][kind] * USD_PER_TOKEN[kind] for kind in USD_PER_TOKEN)
                   for lane in ("sync", "batch"))  # fmt: skip
    return Decimal(sync) + Decimal(batch) / 2


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="batchwise-demo-") as folder, sandbox() as url:
        say("The API of this demo is batchwise's sandbox, a local server that imitates Anthropic's; the answers are")
        say(f"echoes, the prices are {MODEL}'s. It runs at {url}; the ledger is {folder}/ledger.db.")
        os.environ.update(ANTHROPIC_BASE_URL=url, ANTHROPIC_API_KEY="sandbox")
        ledger = str(Path(folder, "ledger.db"))
        checks: dict[str, bool] = {}
        with bw.Dispatcher(ledger=ledger, policy=POLICY) as d:
            checks["the pre-merge check was answered at once, on the sync lane"] = premerge(d)
            checks["the iterative reviewer stayed on the sync lane"] = reviewer(d)
        checks["one process was killed, another finished its job"] = killed_and_finished(url, ledger)
        with bw.Dispatcher(ledger=ledger, policy=POLICY) as d:
            report, failed = bill(d), {r.key for r in d.results(job=JOB) if not r.ok}
            settled = d.progress(JOB).settled
        books = control(url, "books")
        checks[f"all {SIZE} have an outcome, and exactly the {len(BROKEN)} broken ones failed"] = (
            settled == SIZE and failed == {f"src/module_{number:03}.py" for number in BROKEN}
        )
        checks[f"the sandbox's books: {SIZE - len(BROKEN)} bought in batches, 2 on sync, nothing twice"] = (
            books["billed"] == {"sync": 2, "batch": SIZE - len(BROKEN)} and not books["bought_twice"]
        )
        checks[f"the sandbox's invoice is the same: ${billed_by(books):.4f}"] = billed_by(books) == report.cost
        step(5, "The checks.")
        for text, held in checks.items():
            say(f"    {'ok ' if held else 'NOT'} {text}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(work(sys.argv[2]) if sys.argv[1:2] == ["--work"] else main())
