"""Warnings of models that go away, where the SDK's own `create` would warn: batches and our calls do not go by it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping

from batchwise.errors import shown

__all__ = ["Deprecations"]

_OURS = __name__.partition(".")[0]


def _ends() -> Mapping[str, str]:
    """When each model goes away that the SDK says it of."""
    from anthropic.resources.messages import messages

    return getattr(messages, "DEPRECATED_MODELS", {})


class Deprecations:
    """Warns of each model once."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def for_caller(self) -> Callable[[Iterable[str]], None]:
        """What warns of models, in the name of the line outside of batchwise that runs now, from whatever thread.

        Python shows a `DeprecationWarning` only where the program itself is to blame.
        """
        frame = sys._getframe(1)  # noqa: SLF001  # what `warnings.warn` itself does for a stacklevel
        while str(frame.f_globals.get("__name__")).partition(".")[0] == _OURS and frame.f_back is not None:
            frame = frame.f_back
        file, line, names = frame.f_code.co_filename, frame.f_lineno, frame.f_globals

        def warn(models: Iterable[str]) -> None:
            for model in set(models) - self._seen:
                self._seen.add(model)
                if model in _ends():
                    warnings.warn_explicit(
                        f"the model {shown(model)} will go away on {_ends()[model]}; use a newer one, see "
                        "https://docs.anthropic.com/en/docs/resources/model-deprecations",
                        DeprecationWarning,
                        file,
                        line,
                        module=names.get("__name__"),
                        registry=names.setdefault("__warningregistry__", {}),
                    )

        return warn
