"""Weekly security audit: one process submits it on Friday and exits, another collects it on Monday morning.

python docs/examples/weekly_audit.py                  # both against the embedded sandbox: no key, no cost
python docs/examples/weekly_audit.py submit --live    # on Friday
python docs/examples/weekly_audit.py collect --live   # on Monday

Between the two, a cron line keeps the deadline:      */30 * * * *  python -m batchwise advance --ledger audit.db
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime, time, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory

import batchwise as bw
from batchwise.sandbox import Sandbox

SERVICES = ("billing", "login", "search", "uploads")


def audit() -> Iterator[bw.Request]:
    for service in SERVICES:
        question = f"Audit the {service} service for security. List what you find, the worst first."
        yield bw.Request(
            {"model": "claude-opus-5-5", "max_tokens": 8_192, "messages": [{"role": "user", "content": question}]},
            key=service,
        )


def submit(d: bw.Dispatcher, week: str, now: datetime) -> None:
    monday = datetime.combine(now.date() + timedelta(days=7 - now.weekday()), time(8), timezone.utc)
    d.dispatch_all(audit(), job=f"audit-{week}", latency=monday)
    decision = d.ticket(SERVICES[0], job=f"audit-{week}").decision
    print(f"submitted audit-{week}, due {monday:%a %H:%M}: lane {decision.lane.value}, {decision.explanation}")


def collect(d: bw.Dispatcher, week: str) -> bool:
    for result in d.job(f"audit-{week}").results(timeout=timedelta(minutes=10)):
        print(f"{result.key}: {result.text[:60]!r}" if result.ok else f"{result.key}: failed, {result.error}")
    report = d.report(f"audit-{week}")
    print(f"${report.cost:.4f}, saved ${report.saved:.4f}, {report.missed} missed")
    return report.requests == len(SERVICES) and not report.missed


def main(arguments: list[str]) -> int:
    now = datetime.now(timezone.utc)
    if "--live" in arguments:
        with bw.Dispatcher(ledger="audit.db") as d:
            if "submit" in arguments:
                submit(d, f"{now:%G-W%V}", now)
                return 0
            return 0 if collect(d, f"{now - timedelta(days=3):%G-W%V}") else 1
    policy = bw.Policy(poll_every=(timedelta(milliseconds=100), timedelta(seconds=1)))
    with Sandbox(batch_latency=0.3) as sandbox, TemporaryDirectory() as folder:
        ledger = Path(folder, "audit.db")
        with bw.Dispatcher(sandbox.client(), ledger=ledger, policy=policy) as d:
            submit(d, "this-week", now)
        with bw.Dispatcher(sandbox.client(), ledger=ledger, policy=policy) as d:
            return 0 if collect(d, "this-week") else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
