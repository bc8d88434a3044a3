"""The endpoints of the Message Batches API."""

from __future__ import annotations

import asyncio
from typing import Any

from . import results
from .batches import Batch
from .calls import Call, page_of
from .errors import ApiError, ConnectionDropError, invalid, not_found
from .faults import Fault, refuse
from .http import Response
from .latency import draw, to_seconds
from .rows import Settled
from .store import page
from .validation import check_create, parse_object
from .world import World


class BatchesApi:
    """Create, list, retrieve, cancel, delete, results."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def create_batch(self, call: Call) -> Any:
        """POST /v1/messages/batches."""
        world, box = self.world, self.world.fault_box
        refuse(box, "create")
        if box.fire("create.drop_before"):
            raise ConnectionDropError
        rows = check_create(parse_object(call.request.body))
        call.request.body = bytearray()
        limit = world.batch_queue_limit
        if limit is not None and world.store.queued_rows(world.now()) + len(rows) > limit:
            raise ApiError("rate_limit_error", f"This request would exceed the limit of {limit} queued batch requests.")
        late = box.fire("create.accepted_late")
        delay = to_seconds(late["delay"]) if late else 0.0
        batch = world.accept(rows, workspace=call.workspace, betas=call.betas, delay=delay)
        if late or box.fire("create.drop_after"):
            raise ConnectionDropError
        if box.fire("create.error_500_after"):
            raise ApiError("api_error", "Internal server error")
        if box.fire("create.hang"):
            await call.request.gone.wait()
            raise ConnectionDropError
        if slow := box.fire("create.slow"):
            await asyncio.sleep(to_seconds(slow["delay"]))
        return self._render(batch, batch.created_at, None)

    def _render(self, batch: Batch, now: float, settled: Settled | None) -> dict[str, Any]:
        world = self.world
        counts = None if settled is None else settled.counts()
        return batch.render(now, skew=to_seconds(world.clock_skew), base_url=world.base_url, counts=counts)

    async def _view(self, batch: Batch, now: float) -> dict[str, Any]:
        settled = await self._settle(batch) if batch.status(now) == "ended" else None
        return self._render(batch, now, settled)

    async def _settle(self, batch: Batch) -> Settled:
        if batch.is_settled:
            return self.world.settle(batch)
        return await asyncio.to_thread(self.world.settle, batch)

    def _batch(self, call: Call) -> Batch:
        batch = self.world.store.find(call.item, call.workspace, self.world.now())
        if batch is None:
            raise not_found(f"Message batch {call.item!r} not found.")
        return batch

    async def list_batches(self, call: Call) -> Any:
        """GET /v1/messages/batches."""
        world = self.world
        refuse(world.fault_box, "list")
        now = world.now()
        lag = world.fault_box.fire("list.lag")
        newest = now if lag is None else now - to_seconds(lag["delay"])
        batches = world.store.visible(call.workspace, now, lambda batch: batch.created_at <= newest)
        start, end, more = page([batch.id for batch in batches], call.request.query)
        return page_of([await self._view(batch, now) for batch in batches[start:end]], more)

    async def retrieve(self, call: Call) -> Any:
        """GET /v1/messages/batches/{id}."""
        box, now = self.world.fault_box, self.world.now()
        refuse(box, "retrieve")
        batch = self._batch(call)

        def young(fault: Fault) -> bool:
            return fault["younger_than"] is None or now - batch.created_at < to_seconds(fault["younger_than"])

        if box.fire("retrieve.not_found_404", young):
            raise not_found(f"Message batch {call.item!r} not found.")
        if stale := box.fire("retrieve.stale"):
            if stale["ago"] is None:
                return self._render(batch, batch.created_at, None)
            now = max(batch.created_at, now - to_seconds(stale["ago"]))
        view = await self._view(batch, now)
        counts = view["request_counts"]
        if wrong := box.fire("retrieve.miscount", lambda _fault: counts["succeeded"] > 0):
            off = counts["succeeded"] if wrong["zero"] else 1
            counts["succeeded"] -= off
            counts["expired"] += 0 if wrong["zero"] else off
        return view

    async def cancel(self, call: Call) -> Any:
        """POST /v1/messages/batches/{id}/cancel."""
        world, box, now = self.world, self.world.fault_box, self.world.now()
        refuse(box, "cancel")
        batch = self._batch(call)
        ended = batch.status(now) == "ended"
        if not ended and batch.cancel is None:
            hang = box.fire("cancel.hang")
            wait = to_seconds(hang["delay"]) if hang else draw(world.cancel_latency, world.rng)
            batch.stop(now, wait, no_effect=box.fire("cancel.no_effect") is not None)
        if ended or batch.cancel is None:
            raise invalid(f"Message batch {batch.id} cannot be canceled: it has already ended.")
        return self._render(batch, now, None)

    async def delete(self, call: Call) -> Any:
        """DELETE /v1/messages/batches/{id}."""
        batch = self._batch(call)
        if batch.status(self.world.now()) != "ended":
            raise invalid(f"Message batch {batch.id} cannot be deleted while it is being processed; cancel it first.")
        batch.deleted = True
        batch.drop_lines()
        return {"id": batch.id, "type": "message_batch_deleted"}

    async def get_results(self, call: Call) -> Any:
        """GET /v1/messages/batches/{id}/results."""
        box, now = self.world.fault_box, self.world.now()
        refuse(box, "results")
        batch = self._batch(call)
        if batch.status(now) != "ended":
            raise not_found(f"Results of message batch {batch.id} are not available: it has not ended.")
        if batch.archived_at(now) is not None or box.fire("results.gone"):
            raise not_found(f"Results of message batch {batch.id} are no longer available.")
        settled = await self._settle(batch)
        return Response(200, {"content-type": "application/x-jsonl"}, results.stream(settled, box))
