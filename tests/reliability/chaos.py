"""Producers and workers on one ledger in Postgres, any of which may be killed at any moment; see `test_chaos`."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import anthropic
import attrs

import batchwise as bw
from batchwise.errors import LedgerError
from tests.reliability.crossing import POLICY
from tests.strategies import params

__all__ = ["PATIENT", "TENDING", "produce", "prompts_of", "work"]

PATIENT = attrs.evolve(POLICY, max_attempts=50)
"""A killed process costs each call that it made an attempt."""
TENDING = 0.1
"""Seconds between two looks of a worker."""


def prompts_of(producer: int, rounds: int, rows: int) -> list[str]:
    """What a producer asks for: in each round a bulk for a batch, and two calls for the sync lane."""
    return [
        f"{producer} {number} {what}"
        for number in range(rounds)
        for what in [*(f"row {row}" for row in range(rows)), "call 0", "call 1"]
    ]


def _persistently(act: Callable[[], Any]) -> Any:
    """Try again while the server is away."""
    while True:
        try:
            return act()
        except LedgerError as error:
            if not error.passing:
                raise
            time.sleep(0.1)


def _client(base_url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=base_url, api_key="sandbox", timeout=10.0)


def produce(base_url: str, ledger: str, producer: int, rounds: int, rows: int, pause: float) -> None:
    """Dispatch round by round, and wait for nothing."""
    with _persistently(lambda: bw.Dispatcher(_client(base_url), ledger=ledger, policy=PATIENT)) as d:
        for number in range(rounds):
            name = f"{producer} {number}"
            bulk = [bw.Request(params(f"{name} row {row}"), key=f"{name} row {row}") for row in range(rows)]
            _persistently(lambda name=name, bulk=bulk: d.dispatch_all(bulk, job=name, latency=bw.Latency.FLEXIBLE))
            for call in range(2):
                text = f"{name} call {call}"
                _persistently(
                    lambda text=text: d.dispatch(params(text), key=text, job="calls", latency=timedelta(hours=2))
                )
            time.sleep(pause)


def work(base_url: str, ledger: str, stop: str) -> None:
    """Do what is due, again and again, until a file says stop."""
    while not Path(stop).exists():
        with _persistently(lambda: bw.Dispatcher(_client(base_url), ledger=ledger, policy=PATIENT)) as d:
            while not Path(stop).exists():
                _persistently(d.advance)
                time.sleep(TENDING)
