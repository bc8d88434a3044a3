"""The Messages API, one call at a time, in both colours."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import anthropic
import httpx2

from . import wire
from .clients import must_stream
from .faults import translate
from .streams import Assembly, dialect, translate_stream
from .uploads import AsyncUpload, Upload, held, held_async
from .values import Reply

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
        ready: Callable[[], bool] | None = None,
    ) -> Reply:
        """One Messages call, tried once. One that may take over ten minutes is streamed and put together here.

        Args:
            body: The encoded params, without `stream`.
            model: The model that they ask for.
            max_tokens: The most output tokens that they ask for.
            betas: `anthropic-beta` values.
            ready: Waits until the body may be sent, while the rest of the call is prepared; False: it may not.

        Raises:
            LaneFault: There is no answer.
        """
        streams = must_stream(self._client, model, max_tokens)
        whole = wire.streamed(body) if streams else wire.Body(body)
        content = whole if ready is None else Upload(held(whole, ready), len(whole))
        options = wire.message_options(self._client, len(whole), betas)
        started = time.perf_counter()
        if streams:
            response, message = self._streamed(content, options, betas)
        else:
            response = self._post(content, options)
            message = response.content
        return wire.reply(response, message, time.perf_counter() - started)

    def _post(self, content: bytes | Upload, options: Any) -> httpx2.Response:
        try:
            return self._client.post(wire.MESSAGES, cast_to=httpx2.Response, content=content, options=options)
        except Exception as error:  # noqa: BLE001  (translate raises again what it does not know)
            failure = translate(error)
        raise failure

    def _streamed(self, content: bytes | Upload, options: Any, betas: tuple[str, ...]) -> tuple[httpx2.Response, bytes]:
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
        ready: Callable[[], bool] | None = None,
    ) -> Reply:
        """See `MessageLane.call`; `ready` is asked in a worker thread."""
        streams = must_stream(self._client, model, max_tokens)
        whole = wire.streamed(body) if streams else wire.Body(body)
        content = whole if ready is None else AsyncUpload(held_async(whole, ready), len(whole))
        options = wire.message_options(self._client, len(whole), betas)
        started = time.perf_counter()
        if streams:
            response, message = await self._streamed(content, options, betas)
        else:
            response = await self._post(content, options)
            message = response.content
        return wire.reply(response, message, time.perf_counter() - started)

    async def _post(self, content: bytes | AsyncUpload, options: Any) -> httpx2.Response:
        try:
            return await self._client.post(wire.MESSAGES, cast_to=httpx2.Response, content=content, options=options)
        except Exception as error:  # noqa: BLE001
            failure = translate(error)
        raise failure

    async def _streamed(
        self, content: bytes | AsyncUpload, options: Any, betas: tuple[str, ...]
    ) -> tuple[httpx2.Response, bytes]:
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
