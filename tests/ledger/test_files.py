"""The ledger's file: what is no ledger is not touched, and one that goes away beneath an open ledger is noticed."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from batchwise.errors import InvalidValueError, LedgerError
from batchwise.ledger.opening import open_ledger
from batchwise.ledger.sqlite import SqliteLedger

from .model import NOW, World, find


def _text(path: Path) -> None:
    path.write_text("dear diary " * 100)
    path.chmod(0o644)


def _database(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("CREATE TABLE mine (id)")
    db.close()
    path.chmod(0o644)


def _fifo(path: Path) -> None:
    os.mkfifo(path, 0o644)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def _device(path: Path) -> None:
    try:
        os.mknod(path, 0o020666, os.makedev(1, 3))
    except PermissionError:
        path.symlink_to("/dev/null")  # not root: it could not be changed anyway


def _link(path: Path) -> None:
    _text(path.parent.parent / "notes.txt")
    path.symlink_to(path.parent.parent / "notes.txt")


@pytest.mark.parametrize(
    "make", [_text, _database, _fifo, _socket, _device, _link, Path.mkdir], ids=lambda m: m.__name__
)
def test_what_is_no_ledger_is_refused_and_not_touched(make: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    path = tmp_path / "f" / "x"
    make(path)
    before, content = path.stat(), path.read_bytes() if path.is_file() else b""
    with pytest.raises(LedgerError, match="Nothing was changed"):
        SqliteLedger(path)
    after = path.stat()
    assert (after.st_mode, after.st_ino, after.st_mtime_ns) == (before.st_mode, before.st_ino, before.st_mtime_ns)
    assert (path.read_bytes() if path.is_file() else b"") == content
    assert [each.name for each in (tmp_path / "f").iterdir()] == ["x"]


@pytest.mark.parametrize("spec", [b"ledger.db", 7, "", "a\0b", 1.5], ids=repr)
def test_what_is_no_path_is_refused(spec: object) -> None:
    with pytest.raises(InvalidValueError, match="ledger="):
        open_ledger(spec)  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", ["~/ledger.db", Path("~/ledger.db")], ids=repr)
def test_the_home_folder_is_expanded(spec: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ledger = open_ledger(spec)
    assert ledger.name == str(tmp_path / "ledger.db")
    ledger.close()


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
def test_a_ledger_that_goes_away_is_noticed_at_the_next_step(how: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = SqliteLedger(path)
    world = World(ledger)
    world.accept("a")
    if how == "deleted":
        path.unlink()
    else:
        path.rename(tmp_path / "elsewhere.db")
    if how == "replaced":
        SqliteLedger(path).close()
    word = "replaced" if how == "replaced" else "deleted or moved"
    for step in (ledger.snapshot, lambda: world.accept("b"), lambda: ledger.start_run(pid=1, now=NOW)):
        with pytest.raises(LedgerError, match=word):
            step()
    if how == "moved":
        (tmp_path / "elsewhere.db").rename(path)
        assert world.accept("b").created, "it is back"
    ledger.close()


def test_locks_that_are_swept_away_are_taken_anew(tmp_path: Path) -> None:
    one = SqliteLedger(tmp_path / "ledger.db")
    run = one.start_run(pid=1, now=NOW)
    assert one.lease.acquire()
    for lock in (tmp_path / "ledger.db.locks").iterdir():
        lock.unlink()
    assert not one.lease.held, "others could take it too"
    assert one.lease.acquire()
    assert one.recover(now=NOW) == 0
    two = SqliteLedger(tmp_path / "ledger.db")
    assert not two.lease.acquire()
    assert two._runs.alive(run)
    two.close()
    one.close()


def test_a_copy_is_a_ledger(tmp_path: Path) -> None:
    one = SqliteLedger(tmp_path / "ledger.db")
    World(one).accept("a")
    one.close()
    shutil.copy(tmp_path / "ledger.db", tmp_path / "copy.db")
    two = SqliteLedger(tmp_path / "copy.db")
    assert find(two, "a", job=None) is not None
    two.close()


@pytest.mark.parametrize("url", ["mysql://u:secret@h/db", "sqlite:///ledger.db", "HTTP://h"])
def test_a_url_of_another_scheme_is_refused_and_makes_no_folder(url: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidValueError, match=r"give the path of a file") as refusal:
        open_ledger(url)
    assert "secret" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []
