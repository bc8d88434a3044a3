"""Files of requests, and of results: plan, submit, run, results."""

from __future__ import annotations

import csv
import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import tracemalloc
from contextlib import closing, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pyarrow.parquet
import pytest

from batchwise.cli.lines import Lines
from batchwise.sandbox import Reply
from tests.strategies import params
from tests.waiting import until

from .conftest import submit


def write(path: Path, count: int, **others: object) -> str:
    lines = ({"custom_id": f"module-{i}", "params": params(f"n {i}", **others)} for i in range(count))
    path.write_text("".join(json.dumps(line) + "\n\n" for line in lines))  # blank lines are passed over
    return str(path)


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "in.jsonl", 3)


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_run_buys_once_however_often_it_runs(sandbox, batchwise, file, tmp_path):
    sandbox.batch_latency = 0.1
    out = tmp_path / "out.jsonl"
    for _ in range(2):
        said = batchwise("run", file, "--within", "30h", "--job", "nightly", "--out", str(out))
        assert said.code == 0, said
        assert "outcomes: 3 succeeded" in said.out
        assert "3 results in" in said.out
        assert "nightly: 3 of 3 settled" in said.err  # no terminal: a line
        rows = read(out)
        assert [row["key"] for row in rows] == ["module-0", "module-1", "module-2"]
        assert all(row["ok"] and row["lane"] == "batch" for row in rows)
        out.unlink()
    assert sandbox.books.billed() == 3
    assert sandbox.books.bought_twice() == {}


def test_run_to_stdout_says_the_rest_on_stderr(sandbox, batchwise, file):
    sandbox.batch_latency = 0.1
    said = batchwise("run", file, "--within", "30h", "--job", "nightly", "--out", "-", "--json")
    *lines, told = map(json.loads, said.out.splitlines())
    assert [line["key"] for line in lines] == ["module-0", "module-1", "module-2"]
    assert (told["command"], told["exit_code"], told["written"]) == ("run", 0, 3)
    assert told["progress"]["by_outcome"] == {"succeeded": 3}
    assert told["report"]["requests"] == 3


def test_run_tells_of_requests_without_an_answer(sandbox, batchwise, file):
    wrong = Reply.error("invalid_request_error", "too long")
    sandbox.reply = lambda params: wrong if params["messages"][0]["content"] == "n 1" else "fine"
    said = batchwise("run", file, "--within", "now", "--job", "nightly")
    assert said.code == 1
    assert "1 request has no answer" in said.out


WRONG = {
    "{": "not JSON",
    "[1]": "a list",
    '{"custom_id": "a"}': "lacks params",
    '{"custom_id": "a", "params": {}, "betas": []}': "also has 'betas'",
    '{"custom_id": 7, "params": {}}': "key=7",
    '{"custom_id": null, "params": {}}': "key=None",
    '{"custom_id": "a", "params": {"model": "m", "max_tokens": 3}}': "lack 'messages'",
    json.dumps({"custom_id": "a", "params": params(stream=True)}): "stream",
    json.dumps({"custom_id": "a", "params": params(max_tokens=0)}): "max_tokens",
}


@pytest.mark.parametrize("verb", ["submit", "plan"])
def test_a_bad_line_is_refused_with_its_number(sandbox, batchwise, tmp_path, ledger, verb):
    path, also = tmp_path / "in.jsonl", ("--job", "nightly") if verb == "submit" else ()
    submit(ledger, 1, "other")
    calls = dict(sandbox.books.requests_by_path)
    for line, words in WRONG.items():
        path.write_text(f"{json.dumps({'custom_id': 'good', 'params': params()})}\n\n{line}\n")
        said = batchwise(verb, str(path), "--within", "30h", *also)
        assert said.code == 1, line
        assert f"{path}, line 3: " in said.err
        assert words in said.err
    assert dict(sandbox.books.requests_by_path) == calls
    assert batchwise("status", "nightly").code == 5  # nothing of it was accepted


def test_other_content_under_the_same_key(batchwise, file, tmp_path):
    assert batchwise("submit", file, "--within", "30h", "--job", "nightly").code == 0
    other = write(tmp_path / "other.jsonl", 3, temperature=0.5)
    said = batchwise("submit", other, "--within", "30h", "--job", "nightly")
    assert said.code == 1
    assert "module-0" in said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--within", "30"), "not a duration"),
        (("--within", "mon 08:00"), "no time zone"),
        (("--within", "30h", "--out", "results.txt"), ".jsonl, .csv or .parquet"),
        (("--within", "30h", "--out", "none/results.csv"), "no such folder"),
        (("--within", "30h", "--out", "folder.csv"), "it is a folder"),
        (("--within", "30h", "--out", "n" * 300 + ".csv"), "cannot be written"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_bought(sandbox, batchwise, file, tmp_path, arguments, words):
    (tmp_path / "folder.csv").mkdir()
    said = batchwise("run", file, "--job", "nightly", *arguments)
    assert said.code == 2
    assert words in said.err
    assert not sandbox.books.requests_by_path


def test_a_file_without_requests(batchwise, tmp_path):
    (tmp_path / "in.jsonl").write_text("\n")
    out = tmp_path / "out.jsonl"
    said = batchwise("run", str(tmp_path / "in.jsonl"), "--within", "30h", "--job", "nightly", "--out", str(out))
    assert said.code == 0  # a gate with nothing to ask is open
    assert out.read_text() == ""


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"file": "none.jsonl"}, "cannot be read"),
        ({"--within": "30"}, "not a duration"),
        ({"--policy": "none.toml"}, "none.toml"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "submit"])
