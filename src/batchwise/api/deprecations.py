"""Warnings of models that go away, where the SDK's own `create` would warn: batches and our calls do not go by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from batchwise.basics.callers import users_line
from batchwise.errors import shown

__all__ = ["Deprecations"]


def _ends() -> Mapping[str, str]:
    """When each model goes away that the SDK says it of."""
    from anthropic.resources.messages import messages

    return getattr(messages, "DEPRECATED_MODELS", {})


class Deprecations:
    """Warns of each model once."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def for_caller(self) -> Callable[[Iterable[str]], None]:
        """What warns of models, in the name of the user's line that runs now, from whatever thread."""
        line = users_line()

        def warn(models: Iterable[str]) -> None:
            for model in set(models) - self._seen:
                self._seen.add(model)
                if model in _ends():
                    line.warn(
                        f"the model {shown(model)} will go away on {_ends()[model]}; use a newer one, see "
                        "https://docs.anthropic.com/en/docs/resources/model-deprecations",
                        DeprecationWarning,
                    )

        return warn
