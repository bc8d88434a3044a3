"""Many processes on one ledger in Postgres, killed at random, and the server restarted under them.

Nothing is lost, and nothing is bought twice but what the books name.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import attrs
import pytest

import batchwise as bw
from batchwise.sandbox import Sandbox
from tests.postgres import restart, start
from tests.reliability.chaos import PATIENT, produce, prompts_of, work
from tests.reliability.crossing import context
from tests.waiting import until


@attrs.frozen
class Storm:
    """How many take part, and for how long."""

    producers: int
    workers: int
    rounds: int
    """Of each producer."""
    rows: int
    """In the bulk of each round."""
    pause: float
    """Seconds between two rounds."""
    kills: int
    calm: tuple[float, float]
    """The least and the most seconds between two kills."""
    restarts: tuple[str, ...]
    """How the server is stopped, each time, before it starts again; they are spread among the kills."""
    patience: float
    """Seconds in which all has to be settled after the last kill."""


QUICK = Storm(2, 3, rounds=4, rows=5, pause=0.2, kills=4, calm=(0.1, 0.4), restarts=("immediate",), patience=60)
FULL = Storm(
    4, 8, rounds=40, rows=20, pause=0.5, kills=60, calm=(0.1, 1.0), restarts=("fast", "immediate"), patience=300
)


@pytest.fixture
def server() -> Iterator[Any]:
    """A server of its own: to restart the shared one would harm other tests."""
    made = start(Path(tempfile.mkdtemp(prefix="batchwise-chaos-")))
    yield made
    made.cleanup()


def started(target: Any, *arguments: object) -> BaseProcess:
    process = context().Process(target=target, args=arguments)
    process.start()
    return process


def weather(storm: Storm, server: Any, folder: Path, chance: random.Random) -> str:
    """Live through it; returns what happened, for the log."""
    url, stop = server.get_uri(), folder / "stop"
    restarts = {storm.kills * (n + 1) // (len(storm.restarts) + 1): how for n, how in enumerate(storm.restarts)}
    with Sandbox(batch_latency=0.3, sync_latency=0.05) as sandbox:
        producers = [
            started(produce, sandbox.base_url, url, n, storm.rounds, storm.rows, storm.pause)
            for n in range(storm.producers)
        ]
        workers = [started(work, sandbox.base_url, url, str(stop)) for _ in range(storm.workers)]
        try:
            until(lambda: sandbox.books.requests_by_path.total() > 0, "nobody ever began", 60)
            for kill in range(storm.kills):
                if kill in restarts:
                    restart(server, restarts[kill])
                time.sleep(chance.uniform(*storm.calm))
                index = chance.randrange(storm.workers)
                workers[index].kill()
                workers[index].join()
                workers[index] = started(work, sandbox.base_url, url, str(stop))
            for process in producers:
                process.join(storm.patience)
                assert process.exitcode == 0, "a producer failed, or hangs"
            wanted = {prompt for n in range(storm.producers) for prompt in prompts_of(n, storm.rounds, storm.rows)}
            with bw.Dispatcher(sandbox.client(), ledger=url, policy=PATIENT) as d:
                until(lambda: d.progress().done, f"it never ended: {d.progress()}", storm.patience)
                results = list(d.results())
                report = d.report()
        finally:
            stop.touch()
            for process in (*producers, *workers):
                process.join(20)
                process.kill()
        bought = sandbox.books.bought_by_prompt()
    outcomes = Counter(result.outcome for result in results)
    assert outcomes == {bw.Outcome.SUCCEEDED: len(wanted)}, outcomes
    assert {result.key for result in results} == wanted, "some were lost"
    assert all(result.text == f"echo: {result.key}" for result in results), "answers were mixed up"
    assert bought.keys() == wanted
    twice = {prompt: times for prompt, times in bought.items() if times > 1}
    assert sum(times - 1 for times in twice.values()) <= report.possible_doubles, (twice, report)
    return f"{len(wanted)} requests, {len(twice)} bought twice, {report.possible_doubles} possible doubles in the books"


def test_a_short_storm(server: Any, tmp_path: Path) -> None:
    print(weather(QUICK, server, tmp_path, random.Random(7)))


@pytest.mark.soak
def test_a_long_storm(server: Any, tmp_path: Path) -> None:
    print(weather(FULL, server, tmp_path, random.Random()))
