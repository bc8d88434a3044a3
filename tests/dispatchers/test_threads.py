"""Threads that cannot start: no work stays claimed, and the caller who waits does it."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest

import batchwise as bw
from batchwise.sandbox import Sandbox
from tests.reliability.crossing import POLICY
from tests.strategies import params


class Limit:
    """Lets so many of batchwise's threads start, and then no more: the system's limit."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
        self.left, start = left, threading.Thread.start

        def limited(thread: threading.Thread) -> None:
            if thread.name.startswith("batchwise-"):
                if self.left <= 0:
                    raise RuntimeError("can't start new thread")
                self.left -= 1
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", limited)


@pytest.mark.parametrize("left", [0, 1, 2])
def test_work_is_done_and_the_end_comes_though_threads_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    Limit(monkeypatch, left)
    with Sandbox(batch_latency=0.05) as sandbox:
        with bw.Dispatcher(sandbox.client(), ledger=tmp_path / "ledger.db", policy=POLICY) as d:
            assert d.dispatch(params("now")).result(20).text == "echo: now"
            job = d.dispatch_all([bw.Request(params("later"))], job="j", latency=timedelta(hours=30))
            assert [result.text for result in job.results(20)] == ["echo: later"]
            d.dispatch(params("unread"))
            d.dispatch(params("queued"), latency=timedelta(hours=30))
        assert sandbox.books.bought_by_prompt("sync") == {"now": 1, "unread": 1}
        assert sandbox.books.bought_twice() == {}
        assert sandbox.books.requests_by_path["POST /v1/messages/batches"] == 2


def test_what_is_handed_in_is_sent_though_threads_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Limit(monkeypatch, 0)
    with (
        Sandbox() as sandbox,
        bw.Dispatcher(sandbox.client(), ledger=tmp_path / "ledger.db", policy=POLICY) as d,
    ):
        d.dispatch(params("later"), latency=timedelta(hours=30))
        assert sandbox.books.requests_by_path == {}, "it is not due"
        error = d.progress().last_error
        assert error is not None
        assert "no more threads" in error
        d.flush()
        assert sandbox.books.requests_by_path["POST /v1/messages/batches"] == 1
        d.dispatch(params("now"))
        assert sandbox.books.bought("now") == 1
        d.dispatch_all([bw.Request(params("bulk"))], latency=timedelta(hours=30))
        assert sandbox.books.requests_by_path["POST /v1/messages/batches"] == 2
        limit.left = 100
        d.flush()
        assert d.progress().last_error is None


def test_threads_that_can_start_again_take_the_work_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Limit(monkeypatch, 0)
    with (
        Sandbox() as sandbox,
        bw.Dispatcher(sandbox.client(), ledger=tmp_path / "ledger.db", policy=POLICY) as d,
    ):
        first = d.dispatch(params("first"))
        limit.left = 100
        assert d.dispatch(params("second")).result(20).ok
        assert first.result(20).ok
