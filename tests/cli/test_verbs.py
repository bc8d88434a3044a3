"""The verbs, in this process, against the sandbox."""

from __future__ import annotations

import hashlib
import runpy
import sys
import threading
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from batchwise import Dispatcher, Policy, __version__
from batchwise.cli import main
from batchwise.sandbox import Reply, Sandbox
from tests.strategies import params

from .conftest import submit, submit_too_much

ROOT = Path(__file__).parent.parent.parent
LOOKING = (("status",), ("status", "nightly"), ("progress",), ("jobs",), ("report",), ("report", "nightly"))


def test_one_process_submits_and_cron_advances_until_done(sandbox, batchwise, ledger):
    submit(ledger, 7)
    (batch,) = sandbox.books.batches
    early = batchwise("status", "nightly")
    assert early.code == 0
    assert "7 requests: 7 in_flight" in early.out
    assert f"batch {batch.id}: 7 requests, in_progress" in early.out
    assert "next due: " in early.out
    assert "7 in_flight" in batchwise("advance").out  # nothing is ready: it says so

    sandbox.finish(batch.id)
    said = batchwise("advance", "--watch")
    assert "outcomes: 7 succeeded" in said.out
    assert "next due" not in said.out

    submit(ledger, 7)  # the script again, the next morning: nothing is bought
    assert sandbox.books.billed() == 7
    assert sandbox.books.bought_twice() == {}


@pytest.mark.parametrize("verb", LOOKING, ids=" ".join)
def test_looking_needs_no_key_and_changes_nothing(sandbox, batchwise, ledger, monkeypatch, verb):
    submit(ledger)
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(ledger.parent))  # no login of the developer's
    before, calls = folder(ledger.parent), dict(sandbox.books.requests_by_path)
    said = batchwise(*verb)
    assert (said.code, said.err) == (0, "")
    assert said.out
    assert folder(ledger.parent) == before
    assert dict(sandbox.books.requests_by_path) == calls


def folder(path: Path) -> dict[str, str]:
    return {
        str(each.relative_to(path)): hashlib.sha256(each.read_bytes()).hexdigest()
        for each in path.rglob("*")
        if each.is_file()
    }


WORKING = (("advance",), ("cancel", "--all"), ("retry", "nightly"), ("resume",), ("purge", "--before", "1d"))


@pytest.mark.parametrize("verb", [*LOOKING, *WORKING], ids=" ".join)
def test_a_ledger_that_is_not_there(batchwise, ledger, verb):
    said = batchwise(*verb)
    assert (said.code, said.out) == (5, "")
    assert "there is no ledger" in said.err
    assert not list(ledger.parent.iterdir())
    told = batchwise(*verb, "--json")
    assert told.json["exit_code"] == 5
    assert told.json["error"]["type"] == "LedgerNotFoundError"


def test_the_ledger_of_the_environment(sandbox, ledger, monkeypatch, capsys):
    submit(ledger)
    monkeypatch.setenv("BATCHWISE_LEDGER", str(ledger))
    assert main(["status"]) == 0
    assert capsys.readouterr().out.startswith("3 requests: ")


def test_the_ledger_of_another_endpoint_is_left_alone(batchwise, ledger, monkeypatch):
    submit(ledger)
    with Sandbox() as other:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", other.base_url)
        said = batchwise("advance")
        assert said.code == 1
        assert "belongs to the endpoint" in said.err
        assert not other.books.requests_by_path
        assert batchwise("status").code == 0  # that asks nobody


def test_a_missing_key_is_said_and_keeps_the_work(sandbox, batchwise, ledger, monkeypatch, caplog):
    sandbox.api_keys = frozenset({"right"})
    with monkeypatch.context() as without:
        without.delenv("ANTHROPIC_API_KEY")
        without.setenv("HOME", str(ledger.parent))
        submit(ledger)
        assert "3 requests stay queued" in caplog.text
        assert batchwise("advance").code == 3
        assert batchwise("status").code == 3
    assert batchwise("resume").code == 0
    assert batchwise("status").code == 0
    monkeypatch.setenv("ANTHROPIC_API_KEY", "right")
    assert "3 in_flight" in batchwise("advance").out
    assert sandbox.books.bought_twice() == {}


def test_status_as_json(sandbox, batchwise, ledger):
    submit(ledger)
    said = batchwise("status", "nightly", "--json")
    (batch,) = sandbox.books.batches
    told = said.json
    assert (told["command"], told["exit_code"], told["job"]) == ("status", 0, "nightly")
    assert told["ledger"] == str(ledger)
    found = told["progress"]
    assert (found["total"], found["settled"], found["done"]) == (3, 0, False)
    assert found["by_status"] == {"in_flight": 3}
    assert found["by_lane"] == {"batch": 3}
    (running,) = found["batches"]
    assert (running["remote_id"], running["requests"], running["status"]) == (batch.id, 3, "in_progress")
    first, last = map(datetime.fromisoformat, running["expected_end"])
    assert first <= last < datetime.fromisoformat(running["rescue_at"])
    assert datetime.fromisoformat(found["next_due"])
    assert (found["at_risk"], found["suspended"], found["last_error"]) == (0, {}, None)


