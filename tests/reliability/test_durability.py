"""The order of durability: a sync stands between a commit and what relies on it.

SQLite's own writes and syncs are watched at its VFS. At the first byte of a POST nothing of the ledger's log may be
unsynced, the seal and `posting` least of all; nor when a result is handed over.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import anthropic
import httpx2
import pytest

import batchwise as bw
from batchwise.ledger import bulk, sqlite_database, sqlite_file
from batchwise.ledger.sqlite import SqliteLedger
from batchwise.ledger.sqlite_database import SqliteDatabase
from batchwise.sandbox import Sandbox
from tests.reliability import vfs
from tests.reliability.crossing import POLICY
from tests.strategies import params

pytestmark = pytest.mark.skipif(not vfs.supported(), reason="this interpreter's SQLite hides its C interface")


class Record:
    """What happened, in order: commits by name, writes and syncs of the log, sends, hand-overs."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def file(self, what: str, path: str) -> None:
        if path.endswith("-wal"):
            self.events.append(what)

    def unsynced(self) -> list[str]:
        """Return the writes and commits that no sync has followed yet."""
        last = max((index for index, event in enumerate(self.events) if event == "sync"), default=-1)
        return [event for event in self.events[last + 1 :] if event == "write" or event.startswith("commit")]

    def unsynced_accepts(self) -> list[str]:
        """What was accepted and is not synced. The pump may be about to sync a commit of its own."""
        return [event for event in self.unsynced() if event.endswith("accept")]

    def between(self, first: str, second: str) -> list[str]:
        start = self.events.index(first)
        return self.events[start : self.events.index(second, start)]


class RecordedDatabase(SqliteDatabase):
    record: Record

    def commit(self, name: str) -> None:
        self.record.events.append(f"commit {name}")
        super().commit(name)


class RecordedTransport(httpx2.HTTPTransport):
    record: Record
    loose: list[tuple[str, list[str]]]

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "POST":
            assert isinstance(request.stream, httpx2.SyncByteStream)
            request.stream = RecordedBody(self, request.url.path, request.stream)
        return super().handle_request(request)


class RecordedBody(httpx2.SyncByteStream):
    """Nothing is bought before its body is sent; the head may go ahead."""

    def __init__(self, transport: RecordedTransport, path: str, body: httpx2.SyncByteStream) -> None:
        self._transport, self._path, self._body = transport, path, body

    def __iter__(self) -> Iterator[bytes]:
        for number, chunk in enumerate(self._body):
            if not number:
                self._transport.loose.append((self._path, self._transport.record.unsynced()))
                self._transport.record.events.append(f"send {self._path}")
            yield chunk


def run(folder: Path) -> tuple[Record, list[tuple[str, list[str]]]]:
    record = RecordedDatabase.record = RecordedTransport.record = Record()
    loose = RecordedTransport.loose = list[tuple[str, list[str]]]()
    with Sandbox(batch_latency=0.1) as sandbox, vfs.watched(record.file):
        http = httpx2.Client(transport=RecordedTransport())
        client = anthropic.Anthropic(base_url=sandbox.base_url, api_key="sandbox", http_client=http)
        with bw.Dispatcher(
            client, ledger=SqliteLedger(RecordedDatabase(folder / "ledger.db")), policy=POLICY
        ) as dispatcher:
            requests = [bw.Request(params(f"row {number}"), key=f"row {number}") for number in range(5)]
            job = dispatcher.dispatch_all(requests, job="job", latency=timedelta(hours=30))
            loose.append(("bulk", record.unsynced_accepts()))
            for result in job.results(timeout=30):
                loose.append((f"result {result.key}", record.unsynced()))
                record.events.append("hand over")
            while "commit closed" not in record.events:  # else that would be written meanwhile
                time.sleep(0.01)
            dispatcher.progress()  # waits for its end
            called = dispatcher.dispatch(params("now")).result(timeout=30)
            loose.append((f"result {called.key}", record.unsynced()))
    return record, loose


def check(record: Record, loose: list[tuple[str, list[str]]]) -> None:
    assert [where for where, _ in loose].count("/v1/messages/batches") == 1
    for where, unsynced in loose:
        assert not unsynced, (where, unsynced)
    batches = "send /v1/messages/batches"
    for first, second in (
        ("commit intake accept", batches),
        ("commit seal", "commit posting"),
        ("commit posting", batches),
        ("commit created", "hand over"),
        ("commit settle", "hand over"),
        ("commit accept", "send /v1/messages"),
    ):
        assert "sync" in record.between(first, second), f"no sync between {first!r} and {second!r}"
    assert "sync" not in record.between("commit stage", "commit intake accept")  # nobody relies on a part of a bulk


def test_what_is_relied_on_is_synced_first(tmp_path: Path) -> None:
    check(*run(tmp_path))


def test_what_is_accepted_in_the_midst_of_a_bulk_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "_ROWS", 2)
    record = RecordedDatabase.record = Record()
    loose: list[str] = []

    with Sandbox(batch_latency=60) as sandbox, vfs.watched(record.file):
        client = anthropic.Anthropic(base_url=sandbox.base_url, api_key="sandbox")
        ledger = SqliteLedger(RecordedDatabase(tmp_path / "ledger.db"))

        def requests() -> Iterator[bw.Request]:
            for number in range(6):
                if number % 2:  # behind a part that is staged already
                    dispatcher.dispatch(params(f"single {number}"), latency=timedelta(hours=30))
                    loose.extend(record.unsynced_accepts())
                yield bw.Request(params(f"row {number}"), key=f"row {number}")

        with bw.Dispatcher(client, ledger=ledger, policy=POLICY) as dispatcher:
            dispatcher.dispatch_all(requests(), job="job", latency=timedelta(hours=30))
            loose.extend(record.unsynced_accepts())
            dispatcher.close(finish=False)
    assert record.events.count("commit stage") == 3
    assert not loose


@pytest.mark.parametrize("setting", ["NORMAL", "OFF"])
def test_the_check_catches_a_ledger_that_does_not_sync(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loose(db: sqlite3.Connection, *, each: bool) -> None:
        assert each in {True, False}
        db.execute(f"PRAGMA synchronous = {setting}")

    monkeypatch.setattr(sqlite_file, "sync_commits", loose)
    monkeypatch.setattr(sqlite_database, "sync_commits", loose)
    record, unsynced = run(tmp_path)
    with pytest.raises(AssertionError):
        check(record, unsynced)


def test_every_connection_syncs_and_writes_ahead_after_reopening_too(tmp_path: Path) -> None:
    for _ in range(2):
        ledger = SqliteLedger(tmp_path / "ledger.db")
        assert ledger.database.connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert ledger.database.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        ledger.close()
