"""What only SQLite has: the file and its mode, migrations, several processes, locks that die with theirs."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from pathlib import Path

import pytest

from batchwise.errors import BatchwiseError, ForkedDispatcherError, KeyConflictError, LedgerError
from batchwise.ledger import bulk, schema, sharing, sqlite_database
from batchwise.ledger.opening import open_ledger
from batchwise.ledger.sqlite import SqliteLedger
from batchwise.ledger.sqlite_database import SqliteDatabase
from batchwise.ledger.sqlite_file import sync_commits
from batchwise.ledger.values import Entry, Which
from batchwise.models import Outcome

from .model import (
    BLOCKING,
    NIGHTLY,
    NOW,
    PATIENT,
    QUEUED,
    SETTLED,
    SYNC,
    World,
    entry,
    find,
    line,
    result_of,
    settlement,
    total,
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def lax() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("lax")
def test_all_files_are_private_under_a_lax_umask(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "ledger.db"
    ledger = SqliteLedger(path)
    world = World(ledger)
    world.accept("a")
    ledger.lease.acquire()
    files = sorted(each for each in (tmp_path / "new").rglob("*") if each.is_file())
    names = {each.name for each in files}
    assert names == {"ledger.db", "ledger.db-wal", "ledger.db-shm", "lease.lock", "run-1.lock"}
    assert {each.name: mode(each) for each in files} == dict.fromkeys(names, 0o600)
    folders = [tmp_path / "new", path.parent, tmp_path / "new" / "deep" / "ledger.db.locks"]
    assert [mode(each) for each in folders] == [0o700] * 3
    ledger.close()


@pytest.mark.usefixtures("lax")
def test_a_copied_ledger_is_made_private_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    SqliteLedger(path).close()
    path.chmod(0o644)
    SqliteLedger(path).close()
    assert mode(path) == 0o600


@pytest.mark.usefixtures("lax")
def test_the_default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BATCHWISE_LEDGER", raising=False)
    ledger = open_ledger(None)
    assert ledger.name == str(tmp_path / ".batchwise" / "ledger.db")
    assert (tmp_path / ".batchwise" / ".gitignore").read_text() == "*\n"
    assert mode(tmp_path / ".batchwise") == 0o700
    assert open_ledger(ledger) is ledger
    ledger.close()
    monkeypatch.setenv("BATCHWISE_LEDGER", str(tmp_path / "other.db"))
    other = open_ledger()
    assert other.name == str(tmp_path / "other.db")
    other.close()
    memory = open_ledger(":memory:")
    assert memory.name == ":memory:"
    memory.close()


def test_durability_is_not_loosened(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.db")
    values = {
        name: ledger.database.connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "foreign_keys")
    }
    assert values == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    ledger.close()


def test_an_interruption_while_syncing_is_switched_off_leaves_commits_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(db: sqlite3.Connection, *, each: bool) -> None:
        sync_commits(db, each=each)
        raise KeyboardInterrupt

    with closing(SqliteLedger(tmp_path / "ledger.db")) as ledger:
        with monkeypatch.context() as patched:
            patched.setattr(sqlite_database, "sync_commits", interrupted)
            with pytest.raises(KeyboardInterrupt), ledger.database.write("stage", durable=False):
                pass
        with ledger.database.write("accept") as db:
            assert db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_an_interruption_of_a_wait_for_another_writer_leaves_no_transaction_open(tmp_path: Path) -> None:
    """Python raises KeyboardInterrupt as soon as SQLite returns: then the transaction has begun."""
    here = threading.get_ident()

    def interrupt() -> None:
        time.sleep(0.1)  # until the wait has begun
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(here), ctypes.py_object(KeyboardInterrupt))
        other.rollback()

    def write(threads: ThreadPoolExecutor) -> None:
        threads.submit(interrupt)
        with ledger.database.write("flush"):
            pass

    path = tmp_path / "ledger.db"
    with closing(SqliteLedger(path)) as ledger, closing(sqlite3.connect(path, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(1) as threads, pytest.raises(KeyboardInterrupt):
            write(threads)
        assert not ledger.database.connection.in_transaction
        World(ledger).accept("a")


def test_every_change_is_one_commit_of_a_known_name(tmp_path: Path) -> None:
    names: list[str] = []

    class Counting(SqliteDatabase):
        def commit(self, name: str) -> None:
            names.append(name)
            super().commit(name)

    world = World(SqliteLedger(Counting(tmp_path / "ledger.db")))
    world.bulk([entry(str(number)) for number in range(4)], chunk=2)
    batch = world.opened()
    world.ledger.settle([settlement(1)], now=NOW, batch=batch.id)
    world.ledger.settle([settlement(1)], now=NOW, batch=batch.id)
    assert names == [
        "start_run",
        "intake",
        "stage",
        "stage",
        "intake accept",
        "seal",
        "posting",
        "created",
        "settle",
    ]
    world.ledger.close()


def test_a_bulk_takes_transactions_of_so_many_rows_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "_ROWS", 3)
    monkeypatch.setattr(bulk, "_BYTES", 10)
    sizes: list[int] = []

    class Counting(SqliteDatabase):
        def commit(self, name: str) -> None:
            super().commit(name)
            if name == "stage":
                sizes.append(self.connection.execute("SELECT count(*) FROM request").fetchone()[0])

    world = World(SqliteLedger(Counting(tmp_path / "ledger.db")))
    bodies = [b"1", b"22", b"333", b"4444", b"55555", b"6666666", b"7" * 20, b"8"]
    numbers = world.bulk([entry(str(n), body=body) for n, body in enumerate(bodies)], chunk=99)
    assert sizes == [3, 6, 7, 8], "three rows, or as many as reach ten bytes"
    assert [world.ledger.body(number) for number in numbers] == bodies
    world.ledger.close()


@pytest.mark.parametrize("broken", ["conflict", "disk", "caller"])
def test_what_fails_behind_a_full_transaction_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    monkeypatch.setattr(bulk, "_ROWS", 2)

    class Full(SqliteDatabase):
        left = 99

        def commit(self, name: str) -> None:
            self.left -= name == "stage"
            if self.left < 0:
                raise sqlite3.OperationalError("disk full")
            super().commit(name)

    def entries() -> Iterator[Entry]:
        yield from [entry(None, body="0"), entry("a", body="1"), entry(None, body="2"), entry(None, body="3")]
        if broken == "caller":
            raise LookupError
        yield entry("a", body="other" if broken == "conflict" else "1")

    with closing(SqliteLedger(Full(tmp_path / "ledger.db"))) as ledger:
        world = World(ledger)
        with ledger.intake(job="job", run=world.run) as intake:
            ledger.database.left = 1 if broken == "disk" else 99
            with pytest.raises((KeyConflictError, LedgerError, LookupError)):
                intake.stage(entries())
            ledger.database.left = 99
            staged = 2 if broken == "disk" else 4
            assert sum(requests for _, requests, _ in intake.fresh) == staged
            assert intake.stage([entry(None, body="last")]) == 1
            intake.accept(now=NOW)
        assert find(ledger, f"#{staged}", job="job") is not None, "positions go on behind what was staged"
        assert total(ledger)[QUEUED] == staged + 1


@pytest.mark.parametrize("broken", [False, True])
def test_answers_are_ticked_off_once_they_are_durable(tmp_path: Path, *, broken: bool) -> None:
    class Full(SqliteDatabase):
        def commit(self, name: str) -> None:
            if name == "settle" and broken:
                raise sqlite3.OperationalError("disk full")
            super().commit(name)

    with closing(SqliteLedger(Full(tmp_path / "ledger.db"))) as ledger:
        world = World(ledger)
        numbers = world.bulk([entry(str(number)) for number in range(3)])
        open_rows = ledger.batches.open_rows(world.opened().id)
        assert open_rows is not None
        answers = [(number, line(number), 5, 5, 1, None) for number in reversed(numbers)]

        with pytest.raises(LedgerError) if broken else nullcontext():
            assert ledger.settle_answers(open_rows, answers, now=NOW)
        assert sum(open_rows.left.values()) == (3 if broken else 0)
        assert total(ledger)[SETTLED] == (0 if broken else 3)


def test_numbers_of_a_commit_that_sqlite_rolled_back_are_given_again(tmp_path: Path) -> None:
    class Full(SqliteDatabase):
        full = False

        def commit(self, name: str) -> None:
            if self.full:
                self.connection.execute("ROLLBACK")  # as SQLite does by itself on a full disk
                raise sqlite3.OperationalError("database or disk is full")
            super().commit(name)

    with closing(SqliteLedger(Full(tmp_path / "ledger.db"))) as ledger:
        world = World(ledger)
        ledger.database.full = True
        with pytest.raises(LedgerError, match="full"):
            world.accept("lost", NIGHTLY)
        ledger.database.full = False
        kept = world.accept("kept", PATIENT).row
        assert kept.terms.deadline == PATIENT.deadline
        assert kept.terms.lane is PATIENT.lane


def test_a_commit_that_fails_changes_nothing(tmp_path: Path) -> None:
    class Broken(SqliteDatabase):
        broken = False

        def commit(self, name: str) -> None:
            if self.broken:
                raise sqlite3.OperationalError("disk I/O error")
            super().commit(name)

    ledger = SqliteLedger(Broken(tmp_path / "ledger.db"))
    world = World(ledger)
    world.accept(body="a", job="j")
    before, ledger.database.broken = ledger.snapshot(), True
    with pytest.raises(LedgerError, match=r"ledger\.db failed \(disk I/O error\)"):
        world.accept(body="b", job="j")
    with pytest.raises(LedgerError), ledger.intake(job="x", run=world.run):
        pass
    ledger.database.broken = False
    assert ledger.snapshot() == before
    world.accept(body="a", job="j")
    assert world.accept(body="b", job="j").row.key == "#1"
    ledger.close()


@pytest.mark.parametrize("broken", [False, True])
def test_calls_that_end_together_share_a_commit_and_the_fault_of_one_harms_no_other(
    tmp_path: Path, broken: bool
) -> None:
    commits: list[str] = []

    class Counting(SqliteDatabase):
        def commit(self, name: str) -> None:
            commits.append(name)
            super().commit(name)

    with closing(SqliteLedger(Counting(tmp_path / "ledger.db"))) as ledger, ThreadPoolExecutor(6) as threads:
        world = World(ledger)
        numbers = [world.accept(str(n), BLOCKING, claim=True).row.id for n in range(6)]
        ends = [settlement(number, lane=SYNC) for number in numbers]
        if broken:
            ends[0] = ends[0]._replace(cost=2**70)  # no column takes it
        with ledger.database.lock:  # as if another thread were in a transaction
            ending = [threads.submit(ledger.begin_settle(end, now=NOW, run=world.run)) for end in ends]
            while len(ledger._settlements._shared._waiting) < 6:
                time.sleep(0.001)
        with pytest.raises(OverflowError) if broken else nullcontext():
            ending[0].result(10)
        for number, one in zip(numbers[1:], ending[1:], strict=True):
            one.result(10)
            assert result_of(ledger, number) is not None
        assert commits.count("settle") == (5 if broken else 1)


@pytest.mark.parametrize("when", ["begin", "commit"])
def test_who_interrupts_one_thread_interrupts_no_other_whose_call_is_in_the_same_commit(
    tmp_path: Path, when: str
) -> None:
    class Interrupted(SqliteDatabase):
        at = ""

        def _check_file(self) -> None:
            self._interrupt("begin")
            super()._check_file()

        def commit(self, name: str) -> None:
            self._interrupt("commit")
            super().commit(name)

        def _interrupt(self, place: str) -> None:
            if self.at == place:
                self.at = ""
                raise KeyboardInterrupt

    database = Interrupted(tmp_path / "ledger.db")
    with closing(SqliteLedger(database)) as ledger, ThreadPoolExecutor(1) as threads:
        world = World(ledger)
        with database.lock:
            other = threads.submit(world.accept, "other")
            while not ledger._accepting._shared._waiting:
                time.sleep(0.001)
            database.at = when
            with pytest.raises(KeyboardInterrupt):
                world.accept("mine")
        with nullcontext() if when == "begin" else pytest.raises(LedgerError, match="interrupted") as failed:
            other.result(10)
        assert failed is None or failed.value.passing
        assert (find(ledger, "other", job=None) is not None) is (when == "begin")
        assert find(ledger, "mine", job=None) is None
        assert world.accept("other").row.key == "other"


def test_a_call_behind_as_many_as_share_a_commit_is_carried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "_MOST", 1)
    with closing(SqliteLedger(tmp_path / "ledger.db")) as ledger, ThreadPoolExecutor(1) as threads:
        world = World(ledger)
        with ledger.database.lock:
            first = threads.submit(world.accept, "first")
            while not ledger._accepting._shared._waiting:
                time.sleep(0.001)
            assert world.accept("second").created
        assert first.result(10).created


def test_jobs_that_have_a_key_are_found_by_the_index_and_the_shared_scope_is_one(tmp_path: Path) -> None:
    with closing(SqliteLedger(tmp_path / "ledger.db")) as ledger:
        world = World(ledger)
        for job in (None, "one", "two"):
            world.accept("k", job=job)
        world.accept("other", job="three")
        statements: list[str] = []
        ledger.database.connection.set_trace_callback(statements.append)
        assert [row.job for row in ledger.rows(Which(key="k"), limit=3).values()] == [0, 1, 2]
        ledger.database.connection.set_trace_callback(None)
        (select,) = [each for each in statements if each.startswith("SELECT") and "request" in each]
        plan = ledger.database.connection.execute(f"EXPLAIN QUERY PLAN {select}", [b"k"] * select.count("?")).fetchall()
        assert any(re.search(r"SEARCH (TABLE request AS )?q .*\(job=\? AND key=\?\)", row[3]) for row in plan), plan


def test_a_newer_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    SqliteLedger(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(LedgerError, match=r"schema version 99.*upgrade the package batchwise-claude,"):
        SqliteLedger(path)


def test_an_older_ledger_is_brought_forward_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.db"
    old = SqliteLedger(path)
    World(old).accept("a")
    old.close()
    monkeypatch.setattr(
        schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE more (id INTEGER);\nINSERT INTO more VALUES (7);\n")
    )
    for _ in range(2):
        new = SqliteLedger(path)
        assert new.database.connection.execute("SELECT id FROM more").fetchall() == [(7,)]
        assert new.database.connection.execute("PRAGMA user_version").fetchone()[0] == len(schema.MIGRATIONS)
        assert find(new, "a", job=None) is not None
        new.close()


def test_a_migration_that_fails_leaves_the_old_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.db"
    SqliteLedger(path).close()
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE more (id INTEGER);\nnonsense;\n"))
    with pytest.raises(LedgerError):
        SqliteLedger(path)
    monkeypatch.undo()
    again = SqliteLedger(path)
    assert not again.database.connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'more'").fetchall()
    again.close()


def test_a_link_to_a_ledger_shares_its_locks(tmp_path: Path) -> None:
    one = SqliteLedger(tmp_path / "ledger.db")
    (tmp_path / "link.db").symlink_to(tmp_path / "ledger.db")
    two = SqliteLedger(tmp_path / "link.db")
    assert one.lease.acquire()
    assert not two.lease.acquire()
    one.close()
    two.close()


# -- several processes --------------------------------------------------------------------------------------------


def _work(path: str, name: int, rounds: int) -> None:
    ledger = SqliteLedger(path)
    world = World(ledger)
    for index in range(rounds):
        one = world.accept(f"{name}-{index}", PATIENT, claim=True).row.id
        assert ledger.settle([settlement(one, lane=SYNC)], now=NOW, run=world.run) == 1
        shared = world.accept(f"shared-{index}", NIGHTLY).row.id
        assert shared
        numbers = world.bulk([entry(None, body=f"{n}") for n in range(10)], job=f"job-{index % 3}", chunk=4)
        assert len(numbers) == 10
        if ledger.lease.acquire():
            ids = [group.terms.id for group in ledger.snapshot().batch_queue]
            batch = ledger.batches.seal(
                ids, nonce=f"{name:06d}{index:06d}", taken=frozenset(), now=NOW, max_requests=7, max_bytes=10**6
            )
            if batch is not None:
                rows = [settlement(row[0]) for row in ledger.batches.entries(batch.id)]
                assert ledger.settle(rows, now=NOW, batch=batch.id) == batch.requests
            ledger.lease.release()
        ledger.recover(now=NOW)
    ledger.end_run(world.run)
    ledger.close()


def test_several_processes_on_one_file(tmp_path: Path) -> None:
    path, rounds = str(tmp_path / "ledger.db"), 15
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_work, args=(path, name, rounds)) for name in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 4
    ledger = SqliteLedger(path)
    sums = total(ledger)
    assert sum(sums.values()) == 4 * rounds + rounds + 3 * 10
    results = ledger.results(job=None, after=0, limit=10_000)
    assert len({row.request for row in results}) == len(results) == sums[SETTLED]
    groups = sum(group.requests for group in ledger.snapshot().batch_queue)
    assert groups == sums[QUEUED]
    assert list((tmp_path / "ledger.db.locks").glob("run-*")) == []
    ledger.close()


_HOLDER = """
import sys, time
from tests.ledger.model import BLOCKING, NOW, World, entry
from batchwise.ledger.sqlite import SqliteLedger

