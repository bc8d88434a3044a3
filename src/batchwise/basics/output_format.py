"""Answers that keep to the JSON schema of a type: asked for as the SDK's `messages.parse` does, and read as it."""

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
"""Types of which something is kept: a schema takes a millisecond, and a bulk asks for the same one each time."""


def _remembering(make: Callable[[object], Made]) -> Callable[[object], Made]:
    """`make`, which is called once for each type."""
    # Types may be equal and differ in an order that shows in their schemas, as Union[int, str] and Union[str, int] do.
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
    """Text that is no value of the type. Its message names the kinds of faults, and nothing of the text."""


def asking_for(type_: object, params: Mapping[str, Any]) -> dict[str, Any]:
    """The params of a call whose answer keeps to a type's JSON schema.

    Args:
        type_: A pydantic model, or any type that pydantic's `TypeAdapter` takes.
        params: The call's params.

    Raises:
        InvalidRequestError: There is no schema for the type, or the params ask for a format already.
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
                f"output_format= and params{place} both say what to answer with; give one of them"
            )
    if isinstance(type_, Mapping):
        raise InvalidRequestError(
            "output_format= is a dict; give a type, or the schema as params['output_config'] = "
            "{'format': {'type': 'json_schema', 'schema': ...}}"
        )
    return {**params, "output_config": {**config, "format": {"type": "json_schema", "schema": _schema(type_)}}}


def is_structured(params: Mapping[str, Any]) -> bool:
    """Whether encoded params ask for a JSON schema: in `output_config`, or where betas had it before."""
    config = params.get("output_config")
    wanted = config.get("format") if isinstance(config, dict) else None
    wanted = params.get("output_format") if wanted is None else wanted
    return isinstance(wanted, dict) and bare(wanted.get("type")) == "json_schema"


def read(text: str, type_: type[T]) -> T:
    """The value that a text says, as the SDK's `parsed_output` is read.

    Raises:
        InvalidValueError: pydantic takes no such type.
        UnfitError: The text is no such value.
    """
    from pydantic import ValidationError

    adapter = _adapter(type_)
    try:
        return cast("T", adapter.validate_json(text))
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise UnfitError(", ".join(sorted({each["type"] for each in found}))) from None
    except Exception as error:  # noqa: BLE001  # a validator of the caller's type, over what the API sent
        raise UnfitError(type(error).__name__) from None


@_remembering
def _schema(type_: object) -> dict[str, Any]:
    """The type's schema, as the SDK sends it."""
    from anthropic import transform_schema

    adapter = _adapter(type_)
    try:
        return transform_schema(adapter.json_schema())
    except Exception as error:  # noqa: BLE001  # pydantic and the SDK raise errors of many kinds over types
        raise InvalidRequestError(
            f"output_format={_named(type_)} has no JSON schema that the API takes ({type(error).__name__}); "
            "give a pydantic model, or a type whose fields have types themselves"
        ) from None


@_remembering
def _adapter(type_: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    # TypeAdapter looks for names in strings where it is called, and takes functions for what they return: neither is
    # a type here.
    if isinstance(type_, str) or (callable(type_) and hasattr(type_, "__code__")):
        raise _no_type(type_)
    try:
        return TypeAdapter(type_)
    except Exception:  # noqa: BLE001  # as above
        raise _no_type(type_) from None


def _no_type(type_: object) -> InvalidValueError:
    return InvalidValueError(
        f"{_named(type_)} is no type that pydantic's TypeAdapter takes; give e.g. a pydantic model"
    )


def _named(type_: object) -> str:
    return getattr(type_, "__name__", None) or type(type_).__name__
