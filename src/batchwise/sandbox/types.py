"""Checks params against the SDK's types, and words what is wrong as the API does."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails, SchemaValidator

_IN_HEADERS = frozenset(("betas", "user_profile_id", "workspace_id"))
"""Arguments of the SDK's methods that are no part of a call's body."""
_TAGS = frozenset(("type", "role"))


def names(*, beta: bool) -> frozenset[str]:
    """Return the names of the parameters of a Messages call that the SDK knows."""
    return _checker(beta)[0]


def type_error(params: Mapping[str, Any], *, beta: bool) -> str | None:
    """Return what in params has another type than the SDK gives it; None: nothing. Parameters it does not know pass.

    Args:
        params: The body of a Messages call, decoded from JSON.
        beta: By the types of the beta API.
    """
    from pydantic_core import ValidationError

    try:
        _checker(beta)[1].validate_python(params, strict=True)
    except ValidationError as error:
        return _worded(error.errors(include_url=False, include_input=False), params)
    return None


@functools.cache
def _checker(beta: bool) -> tuple[frozenset[str], SchemaValidator]:
    """Return the names and the validator of all parameters. Only this imports the SDK."""
    from pydantic import TypeAdapter
    from pydantic_core import SchemaValidator

    if beta:
        from anthropic.types.beta.message_create_params import MessageCreateParamsBase as Params
    else:
        from anthropic.types.message_create_params import (  # type: ignore[assignment]
            MessageCreateParamsBase as Params,
        )
    known = (Params.__required_keys__ | Params.__optional_keys__) - _IN_HEADERS
    return frozenset(known), SchemaValidator(_with_lists(TypeAdapter(Params).core_schema))


def _with_lists(schema: Any) -> Any:
    """Return the schema with lists in place of iterables, since pydantic checks the items of those only when read."""
    if isinstance(schema, dict):
        made = {name: _with_lists(part) for name, part in schema.items()}
        if made.get("type") == "generator":
            made["type"] = "list"
        return made
    if isinstance(schema, (list, tuple)):
        return type(schema)(map(_with_lists, schema))
    return schema


def _worded(errors: Sequence[ErrorDetails], params: Mapping[str, Any]) -> str:
    """Return the most useful error: the deepest. In a union, one of the branch whose tag fits, else that of a tag."""
    tags = [each["loc"] for each in errors if each["loc"][-1] in _TAGS and each["type"] == "literal_error"]
    best, told = (0, 0), ""
    for each in errors:
        loc = each["loc"]
        path, fits = _path(loc, params), not any(loc[: len(tag) - 1] == tag[:-1] for tag in tags)
        rank = len(path), 2 if fits else int(loc in tags)
        if rank > best:
            best, told = rank, f"{'.'.join(path)}: {each['msg']}"
    return told


def _path(loc: Sequence[int | str], params: Mapping[str, Any]) -> list[str]:
    """Return the place in the params. `loc` also names branches of unions, which are left out."""
    value: Any = params
    parts: list[str] = []
    for index, part in enumerate(loc):
        if isinstance(part, int):
            value = value[part] if isinstance(value, list) and part < len(value) else None
        elif isinstance(value, dict) and part in value:
            value = value[part]
        elif not (isinstance(value, dict) and index == len(loc) - 1):
            continue
        parts.append(str(part))
    return parts
