"""Where the CPU of a bulk job goes, stage by stage, beside what no implementation could save.

Each stage is the engine's own code for it, run alone in one thread, over rows that really went through the sandbox.
The floors do the bare minimum of the same work: encode, decode, sync the same bytes to the same disk, move them over
loopback. The first stages contain those before them (a generator feeds the next), so differences are shown.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .harness import MODEL, Figure, Meter, child, folder, maker, note, sandbox, serve

_CHUNK = 1_000
_SIZE = 1_000
STAGES = {
    "params": "params: the caller makes a dict",
    "request": "request: encoded, checked",
    "accept": "accept: routed and stored",
    "seal": "seal: marked as one batch",
    "body": "body: read back, custom_ids, joined",
    "send": "send: the body over HTTP",
    "read": "read: the results over HTTP, chunked",
    "collect": "collect: lines told apart, stored",
    "results": "results: read back, key and outcome",
    "text": "text: decoded",
}
FLOORS = {
    "encode": "floor: orjson.dumps of the params",
    "decode": "floor: orjson.loads of a result line",
    "disk": "floor: the same bytes, synced each 1,000",
    "upload": "floor: the body through a socket",
    "download": "floor: the results through a socket",
}


class _Table:
    """What each stage took, per row."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.found: dict[str, dict[str, float]] = {}

    def time(self, name: str, work: Callable[[], Any], *, less: str = "") -> Any:
        """Do one stage; `less` names a stage that was done again within it."""
        with Meter() as meter:
            value = work()
        before = self.found[f"{less}, whole"] if less else {"cpu": 0.0, "wall": 0.0}
        whole = {"cpu": meter.cpu / self.count, "wall": meter.wall / self.count}
        self.found[f"{name}, whole"] = whole
        self.found[name] = {field: whole[field] - before[field] for field in whole}
        return value


def stages(url: str, where: str, count: int) -> dict[str, Any]:
    """All of them, once."""
    import anthropic
    import attrs

    import batchwise as bw
    from batchwise.engine.core import Engine
    from batchwise.engine.ports import SyncPorts
    from batchwise.engine.reading import Reader
    from batchwise.ledger.sqlite import SqliteLedger
    from batchwise.planning.custom_ids import new_nonce, sealer
    from batchwise.planning.packing import body_chunks
    from batchwise.planning.state import BatchState

    table, params = _Table(count), maker(_SIZE)
    api = SyncPorts(anthropic.Anthropic(base_url=url, api_key="sandbox"), sleep=time.sleep)
    ledger = SqliteLedger(Path(where) / "ledger.db")
    engine = Engine(ledger, bw.Policy(limits=bw.Limits()), endpoint=url)
    engine.prices.rates(MODEL, bw.Lane.BATCH, at=engine.now())  # its import is no stage

    def requests() -> Iterator[bw.Request]:
        return (bw.Request(params(number), key=f"r-{number}") for number in range(count))

    table.time("params", lambda: _drain(params(number) for number in range(count)))
    table.time("request", lambda: _drain(requests()), less="params")
    table.time(
        "accept", lambda: engine.accepting.accept_all(requests(), "bench", timedelta(hours=30), None), less="request"
    )

    terms = [group.terms.id for group in ledger.snapshot().batch_queue]
    nonce = new_nonce(os.urandom(16))

    ledger.lease.acquire()

    def seal() -> Any:
        return ledger.batches.seal(
            terms, nonce=nonce, taken=frozenset(), now=engine.now(), max_requests=100_000, max_bytes=256_000_000
        )

    batch = table.time("seal", seal)
    ledger.batches.update(attrs.evolve(batch, state=BatchState.POSTING, posting_at=engine.now()), was=batch)
    ids = sealer(nonce)
    entries = ((ids(key, number), body) for number, key, body in ledger.batches.entries(batch.id))
    chunks = table.time("body", lambda: list(body_chunks(entries)))
    created = table.time("send", lambda: api.create(iter(chunks), batch.size, ()))
    ledger.batches.created(
        batch.id,
        remote_id=created.id,
        created_at=created.created_at,
        expires_at=created.expires_at,
        now=engine.now(),
    )
    while api.retrieve(created.id).status != "ended":
        time.sleep(0.1)

    def read() -> list[bytes]:
        pieces: list[bytes] = []

        def feed(piece: bytes) -> bool:
            pieces.append(piece)
            return True

        api.read(created.id, feed)
        return pieces

    _drain(iter(read()))  # the sandbox makes the lines when they are asked for first
    pieces = table.time("read", read)
    reader = Reader(engine, ledger.snapshot().batches[0])

    def collect() -> None:
        for piece in pieces:
            reader.feed(piece)
        assert reader.finish(whole=True) == []

    table.time("collect", collect)
    table.time("results", lambda: _look(bw, ledger, count, decode=False))
    table.time("text", lambda: _look(bw, ledger, count, decode=True), less="results")
    _floors(table, url, where, b"".join(chunks), b"".join(pieces), created.id)
    engine.close()
    ledger.close()
    return table.found


