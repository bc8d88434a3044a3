"""The API: which endpoint answers, for whom, with which headers."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any

import orjson

from .calls import Call
from .control import Control
from .errors import ApiError, ConnectionDropError, invalid, not_found
from .http import Request, Response
from .message_batches import BatchesApi
from .messages import MessagesApi
from .validation import BATCH_BYTES, MESSAGE_BYTES
from .world import ORGANIZATION, World, new_id

log = logging.getLogger("batchwise.sandbox")

Route = Callable[[Call], Awaitable[Any]]

_BATCHES = "/v1/messages/batches"


class Api:
    """Answers the API's requests from a `World`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.control = Control(world)
        messages, batches = MessagesApi(world), BatchesApi(world)
        item = r"/([^/]+)"
        self._routes: list[tuple[re.Pattern[str], str, dict[str, Route]]] = [
            (re.compile("/v1/messages"), "/v1/messages", {"POST": messages.create_message}),
            (re.compile("/v1/messages/count_tokens"), "/v1/messages/count_tokens", {"POST": messages.count_tokens}),
            (re.compile("/v1/models"), "/v1/models", {"GET": messages.list_models}),
            (re.compile("/v1/models" + item), "/v1/models/{id}", {"GET": messages.get_model}),
            (re.compile(_BATCHES), _BATCHES, {"POST": batches.create_batch, "GET": batches.list_batches}),
            (re.compile(_BATCHES + item), _BATCHES + "/{id}", {"GET": batches.retrieve, "DELETE": batches.delete}),
            (re.compile(_BATCHES + item + "/cancel"), _BATCHES + "/{id}/cancel", {"POST": batches.cancel}),
            (re.compile(_BATCHES + item + "/results"), _BATCHES + "/{id}/results", {"GET": batches.get_results}),
        ]

    @staticmethod
    def body_limit(path: str) -> int:
        """The most bytes that a request to the path may have."""
        return BATCH_BYTES if path.startswith((_BATCHES, "/_sandbox")) else MESSAGE_BYTES

    async def handle(self, request: Request) -> Response:
        """Answer one HTTP request.

        Raises:
            ConnectionDropError: no answer, by order of a fault.
        """
        if request.path.startswith("/_sandbox"):
            return await self.control.handle(request)
        request_id = new_id("req")
        workspace: str | None = None
        extra: dict[str, str] = {}
        try:
            route, item = self._find(request)
            workspace = self._authenticate(request)
            betas = frozenset(b.strip() for b in request.headers.get("anthropic-beta", "").split(",") if b.strip())
            if request.path.startswith(_BATCHES):
                self.world.limiter.admit_batch_call()
            answer = await route(Call(request, workspace, betas, item))
            status = 200
        except ApiError as error:
            answer, status, extra = error.body(request_id), error.status, error.headers
        except (ConnectionDropError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("the sandbox failed to answer %s %s", request.method, request.path)
            answer, status = ApiError("api_error", "the sandbox failed; see its log").body(request_id), 500
        headers = self._headers(request_id, workspace)
        headers.update(extra)
        if isinstance(answer, Response):
            answer.headers = {**headers, **answer.headers}
            return answer
        headers["content-type"] = "application/json"
        return Response(status, headers, orjson.dumps(answer))

    def _find(self, request: Request) -> tuple[Route, str]:
        if request.too_large:
            raise ApiError("request_too_large", "Request exceeds the maximum size")
        path = request.path.rstrip("/")
        for pattern, name, methods in self._routes:
            if match := pattern.fullmatch(path):
                self.world.books.count_request(f"{request.method} {name}")
                if request.method not in methods:
                    raise ApiError("invalid_request_error", "Method Not Allowed", status=405)
                return methods[request.method], match.group(1) if match.groups() else ""
        self.world.books.count_request(f"{request.method} (unknown)")
        raise not_found("Not Found")

    def _authenticate(self, request: Request) -> str:
        headers = request.headers
        key = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ").strip()
        workspace = self.world.workspace_of(key)
        if workspace is None:
            raise ApiError("authentication_error", "invalid x-api-key" if key else "x-api-key header is required")
        if "anthropic-version" not in headers:
            raise invalid("anthropic-version: header is required")
        return workspace

    def _headers(self, request_id: str, workspace: str | None) -> dict[str, str]:
        now = self.world.server_now()
        headers = {"date": formatdate(now, usegmt=True), "request-id": request_id}
        if workspace is not None:
            headers["anthropic-organization-id"] = ORGANIZATION
            headers["anthropic-workspace-id"] = workspace
            headers.update(self.world.limiter.headers(now))
        return headers