def test_watching_somebody_else_work(sandbox, batchwise, ledger):
    submit(ledger)
    with Dispatcher(ledger=ledger) as d:
        waiting = threading.Thread(target=d.job("nightly").wait)
        waiting.start()
        sandbox.finish(sandbox.books.batches[0].id)
        said = batchwise("status", "nightly", "--watch", "--json")
        waiting.join()
    assert (said.code, said.json["progress"]["by_outcome"]) == (0, {"succeeded": 3})
    assert "nightly: 3 of 3 settled (3 succeeded)" in said.err


def test_jobs(batchwise, ledger):
    submit(ledger, 3, "nightly")
    submit(ledger, 2, "audit")
    submit(ledger, 1, None)
    said = batchwise("jobs")
    assert said.out.splitlines() == [
        "(no job): 1 request: 1 in_flight",
        "nightly: 3 requests: 3 in_flight",
        "audit: 2 requests: 2 in_flight",
    ]
    found = batchwise("jobs", "--json").json["jobs"]
    assert [(each["job"], each["total"], each["done"]) for each in found] == [
        (None, 1, False),
        ("nightly", 3, False),
        ("audit", 2, False),
    ]
    with Dispatcher(ledger=ledger) as d:
        assert [job.name for job in d.jobs()] == ["nightly", "audit"]


def test_report(sandbox, batchwise, ledger):
    submit(ledger)
    sandbox.finish(sandbox.books.batches[0].id)
    batchwise("advance", "--watch")
    told = batchwise("report", "nightly", "--json").json["report"]
    assert (told["requests"], told["met"], told["missed"]) == (3, 3, 0)
    assert float(told["cost"]) == pytest.approx(float(told["saved"]))  # half price
    assert told["cost_by_lane"]["batch"] == told["cost"]
    assert told["worst_lateness"] == 0
    said = batchwise("report").out
    assert "3 requests settled" in said
    assert "deadlines: 3 met, 0 missed" in said
    page = ledger.parent / "report.html"
    assert batchwise("report", "nightly", "--html", str(page)).code == 0
    assert "batchwise report: nightly" in page.read_text()
    assert batchwise("report", "--html", str(ledger.parent / "nowhere" / "report.html")).code == 2


def test_costs_by_label(sandbox, batchwise, ledger):
    with Dispatcher(ledger=ledger) as d:
        d.dispatch(params(), labels={"team": "search"}).result()
    told = batchwise("report", "--json").json["report"]
    assert told["by_label"] == {"team": {"search": told["cost"]}}
    assert all(datetime.fromisoformat(day) for day in told["prices"].values())
    assert "label team=search: $0.0" in batchwise("report").out


def test_what_the_prompt_cache_did(sandbox, batchwise, ledger):
    system = [{"type": "text", "text": "p" * 8_000, "cache_control": {"type": "ephemeral"}}]
    with Dispatcher(ledger=ledger) as d:
        for n in range(2):
            d.dispatch(params(str(n), system=system)).result()
    told = batchwise("report", "--json").json["report"]
    assert told["cache_read_tokens"] == told["cache_written_tokens"] > 2_000
    words = f"prompt cache: 50.0% of {2 * told['cache_read_tokens']:,} tokens read, the rest written; saved: $0.00"
    assert words in batchwise("report").out


def test_cancel(sandbox, batchwise, ledger):
    submit(ledger)
    assert batchwise("cancel").code == 2
    assert batchwise("cancel", "nihgtly").code == 5
    assert batchwise("cancel", "nightly", "--key", "nobody").code == 5
    batchwise("cancel", "nightly")
    sandbox.finish(sandbox.books.batches[0].id)
    said = batchwise("advance", "--watch", "--json").json["progress"]
    assert said["by_outcome"] == {"canceled": 3}


def test_retry(sandbox, batchwise, ledger):
    wrong = Reply.error("invalid_request_error", "too long")
    sandbox.reply = lambda params: wrong if params["messages"][0]["content"] == "n 1" else "fine"
    submit(ledger)
    sandbox.finish(sandbox.books.batches[0].id)
    assert "1 failed" in batchwise("advance", "--watch").out
    assert batchwise("retry", "nightly", "--only", "expired", "--json").json["retried"] == 0
    sandbox.reply = lambda params: "now it works"
    assert batchwise("retry", "nightly", "--within", "soon").code == 2
    told = batchwise("retry", "nightly", "--json").json
    assert (told["retried"], told["progress"]["by_status"]) == (1, {"in_flight": 1, "settled": 2})
    sandbox.finish(sandbox.books.batches[1].id)
    assert "3 succeeded" in batchwise("advance", "--watch").out