def test_what_is_wrong_at_the_start_leaves_no_ledger_behind(batchwise, file, ledger, verb, wrong, words):
    options = {"--within": "30h", "--job": "nightly"} | {name: each for name, each in wrong.items() if name != "file"}
    said = batchwise(verb, wrong.get("file", file), *(part for option in options.items() for part in option))
    assert said.code == 2
    assert words in said.err
    assert not ledger.exists()


def test_a_moment_as_the_deadline(batchwise, file, ledger):
    submit(ledger, 1, "other")
    moment = (datetime.now(timezone.utc) + timedelta(days=3)).replace(microsecond=0)
    said = batchwise("plan", file, "--within", moment.isoformat())
    assert said.code == 0
    assert f"deadline {moment:%Y-%m-%d %H:%M:%S} UTC" in said.out


def test_plan(sandbox, batchwise, ledger, file, tmp_path):
    submit(ledger, 1, "other")
    calls = dict(sandbox.books.requests_by_path)
    found = batchwise("plan", file, "--within", "30h", "--json").json["plan"]
    assert (found["requests"], found["batches"], found["refused"]) == (3, 1, None)
    (route,) = found["routes"]
    assert (route["lane"], route["reason"], route["requests"]) == ("batch", "latency_tolerant", 3)
    sent, rescue, due = (datetime.fromisoformat(route[name]) for name in ("submit_by", "rescue_at", "deadline"))
    assert sent < rescue < due
    assert float(found["usd"]) == float(found["usd_batch"]) == float(found["usd_sync"]) / 2
    assert found["output_tokens"] == 3 * 1_024
    assert found["prices"].startswith("genai-prices ")
    assert (found["priced_on"], found["unpriced"]) == (datetime.now(timezone.utc).date().isoformat(), [])
    (capacity,) = found["capacity"]
    assert (capacity["model"], capacity["requests"]) == ("claude-sonnet-5", 3)
    assert capacity["redone_in"] > 0
    now = batchwise("plan", file, "--within", "now", "--json").json["plan"]
    assert ([route["reason"] for route in now["routes"]], now["batches"], now["usd"]) == (
        ["blocking"],
        0,
        now["usd_sync"],
    )

    tight = tmp_path / "tight.toml"
    tight.write_text("[limits]\nrequests_per_minute = 1\nconcurrency = 1\n")
    many = write(tmp_path / "many.jsonl", 2_000)
    said = batchwise("plan", many, "--within", "30h", "--policy", str(tight))
    assert said.code == 1
    assert "refused: " in said.out
    assert dict(sandbox.books.requests_by_path) == calls
    assert batchwise("jobs").out.splitlines() == ["other: 1 request: 1 in_flight"]


def test_a_plan_names_the_prices_and_the_models_that_have_none(sandbox, batchwise, ledger, tmp_path):
    submit(ledger, 1, "other")
    file, own = tmp_path / "in.jsonl", tmp_path / "policy.toml"
    lines = [{"custom_id": model, "params": {**params(), "model": model}} for model in ("nova-1", "nova-2")]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = batchwise("plan", str(file), "--within", "30h")
    assert "2 on the batch lane (latency_tolerant): " in said.out
    assert "the price of 'nova-1' and of 1 more is unknown; give it" in said.out
    assert "Policy(prices={'nova-1': Rates(input=3, output=15)})" in said.out
    own.write_text("[prices]\nnova-1 = {input = 3, output = 15}\nnova-2 = {input = 1, output = 5}\n")
    said = batchwise("plan", str(file), "--within", "30h", "--policy", str(own))
    assert "by the prices of Policy.prices before genai-prices " in said.out


def test_plan_needs_no_ledger_and_makes_none(sandbox, capsys, file, tmp_path):
    from batchwise.cli import main

    assert main(["plan", file, "--within", "30h"]) == 0
    assert "3 on the batch lane (latency_tolerant)" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    assert main(["plan", file, "--within", "30h", "--ledger", "none.db"]) == 5


