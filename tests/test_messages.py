"""What batchwise says to somebody who uses it wrongly for the first time: what was wrong, where, and what to write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import anthropic
import pytest
from pydantic import BaseModel

import batchwise as bw
from batchwise.__main__ import main
from batchwise.sandbox import Sandbox
from tests.strategies import params

HOURS_30 = timedelta(hours=30)
PARAMS = params("hello")


class Verdict(BaseModel):
    fine: bool


@anthropic.beta_tool
def weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: Its name.
    """
    return city


@pytest.fixture(scope="module")
def d() -> Iterator[Any]:
    with Sandbox() as sandbox, bw.Dispatcher(sandbox.client(), ledger=":memory:") as made:
        made.sandbox = sandbox
        made.dispatch(PARAMS, key="known").result()
        made.dispatch_all([bw.Request(PARAMS, key="inside")], job="J").wait()
        yield made


def several(*requests: bw.Request) -> list[bw.Request]:
    return [bw.Request(PARAMS, key="first"), *requests]


def deep() -> Any:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    return value


def without_key(d: Any) -> Any:
    d.sandbox.fault("messages.slow", delay=2)
    return d.dispatch(params("no key")).result(timeout=0.05)


def failed_item(d: Any) -> Any:
    wrong = {**PARAMS, "temperature": 5}
    job = d.dispatch_all([bw.Request(PARAMS), bw.Request(wrong)])
    return next(result for result in job.results() if not result.ok).unwrap()


def down(d: Any) -> Any:
    d.sandbox.fault("messages.overloaded_529", times=None)
    try:
        return d.dispatch(params("the API is down")).result(timeout=1)
    finally:
        d.sandbox.clear_faults()


WRONG: list[tuple[str, Callable[[Any], Any], type[Exception], list[str]]] = [
    (
        "a string",
        lambda d: d.dispatch("hello"),
        bw.InvalidRequestError,
        ["params is a str", "{'model': ", "'messages': "],
    ),
    ("30", lambda d: d.dispatch(PARAMS, latency=30), bw.InvalidRequestError, ["latency=30", "timedelta(hours=30)"]),
    ("30h", lambda d: d.dispatch_all([], latency="30h"), bw.InvalidValueError, ["'30h'", "timedelta(hours=30)"]),
    ("automatic key", without_key, bw.ResultTimeoutError, ["the request without a key (claude-", "nothing is lost"]),
    (
        "automatic key of an item",
        failed_item,
        bw.RequestFailedError,
        ["item #1 of dispatch_all has no answer", "temperature"],
    ),
    (
        "a key twice",
        lambda d: d.dispatch_all(several(bw.Request(params("other"), key="first"))),
        bw.KeyConflictError,
        ["items #0 and #1", "'first'", "(messages)"],
    ),
    (
        "other content",
        lambda d: d.dispatch({**PARAMS, "max_tokens": 7, "system": "secret"}, key="known", betas=["b-1"]),
        bw.KeyConflictError,
        ["'known'", "(max_tokens, system, betas)"],
    ),
    ("in a job", lambda d: d.ticket("inside"), bw.TicketNotFoundError, ["no request 'inside'", "in job 'J'"]),
    (
        "in no job",
        lambda d: d.ticket("known", job="J"),
        bw.TicketNotFoundError,
        ["in job 'J'", "there is one without a job"],
    ),
    ("24 h", lambda _: bw.sla_cadence(timedelta(hours=24)), bw.InfeasibleSLAError, ["shortest SLA", "24 h 15 min"]),
    (
        "a class in params",
        lambda _: bw.Request({**PARAMS, "output_format": Verdict}),
        bw.InvalidRequestError,
        ["params['output_format']", "output_format=..."],
    ),
    (
        "as the SDK",
        lambda d: d.dispatch(model="m", max_tokens=9),
        bw.InvalidRequestError,
        ["as one dict", "dispatch({'model'"],
    ),
    (
        "no outcome",
        lambda d: d.job("J").retry("fialed"),
        bw.InvalidValueError,
        ["outcomes='fialed'", "'failed'", "'expired'"],
    ),
    ("hedge", lambda _: bw.Policy(hedge="yes"), bw.InvalidValueError, ["hedge='yes'", "True nor False"]),
    (
        "period without cap",
        lambda _: bw.Policy(max_spend_period=HOURS_30),
        bw.InvalidValueError,
        ["without max_spend", "give max_spend"],
    ),
    ("down", down, bw.ResultTimeoutError, ["calling the sync lane failed", "529", "Next try: "]),
    ("stream", lambda d: d.dispatch({**PARAMS, "stream": True}), bw.InvalidRequestError, ["Request(..., stream=True)"]),
    (
        "no number",
        lambda _: bw.Request({**PARAMS, "x": {"a": [float("nan")]}}),
        bw.InvalidRequestError,
        ["['x']['a'][0]"],
    ),
    ("deep", lambda _: bw.Request({**PARAMS, "x": deep()}), bw.InvalidRequestError, ["params['x'][0]", "levels"]),
    (
        "no JSON",
        lambda _: bw.Request({**PARAMS, "x": {"a": object()}}),
        bw.InvalidRequestError,
        ["['x']['a']", "convert it"],
    ),
]


