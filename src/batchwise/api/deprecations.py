"""Warns of models that will go away. The SDK warns only in its own `messages.create`, which batchwise does not call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from batchwise.basics.callers import users_line
from batchwise.errors import shown

__all__ = ["Deprecations"]


def _ends() -> Mapping[str, str]:
    """Return the day on which each deprecated model goes away, as the SDK knows it."""
    from anthropic.resources.messages import messages

    return getattr(messages, "DEPRECATED_MODELS", {})


class Deprecations:
    """Warns of each model once."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def for_caller(self) -> Callable[[Iterable[str]], None]:
        """Return a function that warns of models; its warnings show the user's line that runs now, from any thread."""
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