def _drain(values: Iterator[object]) -> None:
    for _ in values:
        pass


def _look(bw: Any, ledger: Any, count: int, *, decode: bool) -> None:
    """As `Dispatcher.results` does it."""
    after, seen = 0, 0
    while rows := ledger.results(job=ledger.jobs.number("bench"), after=after, limit=1_000):
        for row in rows:
            result = bw.Result(row)
            seen += bool(result.key and result.outcome)
            if decode:
                assert result.text
        after = rows[-1].cursor
    assert seen == count


def _floors(table: _Table, url: str, where: str, body: bytes, results: bytes, batch: str) -> None:
    import orjson

    params, lines = maker(_SIZE), results.splitlines()
    table.time("encode", lambda: _drain(orjson.dumps(params(n)) for n in range(table.count)), less="params")
    table.time("decode", lambda: _drain(orjson.loads(line) for line in lines))
    table.time("disk", lambda: _write(Path(where) / "floor", (body, results), table.count))
    host = urlsplit(url).netloc
    head = f"Host: {host}\r\nx-api-key: sandbox\r\nanthropic-version: 2023-06-01\r\n"
    post = f"POST /v1/messages/batches HTTP/1.1\r\n{head}Content-Type: application/json\r\nContent-Length: {len(body)}"
    table.time("upload", lambda: _exchange(host, f"{post}\r\n\r\n".encode(), body, b"}"))
    get = f"GET /v1/messages/batches/{batch}/results HTTP/1.1\r\n{head}\r\n"
    table.time("download", lambda: _exchange(host, get.encode(), b"", b"\r\n0\r\n\r\n"))


def _write(path: Path, parts: tuple[bytes, ...], count: int) -> None:
    with path.open("wb", buffering=0) as file:
        for part in parts:
            step = max(1, len(part) * _CHUNK // count)
            for start in range(0, len(part), step):
                file.write(part[start : start + step])
                getattr(os, "fdatasync", os.fsync)(file.fileno())


def _exchange(host: str, head: bytes, body: bytes, end: bytes) -> None:
    """One HTTP exchange by a plain socket; the answer is thrown away."""
    name, _, port = host.partition(":")
    with socket.create_connection((name, int(port))) as connection:
        connection.sendall(head)
        connection.sendall(body)
        tail = b""
        while not tail.endswith(end):
            piece = connection.recv(65_536)
            assert piece, "the connection ended early"
            assert tail or piece.startswith(b"HTTP/1.1 200"), piece[:200]
            tail = (tail + piece)[-16:]


# -- the table --------------------------------------------------------------------------------------------------------


def run(*, quick: bool) -> Iterator[tuple[str, list[Figure]]]:
    """CPU per row by stage, medians; wall beside it."""
    count, rounds = (1_000, 1) if quick else (100_000, 3)
    found = []
    for number in range(rounds):
        note(f"stages, round {number + 1} of {rounds}")
        with sandbox(batch=0.1) as url, folder() as where:
            found.append(child("stages", "stages", url=url, where=where, count=count))

    def figures(names: dict[str, str]) -> list[Figure]:
        made = []
        for name, words in names.items():
            wall = statistics.median(each[name]["wall"] for each in found)
            values = [each[name]["cpu"] for each in found]
            made.append(Figure(f"stages/{name}", words, "s", values, note=f"wall {wall * 1e6:.2f} us"))
        return made

    parts = figures(STAGES)
    total = [sum(each[name]["cpu"] for name in STAGES) for each in found]
    parts.append(Figure("stages/all", "all stages", "s", total))
    yield f"stages: CPU per row of a job of {count:,} x 1 KB, {rounds} rounds", [*parts, *figures(FLOORS)]


if __name__ == "__main__":
    serve({"stages": stages})