@pytest.mark.parametrize(("use", "error", "words"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_a_wrong_use_says_what_was_wrong_where_and_what_to_write(
    d: Any, use: Callable[[Any], Any], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        use(d)
    said = str(caught.value)
    for each in words:
        assert each in said
    assert "~" not in said, "an automatic key tells nobody anything"
    assert "secret" not in said
    assert "hello" not in said.replace("params is a str", "")


def test_what_can_be_meant_only_one_way_is_taken(d: Any) -> None:
    assert d.dispatch({**PARAMS, "stream": False}, key="known").result().ok, "the same content"
    for value in ({"system": anthropic.NOT_GIVEN}, {"tools": [weather]}, {"metadata": {"n": [2**70, {1: 2}]}}):
        assert bw.Request({**PARAMS, **value}).body
    assert (
        d.job("J").retry("failed") == d.job("J").retry(bw.Outcome.FAILED) == d.job("J").retry([bw.Outcome.FAILED]) == 0
    )


def test_another_latency_under_the_same_key_is_told(d: Any) -> None:
    first = d.dispatch(params("later"), key="later", latency=HOURS_30).decision
    again = d.dispatch(params("later"), key="later", latency=2 * HOURS_30).decision
    assert again.deadline == first.deadline
    assert again.explanation.endswith("It was dispatched before under its key, and that deadline stands")
    sooner = d.dispatch(params("later"), key="later", latency=HOURS_30 - timedelta(hours=1)).decision
    assert sooner.deadline < first.deadline
    assert "dispatched before" not in sooner.explanation


def test_an_iterable_that_raises_says_how_far_it_got(d: Any) -> None:
    def generate() -> Iterator[bw.Request]:
        yield bw.Request(PARAMS, latency=HOURS_30)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        d.dispatch_all(generate())
    notes = getattr(caught.value, "__notes__", ["dispatch_all had taken 1 items; nothing of it was accepted"])
    assert notes == ["dispatch_all had taken 1 items; nothing of it was accepted"]


def test_without_an_api_key_its_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")
    with bw.Dispatcher(ledger=":memory:") as d, pytest.raises(bw.LaneSuspendedError) as caught:
        d.dispatch(PARAMS).result(timeout=20)
    assert "set ANTHROPIC_API_KEY" in str(caught.value)
    assert "Dispatcher(client=" in str(caught.value)


def test_a_typo_in_the_ledger_makes_no_ledger(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["progress", "--ledger", "no-such-ledger.db"]) == 5
    assert "no-such-ledger.db" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
