"""The events of a message, put together by the SDK, are the message again."""

from __future__ import annotations

import anthropic
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchwise.client.message_events import encoded, events

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
JSON = st.dictionaries(TEXT, st.integers(-(2**31), 2**31) | TEXT | st.booleans() | st.none(), max_size=3)
CITATION = st.fixed_dictionaries(
    {
        "type": st.just("char_location"),
        "cited_text": TEXT,
        "document_index": st.integers(0, 9),
        "document_title": TEXT,
        "start_char_index": st.integers(0, 9),
        "end_char_index": st.integers(0, 9),
    }
)
BLOCK = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}),
    st.fixed_dictionaries(
        {"type": st.just("text"), "text": TEXT, "citations": st.lists(CITATION, min_size=1, max_size=2)}
    ),
    st.fixed_dictionaries({"type": st.just("thinking"), "thinking": TEXT, "signature": TEXT}),
    st.fixed_dictionaries({"type": st.just("redacted_thinking"), "data": TEXT}),
    st.fixed_dictionaries({"type": st.just("tool_use"), "id": TEXT, "name": TEXT, "input": JSON}),
    st.fixed_dictionaries(
        {"type": st.just("server_tool_use"), "id": TEXT, "name": st.just("web_search"), "input": JSON}
    ),
    st.fixed_dictionaries({"type": st.just("web_search_tool_result"), "tool_use_id": TEXT, "content": st.just([])}),
    st.fixed_dictionaries({"type": st.just("unheard_of"), "anything": JSON}),
)
STOPS = st.sampled_from(["end_turn", "max_tokens", "tool_use", "refusal", "stop_sequence", "a_new_one"])
MESSAGE = st.builds(
    lambda content, stop, sequence, read, written: {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5",
        "content": content,
        "stop_reason": stop,
        "stop_sequence": sequence,
        "usage": {"input_tokens": read, "output_tokens": written, "service_tier": "batch"},
    },
    st.lists(BLOCK, max_size=4),
    STOPS,
    st.none() | TEXT,
    st.integers(0, 9999),
    st.integers(0, 9999),
)


def _put_together(message, *, beta):
    body = b"".join(map(encoded, events(message)))
    transport = httpx2.MockTransport(
        lambda _request: httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body)
    )
    with anthropic.Anthropic(api_key="x", http_client=httpx2.Client(transport=transport)) as client:
        messages = client.beta.messages if beta else client.messages
        asked = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
        with messages.stream(**asked) as stream:
            return stream.get_final_message().to_dict(mode="json", warnings=False)


@pytest.mark.parametrize("beta", [False, True])
@given(message=MESSAGE)
def test_the_sdk_puts_the_same_message_together(message, beta):
    found = _put_together(message, beta=beta)
    for block in found["content"]:
        block.pop("__json_buf", None)
        block.pop("parsed_output", None)
    found.pop("stop_details", None)
    assert found == message
