"""What only Postgres has: URLs, roles, lost connections, lost commits, poolers, forks."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import attrs
import psycopg
import pytest

from batchwise.errors import (
    ForkedDispatcherError,
    InvalidValueError,
    LedgerError,
    LedgerNotFoundError,
)
from batchwise.ledger import postgres_session
from batchwise.ledger.ledger import Ledger
from batchwise.ledger.opening import migration_sql, open_ledger
from batchwise.ledger.postgres_connection import target
from batchwise.ledger.postgres_database import PostgresDatabase
from batchwise.ledger.postgres_schema import migrate
from batchwise.ledger.postgres_session import channel_of
from batchwise.ledger.postgres_wire import Rows, Statement, Wire
from batchwise.models import Lane, Status
from tests.postgres import Schemas, restart, start
from tests.waiting import until

from .model import FLEXIBLE, NOW, PATIENT, World, find, marks, settlement
from .proxies import Pooler, Proxy

SECRET = "hunter2-not-for-logs"
PRICED = attrs.evolve(FLEXIBLE, max_cost_each=100, max_cost_per_byte=10)


@pytest.fixture
def url(schemas: Schemas) -> str:
    return schemas.url()


def opened(url: str) -> Ledger:
    return open_ledger(url)


def schema_of(url: str) -> str:
    return url.rpartition("schema=")[2]


@contextmanager
def admin(postgres: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres, autocommit=True) as db:
        yield db


def end_sessions(postgres: str, url: str) -> int:
    """Have the server end all sessions of a ledger, as a restart does."""
    with admin(postgres) as db:
        return db.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = %s",
            (application(url),),
        ).fetchone()[0]


def sessions(postgres: str, url: str) -> int:
    """How many sessions of a ledger the server has."""
    with admin(postgres) as db:
        return db.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", (application(url),)
        ).fetchone()[0]


def end_listening(postgres: str, url: str) -> int:
    """Have the server end those sessions of a ledger that hold its locks; the others go on."""
    with admin(postgres) as db:
        return db.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = %s "
            "AND pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory')",
            (application(url),),
        ).fetchone()[0]


def application(url: str) -> str:
    return f"test-{schema_of(url)}"[:63]


def named(url: str) -> str:
    """The URL of a ledger whose sessions can be told apart."""
    return f"{url}&application_name={application(url)}"


# -- URLs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "name", "schema"),
    [
        ("postgresql://me:hunter2@db.example:5433/app", "postgresql://db.example:5433/app", "batchwise"),
        ("postgres://db/app?schema=one", "postgresql://db/app", "one"),
        ("postgresql://db/app?schema=two&sslmode=verify-full", "postgresql://db/app", "two"),
        ("postgresql://db/app?options=-c%20search_path%3Dthree", "postgresql://db/app", "three"),
        ("postgresql:///app?host=/run/pg&password=hunter2", "postgresql:///run/pg/app", "batchwise"),
    ],
)
def test_a_url_names_a_database_and_a_schema_and_shows_no_password(url: str, name: str, schema: str) -> None:
    found = target(url)
    assert (found.name, found.schema) == (f"{name}?schema={schema}", schema)
    assert "hunter2" not in repr(found)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{SECRET}@h/db?nonsense=1",
        f"postgresql://u:{SECRET}%zz@h/db",
        f"postgresql://u:{SECRET}@h/db?schema=a;b",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_a_word_of_it(url: str) -> None:
    with pytest.raises(InvalidValueError) as refusal:
        open_ledger(url)
    assert SECRET not in "".join(traceback.format_exception(refusal.value))


def test_a_server_that_is_not_there_may_come_later_and_no_password_is_told() -> None:
    with pytest.raises(LedgerError) as refusal:
        open_ledger(f"postgresql://u:{SECRET}@127.0.0.1:1/db")
    assert refusal.value.passing
    assert SECRET not in "".join(traceback.format_exception(refusal.value))


def test_without_psycopg_the_error_says_how_to_install_it() -> None:
    script = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from batchwise.ledger.opening import open_ledger\n"
        "from batchwise.errors import LedgerError\n"
        "try: open_ledger('postgresql://h/db')\n"
        "except LedgerError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "pip install 'batchwise-claude[postgres]'" in said


# -- schemas and roles ------------------------------------------------------------------------------------------------


def test_ledgers_of_two_schemas_know_nothing_of_each_other(schemas: Schemas) -> None:
    with closing(opened(schemas.url())) as one, closing(opened(schemas.url())) as two:
        first = World(one)
        first.accept("a")
        assert marks(World(two).ledger) == (0, 0)
        assert one.lease.acquire()
        assert two.lease.acquire()


def test_looking_makes_no_ledger(url: str, postgres: str) -> None:
    with pytest.raises(LedgerNotFoundError, match="there is no ledger"):
        open_ledger(url, must_exist=True)
    with admin(postgres) as db:
        assert db.execute("SELECT to_regnamespace(%s)", (schema_of(url),)).fetchone() == (None,)


def test_a_schema_with_other_tables_is_left_alone(url: str, postgres: str) -> None:
    with admin(postgres) as db:
        db.execute(f'CREATE SCHEMA "{schema_of(url)}"')
        db.execute(f'CREATE TABLE "{schema_of(url)}".mine (id int)')
    with pytest.raises(LedgerError, match="other tables"):
        opened(url)


def test_a_newer_schema_is_refused(url: str, postgres: str) -> None:
    opened(url).close()
    with admin(postgres) as db:
        db.execute(f"UPDATE \"{schema_of(url)}\".meta SET value = '99' WHERE name = 'schema'")  # noqa: S608
    with pytest.raises(LedgerError, match="version 99"):
        opened(url)


def test_a_role_without_create_works_on_a_prepared_schema(url: str, postgres: str) -> None:
    schema = schema_of(url)
    role = f"role_{schema[-40:]}"
    theirs = url.replace("postgres:@", f"{role}:@")
    with admin(postgres) as db:
        db.execute(f'CREATE ROLE "{role}" LOGIN')
    try:
        with pytest.raises(LedgerError, match="batchwise migrate"):
            opened(theirs)
        with psycopg.connect(postgres, autocommit=True) as db:
            sql = migration_sql(url)
            db.execute(sql)
            for line in sql.splitlines():
                if line.startswith("-- GRANT"):
                    db.execute(line.removeprefix("-- ").replace(" role;", f' "{role}";'))
        with closing(opened(theirs)) as ledger:
            world = World(ledger)
            assert world.bulk([]) == []
            assert world.accept("a").created
    finally:
        with admin(postgres) as db:
            db.execute("SET client_min_messages TO error")
            db.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')
            db.execute(f'DROP ROLE "{role}"')


def test_processes_that_start_at_once_make_one_ledger(url: str) -> None:
    where, start = target(url), threading.Barrier(4)

    def make() -> None:
        # Not by opening ledgers: those of one process are opened one after the other.
        with where.connect() as connection:
            start.wait(30)
            migrate(connection, where, must_exist=False)

    with ThreadPoolExecutor(4) as threads:
        for each in [threads.submit(make) for _ in range(4)]:
            each.result(30)
    with closing(opened(url)) as ledger:
        assert marks(ledger) == (0, 0)


# -- notices ----------------------------------------------------------------------------------------------------------


@contextmanager
def noticing(postgres: str, url: str, count: str, end: int) -> Iterator[Callable[[], int]]:
    """Yields a function that returns how many notices had come when the query `count` gave `end`."""
    with admin(postgres) as db, admin(postgres) as looking, ThreadPoolExecutor(1) as thread:
        db.execute(f"LISTEN {channel_of(schema_of(url))}")
        looking.execute(f'SET search_path TO "{schema_of(url)}"')

        def listen() -> int:
            number, there, patience = 0, False, time.monotonic() + 20
            while time.monotonic() < patience:
                came = len(list(db.notifies(timeout=0.3)))  # to its end: what is left of it would be lost
                number += came
                if there and not came:
                    return number
                there = there or (came > 0 and looking.execute(count).fetchone() == (end,))
            raise AssertionError("the last change was never told")

        yield thread.submit(listen).result


def test_changes_in_quick_succession_are_told_together_and_none_is_missed(url: str, postgres: str) -> None:
    with closing(opened(url)) as ledger, noticing(postgres, url, "SELECT count(*) FROM request", 40) as notices:
        world, begun = World(ledger), time.monotonic()
        for number in range(40):
            world.accept(f"k{number}")
        assert notices() <= (time.monotonic() - begun) / 0.05 + 2


def test_who_ends_tells_first_what_it_has_not_told_yet(
    url: str, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_session, "_APART", 60.0)
    with closing(opened(url)) as ledger, noticing(postgres, url, "SELECT count(*) FROM request", 2) as notices:
        world = World(ledger)
        world.accept("a")
        world.accept("b")
        ledger.close()
        assert notices() == 2


def test_a_process_that_nobody_clears_up_after_tells_each_change_with_its_commit(url: str, postgres: str) -> None:
    count = "SELECT count(*) FROM meta WHERE name LIKE 'failures:%'"
    with closing(opened(url)) as ledger, noticing(postgres, url, count, 3) as notices:
        for number in range(3):
            ledger.conditions.note_failure(f"{number}", now=NOW)
        assert notices() == 3


# -- lost connections -------------------------------------------------------------------------------------------------


def test_the_number_of_a_transaction_that_a_crashed_server_gives_again_stores_nothing(tmp_path: Path) -> None:
    server = start(tmp_path / "server")
    try:
        with closing(opened(server.get_uri())) as one, closing(opened(server.get_uri())) as two:

            def crash() -> None:
                with one.database.write("lost") as db:
                    one.database.begin(db)  # from here on it has a number
                    db.execute("INSERT INTO meta VALUES (?, ?)", ("mine", "1"))  # it waits for the commit
                    restart(server, "immediate")
                    for number in range(5):  # one of these has the number that the server forgot
                        two.conditions.suspend(Lane.SYNC, f"{number}")

            with pytest.raises(LedgerError) as failure:
                crash()
            assert failure.value.passing
            with one.database.read() as db:
                assert db.execute("SELECT count(*) FROM meta WHERE name = 'mine'").fetchone() == (0,)
    finally:
        server.cleanup()


def test_lost_connections_are_opened_again_and_the_lease_can_be_taken_again(url: str, postgres: str) -> None:
    with closing(opened(named(url))) as ledger:
        world = World(ledger)
        world.accept("a")
        assert ledger.lease.acquire()
        before = ledger.version()
        assert end_sessions(postgres, url) == 2
        assert marks(ledger) == (1, 0), "what the server closed between two steps is opened again"
        until(lambda: not ledger.lease.held, "it took the lock of a lost session for its own")
        until(lambda: taken(ledger), "the lease could not be taken again")
        assert ledger.version() != before, "what happened meanwhile was not heard"


def taken(ledger: Ledger) -> bool:
    try:
        return ledger.lease.acquire()
    except LedgerError:
        return False


def test_a_run_is_not_taken_for_dead_because_the_server_was_away(url: str, postgres: str) -> None:
    with closing(opened(named(url))) as one, closing(opened(named(url))) as two:
        World(one)
        end_sessions(postgres, url)
        until(lambda: recovered(two), "it was never connected again")
        with two.database.read() as db:
            assert db.execute("SELECT count(*) FROM run").fetchone() == (1,), "the run was cleared away"


def test_a_run_that_connects_again_within_the_grace_keeps_its_calls(
    url: str, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(opened(named(url))) as one, closing(opened(f"{url}&application_name=other")) as two:
        world = World(one)
        world.accept("a", PATIENT, claim=True)
        back = threading.Event()
        session = one.database._session
        real = session._connect

        def connect() -> psycopg.Connection:
            if not back.is_set():
                raise psycopg.OperationalError
            return real()

        monkeypatch.setattr(session, "_connect", connect)
        end_listening(postgres, url)
        until(lambda: two.recover(now=NOW) == 0 and two.unsure, "it never looked while the lock was free")
        with closing(opened(url)) as fresh:
            assert fresh.recover(now=NOW) == 0, "who has just come cannot know more"
        assert two.recover(now=NOW) == 0
        back.set()
        until(lambda: two.recover(now=NOW) == 0 and not two.unsure, "it never had its lock again")
        assert world.status(1) is Status.IN_FLIGHT
        # Now it dies.
        two.database.grace = 0.3
        one.close()
        assert two.recover(now=NOW) == 0
        until(lambda: two.recover(now=NOW) == 1, "what it left was never taken over")


def test_who_ends_in_order_is_dead_at_once(url: str) -> None:
    with closing(opened(url)) as one, closing(opened(url)) as two:
        world = World(one)
        world.accept("a", PATIENT, claim=True)
        one.end_run(world.run)
        assert two.recover(now=NOW) == 1
        assert runs(two) == []


def test_marks_that_killed_processes_left_go_with_the_next_dead_run(url: str) -> None:
    with closing(opened(url)) as one, closing(opened(url)) as two:
        world = World(one)
        with two.database.write("leave") as db:
            db.execute("INSERT INTO meta VALUES (?, ?)", ("commit:killed", "7 1764000000"))
        one.end_run(world.run)
        two.recover(now=NOW)
        with two.database.read() as db:
            names = [row[0] for row in db.execute("SELECT name FROM meta WHERE name LIKE 'commit:%'")]
        assert len(names) == 2, "the marks of those who live are asked for if a commit of theirs is lost"
        assert "commit:killed" not in names


def runs(ledger: Ledger) -> list[int]:
    with ledger.database.read() as db:
        return [row[0] for row in db.execute("SELECT id FROM run ORDER BY id")]


def test_a_lost_session_takes_the_locks_of_its_runs_again_by_itself(url: str, postgres: str) -> None:
    with closing(opened(named(url))) as one, closing(opened(f"{url}&application_name=other")) as two:
        run = World(one).run
        assert one.lease.acquire()
        assert end_listening(postgres, url) == 1
        until(lambda: not one.lease.held, "it did not see that its session was lost")
        until(lambda: connected(one), "it was never connected again")
        assert two.recover(now=NOW) == 0
        assert not two.database.process_lock(f"run-{run}").acquire(), "the lock of a live run was free"
        assert runs(two) == [run]
        assert not one.lease.held, "the lease may have been another's meanwhile"


def test_a_run_that_was_taken_for_dead_is_written_down_again(url: str) -> None:
    with closing(opened(url)) as one, closing(opened(url)) as two:
        run = World(one).run
        with two.database.write("recover") as db:
            db.execute("DELETE FROM run")
        one.recover(now=NOW)
        assert runs(two) == [run]


def test_neither_settings_of_the_server_nor_of_the_url_change_how_a_ledger_works(url: str) -> None:
    settings = {
        "idle_session_timeout": "200",
        "statement_timeout": "100",
        "lock_timeout": "10",
        "default_transaction_isolation": "repeatable\\ read",
        "default_transaction_read_only": "on",
        "client_encoding": "latin1",
    }
    options = "%20".join(f"-c%20{name}%3D{value.replace(' ', '%20')}" for name, value in settings.items())
    theirs = f"{url}&client_encoding=latin1&options={options}"
    with closing(opened(theirs)) as one, closing(opened(theirs)) as two:
        assert one.lease.acquire()
        failed: list[LedgerError] = []

        def write(ledger: Ledger) -> None:
            for _ in range(15):
                try:
                    ledger.conditions.suspend(Lane.SYNC, "für → x")
                except LedgerError as error:
                    failed.append(error)

        threads = [threading.Thread(target=write, args=(each,)) for each in (one, two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        assert two.snapshot().suspended == {Lane.SYNC: "für → x"}
        with one.database.write("slow") as db:
            db.execute("SELECT pg_sleep(0.3)")
        time.sleep(0.2)
        assert one.lease.held, "the server ended a session that was idle"
        assert not two.lease.acquire()


@pytest.mark.parametrize(("encoding", "fits"), [("SQL_ASCII", True), ("LATIN1", False)])
def test_a_database_that_cannot_keep_every_text_is_refused(encoding: str, fits: bool, postgres: str) -> None:
    name = f"db_{encoding.lower()}_{os.getpid()}"
    with admin(postgres) as db:
        db.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'")
        try:
            where = postgres.replace("/postgres?", f"/{name}?")
            assert where != postgres
            if fits:
                with closing(opened(where)) as ledger:
                    ledger.conditions.suspend(Lane.SYNC, "für → x")
                    assert ledger.snapshot().suspended == {Lane.SYNC: "für → x"}
            else:
                with pytest.raises(LedgerError, match="ENCODING 'UTF8'"):
                    opened(where)
        finally:
            db.execute(f"DROP DATABASE {name} WITH (FORCE)")


def connected(ledger: Ledger) -> bool:
    try:
        return ledger.database.process_lock("any").acquire()
    except LedgerError:
        return False


def recovered(ledger: Ledger) -> bool:
    try:
        ledger.recover(now=NOW)
    except LedgerError:
        return False
    return True


@pytest.mark.parametrize("arrives", [True, False])
def test_a_commit_without_an_answer_is_found_out_about(arrives: bool, url: str, postgres: str) -> None:
    """The connection breaks just before the server gets the commit, or just after."""
    with Proxy(postgres) as proxy, closing(opened(proxy.url(url))) as ledger:
        world = World(ledger)
        world.accept("before")
        proxy.cut_at(b"COMMIT", arrives=arrives)
        if arrives:
            assert world.accept("a").created, "it was stored, so that is what is said"
        else:
            with pytest.raises(LedgerError):
                world.accept("a")
        assert (find(ledger, "a", job=None) is not None) == arrives
        assert world.accept("b").row.id == (3 if arrives else 2)


def test_news_come_without_asking(url: str) -> None:
    with closing(opened(url)) as one, closing(opened(url)) as two:

        class Listener:
            def __init__(self) -> None:
                self.heard = threading.Event()

            def hear(self) -> None:
                self.heard.set()

        mine, theirs = Listener(), Listener()
        assert one.listen(mine.hear)
        assert two.listen(theirs.hear)
        world, before = World(one), two.version()
        theirs.heard.clear()
        world.accept("a")
        assert theirs.heard.wait(10)
        assert two.version() != before
        time.sleep(0.1)
        assert not mine.heard.is_set(), "its own changes are no news"


def test_news_are_heard_though_a_listener_failed(url: str) -> None:
    with closing(opened(url)) as one, closing(opened(url)) as two:

        class Listener:
            def __init__(self) -> None:
                self.times = 0

            def hear(self) -> None:
                self.times += 1
                raise OSError

        listener = Listener()
        assert two.listen(listener.hear)
        one.conditions.suspend(Lane.SYNC, "a")
        until(lambda: listener.times == 1, "no news came")
        one.conditions.suspend(Lane.SYNC, "b")
        until(lambda: listener.times == 2, "it stopped listening")


def test_a_process_without_free_descriptors_keeps_its_session(url: str) -> None:
    script = (
        "import resource, sys, time\n"
        "from batchwise.ledger.opening import open_ledger\n"
        "from batchwise.models import Lane\n"
        "one, two = open_ledger(sys.argv[1]), open_ledger(sys.argv[1])\n"
        "assert one.lease.acquire()\n"
        "before, end = one.version(), time.monotonic() + 20\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "two.conditions.suspend(Lane.SYNC, 'a')\n"
        "while one.version() == before and time.monotonic() < end: time.sleep(0.01)\n"
        "two.conditions.suspend(Lane.SYNC, 'b')\n"
        "time.sleep(0.2)\n"
        "print(one.version() > before, one.lease.held)\n"
    )
    said = subprocess.run([sys.executable, "-c", script, url], capture_output=True, text=True, check=True).stdout
    assert said == "True True\n"


@pytest.mark.parametrize(("broken", "error"), [("thread", RuntimeError), ("pipe", OSError)])
def test_a_session_that_cannot_begin_is_told_of_and_leaves_no_connection(
    broken: str, error: type[Exception], url: str, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error("the limit is reached")

    with monkeypatch.context() as patch:
        patch.setattr(*((threading.Thread, "start") if broken == "thread" else (os, "pipe")), fail)
        with pytest.raises(LedgerError, match="the limit is reached") as failure:
            opened(named(url))
    assert failure.value.passing
    until(lambda: sessions(postgres, url) == 0, "a connection was left open")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_ledger_that_nobody_closed_ends_its_session_when_it_is_forgotten(url: str) -> None:
    forgotten = opened(url)
    gone = weakref.ref(forgotten.database)
    assert forgotten.lease.acquire()
    del forgotten
    gc.collect()
    until(lambda: gone() is None, "its listener keeps it alive")
    with closing(opened(url)) as ledger:
        until(ledger.lease.acquire, "its session goes on")


def test_a_pooler_in_transaction_mode_is_found_out(url: str, postgres: str) -> None:
    with Pooler(postgres) as pooler, pytest.raises(LedgerError, match="pooler"):
        opened(pooler.url(url))


# -- forks ------------------------------------------------------------------------------------------------------------


def test_a_child_lets_go_of_its_parents_sessions(url: str) -> None:
    with closing(opened(url)) as ledger:
        world = World(ledger)
        world.accept("a")
        assert ledger.lease.acquire()
        child = os.fork()
        if not child:
            code = 1
            try:
                try:
                    marks(ledger)
                except ForkedDispatcherError:
                    with closing(opened(url)) as mine:
                        code = 0 if marks(mine) == (1, 0) and not mine.lease.acquire() else 2
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert ledger.lease.held
        assert world.accept("b").created


def test_a_fork_waits_for_no_ledger_in_postgres_and_lets_go_of_each(url: str) -> None:
    class Failing(PostgresDatabase):
        def abandon(self) -> None:
            super().abandon()
            raise RuntimeError

    inside, done = threading.Event(), threading.Event()
    ledgers = [Ledger(Failing(url)) for _ in range(3)]

    def write() -> None:
        with ledgers[0].database.write("long"):
            inside.set()
            done.wait(30)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert inside.wait(30)
        begin = time.monotonic()
        child = os.fork()
        if not child:
            refused = 0
            try:
                for each in ledgers:
                    try:
                        each.database.version()
                    except ForkedDispatcherError:
                        refused += 1
                with closing(opened(url)) as mine:
                    refused += marks(mine) == (0, 0)
            finally:
                os._exit(refused)
        waited = time.monotonic() - begin
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
        assert waited < 5, "it waited for the writer"
    finally:
        done.set()
        thread.join()
        for each in ledgers:
            each.close()


def test_a_child_closes_no_descriptor_that_took_the_number_of_a_closed_ledgers(url: str) -> None:
    closed = opened(url)
    numbers = {closed.database._session._wake_read, closed.database._session._wake_write}
    closed.close()
    reader, writer = os.pipe()
    try:
        assert numbers & {reader, writer}, "the numbers were not given again: this shows nothing"
        child = os.fork()
        if not child:
            code = 1
            try:
                os.write(writer, b"still open")
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        os.close(reader)
        os.close(writer)
    closed.close()


def test_a_dead_parents_locks_are_free_though_its_child_lives(url: str) -> None:
    reader, writer = os.pipe()
    parent = os.fork()
    if not parent:
        mine = opened(url)
        mine.lease.acquire()
        child = os.fork()
        if not child:
            os.write(writer, b"%d" % os.getpid())
            time.sleep(60)
        os.waitpid(child, os.WNOHANG)
        time.sleep(60)
        os._exit(0)
    grandchild = int(os.read(reader, 32))
    try:
        with closing(opened(url)) as ledger:
            assert not ledger.lease.acquire()
            os.kill(parent, 9)
            os.waitpid(parent, 0)
            until(ledger.lease.acquire, "the child kept its dead parent's session")
    finally:
        os.kill(grandchild, 9)


def test_an_error_of_the_database_tells_no_key(url: str) -> None:
    with closing(opened(url)) as ledger:
        World(ledger).accept(SECRET)
        with pytest.raises(LedgerError) as failure, ledger.database.write("again") as db:
            db.execute("INSERT INTO request (id, job, key, terms, size, lane) SELECT 9, job, key, 1, 1, 1 FROM request")
        said = "".join(traceback.format_exception(failure.value))
        assert SECRET not in said
        assert SECRET.encode().hex() not in said
        assert not failure.value.passing


def test_subclasses_see_each_commit(url: str) -> None:
    names: list[str] = []

    class Counting(PostgresDatabase):
        def commit(self, name: str) -> None:
            super().commit(name)
            names.append(name)

    with closing(Ledger(Counting(url))) as ledger:
        World(ledger).accept("a")
        ledger.flush()
    assert names == ["start_run", "accept", "flush"]


def test_a_snapshot_and_a_request_take_a_few_trips_to_the_server(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trip costs a hosted database a millisecond, in which other processes may wait for the ledger's lock."""
    trips, run = list[int](), Wire.run

    def counted(wire: Wire, statements: Sequence[tuple[Statement, Sequence[Any]]]) -> list[Rows]:
        trips.append(len(statements))
        return run(wire, statements)

    def taken(step: Callable[[], object]) -> int:
        trips.clear()
        step()
        return len(trips)

    with closing(opened(url)) as ledger:
        world, numbers = World(ledger), list[int]()
        limit = world.max_spend(10**12)

        def accept(key: str) -> None:
            numbers.append(world.accept(key, PRICED, max_spend=limit).row.id)

        def settle() -> None:
            ledger.settle([settlement(numbers.pop())], now=NOW)

        accept("a")  # reads the terms, which are remembered
        settle()
        ledger.snapshot()
        monkeypatch.setattr(Wire, "run", counted)
        assert taken(ledger.snapshot) <= 4, "the values by name, the cohorts, the batches, and the end"
        assert taken(lambda: accept("b")) <= 4
        assert taken(settle) <= 6


