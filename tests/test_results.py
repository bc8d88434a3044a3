"""No accessor of a result raises anything but `RequestFailedError`, whatever the API sent."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, field_validator

import batchwise as bw
from batchwise.basics.jsontext import decode, encode
from batchwise.ledger.values import ResultGroup, ResultRow
from batchwise.planning.continuation import failed, received
from batchwise.results import Result
from tests.strategies import NOW, json_values, messages

ACCESSORS = [name for name in dir(Result) if not name.startswith("_")]


def result_of(line: bytes, outcome: bw.Outcome = bw.Outcome.SUCCEEDED, betas: tuple[str, ...] = ()) -> Result:
    how = ResultGroup(
        job=None, outcome=outcome, lane=bw.Lane.SYNC, attempts=1, nonce=None, deadline=None, settled_at=NOW, met=None,
        betas=betas,
    )  # fmt: skip
    return Result(ResultRow(cursor=1, request=1, key="k", line=line, cost=None, saved=None, cache_saved=0, how=how))


def look_at_all(result: Result) -> dict[str, Any]:
    seen: dict[str, Any] = {"repr": repr(result)}
    for name in ACCESSORS:
        try:
            value = getattr(result, name)
            seen[name] = (value(int) if name == "parse" else value()) if callable(value) else value
        except bw.RequestFailedError as error:
            seen[name] = error
    assert all(str(value).isprintable() for value in seen.values() if isinstance(value, Exception))
    return seen


lines = messages.map(lambda message: received("id", encode(message))[0]) | st.dictionaries(
    st.sampled_from(["type", "message", "error"]), json_values
).map(lambda result: encode({"custom_id": "id", "result": result}))


@given(lines, st.sampled_from(bw.Outcome), st.sampled_from([(), ("beta-1",)]))
@example(encode({"result": {"type": "errored", "error": {"retryable": [], "type": 3}}}), bw.Outcome.FAILED, ())
@example(encode({"result": {"type": "canceled", "error": {}}}), bw.Outcome.CANCELED, ())
@example(encode({"result": {"message": {"content": [], "_fields_set": 3, "__cls": 4}}}), bw.Outcome.SUCCEEDED, ())
@example(encode({"result": {"message": {"content": [{"type": "text", "text": None}]}}}), bw.Outcome.SUCCEEDED, ())
@example(encode({"result": {"message": {"content": [{"type": "tool_use"}]}}}), bw.Outcome.SUCCEEDED, ())
@example(encode({"result": {"message": {"content": [None, 3, []], "usage": None}}}), bw.Outcome.SUCCEEDED, ("b",))
def test_accessors_raise_one_error_or_none(line: bytes, outcome: bw.Outcome, betas: tuple[str, ...]) -> None:
    seen = look_at_all(result_of(line, outcome, betas))
    assert decode(seen["raw"]) == decode(line)
    if outcome is not bw.Outcome.SUCCEEDED:
        for name in ("text", "message", "tool_calls", "unwrap", "parse"):
            assert isinstance(seen[name], bw.RequestFailedError)
        assert (seen["error"].type + seen["error"].message).isprintable()
    else:
        assert seen["error"] is None


@pytest.mark.parametrize("betas", [(), ("beta-1",)])
def test_shapes_that_nobody_has_heard_of_are_taken_as_the_sdk_takes_them(betas: tuple[str, ...]) -> None:
    message = {"content": [{"type": "hologram", "data": 1}, {"type": "text", "text": "hi"}], "stop_reason": "bored"}
    result = result_of(received("id", encode(message))[0], betas=betas)
    assert (result.text, result.tool_calls, result.message.stop_reason) == ("hi", (), "bored")
    assert result.message.content[0].to_dict() == {"type": "hologram", "data": 1}
    assert result.message.id is None or not hasattr(result.message, "id")
    assert result.message is result.message


def test_numbers_and_letters_are_as_python_reads_them() -> None:
    body = b'{"content": [{"type": "tool_use", "id": "t", "name": "n", "input": {"id": 123456789012345678901234,'
    body += rb' "far": 1e400, "half": "\ud800"}}, {"type": "text", "text": "\udfff"}]}'
    for text in (body, b"\xef\xbb\xbf" + body, body.replace(b", ", b",\r\n   ")):
        result = result_of(received("id", text)[0])
        assert result.tool_calls[0].input == {"id": 123456789012345678901234, "far": float("inf"), "half": "\ud800"}
        assert result.message.content[0].input == result.tool_calls[0].input  # type: ignore[union-attr]
        assert result.text == "\udfff"
        assert result.raw.splitlines() == [result.raw]


def test_a_gate_never_passes_on_a_text_that_is_none() -> None:
    result = result_of(received("id", b'{"content": [{"type": "text", "text": null}]}')[0])
    with pytest.raises(bw.RequestFailedError) as caught:
        _ = result.text
    assert caught.value.error_type == "malformed_response"


class Secretive(BaseModel):
    wanted: dict[str, int]

    @field_validator("wanted", mode="before")
    @classmethod
    def _odd(cls, value: Any) -> Any:
        if value == {}:
            raise KeyError("a secret")
        return value


def text_result(*blocks: Any) -> Result:
    content = [{"type": "text", "text": block} if isinstance(block, str) else block for block in blocks]
    return result_of(received("id", encode({"content": content}))[0])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"wanted": {"a secret": "a secret"}}', "int_parsing"),
        ('{"a secret": 1}', "missing"),
        ("a secret", "json_invalid"),
        ('{"wanted": {}}', "KeyError"),
        ('{"wanted": {"\ud800": 1}}', "string_unicode|UnicodeEncodeError"),
        ("", "json_invalid"),
    ],
)
def test_what_does_not_fit_the_type_raises_one_error_without_the_answer(text: str, why: str) -> None:
    with pytest.raises(bw.RequestFailedError, match=why) as caught:
        text_result(text).parse(Secretive)
    assert caught.value.error_type == "malformed_response"
    assert "a secret" not in "".join(traceback.format_exception(caught.value))


def test_the_text_after_the_last_tool_is_read() -> None:
    tool = {"type": "web_search_tool_result", "content": []}
    assert text_result("Let me look.", tool, "[1,", "2]").parse(list[int]) == [1, 2]
    assert text_result("[1]", {"type": "thinking", "thinking": "x"}).parse(list[int]) == [1]
    assert text_result("[1]").parse(list[int]) == [1]
    with pytest.raises(bw.RequestFailedError):
        text_result(tool).parse(list[int])


@pytest.mark.parametrize(
    ("stop", "outcome", "said", "cut"),
    [
        ("end_turn", bw.Outcome.SUCCEEDED, "end_turn", False),
        ("max_tokens", bw.Outcome.SUCCEEDED, "max_tokens", True),
        ("max_tokens", bw.Outcome.FAILED, "max_tokens", True),
        ("model_context_window_exceeded", bw.Outcome.SUCCEEDED, "model_context_window_exceeded", True),
        ("refusal", bw.Outcome.REFUSED, "refusal", False),
        (["max_tokens"], bw.Outcome.SUCCEEDED, None, False),
        (None, bw.Outcome.SUCCEEDED, None, False),
    ],
)
def test_why_a_message_stopped(stop: Any, outcome: bw.Outcome, said: str | None, cut: bool) -> None:
    result = result_of(received("id", encode({"content": [], "stop_reason": stop}))[0], outcome)
    assert (result.stop_reason, result.truncated) == (said, cut)


def test_without_a_message_nothing_stopped() -> None:
    for outcome in (bw.Outcome.FAILED, bw.Outcome.CANCELED, bw.Outcome.EXPIRED):
        line = failed("id", outcome, bw.ResultError("expired", "late", retryable=True))
        assert (result_of(line, outcome).stop_reason, result_of(line, outcome).truncated) == (None, False)


def test_what_is_no_type_is_the_callers_mistake() -> None:
    with pytest.raises(bw.InvalidValueError, match="is not a type"):
        text_result("1").parse(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(("type_", "words"), [(int, "not a int"), (int | None, "not a value of this type")])
def test_an_answer_of_another_type_is_refused_in_a_whole_sentence(type_: type, words: str) -> None:
    with pytest.raises(bw.RequestFailedError, match=rf"has a text that is {words} \("):
        text_result("yes").parse(type_)