def test_a_file_is_read_in_bounded_memory(tmp_path):
    path = tmp_path / "in.jsonl"
    line = json.dumps({"custom_id": "a", "params": params("x" * 10_000)}) + "\n"
    path.write_text(line * 2_000)  # 20 MB
    tracemalloc.start()
    try:
        assert sum(1 for _ in Lines(str(path))) == 2_000
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_results(sandbox, batchwise, ledger, tmp_path):
    wrong = Reply.error("invalid_request_error", 'too "long", é')
    sandbox.reply = lambda params: wrong if params["messages"][0]["content"] == "n 1" else "fine,\nindeed"
    submit(ledger)
    assert batchwise("results", "nightly").out == ""
    sandbox.finish(sandbox.books.batches[0].id)
    batchwise("advance", "--watch")
    rows = [json.loads(line) for line in batchwise("results", "nightly").out.splitlines()]
    assert sorted(row["key"] for row in rows) == ["module-0", "module-1", "module-2"]
    failed = [json.loads(line) for line in batchwise("results", "nightly", "--only", "failed").out.splitlines()]
    assert [row["key"] for row in failed] == ["module-1"]
    rest = batchwise("results", "nightly", "--after", str(rows[0]["cursor"])).out.splitlines()
    assert [json.loads(line) for line in rest] == rows[1:]

    for ending in ("jsonl", "csv", "parquet"):
        told = batchwise("results", "nightly", "--out", str(tmp_path / f"out.{ending}"), "--json").json
        assert (told["written"], told["cursor"]) == (3, rows[-1]["cursor"])
    assert read(tmp_path / "out.jsonl") == rows
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as text:
        table = list(csv.DictReader(text))
    assert [row["text"] for row in table] == [row["text"] or "" for row in rows]
    columns = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [{**row, "labels": None} for row in columns] == [{**row, "labels": None} for row in rows]
    assert batchwise("results", "nobody").code == 5


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_results_that_cannot_be_written_are_said_to_be(batchwise, ledger, tmp_path, ending):
    submit(ledger)
    long = tmp_path / f"{'n' * 245}.{ending}"  # too long for the file beside it, which becomes it
    said = batchwise("results", "nightly", "--out", str(long))
    assert (said.code, said.out) == (2, "")
    assert "cannot be written" in said.err


def test_the_columns_of_a_table_are_those_of_a_result(sandbox, batchwise, ledger):
    from batchwise.cli.files import COLUMNS

    submit(ledger, 1)
    sandbox.finish(sandbox.books.batches[0].id)
    batchwise("advance", "--watch")
    (line,) = batchwise("results", "nightly").out.splitlines()
    assert [*json.loads(line), "labels"] == list(COLUMNS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_run_is_broken_off_and_run_again(sandbox, batchwise, ledger, tmp_path, number):
    file, out = write(tmp_path / "in.jsonl", 200), tmp_path / "out.jsonl"
    arguments = ["run", file, "--within", "30h", "--job", "nightly", "--out", str(out), "--ledger", str(ledger)]
    with subprocess.Popen(
        [sys.executable, "-m", "batchwise", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
    ) as process:  # fmt: skip
        until(lambda: sandbox.books.batches, seconds=60)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert not out.exists()
    if number is signal.SIGINT:
        assert process.returncode == 130
        assert f"batchwise status nightly --ledger {ledger}" in errors
        assert "Traceback" not in errors
    sandbox.batch_latency = 0.1
    until(lambda: "200 in_flight" in batchwise("advance").out, seconds=60)
    for batch in sandbox.books.batches:
        sandbox.finish(batch.id)
    said = batchwise(*arguments[:-2])
    assert said.code == 0, said
    assert len({row["key"] for row in read(out)}) == 200
    assert sandbox.books.billed() == 200
    assert sandbox.books.bought_twice() == {}


def test_a_worker_that_is_told_to_end_closes_its_dispatcher(sandbox, ledger):
    def runs() -> int:
        with closing(sqlite3.connect(ledger)) as db:
            return db.execute("SELECT max(id) FROM run").fetchone()[0]

    submit(ledger)
    before, files = runs(), {*ledger.parent.iterdir()}
    with subprocess.Popen(
        [sys.executable, "-m", "batchwise", "advance", "--watch", "--ledger", str(ledger)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
    ) as process:  # fmt: skip
        until(lambda: runs() > before, seconds=60)
        process.terminate()
        _, errors = process.communicate(timeout=60)
    # Python ends itself by SIGINT, which a shell shows as 130, where the interrupt came while code was made of text.
    assert process.returncode in {130, -signal.SIGINT}
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert {*ledger.parent.iterdir()} == files, "its lock is given up"


def test_a_process_that_is_ended_in_the_middle_of_the_live_display_leaves_the_cursor_to_be_seen(file, ledger, sandbox):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "batchwise", "run", file, "--within", "30h", "--job", "nightly"]
    with subprocess.Popen([*command, "--ledger", str(ledger)], stdin=theirs, stdout=theirs, stderr=theirs) as process:
        try:
            os.close(theirs)
            shown = b""
            while b"in progress" not in shown:
                shown += os.read(ours, 4096)
            process.terminate()
            assert process.wait(60) == -signal.SIGTERM
        finally:
            process.kill()
    shown += _rest(ours)
    os.close(ours)
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l")
    assert sandbox.books.batches, "it was submitted"


def _rest(terminal: int) -> bytes:
    """What a terminal still has to show, whose last process has ended."""
    found = b""
    with suppress(OSError):  # so Linux says that it is all
        while chunk := os.read(terminal, 4096):
            found += chunk
    return found
