"""A refused request goes to its next model on the cheapest lane that keeps its deadline, in virtual time."""

from __future__ import annotations

from datetime import timedelta

import attrs
import orjson
import pytest

import batchwise as bw
from batchwise import Lane, Latency, Outcome
from batchwise.basics.jsontext import decode
from batchwise.ledger.values import ResultRow
from batchwise.models import LatencyTag
from tests.reliability import simulation
from tests.reliability.simulation import HOUR, MINUTE, World

MODELS = ("claude-opus-5-5", "claude-sonnet-5-5")


class Refusing(World):
    """A world whose models refuse the first `refusals` times that they are asked."""

    def __init__(self, refusals: int, duration: timedelta) -> None:
        super().__init__(bw.Policy(fallback_models=MODELS))
        self.api.duration = duration
        real_lines, real_call = self.api.lines, self.api.call
        answers = iter(["refusal"] * refusals + ["end_turn"] * 9)
        stops: dict[str, str] = {}

        def message(prompt: str, key: str) -> dict[str, object]:
            stops[key] = stops.get(key) or next(answers)  # a batch that is read again says the same
            return {**simulation.message_of(prompt), "stop_reason": stops[key]}

        def lines(batch: simulation.Remote) -> list[bytes]:
            rows = [
                (decode(line), prompt) for line, (_, prompt) in zip(real_lines(batch), batch.rows[::-1], strict=True)
            ]
            for row, prompt in rows:
                if row["result"]["type"] == "succeeded":
                    row["result"]["message"] = message(prompt, row["custom_id"])
            return [orjson.dumps(row) + b"\n" for row, _ in rows]

        def call(body: bytes, **terms: object) -> object:
            reply = real_call(body, **terms)  # type: ignore[arg-type]
            answer = message(simulation.prompt_of(decode(body)), f"call {self.api.sync.total()}")
            return attrs.evolve(reply, body=orjson.dumps(answer))

        self.api.lines, self.api.call = lines, call  # type: ignore[method-assign, assignment]

    def settle(self, latency: LatencyTag) -> ResultRow:
        self.dispatch_all(["one"], latency)
        for _ in range(600):
            self.pass_time(10 * MINUTE)
            rows = self.ledger.results(job=None, after=0, limit=9)
            if rows:
                return rows[0]
        raise AssertionError("it never settled")


@pytest.mark.parametrize(
    ("duration", "latency", "refusals", "batches", "calls"),
    [
        (HOUR, 30 * HOUR, 1, 2, 0),  # 29 h are left: another batch
        (10 * HOUR, 30 * HOUR, 1, 1, 1),  # 20 h are left: a window no longer fits
        (HOUR, 30 * HOUR, 2, 3, 0),
        (3 * HOUR, 30 * HOUR, 2, 2, 1),  # 27 h, then 24 h
        (10 * HOUR, Latency.FLEXIBLE, 2, 3, 0),  # no deadline
        (HOUR, 2 * HOUR, 2, 0, 3),  # never in a batch
    ],
)
def test_the_cheapest_lane_that_keeps_the_deadline(
    duration: timedelta, latency: LatencyTag, refusals: int, batches: int, calls: int
) -> None:
    world = Refusing(refusals, duration)
    row = world.settle(latency)
    assert (row.how.outcome, row.how.attempts) == (Outcome.SUCCEEDED, refusals + 1)
    assert row.how.met is (None if latency is Latency.FLEXIBLE else True)
    assert row.how.lane is (Lane.SYNC if calls else Lane.BATCH)
    assert (len(world.api.batches), world.api.sync.total()) == (batches, calls)
    assert world.ledger.statistics.report(job=None).possible_doubles == 0
    world.close()
