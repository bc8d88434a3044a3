"""Every exit code, of real processes."""

from __future__ import annotations

import pytest

from .conftest import process, submit, submit_too_much


@pytest.mark.usefixtures("sandbox")
def test_done(ledger):
    submit(ledger)
    said = process("advance", "--ledger", str(ledger))
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("3 requests: 3 in_flight")


@pytest.mark.usefixtures("sandbox")
def test_an_error(ledger):
    ledger.write_text("my notes, not a database; " * 100)
    said = process("status", "--ledger", str(ledger))
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("batchwise: ")
    assert str(ledger) in said.err
    assert "Traceback" not in said.err
    assert ledger.read_text().startswith("my notes")


@pytest.mark.parametrize("arguments", [("advnace",), ("cadence", "30")])
def test_usage(arguments):
    said = process(*arguments)
    assert said.code == 2
    assert "Traceback" not in said.err


def test_a_suspended_lane(sandbox, ledger):
    sandbox.api_keys = frozenset({"right"})
    submit(ledger)
    said = process("status", "--ledger", str(ledger))
    assert said.code == 3
    assert "suspended: the batch lane: authentication_error" in said.out


def test_deadlines_at_risk(sandbox, ledger):
    tight = submit_too_much(ledger, sandbox)
    said = process("status", "--ledger", str(ledger), "--policy", tight)
    assert said.code == 4
    assert "at risk: " in said.out


@pytest.mark.usefixtures("sandbox")
def test_no_such_ledger(tmp_path):
    said = process("status", "--ledger", str(tmp_path / "some" / "ledger.db"))
    assert (said.code, said.out) == (5, "")
    assert "there is no ledger" in said.err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("sandbox")
def test_no_such_job(ledger):
    submit(ledger)
    said = process("status", "nihgtly", "--ledger", str(ledger))
    assert (said.code, said.out) == (5, "")
    assert "nihgtly" in said.err
    assert str(ledger) in said.err