ledger = SqliteLedger(sys.argv[1])
world = World(ledger)
world.accept("a", BLOCKING, claim=True)
ledger.intake(job="bulk", run=world.run).stage([entry("b")])
assert ledger.lease.acquire()
print("ready", flush=True)
time.sleep(60)
"""


def test_a_killed_process_frees_its_run_and_the_lease(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    holder = subprocess.Popen([sys.executable, "-c", textwrap.dedent(_HOLDER), str(path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"ready\n"
    ledger = SqliteLedger(path)
    assert not ledger.lease.acquire()
    assert ledger.recover(now=NOW) == 0
    holder.send_signal(signal.SIGSTOP)
    assert not ledger.lease.acquire(), "stopped is not dead"
    assert ledger.recover(now=NOW) == 0
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    assert ledger.lease.acquire()
    assert ledger.recover(now=NOW) == 1
    (result,) = ledger.results(job=None, after=0, limit=9)
    assert (result.key, result.how.outcome) == ("a", Outcome.CANCELED)
    assert World(ledger).bulk([entry("b", body="other")], job="bulk")
    ledger.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_neither_uses_nor_keeps_the_parents_locks(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    script = f"""
        import os, sys, time
        from batchwise.errors import BatchwiseError
        from batchwise.ledger.sqlite import SqliteLedger
        from tests.ledger.model import NOW, World
        ledger = SqliteLedger({str(path)!r})
        world = World(ledger)
        assert ledger.lease.acquire()
        if os.fork() == 0:
            try:
                world.accept("a")
            except BatchwiseError:
                print("refused", flush=True)
            del ledger, world
            time.sleep(5)
            os._exit(0)
        time.sleep(60)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"refused\n"
    ledger = SqliteLedger(path)
    assert not ledger.lease.acquire(), "the parent lives"
    parent.kill()
    parent.wait()
    assert ledger.lease.acquire(), "the child lives, and holds nothing"
    World(ledger).accept("b")
    parent.stdout.close()
    ledger.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_forked_within_a_transaction_does_not_commit_it(tmp_path: Path) -> None:
    with closing(SqliteLedger(tmp_path / "ledger.db")) as ledger:
        child, code = -1, 1
        try:
            with ledger.database.write("test") as db:
                db.execute("CREATE TABLE mine (x)")
                db.execute("INSERT INTO mine VALUES (1)")
                child = os.fork()  # as the handler of a signal may
        except ForkedDispatcherError:
            code = 0
        finally:
            if not child:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with ledger.database.read() as db:
            assert db.execute("SELECT count(*) FROM mine").fetchone() == (1,)


