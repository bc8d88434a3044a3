"""Hostile keys, prompts and servers do no harm: in the ledger, in logs, on a terminal, on the wire."""

from __future__ import annotations

import ast
import http.server
import logging
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import anthropic
import orjson
import pytest

import batchwise as bw
from batchwise.sandbox import Sandbox
from batchwise.sandbox.batches import Batch
from tests.reliability.crossing import POLICY
from tests.strategies import params

KEY = "sk-ant-a-very-secret-key-0123456789"
HOSTILE = {
    "quotes": "'\"`''\"\"",
    "sql": "'); DROP TABLE request; --",
    "sql wildcards": "%_\\_%' OR 1=1 /*",
    "NUL": "a\0b\0",
    "newlines": "a\nb\r\nc\u2028d\x85e",
    "a forged line": '"}\n{"custom_id": "x", "result": {"type": "succeeded"}}\n',
    "terminal": "\x1b[2J\x1b]0;owned\x07\x1b[31m\x9b31m\x08\x7f",
    "bidi": "\u202egnp.exe\u2066",
    "path": "../../../../etc/passwd",
    "url": "https://evil.example/?a=b#c",
    "format": "%s %n {0.__class__} {{}} $(reboot) `id`",
    "html": "<script>alert(1)</script>",
    "emoji": "\U0001f4a9\u0301",
    "spaces": " \t ",
    "long": "k" * 1_024,
}
SURROGATE = "a\ud800b"


