"""Results as files (JSON lines, CSV, Parquet), and reports as HTML pages: a file is complete, or it is not there."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from batchwise.basics.jsonl import JsonLines, WholeFile
from batchwise.basics.jsontext import encode
from batchwise.errors import InvalidValueError, shown
from batchwise.results import Result

__all__ = ["COLUMNS", "check_path", "write_page", "write_results"]

COLUMNS = {
    "key": str, "job": str, "index": int, "custom_id": str, "outcome": str, "ok": bool, "text": str,
    "stop_reason": str, "truncated": bool, "error_type": str, "error_message": str, "model": str, "lane": str,
    "attempts": int, "input_tokens": int, "output_tokens": int, "cache_read_tokens": int, "cache_written_tokens": int,
    "cost": float, "saved": float, "deadline": str, "settled_at": str, "met_deadline": bool, "cursor": int,
    "labels": str,
}  # fmt: skip
"""The columns of a CSV or Parquet file: those of `Result.to_dict`, and the labels as one JSON object."""
_CHUNK = 1_000
"""How many rows of a Parquet file are in memory at a time."""


def check_path(path: str) -> None:
    """Refuse a file to which results cannot be written, before anything is bought.

    Raises:
        InvalidValueError: The ending is unknown, the folder does not exist or cannot be read, the path is a folder, or
            pyarrow is missing.
    """
    if path == "-":
        return
    ending = Path(path).suffix.lower()
    if ending not in {".jsonl", ".csv", ".parquet"}:
        raise InvalidValueError(f"--out {shown(path)}: name a file that ends with .jsonl, .csv or .parquet, or -")
    whole = Path(path).expanduser().absolute()
    try:
        if not whole.parent.is_dir():
            raise InvalidValueError(f"--out {shown(path)}: there is no such folder")
        if whole.is_dir():
            raise InvalidValueError(f"--out {shown(path)}: it is a folder; name a file")
    except OSError as error:  # a name that is too long, say
        raise _unwritable("--out", path, error) from error
    if ending == ".parquet":
        try:
            import pyarrow as pa  # whether it is there
        except ImportError:
            raise InvalidValueError("Parquet needs pyarrow; install batchwise-claude[parquet]") from None
        del pa


def write_results(results: Iterable[Result], path: str) -> int:
    """Write results to a file, or as JSON lines to stdout (`-`); returns how many. The ending names the format.

    Raises:
        InvalidValueError: The ending is unknown, or the file cannot be written.
    """
    check_path(path)
    rows = map(Result.to_dict, results)
    if path == "-":
        return _print(rows)
    try:
        return _write(rows, path)
    except OSError as error:
        raise _unwritable("--out", path, error) from error


def _write(rows: Iterable[dict[str, Any]], path: str) -> int:
    if path.lower().endswith(".jsonl"):
        with JsonLines(path) as lines:
            lines.write(rows)
        return lines.lines
    with WholeFile(path) as whole:
        return (_csv if path.lower().endswith(".csv") else _parquet)(whole.file, map(_flat, rows))


def write_page(page: str, path: str) -> None:
    """Write an HTML page to a file.

    Raises:
        InvalidValueError: The file cannot be written.
    """
    try:
        with WholeFile(path) as whole:
            whole.file.write(page.encode())
    except OSError as error:
        raise _unwritable("--html", path, error) from error


def _unwritable(option: str, path: str, error: OSError) -> InvalidValueError:
    return InvalidValueError(f"{option} {shown(path)} cannot be written ({error}); name another file")


def _print(rows: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    for row in rows:
        sys.stdout.write(encode(row).decode() + "\n")
        count += 1
    return count


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: _clean(value) for name, value in row.items()}
    labels = {name.removeprefix("label_"): value for name, value in row.items() if name.startswith("label_")}
    return {**{name: row[name] for name in COLUMNS if name != "labels"}, "labels": encode(labels).decode()}


def _clean(value: Any) -> Any:
    """Return a string with lone surrogates, which UTF-8 cannot encode, as escapes; any other value as it is."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _csv(file: Any, rows: Iterator[Mapping[str, Any]]) -> int:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.DictWriter(text, fieldnames=list(COLUMNS))
    writer.writeheader()
    count = 0
    for row in rows:
        writer.writerow(row)
        count += 1
    text.detach()  # leaves the file open for its owner
    return count


def _parquet(file: Any, rows: Iterator[Mapping[str, Any]]) -> int:
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in COLUMNS.items()])
    count = 0
    with parquet.ParquetWriter(file, schema) as writer:
        while chunk := list(islice(rows, _CHUNK)):
            writer.write_table(pa.Table.from_pylist(chunk, schema=schema))
            count += len(chunk)
    return count
