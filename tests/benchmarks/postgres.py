"""A ledger in Postgres: bulk jobs beside the bare SDK loop, and single dispatches from several processes.

The sides of a bulk job are those of `bulk`, with the ledger in a server from its wheel. The server syncs each commit to
the disk. Its CPU is not the client's: it is printed beside.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from tests.postgres import Schemas, start

from .bulk import ANSWERED, LATENCY, bare, run_job
from .harness import ROOT, Figure, Meter, child, environment, maker, note, paired, rotate, sandbox, serve, show

_SETTINGS = """
max_connections = 100
"""
"""All else as the server comes: it syncs each commit, and whole pages after a checkpoint."""
_WARM = 20
"""Dispatches of each process before it is measured."""
_SIDES = ("bare", "text", "keys")


# -- the server -------------------------------------------------------------------------------------------------------


class Server:
    """A server from its wheel, whose processes' CPU can be told."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self._pid = int((folder / "postmaster.pid").read_text().splitlines()[0])

    def cpu(self) -> float:
        """Seconds of user and system time that it has used so far, by processes that have ended, too."""
        used, ticks = 0, os.sysconf("SC_CLK_TCK")
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if self._pid in {int(folder.name), int(fields[1])}:
                    ended = fields[13:15] if int(folder.name) == self._pid else []
                    used += sum(map(int, [*fields[11:13], *ended]))
        return used / ticks


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """Started on a new folder, which any user may enter: on behalf of root it runs as another one."""
    with tempfile.TemporaryDirectory(prefix="batchwise-bench-") as name:
        Path(name).chmod(0o755)
        folder = Path(name) / "data"
        started = start(folder, _SETTINGS)
        try:
            yield Server(started.get_uri(), folder)
        finally:
            started.cleanup()


# -- in a process of its own ------------------------------------------------------------------------------------------


def ours(url: str, requests: int, size: int, ledgers: Sequence[str], *, decode: bool) -> dict[str, Any]:
    """The job of `bulk.ours`, in the second of two ledgers that do not exist yet."""
    import anthropic
    import psycopg

    client = anthropic.Anthropic(base_url=url, api_key="sandbox")
    first, ledger = ledgers
    run_job(client, 1, size, first, decode=decode)
    accepted = Meter(within=True)
    with Meter() as meter:
        found = run_job(client, requests, size, ledger, decode=decode, accepted=accepted)
    figures = meter.figures()
    place, _, schema = ledger.rpartition("&schema=")
    with psycopg.connect(place, options=f"-c search_path={schema}") as db:
        (settled,) = db.execute(ANSWERED).fetchone() or (0,)
    assert settled == requests, f"{settled} of {requests} were answered by a batch"
    assert decode or found == requests, f"{found} of {requests} came"
    return {**figures, "accepted": accepted.wall, "characters": found}


def singles(ledger: str, count: int, threads: int, process: int) -> dict[str, Any]:
    """Dated requests, dispatched one by one, from when a line comes in; none is due, so nothing is sent."""
    import threading

    import anthropic

    import batchwise as bw

    client, params = anthropic.Anthropic(base_url="http://127.0.0.1:9", api_key="sandbox"), maker(1_000)
    policy, sla = bw.Policy(limits=bw.Limits.for_tier("scale")), timedelta(hours=30)
    dispatcher = bw.Dispatcher(client, ledger=ledger, policy=policy)

    def work(name: str, numbers: range) -> None:
        for number in numbers:
            dispatcher.dispatch(params(number), key=f"{name}-{process}-{number}", latency=sla)

    work("warm", range(_WARM))
    workers = [threading.Thread(target=work, args=("r", range(each, count, threads))) for each in range(threads)]
    print("ready", flush=True)
    sys.stdin.readline()
    with Meter() as meter:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    print("done", flush=True)
    sys.stdin.readline()
    total = dispatcher.progress().total
    dispatcher.close(finish=False)
    return {**meter.figures(), "total": total}


# -- the comparisons --------------------------------------------------------------------------------------------------


