"""Puts the message of a streamed call together, as a call that is not streamed would return it.

The SDK puts the message together: it knows every kind of event, and learns new ones with its updates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import anthropic
from anthropic.lib import streaming
from anthropic.types import Message, RawMessageStreamEvent
from anthropic.types.beta import BetaMessage, BetaRawMessageStreamEvent

from batchwise.basics.jsontext import encode
from batchwise.planning.outcomes import Fault

from .faults import LaneFault, malformed, translate

__all__ = ["Assembly", "Dialect", "dialect", "translate_stream"]


class Dialect(NamedTuple):
    """The SDK's classes for one set of stream events."""

    message: Any
    raw: Any
    async_raw: Any
    stream: Any
    async_stream: Any


_PLAIN = Dialect(
    Message,
    anthropic.Stream[RawMessageStreamEvent],
    anthropic.AsyncStream[RawMessageStreamEvent],
    streaming.MessageStream,
    streaming.AsyncMessageStream,
)
_BETA = Dialect(
    BetaMessage,
    anthropic.Stream[BetaRawMessageStreamEvent],
    anthropic.AsyncStream[BetaRawMessageStreamEvent],
    streaming.BetaMessageStream,
    streaming.BetaAsyncMessageStream,
)


def dialect(betas: tuple[str, ...]) -> Dialect:
    """Return the classes for the Messages API, or for its beta if betas are asked for."""
    return _BETA if betas else _PLAIN


class Assembly:
    """Watches a stream for its end and takes the message from it."""

    def __init__(self) -> None:
        self._stopped = False

    def see(self, event: Any) -> None:
        """Note one event."""
        self._stopped = self._stopped or event.type == "message_stop"

    def body(self, stream: Any) -> bytes:
        """Return the whole message as JSON.

        Raises:
            LaneFault: The stream ended before the message did.
        """
        if not self._stopped:
            raise LaneFault(
                Fault(status=None, type="connection_error", message="the stream ended before its message did")
            )
        message = stream.current_message_snapshot.to_dict(mode="json", warnings=False)
        for block in message["content"]:
            block.pop("__json_buf", None)  # SDK 1.x leaves its working copy of a tool's input there
        return encode(message)


def translate_stream(error: Exception) -> LaneFault:
    """As `translate`. Any other error of the SDK means a malformed answer, and its text is left out."""
    if isinstance(error, LaneFault):
        return error
    try:
        return translate(error)
    except Exception as unknown:  # noqa: BLE001
        name = type(unknown).__name__
    return malformed(f"the events of the stream make no message ({name})", status=None, headers={})
