"""A ledger with a million settled requests: what it weighs, how long it takes to open, and to find one by key."""

from __future__ import annotations

import random
import sqlite3
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

from .harness import MODEL, Figure, Meter, child, folder, maker, note, serve

_CHUNK = 2_000
_FINDS = 200


def _line(number: int) -> bytes:
    text = f"echo: {number:07d}"
    return (
        b'{"custom_id":"r-%d_bw000000000000-%xz","result":{"type":"succeeded","message":{"id":"msg_01%022d",'
        b'"type":"message","role":"assistant","model":"%b","content":[{"type":"text","text":"%b"}],'
        b'"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":50,"cache_creation_input_tokens":0,'
        b'"cache_read_input_tokens":0,"output_tokens":50,"service_tier":"batch"}}}}'
    ) % (number, number, number, MODEL.encode(), text.encode())


def fill(where: str, requests: int) -> dict[str, Any]:
    """A job of so many requests of 200 bytes, settled by batches of 100,000 through the ledger's own calls."""
    import attrs

    import batchwise as bw
    from batchwise.engine.core import Engine
    from batchwise.ledger.sqlite import SqliteLedger
    from batchwise.ledger.values import Settlement, Which
    from batchwise.planning.custom_ids import new_nonce
    from batchwise.planning.state import BatchState

    make, ledger = maker(200), SqliteLedger(Path(where) / "ledger.db")
    engine = Engine(ledger, bw.Policy(limits=bw.Limits()), endpoint="http://127.0.0.1")
    payload = 0

    def rows() -> Iterator[bw.Request]:
        nonlocal payload
        for number in range(requests):
            request = bw.Request(make(number), key=f"r-{number}")
            payload += len(request.body)
            yield request

    with Meter() as meter:
        engine.accepting.accept_all(rows(), "bench", timedelta(hours=30), None)
        ledger.lease.acquire()
        while groups := ledger.snapshot().batch_queue:
            batch = ledger.batches.seal(
                [group.terms.id for group in groups],
                nonce=new_nonce(random.randbytes(16)),
                taken=frozenset(),
                now=engine.now(),
                max_requests=100_000,
                max_bytes=256_000_000,
            )
            assert batch is not None
            now = engine.now()
            ledger.batches.update(attrs.evolve(batch, state=BatchState.POSTING, posting_at=now), was=batch)
            ledger.batches.created(batch.id, remote_id=f"msgbatch_{batch.id}", created_at=now, expires_at=now, now=now)
            numbers = ledger.numbers(Which(batch=batch.id))
            random.Random(batch.id).shuffle(numbers)
            for start in range(0, len(numbers), _CHUNK):
                part = [
                    Settlement(number, bw.Outcome.SUCCEEDED, bw.Lane.BATCH, _line(number), 10**8, 10**8)
                    for number in numbers[start : start + _CHUNK]
                ]
                payload += sum(len(each.line) for each in part)
                ledger.settle(part, now=engine.now(), batch=batch.id)
            view = next(each for each in ledger.snapshot().batches if each.id == batch.id)
            ledger.batches.update(attrs.evolve(view, state=BatchState.CLOSED))
        engine.close()
        ledger.close()
    disk = sum(file.stat().st_size for file in Path(where).iterdir() if file.is_file())
    return {**meter.figures(), "disk": disk / requests, "payload": payload / requests}


def reopen(where: str, requests: int) -> dict[str, Any]:
    """Open it as a new process does; the file is in the page cache, its pages not in SQLite's."""
    import batchwise as bw
    from batchwise.engine.core import Engine
    from batchwise.engine.finding import find_request
    from batchwise.engine.progress import progress_of, report_of
    from batchwise.ledger.sqlite import SqliteLedger

    def timed(call: Any) -> tuple[float, Any]:
        begun = time.perf_counter()
        found = call()
        return time.perf_counter() - begun, found

    policy = bw.Policy()
    opened, ledger = timed(lambda: SqliteLedger(Path(where) / "ledger.db"))
    begun, engine = timed(lambda: Engine(ledger, policy, endpoint="http://127.0.0.1"))
    first, row = timed(lambda: find_request(ledger, f"r-{requests // 2}", "bench"))
    assert row.result is not None
    numbers = [random.randrange(requests) for _ in range(_FINDS)]
    finds = [timed(lambda number=number: find_request(ledger, f"r-{number}", "bench"))[0] for number in numbers]
    reads = [timed(lambda number=number: ledger.results_of([number + 1]))[0] for number in numbers]
    found = {
        "open": opened,
        "start": begun,
        "find, first": first,
        "find, median": statistics.median(finds),
        "result by number, median": statistics.median(reads),
        "snapshot": timed(ledger.snapshot)[0],
        "plan": timed(engine.plan)[0],
        "progress of the job": timed(lambda: progress_of(engine, "bench"))[0],
        "report of the job": timed(lambda: report_of(engine, "bench"))[0],
        "first page of 1,000 results": timed(lambda: ledger.results(job=1, after=0, limit=1_000))[0],
    }
    engine.close()
    ledger.close()
    return found


def contents(where: str) -> str:
    """Which tables and indices take the room, where this SQLite can tell."""
    with closing(sqlite3.connect(Path(where) / "ledger.db")) as db:
        try:
            rows = db.execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name ORDER BY 2 DESC LIMIT 6").fetchall()
        except sqlite3.Error:
            return ""
    total = sum(size for _, size in rows)
    return ", ".join(f"{name} {size / total:.0%}" for name, size in rows if size > total / 100)


def run(*, quick: bool) -> Iterator[tuple[str, list[Figure]]]:
    """One ledger, opened several times, each by a fresh process."""
    requests, rounds = (20_000, 2) if quick else (1_000_000, 5)
    with folder() as where:
        note(f"ledger: filling one with {requests:,} settled requests")
        filled = child("ledger", "fill", where=where, requests=requests)
        note("ledger: opening it")
        found = [child("ledger", "reopen", where=where, requests=requests) for _ in range(rounds)]
        tables = contents(where)
    figures = [
        Figure("ledger/disk", "bytes on disk per request", "bytes", [filled["disk"]], note=tables),
        Figure("ledger/payload", "of these, bodies and result lines", "bytes", [filled["payload"]]),
    ]
    figures += [Figure(f"ledger/{name}", name, "s", [each[name] for each in found]) for name in found[0]]
    yield f"ledger: {requests:,} settled requests of 200 bytes, {rounds} openings", figures


if __name__ == "__main__":
    serve({"fill": fill, "reopen": reopen})