def test_purge(sandbox, batchwise, ledger):
    submit(ledger)
    sandbox.finish(sandbox.books.batches[0].id)
    batchwise("advance", "--watch")
    assert batchwise("purge", "--before", "1d", "--json").json["purged"] == 0
    assert batchwise("purge", "--before", "mon 08:00 UTC").code == 2  # the next one: in the future
    assert batchwise("purge", "--before", "1s ago").code == 2
    assert batchwise("status").out.startswith("3 requests")
    later = (datetime.now().astimezone() - timedelta(microseconds=1)).isoformat()
    assert batchwise("purge", "--before", later, "--json").json["purged"] == 3
    assert batchwise("status").out.startswith("0 requests")


def test_a_policy_of_a_file_and_what_differs(batchwise, ledger, tmp_path):
    with Dispatcher(ledger=ledger, policy=Policy(hedge=True, window=timedelta(hours=20))) as d:
        d.dispatch(params(), key="a", latency=timedelta(hours=30))
    assert batchwise("status").err == ""
    path = tmp_path / "policy.toml"
    path.write_text('window = "22h"\nhedge = true\n')
    assert "window=22h (not 20h)" in batchwise("status", "--policy", str(path)).err
    path.write_text('windw = "22h"\n')
    said = batchwise("advance", "--policy", str(path))
    assert said.code == 2
    assert "did you mean window" in said.err


@pytest.mark.parametrize(
    "arguments",
    [(), ("advance", "--jop", "nightly"), ("status", "a", "b"), ("retry",), ("gateway", "--port", "65536")],
)
def test_wrong_usage(capsys, arguments):
    assert main(list(arguments)) == 2
    said = capsys.readouterr()
    assert "Usage: batchwise" in said.err + said.out


def test_migrate(capsys, tmp_path):
    url = "postgresql://me:secret@db.example/app?schema=nightly"
    assert main(["migrate", "--sql", "--ledger", url]) == 0
    sql = capsys.readouterr().out
    assert "CREATE TABLE" in sql
    assert "nightly" in sql
    assert "secret" not in sql
    path = str(tmp_path / "ledger.db")
    assert main(["migrate", "--sql", "--ledger", path]) == 2
    assert main(["status", "--ledger", path]) == 5
    assert main(["migrate", "--ledger", path]) == 0
    assert path in capsys.readouterr().out
    assert main(["status", "--ledger", path]) == 0


def test_cadence(capsys):
    assert main(["cadence", "30h", "--json"]) == 0
    said = capsys.readouterr().out
    assert '"interval":14400.0' in said
    assert '"cron":"0 */4 * * *"' in said
    assert main(["cadence", "1d6h"]) == 0
    assert "submit every 4 h" in capsys.readouterr().out
    assert main(["cadence", "20h"]) == 1
    assert "shortest SLA" in capsys.readouterr().err


def test_without_the_extra(sandbox, ledger, monkeypatch, capsys):
    submit(ledger)
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.setenv("BATCHWISE_LEDGER", str(ledger))
    for verb in ("advance", "progress"):
        assert main([verb]) == 0
        assert "3 requests: 3 in_flight" in capsys.readouterr().out
    assert main(["progress", "--job", "nihgtly"]) == 5
    assert main(["progress", "--json"]) == 0
    assert '"command":"progress"' in capsys.readouterr().out
    for verb in ("status", "jobs", "gateway"):
        assert main([verb]) == 1
        assert "install batchwise-claude[cli]" in capsys.readouterr().err
    assert main(["advnace"]) == 2
    assert main(["--help"]) == 0


def test_the_reference_is_what_the_program_says():
    made = runpy.run_path(str(ROOT / "docs" / "generate_cli.py"))
    assert made["PAGE"].read_text(encoding="utf-8") == made["page"](), "run python docs/generate_cli.py"


def test_the_verbs_that_need_the_extra_are_all_that_there_are():
    from batchwise.cli.app import app
    from batchwise.cli.plain import OTHERS

    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert names == {*OTHERS, "advance", "progress"}


def test_late_work_is_told_by_each_verb_that_says_where_it_stands(sandbox, batchwise, ledger):
    tight = submit_too_much(ledger, sandbox)
    assert batchwise("status", "nightly", "--policy", tight).code == 4
    assert batchwise("progress", "--job", "nightly", "--policy", tight).code == 4


def test_the_version(capsys, monkeypatch):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"batchwise {__version__}\n"
    monkeypatch.setitem(sys.modules, "typer", None)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"batchwise {__version__}\n"


def test_the_list_of_verbs_cuts_no_sentence_off(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    _, commands = capsys.readouterr().out.split("Options:")
    assert "run  " in commands
    assert "..." not in commands