def _bulk(pg: Server, schemas: Schemas, requests: int, number: int) -> dict[str, dict[str, Any]]:
    with sandbox(batch=LATENCY) as url:

        def side(name: str) -> dict[str, Any]:
            ledgers, before = {} if name == "bare" else {"ledgers": [schemas.url(), schemas.url()]}, pg.cpu()
            found = child("postgres", name, url=url, requests=requests, size=1_000, **ledgers)
            schemas.close()
            found["server"] = pg.cpu() - before
            note(
                f"postgres, {requests:,} x 1 KB: {name} {show(found['cpu'], 's')} CPU, {show(found['wall'], 's')} wall,"
                f" the server {show(found['server'], 's')} CPU"
            )
            return found

        found = rotate({name: partial(side, name) for name in _SIDES}, number)
    assert found["bare"]["characters"] == found["text"]["characters"], "the two sides read different texts"
    return found


def _together(ledger: str, processes: int, count: int, threads: int) -> dict[str, float]:
    """All processes dispatch at once; seconds from the first to the last."""
    with ExitStack() as stack:
        each = []
        for process in range(processes):
            options = {"ledger": ledger, "count": count, "threads": threads, "process": process}
            command = [sys.executable, "-m", "tests.benchmarks.postgres", "singles", json.dumps(options)]
            pipe = subprocess.PIPE
            begun = subprocess.Popen(command, cwd=ROOT, env=environment(), stdin=pipe, stdout=pipe, text=True)
            each.append(stack.enter_context(begun))
        _hear(each, "ready")
        begun_at = time.perf_counter()
        _say(each)
        _hear(each, "done")
        wall = time.perf_counter() - begun_at
        _say(each)
        found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in each]
    assert {one["total"] for one in found} == {processes * (count + _WARM)}, found
    return {"wall": wall, "cpu": sum(one["cpu"] for one in found)}


def _say(processes: Sequence[subprocess.Popen[str]]) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def _hear(processes: Sequence[subprocess.Popen[str]], word: str) -> None:
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{word}\n"


def run(*, quick: bool) -> Iterator[tuple[str, list[Figure]]]:
    """The bulk job, then the single dispatches."""
    requests, rounds = (1_000, 1) if quick else (100_000, 3)
    with server() as pg:
        schemas = Schemas(pg.url)
        found = [_bulk(pg, schemas, requests, number) for number in range(rounds)]
        key = f"postgres/{requests}x1000"
        figures = []
        for side in _SIDES[1:]:
            for field, name, unit in (("cpu", "client CPU", "s"), ("wall", "wall", "s"), ("rss", "peak RSS", "bytes")):
                figures.append(paired(f"{key}/{side}/{field}", f"{side}: {name}", unit, found, side, "bare", field))
            servers = [each[side]["server"] for each in found]
            figures.append(Figure(f"{key}/{side}/server", f"{side}: the server's CPU, beside", "s", servers))
        accepted = [each["keys"]["accepted"] / requests for each in found]
        figures.append(Figure(f"{key}/accepted", "dispatch_all, wall per request", "s", accepted))
        yield f"postgres: {requests:,} requests of 1,000 bytes, {rounds} rounds", figures
        figures = []
        count = 50 if quick else 1_000
        for processes, threads in ((2, 1),) if quick else ((1, 1), (8, 1), (8, 4)):
            tried = []
            for number in range(rounds):
                note(f"postgres: single dispatches, {processes} x {threads}, round {number + 1} of {rounds}")
                before = pg.cpu()
                one = _together(schemas.url(), processes, count, threads)
                tried.append({**one, "server": pg.cpu() - before})
                schemas.close()
            total, name = processes * count, f"{processes} processes, {threads} threads each"
            key = f"postgres/singles/{processes}x{threads}"
            figures.append(Figure(f"{key}/rate", f"{name}: together", "/s", [total / each["wall"] for each in tried]))
            figures.append(Figure(key, f"{name}: wall of one", "s", [each["wall"] / total for each in tried]))
            figures.append(Figure(f"{key}/cpu", f"{name}: client CPU", "s", [each["cpu"] / total for each in tried]))
            servers = [each["server"] / total for each in tried]
            figures.append(Figure(f"{key}/server", f"{name}: the server's CPU", "s", servers))
        yield f"postgres: dated requests dispatched one by one, {rounds} rounds", figures


if __name__ == "__main__":
    serve(
        {
            "bare": bare,
            "text": partial(ours, decode=True),
            "keys": partial(ours, decode=False),
            "singles": singles,
        }
    )
