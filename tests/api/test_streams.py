"""Long calls are streamed inside, and give the same message as short ones."""

from __future__ import annotations

import httpx  # respx speaks httpx on its side of the mock
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.harness import URL, SyncLanes
from tests.api.test_faults import caught

LONG = {"model": "claude-opus-4-8", "max_tokens": 64_000}
BODY = b'{"model":"claude-opus-4-8","max_tokens":64000,"temperature":1.0,"new_field":{"a":[1]},"messages":[]}'


def event(kind: str, **fields) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


def delta(index, **fields) -> bytes:
    return event("content_block_delta", index=index, delta=fields)


def block_events(index, block, pieces: int = 3) -> list[bytes]:
    def cut(text: str) -> list[str]:
        size = max(1, len(text) // pieces)
        return [text[at : at + size] for at in range(0, len(text), size)]

    match block["type"]:
        case "text":
            start, deltas = {"text": ""}, [{"type": "text_delta", "text": part} for part in cut(block["text"])]
            deltas += [{"type": "citations_delta", "citation": one} for one in block.get("citations", [])]
        case "thinking":
            start = {"thinking": "", "signature": ""}
            deltas = [{"type": "thinking_delta", "thinking": part} for part in cut(block["thinking"])]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        case "tool_use":
            start = {"id": block["id"], "name": block["name"], "input": {}}
            text = orjson.dumps(block["input"]).decode()
            deltas = [{"type": "input_json_delta", "partial_json": part} for part in cut(text)]
        case _:
            start, deltas = {key: value for key, value in block.items() if key != "type"}, []
    return [
        event("content_block_start", index=index, content_block={"type": block["type"], **start}),
        *(delta(index, **fields) for fields in deltas),
        event("content_block_stop", index=index),
    ]


def events_of(message) -> list[bytes]:
    start = {**message, "content": [], "stop_reason": None, "stop_sequence": None}
    start["usage"] = {**message["usage"], "output_tokens": 1}
    ends = {"stop_reason": message["stop_reason"], "stop_sequence": message["stop_sequence"]}
    return [
        event("message_start", message=start),
        event("ping"),
        *(one for index, block in enumerate(message["content"]) for one in block_events(index, block)),
        event("message_delta", delta=ends, usage={"output_tokens": message["usage"]["output_tokens"]}),
        event("message_stop"),
    ]


CITATION = {
    "type": "char_location", "cited_text": "x", "document_index": 0, "document_title": None,
    "start_char_index": 0, "end_char_index": 1, "file_id": None,
}  # fmt: skip
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-opus-4-8",
    "content": [
        {"type": "thinking", "thinking": "hm, \u00e4h", "signature": "c2ln"},
        {"type": "text", "text": "Gr\u00fc\u00dfe \U0001f600", "citations": [CITATION]},
        {"type": "tool_use", "id": "toolu_1", "name": "t", "input": {"a": [1, 2.5, None, "\u20ac"], "b": {}}},
        {"type": "block_of_tomorrow", "payload": {"x": [1]}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 10, "output_tokens": 42, "cache_read_input_tokens": 3, "service_tier": "standard"},
    "field_of_tomorrow": [1, {"y": 2}],
}


def answer(events, **headers):
    content = b"".join(events)
    return httpx.Response(200, content=content, headers={"content-type": "text/event-stream", **headers})


def plain(body: bytes):
    message = orjson.loads(body)
    message.pop("stop_details", None)  # message_delta has it, null where there is nothing to say
    return message


@pytest.mark.parametrize("betas", [(), ("some-beta",)])
def test_a_long_call_is_streamed_and_gives_the_same_message(betas, lanes, httpx2_mock):
    headers = {"date": "Sun, 22 Nov 2026 19:00:01 GMT", "anthropic-workspace-id": "w", "request-id": "req_1"}
    route = httpx2_mock.post(f"{URL}/v1/messages").mock(return_value=answer(events_of(MESSAGE), **headers))
    reply = lanes.call(BODY, **LONG, betas=betas)
    request = route.calls.last.request
    assert request.content == BODY[:-1] + b',"stream":true}'
    assert request.headers.get("anthropic-beta") == (betas[0] if betas else None)
    assert plain(reply.body) == MESSAGE
    assert b"\n" not in reply.body
    assert reply.headers["request-id"] == "req_1"
    assert reply.workspace == "w"
    assert route.call_count == 1


texts = st.text(max_size=40).filter(lambda text: not any("\ud800" <= char <= "\udfff" for char in text))
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False, width=32)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts, lambda inner: st.lists(inner, max_size=3), max_leaves=5
)
blocks = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, texts),
    st.builds(lambda text: {"type": "thinking", "thinking": text, "signature": "s"}, texts),
    st.builds(
        lambda value: {"type": "tool_use", "id": "toolu_1", "name": "n", "input": value},
        st.dictionaries(texts, values, max_size=3),
    ),
)


