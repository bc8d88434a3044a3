"""Converts attrs values to dicts of plain values and back: a policy in a TOML file, and in the ledger's JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from decimal import Decimal
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import attrs

from batchwise.errors import InvalidValueError, shown

from .timetext import parse_duration, write_duration

__all__ = ["from_table", "read_toml", "to_table"]

_T = TypeVar("_T")


def to_table(value: attrs.AttrsInstance) -> dict[str, Any]:
    """Return the fields of a value by name, as JSON has them: durations as `1d6h`, money as text."""
    return {field.name: _plain(getattr(value, field.name)) for field in attrs.fields(type(value))}


def _plain(value: Any) -> Any:
    if isinstance(value, timedelta):
        return write_duration(value)
    if isinstance(value, Decimal):
        return str(value)
    if attrs.has(type(value)):
        return to_table(value)
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (tuple, list)) else value


def from_table(
    kind: type[_T],
    table: Mapping[str, Any],
    *,
    parts: Mapping[str, Callable[[Any], Any]] | None = None,
    lenient: bool = False,
) -> _T:
    """Make a value from a table as `to_table` returns it. Fields that are left out have their defaults.

    Args:
        kind: The attrs class of the value. A field whose annotation names `timedelta` is written as a duration.
        table: The fields by name.
        parts: Functions that read the fields that are tables themselves, by name.
        lenient: Whether unknown fields are ignored.

    Raises:
        InvalidValueError: The table is not a mapping, a field is unknown or missing, or a value is impossible.
    """
    if not isinstance(table, Mapping):
        raise InvalidValueError(
            f"{kind.__name__} is read from a mapping of its fields, not from a {type(table).__name__}"
        )
    known = {field.name: str(field.type) for field in attrs.fields(kind)}  # type: ignore[arg-type]  # of attrs
    needed = {field.name for field in attrs.fields(kind) if field.default is attrs.NOTHING}  # type: ignore[arg-type]
    if missing := sorted(needed - table.keys()):
        raise InvalidValueError(f"{kind.__name__} lacks {', '.join(missing)}")
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in known:
            if lenient:
                continue
            near = get_close_matches(str(name), known, 1)
            meant = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            raise InvalidValueError(f"{kind.__name__} has no field {shown(name)}; {meant}")
        if parts is not None and name in parts:
            values[name] = None if value is None else parts[name](value)
        else:
            values[name] = _durations(value, name) if "timedelta" in known[name] else value
    return kind(**values)


def _durations(value: Any, field: str) -> Any:
    if isinstance(value, list):
        return tuple(_durations(each, field) for each in value)
    if isinstance(value, str):
        return parse_duration(value, field, zero=True)
    if value is None:
        return None
    raise InvalidValueError(f"{field}={shown(value)} has no unit; write e.g. {field} = '30h', '90m' or '2d'")


def read_toml(path: str | PathLike[str]) -> dict[str, Any]:
    """Return the content of a TOML file. Numbers with a decimal point become `Decimal`.

    Raises:
        InvalidValueError: The file cannot be read, or is not TOML. The message does not name the file.
    """
    try:
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib
    except ImportError:
        raise InvalidValueError(
            "Python 3.10 cannot read TOML by itself; install batchwise-claude[cli], or tomli"
        ) from None
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"), parse_float=Decimal)
    except OSError as error:
        raise InvalidValueError(f"it cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InvalidValueError(f"it is not TOML: {error}") from None
