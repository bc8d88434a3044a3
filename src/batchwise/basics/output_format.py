"""Answers in the JSON schema of a type: asked for, and read, as the SDK's `messages.parse` does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

from batchwise.errors import InvalidRequestError, InvalidValueError

from .encoding import bare, is_omitted

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = ["UnfitError", "asking_for", "is_structured", "read"]

T = TypeVar("T")

Made = TypeVar("Made")
_REMEMBERED = 512
"""How many types are cached: a schema takes a millisecond, and a bulk dispatch needs the same one for each request."""


def _remembering(make: Callable[[object], Made]) -> Callable[[object], Made]:
    """Cache what `make` returns for each type."""
    # Also by `repr`: Union[int, str] and Union[str, int] are equal, but their schemas differ in the order.
    remembered = lru_cache(_REMEMBERED)(lambda type_, _shown: make(type_))

    @wraps(make)
    def made(type_: object) -> Made:
        try:
            hash(type_)
        except TypeError:
            return make(type_)
        return remembered(type_, repr(type_))

    return made


class UnfitError(Exception):
    """The text is not a value of the type. The message names the kinds of errors, and holds nothing of the text."""


def asking_for(type_: object, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return params that ask for an answer in the JSON schema of a type.

    Args:
        type_: A pydantic model, or any type that pydantic's `TypeAdapter` takes.
        params: The params of the call.

    Raises:
        InvalidRequestError: The type has no JSON schema, or the params ask for a format already.
    """
    config = params.get("output_config")
    config = {} if config is None or is_omitted(config) else config
    if not isinstance(config, Mapping):
        raise InvalidRequestError(f"params['output_config'] is a {type(config).__name__}; give a dict")
    for place, value in (
        ("['output_config']['format']", config.get("format")),
        ("['output_format']", params.get("output_format")),
    ):
        if value is not None and not is_omitted(value):
            raise InvalidRequestError(
                f"output_format= and params{place} both say in which format to answer; give one of them"
            )
    if isinstance(type_, Mapping):
        raise InvalidRequestError(
            "output_format= is a dict; give a type, or the schema as params['output_config'] = "
            "{'format': {'type': 'json_schema', 'schema': ...}}"
        )
    return {**params, "output_config": {**config, "format": {"type": "json_schema", "schema": _schema(type_)}}}


def is_structured(params: Mapping[str, Any]) -> bool:
    """Whether encoded params ask for a JSON schema, in `output_config` or, as earlier betas did, in `output_format`."""
    config = params.get("output_config")
    wanted = config.get("format") if isinstance(config, dict) else None
    wanted = params.get("output_format") if wanted is None else wanted
    return isinstance(wanted, dict) and bare(wanted.get("type")) == "json_schema"


def read(text: str, type_: type[T]) -> T:
    """Read a text as a value of a type, as the SDK does for `parsed_output`.

    Raises:
        InvalidValueError: pydantic does not take this type.
        UnfitError: The text is not a value of this type.
    """
    from pydantic import ValidationError

    adapter = _adapter(type_)
    try:
        return cast("T", adapter.validate_json(text))
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise UnfitError(", ".join(sorted({each["type"] for each in found}))) from None
    except Exception as error:  # noqa: BLE001  # validators of the caller's type may raise anything
        raise UnfitError(type(error).__name__) from None


@_remembering
def _schema(type_: object) -> dict[str, Any]:
    """Return the schema of a type, as the SDK sends it."""
    from anthropic import transform_schema

    adapter = _adapter(type_)
    try:
        return transform_schema(adapter.json_schema())
    except Exception as error:  # noqa: BLE001  # pydantic and the SDK raise errors of many kinds
        raise InvalidRequestError(
            f"output_format={_named(type_)} has no JSON schema that the API takes ({type(error).__name__}); "
            "give a pydantic model, or a type whose fields have types themselves"
        ) from None


@_remembering
def _adapter(type_: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    # TypeAdapter evaluates a string as the name of a type, and takes a function as a validator. Neither is a type here.
    if isinstance(type_, str) or (callable(type_) and hasattr(type_, "__code__")):
        raise _no_type(type_)
    try:
        return TypeAdapter(type_)
    except Exception:  # noqa: BLE001  # as above
        raise _no_type(type_) from None


def _no_type(type_: object) -> InvalidValueError:
    return InvalidValueError(
        f"{_named(type_)} is not a type that pydantic's TypeAdapter takes; give e.g. a pydantic model"
    )


def _named(type_: object) -> str:
    return getattr(type_, "__name__", None) or type(type_).__name__