@given(content=st.lists(blocks, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_message_survives_the_stream(content, httpx2_mock):
    message = {**MESSAGE, "content": content}
    httpx2_mock.post(f"{URL}/v1/messages").mock(return_value=answer(events_of(message)))
    assert plain(SyncLanes().call(BODY, **LONG).body) == message


@pytest.mark.parametrize("kept", [0, 1, 5, -1])
def test_a_stream_that_ends_before_its_message_is_a_fault(kept, lanes, httpx2_mock):
    events = events_of(MESSAGE)
    httpx2_mock.post(f"{URL}/v1/messages").mock(return_value=answer(events[:kept]))
    fault = caught(lanes.call, BODY, **LONG).fault
    assert (fault.status, fault.type, fault.request_sent) == (None, "connection_error", True)


def test_an_error_event_inside_a_stream(lanes, httpx2_mock):
    failure = {"type": "overloaded_error", "message": "Overloaded"}
    events = [*events_of(MESSAGE)[:4], event("error", error=failure)]
    httpx2_mock.post(f"{URL}/v1/messages").mock(return_value=answer(events))
    fault = caught(lanes.call, BODY, **LONG).fault
    assert (fault.status, fault.type, fault.message) == (200, "overloaded_error", "Overloaded")


@pytest.mark.parametrize(
    "broken",
    [
        [b"event: message_start\ndata: {secret\n\n"],
        [event("message_start", message={}), delta(7, type="text_delta", text="secret")],
        [b"event: message_start\ndata: 7\n\n"],
        [
            event("message_start", message={**MESSAGE, "content": []}),
            event(
                "content_block_start", index=0, content_block={"type": "tool_use", "id": "t", "name": "n", "input": {}}
            ),
            delta(0, type="input_json_delta", partial_json='{"secret": nonsense'),
        ],
    ],
)
def test_nonsense_in_a_stream_is_a_malformed_response_and_not_quoted(broken, lanes, httpx2_mock):
    httpx2_mock.post(f"{URL}/v1/messages").mock(return_value=answer(broken))
    failure = caught(lanes.call, BODY, **LONG)
    assert failure.fault.type == "malformed_response"
    assert "secret" not in str(failure)
    assert failure.__context__ is None


def test_blocks_that_only_the_beta_knows_are_put_together(lanes, httpx2_mock):
    events = events_of({**MESSAGE, "content": []})
    events[2:2] = [
        event("content_block_start", index=0, content_block={"type": "compaction", "content": None}),
        delta(0, type="compaction_delta", content="what was said"),
        event("content_block_stop", index=0),
    ]
    httpx2_mock.post(f"{URL}/v1/messages").mock(return_value=answer(events))
    (block,) = orjson.loads(lanes.call(BODY, **LONG, betas=("compact-1",)).body)["content"]
    assert block["content"] == "what was said"
