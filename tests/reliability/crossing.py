"""A process that dies at a chosen crossing: every commit to the ledger and every send to the API is one.

The ledger's single `commit` and the client's single transport are wrapped, so nothing can be committed or sent past
the count. Processes come from a fork server that has the SDK loaded, so that hundreds of them are cheap.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from datetime import timedelta
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import anthropic
import attrs
import httpx2

import batchwise as bw
from batchwise.ledger.ledger import Ledger
from batchwise.ledger.postgres_database import PostgresDatabase
from batchwise.ledger.sqlite_database import SqliteDatabase
from tests.strategies import params

MILLISECOND = timedelta(milliseconds=1)
POLICY = bw.Policy(
    poll_every=(20 * MILLISECOND, 100 * MILLISECOND),
    create_grace=1_000 * MILLISECOND,
    cancel_settle=500 * MILLISECOND,
    limits=bw.Limits(latency=50 * MILLISECOND, concurrency=8),
)
JOB = "nightly"


class Crossings:
    """Counts; at `last` (a number, or the first of this name) the process is killed where it stands."""

    def __init__(self, last: int | str | None, log: Path) -> None:
        self._last, self._log = last, log
        self._lock = threading.Lock()
        self.count = 0

    def cross(self, name: str) -> None:
        with self._lock:
            self.count += 1
            if self._last in {self.count, name}:
                self._log.write_text(name)
                os.kill(os.getpid(), signal.SIGKILL)
                threading.Event().wait()  # SIGKILL is on its way


class Killable:
    crossings: Crossings

    def commit(self, name: str) -> None:
        self.crossings.cross(f"before commit {name}")
        super().commit(name)  # type: ignore[misc]
        self.crossings.cross(f"after commit {name}")


class KillableSqlite(Killable, SqliteDatabase):
    pass


class KillablePostgres(Killable, PostgresDatabase):
    pass


def killable(ledger: str) -> Ledger:
    return Ledger((KillablePostgres if "://" in ledger else KillableSqlite)(ledger))


class KillableTransport(httpx2.HTTPTransport):
    crossings: Crossings

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        name = f"{request.method} {request.url.path}"
        self.crossings.cross(f"before send {name}")
        response = super().handle_request(request)
        self.crossings.cross(f"after send {name}")
        return response


def run_job(base_url: str, ledger: str, last: int | str | None, log: str, requests: int, dated: bool) -> None:
    """The whole script of a user: dispatch a job (and one patient request for the sync lane), wait for all."""
    crossings = Crossings(last, Path(log))
    Killable.crossings = KillableTransport.crossings = crossings
    client = anthropic.Anthropic(
        base_url=base_url, api_key="sandbox", http_client=httpx2.Client(transport=KillableTransport())
    )
    with bw.Dispatcher(client, ledger=killable(ledger), policy=POLICY) as dispatcher:
        job = dispatcher.dispatch_all(
            (bw.Request(params(f"prompt {number}"), key=f"key {number}") for number in range(requests)),
            job=JOB,
            latency=timedelta(hours=30),
        )
        soon = dispatcher.dispatch(params("soon"), key="soon", latency=timedelta(hours=2)) if dated else None
        keys = [result.key for result in job.results(timeout=60)]
        assert sorted(keys) == sorted(f"key {number}" for number in range(requests)), keys
        assert soon is None or soon.result(timeout=60).ok
    Path(log).write_text(f"done {crossings.count}")


def context() -> ForkServerContext:
    """Processes that start with the SDK loaded."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["tests.reliability.crossing", "batchwise.dispatcher", "batchwise.engine.submission"])
    return made


def run(target: Any, *arguments: object, timeout: float = 90) -> int | None:
    """Run a function in a process of its own; returns its exit code."""
    process = context().Process(target=target, args=arguments)
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"{target.__name__}{arguments} did not end in {timeout} s")
    return process.exitcode


class StoppingCrossings(Crossings):
    """At the first crossing of this name the process stops (SIGSTOP) where it stands."""

    ledger: Ledger

    def __init__(self, name: str, log: Path) -> None:
        super().__init__(None, log)
        self._name = name

    def cross(self, name: str) -> None:
        with self._lock:
            self.count += 1
            stop, self._name = name == self._name, "" if name == self._name else self._name
        if stop:
            # Not in the middle of a transaction of another thread: nobody could write to the file any more.
            with self.ledger.database.lock:
                self._log.write_text(name)
                os.kill(os.getpid(), signal.SIGSTOP)
                time.sleep(0.1)  # the stop reaches every thread before this one goes on


def run_and_stop(base_url: str, ledger: str, stop_at: str, log: str, requests: int, sla: float | None) -> None:
    """A job whose process stops at a crossing, and goes on when it is let."""
    crossings = StoppingCrossings(stop_at, Path(log))
    Killable.crossings = KillableTransport.crossings = crossings
    client = anthropic.Anthropic(
        base_url=base_url, api_key="sandbox", timeout=2.0, http_client=httpx2.Client(transport=KillableTransport())
    )
    policy = POLICY if sla is None else short_window(sla)
    crossings.ledger = killable(ledger)
    with bw.Dispatcher(client, ledger=crossings.ledger, policy=policy) as dispatcher:
        latency = bw.Latency.FLEXIBLE if sla is None else timedelta(seconds=sla)
        job = dispatcher.dispatch_all(
            (bw.Request(params(f"prompt {number}"), key=f"key {number}") for number in range(requests)),
            job=JOB,
            latency=latency,
        )
        keys = [result.key for result in job.results(timeout=60)]
        assert len(keys) == requests
    Path(log).write_text("done")


def short_window(sla: float) -> bw.Policy:
    """A policy by which a batch may be waited for during a third of this many seconds, and a call for half a second.

    Calls are said to be slow, so that the last safe moment is long before the deadline: the machine may be busy then.
    """
    limits = attrs.evolve(POLICY.limits, latency=timedelta(seconds=0.5))
    return attrs.evolve(POLICY, window=timedelta(seconds=sla / 3), min_reserve=timedelta(0), limits=limits)


def run_beside(base_url: str, ledger: str, worker: int, requests: int, log: str) -> None:
    """One of several processes at work on one ledger: a job of its own, one that all share, and calls."""
    client = anthropic.Anthropic(base_url=base_url, api_key="sandbox")
    with bw.Dispatcher(client, ledger=ledger, policy=POLICY) as dispatcher:
        names = [f"own {worker} {number}" for number in range(requests)]
        own = dispatcher.dispatch_all(
            [bw.Request(params(name), key=name) for name in names], job=f"own {worker}", latency=timedelta(hours=30)
        )
        shared = dispatcher.dispatch_all(
            [bw.Request(params(f"shared {number}"), key=f"shared {number}") for number in range(requests)],
            job="shared",
            latency=timedelta(hours=30),
        )
        for number in range(3):
            assert dispatcher.dispatch(params(f"call {worker} {number}")).result(timeout=60).ok
        assert sorted(result.key for result in own.results(timeout=60)) == sorted(names)
        assert all(result.ok for result in shared.results(timeout=60))
    Path(log).write_text("done")
