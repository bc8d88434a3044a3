from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import pytest

from batchwise.sandbox import Sandbox


def params(text: str = "hi", **extra: Any) -> dict[str, Any]:
    return {
        "model": "claude-sonnet-5",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": text}],
        **extra,
    }


def rows(count: int, prefix: str = "r", **extra: Any) -> list[Any]:
    return [{"custom_id": f"{prefix}-{i}", "params": params(f"{prefix} {i}", **extra)} for i in range(count)]


@pytest.fixture
def make() -> Iterator[Callable[..., tuple[Sandbox, anthropic.Anthropic]]]:
    made: list[tuple[Sandbox, anthropic.Anthropic]] = []

    def build(**settings: Any) -> tuple[Sandbox, anthropic.Anthropic]:
        sandbox = Sandbox(**settings)
        made.append((sandbox, sandbox.client(max_retries=0)))
        return made[-1]

    yield build
    for sandbox, client in made:
        client.close()
        sandbox.close()


def results(client: anthropic.Anthropic, batch_id: str) -> dict[str, Any]:
    return {row.custom_id: row.result for row in client.messages.batches.results(batch_id)}


def raw_results(client: anthropic.Anthropic, batch_id: str) -> bytes:
    with client.messages.batches.with_streaming_response.results(batch_id) as response:
        return b"".join(response.iter_bytes())
