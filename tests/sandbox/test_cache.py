"""The prompt cache that the sandbox imitates, as the real SDK meets it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchwise.sandbox import Sandbox
from batchwise.sandbox.cache import Cached, PromptCache, cached_in

MODEL = "claude-sonnet-5"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def asked(question: str, *, prefix: str = "p" * 8_000, ttl: str | None = None, model: str = MODEL) -> dict[str, Any]:
    control = {"type": "ephemeral"} if ttl is None else {"type": "ephemeral", "ttl": ttl}
    system = [{"type": "text", "text": prefix, "cache_control": control}]
    return {"model": model, "max_tokens": 9, "system": system, "messages": [{"role": "user", "content": question}]}


def sent(sandbox: Sandbox, *params: dict[str, Any]) -> list[Cached]:
    """What the rows of one batch, which ends at once, read and wrote; in order."""
    client = sandbox.client()
    rows = [{"custom_id": str(n), "params": each} for n, each in enumerate(params)]
    batch = client.messages.batches.create(requests=rows)
    sandbox.finish(batch.id)
    found = {row.custom_id: row.result.message.usage for row in client.messages.batches.results(batch.id)}
    return [cached_in(found[str(n)].model_dump()) for n in range(len(params))]


def test_a_batch_reads_what_one_before_it_wrote(sandbox: Sandbox) -> None:
    (first,) = sent(sandbox, asked("a", ttl="1h"))
    assert first.written_1h > 2_000
    assert first == Cached(0, 0, first.written_1h)
    assert sent(sandbox, asked("b", ttl="1h"), asked("c")) == [Cached(first.written_1h)] * 2
    assert sent(sandbox, asked("d", prefix="q" * 8_000)) == [Cached(0, first.written_1h)]
    tokens = sandbox.books.tokens("batch")
    assert (tokens.cache_read, tokens.cache_written) == (2 * first.written_1h, 2 * first.written_1h)
    paid = tokens.input + first.written_1h * (2 + 2 * Decimal("0.1") + Decimal("1.25"))
    assert sandbox.books.cost({MODEL: (1_000_000, 0)}, lane="batch") == paid / 2


@pytest.mark.parametrize(("ttl", "minutes"), [(None, 5), ("1h", 60)])
def test_a_prefix_lives_from_its_last_use(sandbox: Sandbox, ttl: str | None, minutes: int) -> None:
    almost = timedelta(minutes=minutes, seconds=-20)
    sent(sandbox, asked("a", ttl=ttl))
    for _ in range(2):
        sandbox.advance(almost)
        assert sent(sandbox, asked("b", ttl=ttl))[0].read
    sandbox.advance(timedelta(minutes=minutes, seconds=1))
    assert not sent(sandbox, asked("c", ttl=ttl))[0].read


def test_the_lanes_prime_each_other_no_more_than_another_model_does(sandbox: Sandbox) -> None:
    client = sandbox.client()
    first, second = (client.messages.create(**asked(question)).usage for question in "ab")
    assert (first.cache_read_input_tokens, first.cache_creation_input_tokens) == (0, second.cache_read_input_tokens)
    assert second.cache_read_input_tokens
    assert not sent(sandbox, asked("c"))[0].read
    assert not client.messages.create(**asked("d", model="claude-sonnet-5-5")).usage.cache_read_input_tokens


@pytest.mark.parametrize(("model", "least"), [(MODEL, 1_024), ("claude-haiku-5-5", 4_096)])
def test_a_prefix_under_the_minimum_is_not_cached(sandbox: Sandbox, model: str, least: int) -> None:
    short, long = (asked("a", prefix="p" * (4 * least + more), model=model) for more in (-100, 0))
    assert sent(sandbox, short) == sent(sandbox, short) == [Cached()]
    assert sent(sandbox, long)[0].written_5m >= least


def test_rows_beside_each_other_seldom_find_what_the_others_write(sandbox: Sandbox) -> None:
    rows = [asked(str(n)) for n in range(200)]
    assert 0.15 < sum(1 for row in sent(sandbox, *rows) if row.read) / 200 < 0.45
    sandbox.cache_hits = 0.9  # of what was written before
    assert 0.8 < sum(1 for row in sent(sandbox, *rows) if row.read) / 200 < 0.97


@given(st.lists(st.sampled_from([None, "5m", "1h"]), min_size=1, max_size=4), st.integers(0, 3), st.booleans())
def test_what_was_written_before_is_read_and_the_rest_up_to_the_last_breakpoint_is_written(
    lives: list[str | None], first: int, again: bool
) -> None:
    cache, first = PromptCache(), min(first, len(lives))

    def prompt(blocks: int) -> dict[str, Any]:
        content: list[dict[str, Any]] = [
            {"type": "text", "text": f"{n}" * 400} if life is None else
            {"type": "text", "text": f"{n}" * 400, "cache_control": {"type": "ephemeral", "ttl": life}}
            for n, life in enumerate(lives[:blocks])
        ]  # fmt: skip
        return {"model": MODEL, "messages": [{"role": "user", "content": content}]}

    def use(blocks: int, at: float) -> Cached:
        return cache.use(prompt(blocks), workspace="w", begun=at, done=at, minimum=1)

    before = sum(use(first, 0.0)) if first else 0
    whole = use(len(lives), 1.0)
    assert whole.read == before
    assert any(whole) == any(lives)
    if again:
        assert use(len(lives), 2.0) == Cached(sum(whole))
