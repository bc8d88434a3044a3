"""Bulk jobs beside the bare SDK loop: CPU and wall of the job, peak memory of the whole process.

Three consumers, each in a process of its own:
- `bare`: create, poll, results into a dict of texts; keeps nothing on disk.
- `text`: batchwise, the decoded text of every row, in the order of settling.
- `keys`: batchwise, every row's key and outcome, results left undecoded.

CPU and wall begin after a job of one request, so that what either side imports on first use is no part of them (as
part of them it would make batchwise's CPU per request seem to fall as jobs grow), and end when everything is closed.
Peak memory is the whole process's. Each round has a sandbox of its own, which
all its sides use; in the largest jobs each side has one, for the sandbox keeps all rows that it ever saw.
"""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .harness import Figure, Meter, child, folder, maker, note, paired, rotate, sandbox, serve, show

BATCH = 100_000
POLL = 0.1
LATENCY = 0.1
"""Seconds that a batch takes in the sandbox, for both sides alike: one poll. Waiting is no work of either."""
_LARGE = 500_000
_PATIENCE = 600.0
"""Seconds to wait for a result before something is wrong."""
ANSWERED = (
    "SELECT count(DISTINCT request) FROM result_group g JOIN result r ON r.seq BETWEEN g.first AND g.last "
    "WHERE g.outcome = 0 AND g.lane = 1"
)


class Case(NamedTuple):
    """One size of job."""

    requests: int
    size: int
    rounds: int
    sides: tuple[str, ...] = ("bare", "text", "keys")

    @property
    def key(self) -> str:
        return f"bulk/{self.requests}x{self.size}"

    @property
    def title(self) -> str:
        return f"bulk: {self.requests:,} requests of {self.size:,} bytes, {self.rounds} rounds"


FULL = (
    Case(1_000, 1_000, 5),
    Case(10_000, 1_000, 5),
    Case(100_000, 1_000, 5),
    Case(10_000, 10_000, 3),
    # The same size of request throughout, so that only the number differs.
    Case(10_000, 200, 5),
    Case(100_000, 200, 3),
    Case(1_000_000, 200, 1),
)
QUICK = (Case(200, 1_000, 2), Case(1_000, 1_000, 2), Case(200, 10_000, 1), Case(1_000, 200, 1), Case(3_000, 200, 1))


# -- in a process of its own ------------------------------------------------------------------------------------------


def bare(url: str, requests: int, size: int, **_: Any) -> dict[str, Any]:
    """The loop of the SDK's documentation."""
    import anthropic

    client = anthropic.Anthropic(base_url=url, api_key="sandbox")
    _loop(client, 1, size)
    with Meter() as meter:
        texts = _loop(client, requests, size)
    assert len(texts) == requests, len(texts)
    return {**meter.figures(), "characters": sum(map(len, texts.values()))}


def _loop(client: Any, requests: int, size: int) -> dict[str, str]:
    params, texts = maker(size), dict[str, str]()
    batches = []
    for start in range(0, requests, BATCH):
        numbers = range(start, min(start + BATCH, requests))
        rows = [{"custom_id": f"r-{number}", "params": params(number)} for number in numbers]
        batches.append(client.messages.batches.create(requests=rows).id)
        del rows
    for batch in batches:
        while client.messages.batches.retrieve(batch).processing_status != "ended":
            time.sleep(POLL)
        for row in client.messages.batches.results(batch):
            texts[row.custom_id] = row.result.message.content[0].text
    return texts


def ours(url: str, requests: int, size: int, where: str, *, decode: bool) -> dict[str, Any]:
    """The same job by batchwise, every request and every result on disk."""
    import anthropic

    client = anthropic.Anthropic(base_url=url, api_key="sandbox")
    with tempfile.TemporaryDirectory(dir=where) as first:
        run_job(client, 1, size, Path(first) / "ledger.db", decode=decode)
    path, accepted = Path(where) / "ledger.db", Meter(within=True)
    with Meter() as meter:
        found = run_job(client, requests, size, path, decode=decode, accepted=accepted)
    figures = meter.figures()
    disk = sum(file.stat().st_size for file in Path(where).iterdir() if file.is_file())
    with closing(sqlite3.connect(path)) as db:  # what was claimed to be durable is read from the file
        settled = db.execute(ANSWERED).fetchone()[0]
    assert settled == requests, f"{settled} of {requests} were answered by a batch"
    assert decode or found == requests, f"{found} of {requests} came"
    return {**figures, "accepted": accepted.wall, "disk": disk / requests, "characters": found}


def run_job(
    client: Any, requests: int, size: int, ledger: Path | str, *, decode: bool, accepted: Meter | None = None
) -> int:
    """The number of characters of all texts; undecoded: how many succeeded."""
    import batchwise as bw

    # All settings are documented ones: the poll period of the bare loop, and an account as large as the job.
    poll, params = timedelta(seconds=POLL), maker(size)
    policy = bw.Policy(poll_every=(poll, poll), limits=bw.Limits.for_tier("scale"))
    with bw.Dispatcher(client, ledger=ledger, policy=policy) as dispatcher:
        with accepted or Meter(within=True):
            job = dispatcher.dispatch_all(
                (bw.Request(params(number), key=f"r-{number}") for number in range(requests)),
                job="bench",
                latency=timedelta(hours=30),
            )
        if decode:
            return sum(len(result.text) for result in job.results(_PATIENCE))
        succeeded = bw.Outcome.SUCCEEDED
        return sum(result.outcome is succeeded for result in job.results(_PATIENCE) if result.key)


# -- the comparison ---------------------------------------------------------------------------------------------------


def run(*, quick: bool) -> Iterator[tuple[str, list[Figure]]]:
    """Each size with its figures."""
    for case in QUICK if quick else FULL:
        rounds = [_round(case, number) for number in range(case.rounds)]
        figures = []
        for side in case.sides[1:]:
            for field, name, unit in (("cpu", "client CPU", "s"), ("wall", "wall", "s"), ("rss", "peak RSS", "bytes")):
                key = f"{case.key}/{side}/{field}"
                figures.append(paired(key, f"{side}: {name}", unit, rounds, side, "bare", field))
            each = [round_[side]["cpu"] / case.requests for round_ in rounds]
            figures.append(Figure(f"{case.key}/{side}/each", f"{side}: CPU per request", "s", each))
        accepted = [round_["keys"]["accepted"] / case.requests for round_ in rounds]
        figures.append(Figure(f"{case.key}/accepted", "dispatch_all, wall per request", "s", accepted))
        disk = [round_["keys"]["disk"] for round_ in rounds]
        figures.append(Figure(f"{case.key}/disk", "ledger on disk, per request", "bytes", disk))
        yield case.title, figures


def _round(case: Case, number: int) -> dict[str, dict[str, Any]]:
    with ExitStack() as stack:
        shared = None if case.requests >= _LARGE else stack.enter_context(sandbox(batch=LATENCY))

        def side(name: str) -> dict[str, Any]:
            with ExitStack() as own:
                url = shared or own.enter_context(sandbox(batch=LATENCY))
                where = own.enter_context(folder())
                found = child("bulk", name, url=url, requests=case.requests, size=case.size, where=where)
            note(f"{case.title}: {name} {show(found['cpu'], 's')} CPU, {show(found['wall'], 's')} wall")
            return found

        found = rotate({name: partial(side, name) for name in case.sides}, number)
    assert found["bare"]["characters"] == found["text"]["characters"], "the two sides read different texts"
    return found


if __name__ == "__main__":
    serve({"bare": bare, "text": partial(ours, decode=True), "keys": partial(ours, decode=False)})
