"""The models that the sandbox lists."""

from __future__ import annotations

from typing import Any

from .validation import output_limit

MODELS = (
    "claude-haiku-5-5",
    "claude-sonnet-5-5",
    "claude-opus-5-5",
    "claude-sonnet-5",
    "claude-opus-5",
    "claude-opus-4-8",
    "claude-opus-4-7",
    "claude-opus-4-6",
    "claude-sonnet-4-6",
    "claude-haiku-4-5-20251001",
    "claude-opus-4-5-20251101",
)


def model_info(name: str) -> dict[str, Any]:
    """The API's model object."""
    words = name.removeprefix("claude-").split("-")
    return {
        "id": name,
        "type": "model",
        "display_name": "Claude " + " ".join(word.capitalize() for word in words),
        "created_at": "2026-01-01T00:00:00Z",
        "lifecycle": "active",
        "deprecated_at": None,
        "retires_at": None,
        "line": None,
        "capabilities": None,
        "max_input_tokens": 1_000_000,
        "max_tokens": output_limit(name),
    }
