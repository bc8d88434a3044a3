"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def until(check: Callable[[], Any], what: str = "the condition never came true", seconds: float = 30.0) -> Any:
    """Wait for a check to give something true, and return it; `what` says what is wrong if it does not."""
    end = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < end, what
        time.sleep(0.005)
    return value
