"""Waiting for the disk beside other work."""

from __future__ import annotations

import concurrent.futures.thread
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from batchwise.errors import ForkedDispatcherError
from batchwise.ledger import beside as module
from batchwise.ledger.beside import Beside

PATIENCE = 10.0


@pytest.fixture
def beside() -> Iterator[Beside]:
    made = Beside("beside")
    yield made
    made.close(wait=True)


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
        assert beside.start(work)
        assert events == ["begun"]
        disk.set()
        beside.end()
        assert events == ["begun", "ended"]
    beside.end()


def test_what_the_work_raises_while_it_waits_comes_out_of_end_once(beside: Beside) -> None:
    disk = threading.Event()

    def fail(waits: Callable[[], None]) -> None:
        waits()
        assert disk.wait(PATIENCE)
        raise LookupError("not stored")

    assert beside.start(fail)
    disk.set()
    with pytest.raises(LookupError, match="not stored"):
        beside.end()
    beside.end()


def test_what_the_work_raises_before_it_waits_comes_out_of_start(beside: Beside) -> None:
    def fail(_: Callable[[], None]) -> None:
        raise LookupError("not begun")

    with pytest.raises(LookupError, match="not begun"):
        beside.start(fail)
    beside.end()
    assert not beside.start(lambda _: None), "it has ended"


def test_close_waits_for_the_work_and_is_quiet_about_what_it_raised() -> None:
    disk, ended = threading.Event(), list[bool]()

    def fail(waits: Callable[[], None]) -> None:
        waits()
        ended.append(disk.wait(PATIENCE))
        raise LookupError

    beside = Beside("beside")
    beside.start(fail)
    threading.Timer(0.05, disk.set).start()
    beside.close(wait=True)
    assert ended == [True]


@pytest.mark.parametrize("cause", ["the interpreter ends", "too many threads", "closed"])
def test_without_a_thread_the_work_is_done_in_line_and_once(
    beside: Beside, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    done = list[tuple[str, int]]()

    def begin(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        if cause == "the interpreter ends":
            patch.setattr(concurrent.futures.thread, "_shutdown", True)
        elif cause == "too many threads":
            patch.setattr(threading.Thread, "start", begin)
        else:
            beside.close(wait=True)
        assert not beside.start(lambda _: done.append(("first", threading.get_ident())))
    beside.start(lambda _: done.append(("second", threading.get_ident())))
    beside.end()
    beside.close(wait=True)
    assert [name for name, _ in done] == ["first", "second"]
    assert done[0][1] == threading.get_ident()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("where", ["before start", "within start", "before end", "within end"])
def test_a_child_neither_waits_for_the_thread_nor_starts_it(
    beside: Beside, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(module, "_LOOK", 0.01)
    disk, forked = threading.Event(), list[int]()

    def work(waits: Callable[[], None]) -> None:
        if where != "within start":
            waits()
        assert disk.wait(PATIENCE)

    def fork() -> None:
        forked.append(os.fork())
        if not forked[0]:
            signal.alarm(int(PATIENCE))  # one that hangs dies of it
        disk.set()

    def interrupted(*_: object) -> None:
        fork()

    code = 1
    beside.start(lambda _: None)
    handler = signal.signal(signal.SIGUSR1, interrupted)
    try:
        if where == "before start":
            fork()
        elif where == "within start":
            threading.Timer(0.1, signal.raise_signal, [signal.SIGUSR1]).start()
        beside.start(work)
        if where == "before end":
            fork()
        elif where == "within end":
            threading.Timer(0.1, signal.raise_signal, [signal.SIGUSR1]).start()
        beside.end()
    except ForkedDispatcherError:
        code = 0
    finally:
        if forked == [0]:
            beside.close(wait=True)
            os._exit(code)
        signal.signal(signal.SIGUSR1, handler)
    assert os.waitstatus_to_exitcode(os.waitpid(forked[0], 0)[1]) == 0