def test_an_insertion_waits_for_the_next_statement_and_fails_with_it(url: str) -> None:
    insert, select = "INSERT INTO meta VALUES (?, ?)", "SELECT value FROM meta WHERE name = ?"
    with closing(PostgresDatabase(url)) as database:
        with database.write("two") as db:
            db.execute(insert, ("one", "1"))
            assert db.execute(select, ("one",)).fetchone() == ("1",), "it went ahead of the question"
            db.execute(insert, ("two", "2"))

        def write(*, ask: bool) -> None:
            with database.write("again") as db:
                db.execute(insert, ("three", "3"))
                db.execute(insert, ("two", "3"))
                if ask:
                    db.execute(select, ("three",))

        for ask in (True, False):
            with pytest.raises(LedgerError):
                write(ask=ask)
            with database.read() as db:
                found = [db.execute(select, (name,)).fetchone() for name in ("one", "two", "three")]
            assert found == [("1",), ("2",), None], "all of it, or none"


def test_a_statement_behind_one_that_failed_is_prepared_the_next_time(url: str) -> None:
    insert, select = "INSERT INTO meta VALUES (?, ?)", "SELECT name FROM meta WHERE value = ?"
    with closing(PostgresDatabase(url)) as database:
        with database.write("one") as db:
            db.execute(insert, ("one", "first"))

        def again() -> None:
            with database.write("again") as db:
                db.execute(insert, ("one", "second"))
                db.execute(select, ("first",))  # it is sent with the insertion

        with pytest.raises(LedgerError, match="duplicate"):
            again()
        with database.read() as db:
            assert db.execute(select, ("first",)).fetchall() == [("one",)]
