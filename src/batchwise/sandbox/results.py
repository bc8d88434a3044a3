"""The results of a batch as bytes, whole or broken to order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import orjson

from .errors import ConnectionDropError
from .faults import Fault, FaultBox
from .rows import Settled

_BLOCK = 256 * 1024

# order matters: the first three need lines and rows to go together still
_LINE_FAULTS = (
    "results.unknown_type",
    "results.stale_row",
    "results.missing_row",
    "results.duplicate_row",
    "results.foreign_row",
    "results.garbage_line",
    "results.blank_line",
)
_END_FAULTS = ("results.drop", "results.cut_line", "results.early_end")
_GARBAGE = b'{"custom_id": "gar\xff\xfebage", <html>502 Bad Gateway</html>\n'


def _position(fault: Fault, lines: list[bytes], name: str = "at") -> int:
    at = fault[name]
    return len(lines) // 2 if at is None else max(0, min(int(at), len(lines)))


def _retyped(line: bytes, type_: str) -> bytes:
    row: dict[str, Any] = orjson.loads(line)
    row["result"] = {"type": type_}
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)


def _break_lines(fault: Fault, lines: list[bytes], order: list[int]) -> list[bytes]:
    """The lines with one fault in them. `order` names the row of each line, so that the same rows are hit again."""
    name = fault.name
    if name == "results.missing_row":
        every, first = int(fault["every"]), int(fault["first"])
        return [line for line, row in zip(lines, order, strict=True) if row < first or (row - first) % every]
    if name in {"results.unknown_type", "results.stale_row"}:
        every = int(fault["every"])
        return [line if row % every else _retyped(line, fault["type"]) for line, row in zip(lines, order, strict=True)]
    if name == "results.foreign_row":
        row = orjson.loads(lines[0]) if lines else {"result": {"type": "canceled"}}
        row["custom_id"] = fault["custom_id"]
        return [*lines, orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)]
    at = _position(fault, lines)
    if name == "results.duplicate_row":
        at = min(at, len(lines) - 1)
        again = lines[at] if fault["type"] is None else _retyped(lines[at], fault["type"])
        return [*lines[: at + 1], again, *lines[at + 1 :]]
    if name == "results.garbage_line":
        return [*lines[:at], _GARBAGE, *lines[at + 1 if fault["replace"] else at :]]
    return [*lines[:at], b"\n", *lines[at:]]


async def stream(settled: Settled, box: FaultBox) -> AsyncIterator[bytes]:
    """The pieces of the results body.

    Raises:
        ConnectionDropError: a fault cuts the connection here.
    """
    lines = settled.lines
    for name in _LINE_FAULTS:
        if fault := box.fire(name):
            lines = _break_lines(fault, lines, settled.order)
    ending = next((fault for name in _END_FAULTS if (fault := box.fire(name))), None)
    tail = b""
    if ending is not None:
        at = min(_position(ending, lines, "after_rows"), max(0, len(lines) - 1))
        if ending.name != "results.early_end" and lines:
            tail = lines[at][: max(1, len(lines[at]) // 2)]
        lines = lines[:at]
    pieces = _crlf(lines) if box.fire("results.crlf") else _blocks(lines)
    for piece in pieces:
        yield piece
    yield tail
    if ending is not None and ending.name == "results.drop":
        raise ConnectionDropError


def _blocks(lines: list[bytes]) -> Iterator[bytes]:
    start, size = 0, 0
    for index, line in enumerate(lines):
        size += len(line)
        if size >= _BLOCK:
            yield b"".join(lines[start : index + 1])
            start, size = index + 1, 0
    yield b"".join(lines[start:])


def _crlf(lines: list[bytes]) -> Iterator[bytes]:
    held = b""
    for line in lines:
        yield held + line.rstrip(b"\n") + b"\r"
        held = b"\n"
    yield held
