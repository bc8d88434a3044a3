"""What goes on after a message: the same turn, or another model."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import json_values, params

from batchwise.basics.jsontext import decode, encode
from batchwise.models import Lane, Outcome, Reason, ResultError
from batchwise.planning.continuation import MAX_TURNS, continued, failed, merged, next_call, received
from batchwise.planning.outcomes import rule_answer
from batchwise.planning.state import Terms

TERMS = Terms(lane=Lane.SYNC, reason=Reason.BLOCKING, model="a", max_tokens=9, output_tokens=9)
THINKING = {"type": "thinking", "thinking": "hm", "signature": "s"}
REDACTED = {"type": "redacted_thinking", "data": "x"}
TEXT = {"type": "text", "text": "So"}


def line_of(stop: str, *content: Any, model: str = "a", **others: Any) -> bytes:
    return received("id", encode({"content": list(content), "stop_reason": stop, "model": model, **others}))[0]


REFUSED = line_of("refusal", usage={"input_tokens": 5, "output_tokens": 1})
RULING = rule_answer(decode(REFUSED)["result"]["message"])


def followed(body: bytes, line: bytes, turns: list[bytes], *, terms: Terms = TERMS, models: Any = ("b", "c")) -> Any:
    ruling = rule_answer(decode(line)["result"]["message"])
    found = next_call(ruling, body, turns, line, terms=terms, fallback_models=models)
    return None if found is None else decode(found[0])


blocks = st.sampled_from([TEXT, THINKING, REDACTED, {"type": "tool_use", "id": "t", "name": "n", "input": {}}])
contents = st.lists(blocks, min_size=1, max_size=3) | st.text(max_size=5)
histories = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), contents), max_size=4)


@given(histories, st.lists(st.lists(blocks, min_size=1, max_size=3), max_size=3))
def test_a_refusal_goes_to_the_next_model_as_the_caller_asked(history: Any, parts: Any) -> None:
    """However many parts of the turn came before, what is sent anew has none of them, and no thinking."""
    messages = [{"role": role, "content": content} for role, content in history]
    first = params(model="a", messages=[*messages, {"role": "user", "content": "Go"}])
    body, turns = encode(first), list[bytes]()
    for part in parts:
        turns.append(line_of("pause_turn", *part))
        body = continued(body, turns[-1]) or b""
    sent = followed(body, REFUSED, turns)
    assert sent == without_thinking({**first, "model": "b"})


def without_thinking(body: dict[str, Any]) -> dict[str, Any]:
    kept = []
    for message in body["messages"]:
        content = message["content"]
        if message["role"] == "assistant" and isinstance(content, list):
            content = [block for block in content if block["type"] not in {"thinking", "redacted_thinking"}]
            if not content:
                continue
        kept.append({**message, "content": content})
    return {**body, "messages": kept}


def test_each_refusal_goes_to_the_model_after_it() -> None:
    for asked, models, sent_to in (
        ("a", ("b", "c"), ["b", "c", None]),
        ("a", ("a", "b"), ["b", None, None]),
        ("a", ("a",), [None, None, None]),
        ("a", (), [None, None, None]),
        ("x", ("b", "b"), ["b", "b", None]),
    ):
        call: Any = encode(params(model=asked)), attrs.evolve(TERMS, model=asked)
        for refusals, model in enumerate(sent_to):
            before, terms = call
            call = next_call(RULING, before, [REFUSED] * refusals, REFUSED, terms=terms, fallback_models=models)
            if model is None:
                assert call is None
                break
            sent, after = call
            assert decode(sent)["model"] == after.model == model
            assert after.asked == (asked, *sent_to[: refusals + 1])
            assert after.asking([asked]) == attrs.evolve(TERMS, model=asked)


def test_a_thinking_setting_that_other_models_may_not_take_is_switched_off() -> None:
    for given_, sent in (({"type": "between_tools"}, {"type": "disabled"}), ({"type": "adaptive"},) * 2):
        assert followed(encode(params(model="a", thinking=given_)), REFUSED, [])["thinking"] == sent


@given(json_values | st.lists(json_values, max_size=2))
def test_bodies_that_cannot_be_sent_anew_end_and_raise_nothing(messages: Any) -> None:
    body = encode({"model": "a", "max_tokens": 1, "messages": messages})
    sent = followed(body, REFUSED, [line_of("pause_turn", TEXT)])
    assert sent is None or sent["model"] == "b"


def test_a_spend_limit_keeps_for_the_refusal_too_by_its_bytes() -> None:
    history = [{"role": "assistant", "content": [THINKING, TEXT]}, {"role": "user", "content": "Go"}]
    body = encode(params(model="a", messages=history))
    terms = attrs.evolve(TERMS, max_cost_each=2)
    found = next_call(RULING, body, [], REFUSED, terms=terms, fallback_models=["b"])
    assert found is not None
    sent, _ = found
    assert len(sent) == len(body)
    assert decode(sent) == without_thinking({**decode(body), "model": "b"})


def test_under_a_spend_limit_a_paused_turn_is_the_answer() -> None:
    body, pause = encode(params(model="a")), line_of("pause_turn", TEXT)
    for kept, goes_on in ((0, True), (2, False)):
        terms = attrs.evolve(TERMS, max_cost_each=kept)
        assert (followed(body, pause, [], terms=terms) is not None) == goes_on


def test_only_refusals_and_pauses_go_on() -> None:
    body = encode(params(model="a"))
    for stop in ("end_turn", "max_tokens", "tool_use", "unheard of"):
        assert followed(body, line_of(stop, TEXT), []) is None
    pause = line_of("pause_turn", TEXT)
    assert followed(body, pause, [pause] * (MAX_TURNS - 1))["messages"][-1] == {"role": "assistant", "content": [TEXT]}
    assert followed(body, pause, [pause] * MAX_TURNS) is None


def test_an_answer_has_the_parts_since_the_last_refusal() -> None:
    usage = {"input_tokens": 1, "output_tokens": 2}
    pause = line_of("pause_turn", TEXT, usage=usage)
    answer = line_of("end_turn", {"type": "text", "text": "Yes"}, model="b", usage=usage)
    assert merged([REFUSED], answer) == answer
    message = decode(merged([pause, REFUSED, pause, pause], answer))["result"]["message"]
    assert message["content"] == [TEXT, TEXT, {"type": "text", "text": "Yes"}]
    assert message["usage"] == {"input_tokens": 3, "output_tokens": 6}
    assert message["model"] == "b"
    assert rule_answer(message).outcome is Outcome.SUCCEEDED


def test_a_container_goes_on_with_the_turn_unless_the_caller_configured_one() -> None:
    body, pause = params(model="a"), line_of("pause_turn", TEXT, container={"id": "c1", "expires_at": "x"})
    assert decode(continued(encode(body), pause) or b"")["container"] == "c1"
    own = {"skills": []}
    assert decode(continued(encode({**body, "container": own}), pause) or b"")["container"] == own
    assert decode(continued(encode({**body, "container": "c0"}), pause) or b"")["container"] == "c1"
    assert "container" not in decode(continued(encode(body), line_of("pause_turn", TEXT, container=None)) or b"")


def test_a_line_of_an_answer_or_of_none_is_worded_as_a_batchs() -> None:
    line, message = received("id", b'{"content": []}')
    assert decode(line) == {"custom_id": "id", "result": {"type": "succeeded", "message": {"content": []}}}
    assert message == {"content": []}
    for outcome, kind in (
        (Outcome.FAILED, "errored"),
        (Outcome.EXPIRED, "expired"),
        (Outcome.CANCELED, "canceled"),
    ):
        error = ResultError("overloaded_error", "Overloaded", retryable=True)
        said = {"type": "overloaded_error", "message": "Overloaded", "retryable": True}
        assert decode(failed("id", outcome, error)) == {"custom_id": "id", "result": {"type": kind, "error": said}}
        told = decode(failed("id", outcome, error, status=529, request_id="req_1"))["result"]["error"]
        assert told == {**said, "status": 529, "request_id": "req_1"}


def test_usage_of_all_parts_is_added_up_kind_by_kind() -> None:
    first = line_of("pause_turn", TEXT, usage={"input_tokens": 5, "cache": {"a": 1}, "tier": "batch", "fresh": None})
    last = line_of("end_turn", TEXT, usage={"input_tokens": 7, "cache": {"a": 2, "b": 3}, "tier": "x", "fresh": 2})
    message = decode(merged([first], last))["result"]["message"]
    assert message["content"] == [TEXT, TEXT]
    assert message["usage"] == {"input_tokens": 12, "cache": {"a": 3, "b": 3}, "tier": "x", "fresh": 2}
    assert merged([], last) == last
