"""The sandbox's own endpoints, under /_sandbox: for test drivers in other processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson

from .http import Request, Response
from .latency import from_json
from .world import Settings, World

Action = Callable[[dict[str, Any]], Any]

_LATENCIES = frozenset(("sync_latency", "batch_latency", "cancel_latency"))
_FIXED = frozenset(("seed", "reply", "identify"))  # two are functions; the seed has no effect later
_SETTINGS = [name for name in Settings.__annotations__ if name not in _FIXED]


class Control:
    """Answers /_sandbox/... from a `World`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.restart: Callable[[float], None] | None = None
        self._actions: dict[tuple[str, str], Action] = {
            ("GET", "books"): self._books,
            ("POST", "faults"): self._faults,
            ("POST", "clear"): self._clear,
            ("POST", "settings"): self._settings,
            ("POST", "foreign"): lambda body: {"id": self._world.add_foreign_batch(**body)},
            ("POST", "advance"): self._advance,
            ("POST", "finish"): self._finish,
            ("POST", "restart"): self._restart,
        }

    async def handle(self, request: Request) -> Response:
        """Answer one control request; wrong input is a 400 with the reason."""
        headers = {"content-type": "application/json"}
        action = self._actions.get((request.method, request.path.removeprefix("/_sandbox/").strip("/")))
        if action is None:
            known = ", ".join(f"{method} /_sandbox/{name}" for method, name in self._actions)
            return Response(404, headers, orjson.dumps({"error": f"known: {known}"}))
        try:
            body = orjson.loads(request.body) if request.body else {}
            answer = await asyncio.to_thread(action, {**request.query, **body})
        except (ValueError, TypeError, KeyError) as error:
            return Response(400, headers, orjson.dumps({"error": f"{type(error).__name__}: {error}"}))
        return Response(200, headers, orjson.dumps(answer))

    def _books(self, query: dict[str, Any]) -> Any:
        books = self._world.books
        if "prompt" in query:
            return {"bought": books.bought(query["prompt"])}
        answer = {**books.summary(), "faults_fired": dict(self._world.faults_fired)}
        if "prompts" in query:
            answer["bought"] = dict(books.bought_by_prompt())
        return answer

    def _faults(self, body: dict[str, Any]) -> Any:
        fault = self._world.fault(body.pop("name"), **body)
        return {"name": fault.name, "times": fault.times, "probability": fault.probability, "params": fault.params}

    def _clear(self, body: dict[str, Any]) -> Any:
        self._world.clear_faults(body.get("name"))
        return {}

    def _settings(self, body: dict[str, Any]) -> Any:
        unknown = [name for name in body if name not in _SETTINGS]
        if unknown:
            raise ValueError(f"unknown settings {unknown}; known: {', '.join(_SETTINGS)}")
        for name, value in body.items():
            setattr(self._world, name, from_json(value) if name in _LATENCIES else value)
        return {}

    def _advance(self, body: dict[str, Any]) -> Any:
        self._world.advance(float(body["seconds"]))
        return {}

    def _finish(self, body: dict[str, Any]) -> Any:
        self._world.finish(body["id"])
        return {}

    def _restart(self, body: dict[str, Any]) -> Any:
        if self.restart is None:
            raise ValueError("this sandbox has no server to restart")
        self.restart(float(body.get("downtime", 0.0)))
        return {}
