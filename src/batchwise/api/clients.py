"""Checks of a client, without network: whether the lanes can work with it, its endpoint, what its SDK refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anthropic
import httpx2

from batchwise.errors import InvalidValueError

__all__ = ["base_url", "check_client", "must_stream"]


def must_stream(client: Any, model: str, max_tokens: int) -> bool:
    """Whether the SDK refuses this call unless it is streamed, because it may take over 10 minutes."""
    from anthropic import _constants

    limits: Mapping[str, int] = getattr(_constants, "MODEL_NONSTREAMING_TOKENS", {})
    calculate = getattr(client, "_calculate_nonstreaming_timeout", None)
    if calculate is None:  # a later SDK: its documented rule
        return max_tokens > 21_333
    try:
        calculate(max_tokens, limits.get(model))
    except ValueError:
        return True
    return False


def base_url(client: Any) -> str:
    """Return the client's endpoint in one spelling: without credentials, default port and trailing slash."""
    url = httpx2.URL(str(client.base_url)).copy_with(username=None, password=None, query=None, fragment=None)
    return str(url).rstrip("/")


def check_client(client: object, *, async_: bool) -> None:
    """Refuse a client that the lanes cannot work with. No network.

    Args:
        client: What the user gave.
        async_: Whether an `AsyncAnthropic` is wanted.

    Raises:
        InvalidValueError: A sync and an async client were mixed up, it is no client at all, its platform has no
            Message Batches API, or it signs requests with AWS credentials.
    """
    right, wrong = anthropic.Anthropic, anthropic.AsyncAnthropic
    ours, other = "Dispatcher", "AsyncDispatcher"
    if async_:
        right, wrong, ours, other = wrong, right, other, ours  # type: ignore[assignment]
    name = type(client).__name__
    if isinstance(client, wrong):
        raise InvalidValueError(
            f"client is an {name}; {ours} needs an anthropic.{right.__name__} (or use batchwise.{other} with this one)"
        )
    if not isinstance(client, right):
        if type(client).__module__.partition(".")[0] == "anthropic":
            raise _no_batches(name, right.__name__)
        raise InvalidValueError(
            f"client is a {name}; give an anthropic.{right.__name__}, or leave it out to make one from the environment"
        )
    try:
        batches = client.messages.batches
    except Exception:  # noqa: BLE001  (whatever a platform's client raises, it has no batches)
        batches = None
    if batches is None:
        raise _no_batches(name, right.__name__)
    if getattr(client, "_use_sigv4", False):
        raise InvalidValueError(
            f"this {name} signs requests with AWS credentials, and to sign a create call it reads the whole body into "
            "memory; give it an api_key instead"
        )


def _no_batches(name: str, right: str) -> InvalidValueError:
    return InvalidValueError(
        f"{name}'s platform has no Message Batches API; give an anthropic.{right} for the Claude API "
        "(or call that platform's client directly)"
    )