def test_a_writer_that_hangs_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.db")
    world = World(ledger)
    ledger.database.connection.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(BatchwiseError, match="another process has been writing") as caught:
        world.accept("a")
    assert "database is locked" not in str(caught.value)
    other.execute("ROLLBACK")
    other.close()
    assert world.accept("a").created
    ledger.close()


def test_looking_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.db")
    World(ledger).accept("a")
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    assert ledger.snapshot().batch_queue
    assert find(ledger, "a", job=None) is not None
    assert time.monotonic() - began < 5
    other.execute("ROLLBACK")
    other.close()
    ledger.close()


def test_what_was_purged_is_in_none_of_the_files(tmp_path: Path) -> None:
    """Beside another connection too; while that one reads, it is tried again later."""
    path = tmp_path / "ledger.db"
    with closing(SqliteLedger(path)) as ledger, closing(SqliteLedger(path)) as other:
        world = World(ledger)
        one = world.accept("secret-key", body=b'{"prompt": "secret-body"}').row.id
        ledger.settle([settlement(one)._replace(line=b"secret-line")], now=NOW)

        def left() -> list[str]:
            files = [each for each in tmp_path.rglob("*") if each.is_file()]
            return [each.name for each in files if b"secret" in each.read_bytes()]

        assert left()
        with other.database.read() as db:
            db.execute("SELECT count(*) FROM request").fetchone()
            begun = time.monotonic()
            assert ledger.purge(before=NOW.replace(year=9999)) == 1
            assert time.monotonic() - begun < 10, "it does not wait for whoever reads"
        ledger.recover(now=NOW)
        assert left() == []
