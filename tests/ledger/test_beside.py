"""Waiting for the disk beside other work."""

from __future__ import annotations

import concurrent.futures.thread
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from batchwise.ledger.beside import Beside

PATIENCE = 10.0


@pytest.fixture
def beside() -> Iterator[Beside]:
    with closing(Beside("beside")) as made:
        yield made


def test_start_returns_when_the_work_waits_and_end_when_it_has_ended(beside: Beside) -> None:
    events, disk = list[str](), threading.Event()

    def work(waits: Callable[[], None]) -> None:
        events.append("begun")
        waits()
        assert disk.wait(PATIENCE)
        events.append("ended")

    for _ in range(3):
        events.clear()
        disk.clear()
        beside.start(work)
        assert events == ["begun"]
        disk.set()
        beside.end()
        assert events == ["begun", "ended"]
    beside.end()


def test_what_the_work_raises_comes_out_of_end_once(beside: Beside) -> None:
    def fail(_: Callable[[], None]) -> None:
        raise LookupError("not stored")

    beside.start(fail)
    with pytest.raises(LookupError, match="not stored"):
        beside.end()
    beside.end()


def test_close_waits_for_the_work_and_is_quiet_about_what_it_raised() -> None:
    disk, ended = threading.Event(), list[bool]()

    def fail(waits: Callable[[], None]) -> None:
        waits()
        ended.append(disk.wait(PATIENCE))
        raise LookupError

    beside = Beside("beside")
    beside.start(fail)
    threading.Timer(0.05, disk.set).start()
    beside.close()
    assert ended == [True]


def test_an_interpreter_that_ends_does_the_work_in_line(beside: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrent.futures.thread, "_shutdown", True)
    threads: list[int] = []
    beside.start(lambda _: threads.append(threading.get_ident()))
    assert threads == [threading.get_ident()]
    beside.end()
