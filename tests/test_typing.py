"""What mypy and pyright say about code of users: mistakes are found, and what is right passes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

RIGHT = """
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Optional

import batchwise as bw
from anthropic.types import Message, MessageCreateParams, MessageParam
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from pydantic import BaseModel
from typing_extensions import assert_type


class Verdict(BaseModel):
    fine: bool


def question(text: str) -> MessageCreateParamsNonStreaming:
    return {"model": "claude-haiku-4-5", "max_tokens": 64, "messages": [{"role": "user", "content": text}]}


def asked(d: bw.Dispatcher, read: dict[str, Any], body: Mapping[str, Any], params: MessageCreateParams) -> None:
    history: list[MessageParam] = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    d.dispatch({"model": "claude-haiku-4-5", "max_tokens": 64, "messages": history}, latency="flexible")
    d.dispatch(
        {
            "model": "claude-sonnet-5",
            "max_tokens": 64,
            "stream": False,
            "system": "Be brief.",
            "messages": history,
            "tools": [{"name": "look", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "tool", "name": "look"},
        },
        tool_use="single",
        latency="blocking",
    )
    bw.Request(
        {
            "model": "claude-sonnet-5",
            "max_tokens": 64,
            "messages": [{"role": "user", "content": "Hello"}],
            "mcp_servers": [{"type": "url", "url": "https://example.org/mcp", "name": "mine"}],
        },
        betas=["mcp-client-2025-11-20"],
        tool_use="patient",
    )
    for given in (read, body):
        d.dispatch(given, latency=timedelta(hours=30))
        bw.dispatch(given, tool_use=bw.ToolUse.NONE)
    d.dispatch(params)
    d.dispatch_all([bw.Request(question("Why?"), latency="flexible")], latency="flexible", tool_use="server")
    with bw.tags(latency="flexible", tool_use="iterative"):
        d.client(latency="flexible", tool_use="patient")
    client = d.client(latency="flexible", job="reviews")
    assert_type(client.messages.create(model="claude-haiku-4-5", max_tokens=64, messages=history), Message)
    parsed = client.messages.parse(model="claude-haiku-4-5", max_tokens=64, messages=history, output_format=Verdict)
    assert_type(parsed.parsed_output, Optional[Verdict])
    message = d.dispatch(question("Why?")).result().message
    assert_type(message, Message)
    print("".join(block.text for block in message.content if block.type == "text"), message.usage.output_tokens)


async def waited(d: bw.AsyncDispatcher, read: dict[str, Any]) -> None:
    await d.dispatch(read, latency="flexible", tool_use="none")
    assert_type((await (await d.dispatch(question("Why?"))).result()).message, Message)
    client = d.client(latency=timedelta(hours=30), tool_use="patient")
    assert_type(await client.messages.create(**question("Why?")), Message)
"""

WRONG = """
import batchwise as bw


def asked(d: bw.Dispatcher) -> None:
    d.dispatch({"model": "claude-haiku-4-5", "max_tokens": 64, "message": [{"role": "user", "content": "Hello"}]})  # !
    bw.Request({"model": "claude-haiku-4-5", "max_tokens": "10", "messages": []})  # !
    d.dispatch_all([], latency="flexable")  # !
    print(d.ticket("k").result().message.text)  # !
    d.client(latency="flexable")  # !
    d.client().messages.create(model="claude-haiku-4-5", max_tokens="10", messages=[])  # !
    with bw.tags(tool_use="once"):  # !
        pass


async def waited(d: bw.AsyncDispatcher) -> None:
    await d.dispatch({"model": "claude-haiku-4-5", "max_tokens": 64, "messages": []}, tool_use="once")  # !
    print((await d.client().messages.create(model="claude-haiku-4-5", max_tokens=10, messages=[])).text)  # !
"""
MISTAKES = {n for n, line in enumerate(WRONG.splitlines(), 1) if line.endswith("# !")}


def ran(*command: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    ).stdout


def mypy(right: Path, wrong: Path) -> tuple[set[int], set[int]]:
    found = ran("mypy", "--strict", "--show-absolute-path", str(right), str(wrong))  # with the cache of `make lint`
    assert found, "mypy said nothing"
    of = {name: {int(n) for n in re.findall(rf"{name}:([0-9]+): error", found)} for name in (right.name, wrong.name)}
    return of[right.name], of[wrong.name]


def pyright(right: Path, wrong: Path) -> tuple[set[int], set[int]]:
    config = right.with_name("pyrightconfig.json")
    config.write_text(json.dumps({"typeCheckingMode": "standard", "pythonPath": sys.executable}))
    found = json.loads(ran("basedpyright", "--outputjson", "--project", str(config), "--pythonpath", sys.executable))
    assert found["summary"]["filesAnalyzed"] == 2, found
    lines: dict[str, set[int]] = {right.name: set(), wrong.name: set()}
    for one in found["generalDiagnostics"]:
        if one["severity"] == "error":
            lines[Path(one["file"]).name].add(one["range"]["start"]["line"] + 1)
    return lines[right.name], lines[wrong.name]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_mistakes_in_code_of_users_are_found_and_what_is_right_passes(checker, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(RIGHT)
    wrong.write_text(WRONG)
    assert len(MISTAKES) == 9
    assert checker(right, wrong) == (set(), MISTAKES)
