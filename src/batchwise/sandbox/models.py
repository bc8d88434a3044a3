"""The models that the sandbox knows, by the names that answers carry."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta, timezone
from typing import Any

from .errors import not_found
from .validation import output_limit

MODELS = (
    "claude-fable-5-2",
    "claude-mythos-5-2",
    "claude-haiku-5-5",
    "claude-sonnet-5-5",
    "claude-fable-5-1",
    "claude-opus-5-5",
    "claude-mythos-5-1",
    "claude-sonnet-5",
    "claude-fable-5",
    "claude-mythos-5",
    "claude-opus-5",
    "claude-opus-4-8",
    "claude-opus-4-7",
    "claude-opus-4-6",
    "claude-sonnet-4-6",
    "claude-haiku-4-5-20251001",
    "claude-opus-4-5-20251101",
    "claude-sonnet-4-5-20250929",
)
"""SDK 2.14, `anthropic.types.Model`."""
_KNOWN = frozenset(MODELS)
_DATED = {name[: -len("-20250929")]: name for name in MODELS if name[-8:].isdecimal()}
_RETIRES = {
    "claude-opus-4-5-20251101": datetime(2027, 1, 22, tzinfo=timezone.utc),
    "claude-sonnet-4-5-20250929": datetime(2026, 11, 30, tzinfo=timezone.utc),
}
"""SDK 2.14, `DEPRECATED_MODELS`."""
_NOTICE = timedelta(days=60)
"""The least that a retirement is announced before (API documentation, model deprecations)."""
_NO_GEO = frozenset(_DATED.values())
"""Models from before the regions of inference, which recorded answers call `not_available`."""


def answers_as(model: str) -> str:
    """The name that answers of a model carry: the dated one, where there is one."""
    return _DATED.get(model, model)


def inference_geo(model: str, asked: object) -> object:
    """What the usage of an answer says of the region, as recorded: `global` unless another was asked for."""
    return "not_available" if answers_as(model) in _NO_GEO else asked or "global"


def check_model(model: str, models: Collection[str] | None) -> None:
    """Refuse a model that is unknown.

    Args:
        model: As asked for.
        models: Those of the account; None: all that the API knows.

    Raises:
        ApiError: 404 `not_found_error`.
    """
    if not (answers_as(model) in _KNOWN if models is None else model in models):
        raise not_found(f"model: {model}")


def model_info(name: str) -> dict[str, Any]:
    """The API's model object."""
    model = answers_as(name)
    words = model.removeprefix("claude-").split("-")
    retires = _RETIRES.get(model)
    return {
        "id": model,
        "type": "model",
        "display_name": "Claude " + " ".join(word.capitalize() for word in words if len(word) != 8),
        "created_at": "2026-01-01T00:00:00Z",
        "lifecycle": "active" if retires is None else "deprecated",
        "deprecated_at": None if retires is None else _moment(retires - _NOTICE),
        "retires_at": None if retires is None else _moment(retires),
        "line": None,
        "capabilities": None,
        "max_input_tokens": 1_000_000,
        "max_tokens": output_limit(model),
    }


def _moment(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
