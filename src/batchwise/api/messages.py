"""The Messages API, one call at a time."""

from __future__ import annotations

import time
from typing import Any

import httpx2

from . import wire
from .clients import must_stream
from .colours import IO
from .streams import Assembly, dialect, translate_stream
from .types import Reply

__all__ = ["MessageLane"]


class MessageLane:
    """The sync lane.

    Args:
        io: The client.
    """

    def __init__(self, io: IO) -> None:
        self._io = io

    async def call(self, body: bytes, *, model: str, max_tokens: int, betas: tuple[str, ...] = ()) -> Reply:
        """Make one Messages call, once. One that may take over ten minutes is streamed, and put together here.

        Args:
            body: The encoded params, without `stream`.
            model: The model that they ask for.
            max_tokens: The most output tokens that they ask for.
            betas: The `anthropic-beta` values.

        Raises:
            LaneFault: There is no answer.
        """
        io = self._io
        streams = must_stream(io.client, model, max_tokens)
        content = wire.streamed(body) if streams else wire.Body(body)
        options = wire.message_options(io.client, betas)
        started = time.perf_counter()
        if streams:
            response, message = await self._streamed(content, options, betas)
        else:
            response = await io.sent(io.client.post, wire.MESSAGES, content=content, options=options)
            message = response.content
        return wire.reply(response, message, time.perf_counter() - started)

    async def _streamed(self, content: bytes, options: Any, betas: tuple[str, ...]) -> tuple[httpx2.Response, bytes]:
        assembly = Assembly()
        try:
            stream = await self._io.streamed(
                dialect(betas), assembly.see, wire.MESSAGES, content=content, options=options
            )
            return stream.response, assembly.body(stream)
        except Exception as error:  # noqa: BLE001  (translate_stream takes all)
            failure = translate_stream(error)
        raise failure
