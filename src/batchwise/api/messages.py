"""The Messages API, one call at a time, in both colours."""

from __future__ import annotations

import time
from typing import Any

import anthropic
import httpx2

from . import wire
from .clients import must_stream
from .faults import async_sent, sent
from .streams import Assembly, dialect, translate_stream
from .types import Reply

__all__ = ["AsyncMessageLane", "MessageLane"]


class MessageLane:
    """The sync lane on a synchronous client.

    Args:
        client: The user's client; its retries are not used.
    """

    def __init__(self, client: anthropic.Anthropic) -> None:
        self._client = client

    def call(
        self,
        body: bytes,
        *,
        model: str,
        max_tokens: int,
        betas: tuple[str, ...] = (),
    ) -> Reply:
        """One Messages call, tried once. One that may take over ten minutes is streamed and put together here.

        Args:
            body: The encoded params, without `stream`.
            model: The model that they ask for.
            max_tokens: The most output tokens that they ask for.
            betas: `anthropic-beta` values.

        Raises:
            LaneFault: There is no answer.
        """
        streams = must_stream(self._client, model, max_tokens)
        content = wire.streamed(body) if streams else wire.Body(body)
        options = wire.message_options(self._client, betas)
        started = time.perf_counter()
        if streams:
            response, message = self._streamed(content, options, betas)
        else:
            response = sent(self._client.post, wire.MESSAGES, content=content, options=options)
            message = response.content
        return wire.reply(response, message, time.perf_counter() - started)

    def _streamed(self, content: bytes, options: Any, betas: tuple[str, ...]) -> tuple[httpx2.Response, bytes]:
        kind, assembly = dialect(betas), Assembly()
        try:
            events = self._client.post(
                wire.MESSAGES, cast_to=kind.message, content=content, options=options, stream=True, stream_cls=kind.raw
            )
            with kind.stream(events, output_format=anthropic.NOT_GIVEN) as stream:
                for event in stream:
                    assembly.see(event)
            return stream.response, assembly.body(stream)
        except Exception as error:  # noqa: BLE001
            failure = translate_stream(error)
        raise failure


class AsyncMessageLane:
    """The sync lane on an asynchronous client; see `MessageLane`, which it follows method by method."""

    def __init__(self, client: anthropic.AsyncAnthropic) -> None:
        self._client = client

    async def call(
        self,
        body: bytes,
        *,
        model: str,
        max_tokens: int,
        betas: tuple[str, ...] = (),
    ) -> Reply:
        """See `MessageLane.call`."""
        streams = must_stream(self._client, model, max_tokens)
        content = wire.streamed(body) if streams else wire.Body(body)
        options = wire.message_options(self._client, betas)
        started = time.perf_counter()
        if streams:
            response, message = await self._streamed(content, options, betas)
        else:
            response = await async_sent(self._client.post, wire.MESSAGES, content=content, options=options)
            message = response.content
        return wire.reply(response, message, time.perf_counter() - started)

    async def _streamed(self, content: bytes, options: Any, betas: tuple[str, ...]) -> tuple[httpx2.Response, bytes]:
        kind, assembly = dialect(betas), Assembly()
        try:
            events = await self._client.post(
                wire.MESSAGES,
                cast_to=kind.message,
                content=content,
                options=options,
                stream=True,
                stream_cls=kind.async_raw,
            )
            async with kind.async_stream(events, output_format=anthropic.NOT_GIVEN) as stream:
                async for event in stream:
                    assembly.see(event)
            return stream.response, assembly.body(stream)
        except Exception as error:  # noqa: BLE001
            failure = translate_stream(error)
        raise failure
