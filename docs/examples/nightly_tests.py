"""Nightly test generation: one request for each module, half price in a batch, partial failures as results.

python docs/examples/nightly_tests.py             # against the embedded sandbox: no key, no cost
python docs/examples/nightly_tests.py --live src  # the real API; run it again to go on from the ledger
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path

import batchwise as bw
from batchwise.sandbox import Sandbox

SOURCES = {f"src/part_{n}.py": f"def part_{n}(x):\n    return x + {n}\n" for n in range(20)}


def requests(sources: Mapping[str, str]) -> Iterator[bw.Request]:
    for path, source in sources.items():
        yield bw.Request(
            {
                "model": "claude-sonnet-5",
                "max_tokens": 4_096,
                "messages": [{"role": "user", "content": f"Write pytest tests for {path}:\n\n{source}"}],
            },
            key=path,
        )


def main(*, live: bool, sources: Mapping[str, str] = SOURCES) -> int:
    with ExitStack() as stack:
        client = policy = None
        if not live:
            sandbox = stack.enter_context(Sandbox(batch_latency=0.3, seed=3))
            sandbox.fault("batch.row_error", probability=0.1, type="invalid_request_error", message="too long")
            client = sandbox.client()
            policy = bw.Policy(poll_every=(timedelta(milliseconds=100), timedelta(seconds=1)))
        d = stack.enter_context(bw.Dispatcher(client, ledger=None if live else ":memory:", policy=policy))
        night = f"tests-{datetime.now(timezone.utc):%Y-%m-%d}"  # the same script run again finds this night's job
        job = d.dispatch_all(requests(sources), job=night, latency=timedelta(hours=30))
        failed = 0
        for result in job.results():  # as they settle; Ctrl-C loses nothing
            if result.ok:
                print(f"{result.key}: {len(result.text)} characters of tests")
            else:
                failed += 1
                print(f"{result.key}: no tests: {result.error}")
        report = job.report()
    print(f"{report.requests - failed} written, {failed} failed; ${report.cost:.4f}, saved ${report.saved:.4f}")
    return 0 if failed < report.requests / 2 else 1


if __name__ == "__main__":
    folders = [Path(argument) for argument in sys.argv[1:] if argument != "--live"]
    given = {str(path): path.read_text() for folder in folders for path in sorted(folder.rglob("*.py"))}
    sys.exit(main(live="--live" in sys.argv, sources=given or SOURCES))
