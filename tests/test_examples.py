"""The scripts of docs/examples run as a reader would run them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from batchwise.sandbox import Reply

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
SAYS = {
    "premerge_check": ["lane sync", "merge: True"],
    "nightly_tests": ["src/part_7.py: no tests", "18 written, 2 failed", "saved $"],
    "weekly_audit": ["lane ", "billing: ", "0 missed"],
    "iterative_reviewer": ["turn 1, lane sync", "read_file(", "turn 2, lane sync", "review: Reads well"],
    "demo": ["the sandbox", "SIGKILL", "saved", "nothing twice"],
}


def run(name: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("ANTHROPIC_", "BATCHWISE_"))}
    return subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        check=False, capture_output=True, text=True, timeout=240, cwd=cwd, env={**clean, **env},
    )  # fmt: skip


@pytest.mark.parametrize("name", SAYS)
def test_example(name, tmp_path):
    done = run(name, tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    for text in SAYS[name]:
        assert text in done.stdout


GOOD = '{"merge": true, "why": "x"}'
CLOSED = {
    "refused": Reply.refusal("no"),
    "refused after a verdict": Reply.text(GOOD, stop_reason="refusal"),
    "cut off": Reply.text(GOOD[:9], stop_reason="max_tokens"),
    "cut off after a verdict": Reply.text(GOOD, stop_reason="max_tokens"),
    "context full": Reply.text(GOOD, stop_reason="model_context_window_exceeded"),
    "empty": Reply(()),
    "no JSON": Reply.text("Looks good to me!"),
    "half of it": Reply.text('{"merge": true}'),
    "no bool": Reply.text('{"merge": "yes", "why": "x"}'),
    "two": Reply.text(GOOD + GOOD),
    "a tool": Reply.tool_use("verdict", {"merge": True, "why": "x"}),
    "an error": Reply.error("invalid_request_error"),
    "no": Reply.text('{"merge": false, "why": "it breaks"}'),
}


def premerge_check(reply, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("premerge_check", EXAMPLES / "premerge_check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.sandbox_reply = lambda _params: reply
    return module.main(live=False)


@pytest.mark.parametrize("reply", CLOSED)
def test_the_gate_closes_on_all_that_is_no_verdict(reply, monkeypatch, tmp_path):
    assert premerge_check(CLOSED[reply], monkeypatch, tmp_path) == 1


def test_the_gate_opens_on_a_verdict(monkeypatch, tmp_path):
    assert premerge_check(Reply.text(GOOD), monkeypatch, tmp_path) == 0


def test_every_example_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SAYS, "demo_live"}


@pytest.mark.parametrize("name", sorted(SAYS.keys() - {"demo"}))
def test_each_is_short_and_has_a_live_flag(name):
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 80
    assert '"--live"' in text


def test_the_live_demo_without_a_key_says_what_is_missing(tmp_path):
    done = run("demo_live", tmp_path)
    assert done.returncode == 2
    assert "ANTHROPIC_API_KEY" in done.stderr
    assert not list(tmp_path.iterdir())