@pytest.mark.parametrize("latency", [bw.Latency.FLEXIBLE, bw.Latency.BLOCKING])
def test_hostile_keys_prompts_and_job_names_go_through_a_whole_run(
    latency: bw.Latency, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ledger, keys = tmp_path / "ledger.db", {**{text: text for text in HOSTILE.values()}, SURROGATE: "surrogate"}
    with Sandbox(batch_latency=0.02) as sandbox:
        for name in ("'; DROP TABLE job; --\0\x1b[2J", None):
            with bw.Dispatcher(sandbox.client(), ledger=ledger, policy=POLICY) as dispatcher:
                requests = [bw.Request(params(text), key=key, latency=latency) for key, text in keys.items()]
                job = dispatcher.dispatch_all(requests, job=name)
                results = {result.key: result for result in job.results(timeout=30)}
                assert results.keys() == keys.keys()
                for key, text in keys.items():
                    assert text in (results[key].text or ""), key
                    ticket = dispatcher.ticket(key, job=name)
                    for shown in (repr(ticket), str(ticket), repr(job), results[key].custom_id):
                        assert shown.isprintable(), shown
                with pytest.raises(bw.KeyConflictError) as caught:
                    dispatcher.dispatch(params("other"), key=HOSTILE["terminal"], job=name)
                assert str(caught.value).isprintable()
    assert all(
        record.getMessage().replace("\n", "").isprintable() for record in caplog.records if "batchwise" in record.name
    )


def test_a_prompt_of_a_megabyte_and_one_with_every_byte(tmp_path: Path) -> None:
    texts = ["x" * 1_000_000, "".join(map(chr, range(0x20, 0x3000))), "\0" * 10_000]
    with (
        Sandbox(batch_latency=0.02) as sandbox,
        bw.Dispatcher(sandbox.client(), ledger=tmp_path / "ledger.db", policy=POLICY) as dispatcher,
    ):
        requests = [bw.Request(params(text), key=str(number)) for number, text in enumerate(texts)]
        results = {result.key: result for result in dispatcher.dispatch_all(requests).results(timeout=60)}
        assert all(result.ok for result in results.values())
        assert sandbox.books.bought_by_prompt().keys() == set(texts)


def test_a_prompt_that_is_no_unicode_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(bw.InvalidRequestError) as caught:
        bw.Request(params(SURROGATE), key=SURROGATE)
    assert str(caught.value).isprintable()


def test_files_are_their_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        ledger = tmp_path / "new" / "folder" / "ledger.db"
        with (
            Sandbox(batch_latency=0.02) as sandbox,
            bw.Dispatcher(sandbox.client(), ledger=ledger, policy=POLICY) as dispatcher,
        ):
            assert dispatcher.dispatch(params("a")).result(timeout=20).ok
            assert [r.ok for r in dispatcher.dispatch_all([bw.Request(params("b"))]).results(timeout=20)] == [True]
            found = {path: path.stat() for path in (tmp_path / "new").rglob("*")}
        names = {path.name for path in found}
        assert {"ledger.db", "ledger.db-wal", "ledger.db-shm", "lease.lock"} <= names, names
        assert any(name.startswith("run-") for name in names)
        for path, status in found.items():
            mode = stat.S_IMODE(status.st_mode)
            assert mode == (0o700 if stat.S_ISDIR(status.st_mode) else 0o600), (path, oct(mode))
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    finally:
        os.umask(before)


class Trap:
    """Another host: counts what is sent to it."""

    def __init__(self) -> None:
        trap = self
        self.seen: list[tuple[str, dict[str, str]]] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                trap.seen.append((self.path, dict(self.headers)))
                self.send_response(200)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_arguments: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def trap() -> Iterator[Trap]:
    made = Trap()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_results_come_from_the_clients_own_host_whatever_results_url_says(
    trap: Trap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Batch.render

    def render(batch: Batch, *arguments: object, **keywords: object) -> dict[str, object]:
        shown = real(batch, *arguments, **keywords)  # type: ignore[arg-type]
        return {**shown, "results_url": f"{trap.url}/v1/messages/batches/{batch.id}/results"}

    monkeypatch.setattr(Batch, "render", render)
    with (
        Sandbox(batch_latency=0.02) as sandbox,
        bw.Dispatcher(sandbox.client(api_key=KEY), ledger=tmp_path / "ledger.db", policy=POLICY) as dispatcher,
    ):
        requests = [bw.Request(params("a"), key="a", latency=bw.Latency.FLEXIBLE)]
        assert [result.ok for result in dispatcher.dispatch_all(requests).results(timeout=20)] == [True]
    assert trap.seen == []


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(status: int, trap: Trap, tmp_path: Path) -> None:
    class Redirecting(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(status)
            self.send_header("location", f"{trap.url}{self.path}")
            self.send_header("content-length", "0")
            self.end_headers()

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirecting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = anthropic.Anthropic(base_url=f"http://127.0.0.1:{server.server_port}", api_key=KEY)
    policy = bw.Policy(poll_every=POLICY.poll_every, max_attempts=1)
    dispatcher = bw.Dispatcher(client, ledger=tmp_path / "ledger.db", policy=policy)
    try:
        called = dispatcher.dispatch(params("a")).result(timeout=20)
        assert not called.ok
        job = dispatcher.dispatch_all([bw.Request(params("b"), key="b", latency=bw.Latency.FLEXIBLE)])
        with pytest.raises(bw.BatchwiseError):
            list(job.results(timeout=1.5))
    finally:
        dispatcher.__exit__(KeyboardInterrupt, None, None)
        server.shutdown()
        server.server_close()
    assert trap.seen == []


def test_the_api_key_is_in_no_file_no_log_and_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="batchwise")
    said: list[str] = []
    with Sandbox(batch_latency=0.02, api_keys=[KEY]) as sandbox:
        ledger = tmp_path / "ledger.db"
        dispatcher = bw.Dispatcher(sandbox.client(api_key=KEY), ledger=ledger, policy=POLICY)
        try:
            requests = [bw.Request(params("a"), key="a", latency=bw.Latency.FLEXIBLE)]
            said += [repr(result) for result in dispatcher.dispatch_all(requests).results(timeout=20)]
            sandbox.api_keys = frozenset({"another"})  # revoked
            for request in (params("b"), params("c")):
                try:
                    dispatcher.dispatch(request).result(timeout=10)
                except bw.LaneSuspendedError as error:
                    said += [str(error), repr(error)]
            said += [repr(dispatcher), repr(dispatcher.progress()), repr(dispatcher.report())]
            held = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        finally:
            dispatcher.__exit__(KeyboardInterrupt, None, None)
        held += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(said) >= 5
    assert not [text for text in (*said, caplog.text) if KEY in text]
    assert not [content for content in held if KEY.encode() in content]


def test_nothing_is_unpickled_nor_evaluated() -> None:
    forbidden = {"pickle", "cPickle", "dill", "marshal", "shelve", "cloudpickle", "joblib", "yaml"}
    for path in Path(bw.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: set[str] = set()
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").partition(".")[0]}
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec"}, path
            assert not names & forbidden, path


def test_a_result_that_a_hostile_server_forges_cannot_reach_another_request(tmp_path: Path) -> None:
    """An answer full of line ends and ids is still one row: lines are JSON, and JSON escapes them."""
    evil = "\n".join(orjson.dumps({"custom_id": f"x_bw{'0' * 11}1-{n}", "result": {}}).decode() for n in range(9))
    with (
        Sandbox(batch_latency=0.02, reply=lambda _params: evil) as sandbox,
        bw.Dispatcher(sandbox.client(), ledger=tmp_path / "ledger.db", policy=POLICY) as dispatcher,
    ):
        requests = [bw.Request(params(str(n)), key=str(n), latency=bw.Latency.FLEXIBLE) for n in range(3)]
        results = list(dispatcher.dispatch_all(requests).results(timeout=20))
        assert [result.text for result in results] == [evil] * 3
