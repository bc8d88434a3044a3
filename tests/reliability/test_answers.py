"""What came with a 200 is kept and settles once, whatever it is; both lanes judge the same shape the same."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
from hypothesis import example, given, settings

import batchwise as bw
from batchwise.basics.jsontext import decode, encode, one_line
from tests.reliability import simulation
from tests.reliability.simulation import HOUR, MINUTE, World
from tests.strategies import messages

TEXTS = ["one", "two"]


class Odd(World):
    """A world whose API answers every request with these bytes, after `pauses` paused turns."""

    def __init__(self, answer: bytes, pauses: int = 0) -> None:
        super().__init__()
        self.api.duration = 5 * MINUTE
        self.sent: list[bytes] = []
        real_call, real_create, real_lines = self.api.call, self.api.create, self.api.lines
        pause = encode({**simulation.message_of(""), "stop_reason": "pause_turn"})

        def call(body: bytes, **terms: Any) -> Any:
            self.sent.append(body)
            turns = len(json.loads(body)["messages"][-1]["content"]) if b'"assistant"' in body else 0
            return attrs.evolve(real_call(body, **terms), body=pause if turns < pauses else answer)

        def lines(batch: Any) -> list[bytes]:
            heads = (line.partition(b'"message":')[:2] for line in real_lines(batch))
            return [b"".join(head) + one_line(answer) + b"}}\n" for head in heads]

        def create(chunks: Any, length: int, betas: tuple[str, ...]) -> Any:
            self.sent.append(b"".join(chunks))
            return real_create(iter(self.sent[-1:]), length, betas)

        self.api.call, self.api.create, self.api.lines = call, create, lines  # type: ignore[method-assign]

    def settle(self, lane: bw.Lane) -> list[tuple[bw.Outcome, Any, int | None]]:
        """Run two requests to their ends; of each the outcome, the message that is kept, and the cost."""
        self.dispatch_all(TEXTS, bw.Latency.FLEXIBLE if lane is bw.Lane.BATCH else HOUR)
        for _ in range(30):
            self.pass_time(10 * MINUTE)
            rows = self.ledger.results(job=None, after=0, limit=9)
            if len(rows) == len(TEXTS):
                break
        assert [row.how.lane for row in rows] == [lane] * len(TEXTS)
        found = [(row.how.outcome, decode(row.line)["result"].get("message"), row.cost) for row in rows]
        self.close()
        return found


def is_pause(message: Any) -> bool:
    return isinstance(message, dict) and message.get("stop_reason") in ("pause_turn", "compaction")


@given(messages.filter(lambda message: not is_pause(message)))
@settings(max_examples=40)
@example({"content": None, "stop_reason": "end_turn"})
@example({"stop_reason": "end_turn"})
@example({"content": [None, {"type": "unheard of"}], "usage": None, "stop_reason": "bored"})
@example([])
@example({"content": [{"type": "text", "text": "No"}], "stop_reason": "refusal", "stop_details": {"category": 3}})
@example({"content": [], "stop_reason": "refusal", "usage": {"input_tokens": 9, "output_tokens": 0}})
@example(None)
@example({"content": [{"type": "text", "text": "\ud800"}], "usage": {"input_tokens": 2**70, "output_tokens": 1}})
def test_both_lanes_judge_the_same_shape_the_same_and_buy_it_once(message: Any) -> None:
    seen = {}
    for lane in bw.Lane:
        world = Odd(encode(message))
        seen[lane] = world.settle(lane)
        assert set(world.api.bought(lane.value).values()) == {1}, "it was bought again"
        outcome, kept, cost = seen[lane][0]
        assert kept == message
        is_message = isinstance(message, dict) and isinstance(message.get("content"), list)
        assert (outcome in {bw.Outcome.SUCCEEDED, bw.Outcome.REFUSED}) == is_message
        assert (outcome is bw.Outcome.REFUSED) == (is_message and message.get("stop_reason") == "refusal")
        if outcome is bw.Outcome.FAILED:
            assert cost is None
    assert [end[:2] for end in seen[bw.Lane.SYNC]] == [end[:2] for end in seen[bw.Lane.BATCH]]


@pytest.mark.parametrize("lane", bw.Lane)
@pytest.mark.parametrize("content", [None, "", 3, {}, [], ...], ids=str)
def test_a_paused_turn_that_has_nothing_to_go_on_from_ends(content: Any, lane: bw.Lane) -> None:
    message = {**simulation.message_of("x"), "stop_reason": "pause_turn", "content": content}
    if content is ...:
        del message["content"]
    world = Odd(encode(message))
    ends = world.settle(lane)
    assert {outcome for outcome, *_ in ends} == {bw.Outcome.SUCCEEDED if content == [] else bw.Outcome.FAILED}
    assert set(world.api.bought(lane.value).values()) == {1}


@pytest.mark.parametrize("content", [None, 3, ...], ids=str)
def test_a_turn_whose_last_part_has_no_content_ends_on_the_sync_lane(content: Any) -> None:
    message = {**simulation.message_of("x"), "content": content}
    if content is ...:
        del message["content"]
    world = Odd(encode(message), pauses=1)
    assert {outcome for outcome, *_ in world.settle(bw.Lane.SYNC)} == {bw.Outcome.FAILED}
    assert set(world.api.sync.values()) == {2}


@pytest.mark.parametrize(
    "answer",
    [b"", b"<html>502\n\xff</html>", b'{"content": [', b"[" * 100_000, b"\xff"],
    ids=lambda each: repr(each[:9]),
)
def test_an_answer_that_is_no_json_is_kept_and_not_bought_again(answer: bytes) -> None:
    world = Odd(answer)
    ends = world.settle(bw.Lane.SYNC)
    assert [(outcome, cost) for outcome, _, cost in ends] == [(bw.Outcome.FAILED, None)] * 2
    assert {kept for _, kept, _ in ends} == {answer.decode("utf-8", "backslashreplace")}
    assert set(world.api.sync.values()) == {1}


BIG = b'{"content": [{"type": "tool_use", "id": "t", "name": "n", "input": {"id": 123456789012345678901234}}, 1e400], '
BIG += rb'"stop_reason": "pause_turn", "\ud800": 1, "usage": {"input_tokens": 1, "output_tokens": 1}}'


@pytest.mark.parametrize("lane", bw.Lane)
def test_numbers_and_letters_survive_a_turn_that_is_continued(lane: bw.Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchwise.planning.continuation.MAX_TURNS", 2)
    world = Odd(BIG)
    for outcome, kept, _ in world.settle(lane):
        assert outcome is bw.Outcome.SUCCEEDED
        assert kept["content"] == 3 * json.loads(BIG)["content"]
        assert kept["\ud800"] == 1
    sent = [body for body in world.sent if b'"assistant"' in body]
    assert sent
    for body in sent:
        assert b"123456789012345678901234" in body
        assert b"Infinity" not in body


def test_a_call_that_raises_anything_has_its_end_and_harms_no_neighbour() -> None:
    world = World()
    real = world.api.call

    def call(body: bytes, **terms: Any) -> Any:
        if b"one" in body:
            raise ZeroDivisionError("a secret")
        return real(body, **terms)

    world.api.call = call  # type: ignore[method-assign]
    world.dispatch_all(TEXTS, HOUR)
    for _ in range(9):
        world.pass_time(10 * MINUTE)
    rows = {row.key: decode(row.line)["result"] for row in world.ledger.results(job=None, after=0, limit=9)}
    world.close()
    assert rows["two"]["type"] == "succeeded"
    assert rows["one"]["error"]["type"] == "internal_error"
    assert "ZeroDivisionError" in rows["one"]["error"]["message"]
    assert "secret" not in rows["one"]["error"]["message"]


@pytest.mark.parametrize("id_", [b"no id of ours", b"\\ud800", b"", b"\\u0000"])
def test_a_line_of_any_kind_harms_no_other_line(id_: bytes) -> None:
    world = World()
    real = world.api.lines
    odd = [
        b'{"custom_id":"%b","result":{"type":"succeeded"}}\n' % id_,
        b"7\n",
        b"[]\n",
        b'{"custom_id":[]}\n',
        b"\xff\n",
    ]
    world.api.lines = lambda batch: [*odd, *real(batch), *odd]  # type: ignore[method-assign]
    world.dispatch_all(TEXTS, bw.Latency.FLEXIBLE)
    for _ in range(9):
        world.pass_time(10 * MINUTE)
    world.check()
    assert {outcome for outcome, _ in world.seen.values()} == {bw.Outcome.SUCCEEDED}
    assert len(world.seen) == 2
    world.close()
