"""The endpoints of the Messages API and of the models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson

from .books import SyncCall
from .cache import NOTHING, cached_in
from .calls import Call, page_of
from .errors import ApiError, ConnectionDropError
from .faults import refuse
from .http import Response
from .latency import draw, to_seconds
from .models import MODELS, check_model, model_info
from .replies import ask, build_message, input_tokens, stream_events
from .store import page
from .validation import check_params, parse_object
from .world import World, new_id


class MessagesApi:
    """Messages, token counts, models."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def create_message(self, call: Call) -> Any:
        """POST /v1/messages."""
        world, box = self.world, self.world.fault_box
        refuse(box, "messages")
        if box.fire("messages.drop_before"):
            raise ConnectionDropError
        params = parse_object(call.request.body)
        check_params(params, limit=world.output_limit, betas=call.betas)
        check_model(params["model"], world.models)
        tokens = input_tokens(params)
        world.limiter.admit(tokens)
        bought = world.books.open_call(params, call.workspace)
        try:
            message = await self._run(params, bought)
        finally:
            world.limiter.done(bought.output_tokens)
        if box.fire("messages.drop_after_billing"):
            raise ConnectionDropError
        bought.delivered = not call.request.gone.is_set()
        return _sse(message) if params.get("stream") else message

    async def _run(self, params: dict[str, Any], bought: SyncCall) -> dict[str, Any]:
        world = self.world
        seconds = draw(world.sync_latency, world.rng)
        if slow := world.fault_box.fire("messages.slow"):
            seconds += to_seconds(slow["delay"])
        if seconds:
            await asyncio.sleep(seconds)
        try:
            reply = ask(world.reply, params)
            cached = NOTHING
            if reply.failure is None:
                now = world.now()
                cached = world.cache.use(
                    params, workspace=bought.workspace, begun=now - seconds, done=now, minimum=world.cache_minimum
                )
            message = build_message(params, reply, message_id=new_id("msg"), tier="standard", cached=cached)
        except ApiError:
            bought.state = "errored"
            raise
        usage = message["usage"]
        bought.input_tokens, bought.output_tokens = usage["input_tokens"], usage["output_tokens"]
        bought.cached = cached_in(usage)
        bought.state = "succeeded"
        return message

    async def count_tokens(self, call: Call) -> Any:
        """POST /v1/messages/count_tokens."""
        params = parse_object(call.request.body)
        check_params({"max_tokens": 1, **params}, limit=None, betas=call.betas)
        check_model(params["model"], self.world.models)
        return {"input_tokens": input_tokens(params)}

    async def list_models(self, call: Call) -> Any:
        """GET /v1/models."""
        ids = list(self.world.models or MODELS)
        start, end, more = page(ids, call.request.query)
        return page_of([model_info(name) for name in ids[start:end]], more)

    async def get_model(self, call: Call) -> Any:
        """GET /v1/models/{id}."""
        check_model(call.item, self.world.models)
        return model_info(call.item)


def _sse(message: dict[str, Any]) -> Response:
    async def events() -> AsyncIterator[bytes]:
        for event in stream_events(message):
            yield b"event: " + event["type"].encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"

    return Response(200, {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}, events())
