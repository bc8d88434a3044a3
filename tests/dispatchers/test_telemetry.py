"""Spans and metrics, as the SDK of OpenTelemetry exports them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.strategies import params

from .world import HOURS_30, World, many


class Exported(NamedTuple):
    spans: InMemorySpanExporter
    reader: InMemoryMetricReader

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans.get_finished_spans() if span.name == name]

    def metrics(self) -> dict[tuple[str, str], Any]:
        """Values (of histograms: counts) by the name of the metric and its attributes' values."""
        data = self.reader.get_metrics_data()
        found: dict[tuple[str, str], Any] = {}
        for metric in (m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics):
            for point in metric.data.data_points:
                names = {key: value for key, value in point.attributes.items() if key != "batchwise.ledger"}
                found[metric.name, "/".join(map(str, names.values()))] = getattr(point, "value", None) or getattr(
                    point, "count", 0
                )
        return found


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Exported]:
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(), MeterProvider([reader])
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: tracers)
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: meters)
    yield Exported(spans, reader)
    tracers.shutdown()
    meters.shutdown()


async def test_spans_and_metrics(world: World, exported: Exported):
    tracer = trace.get_tracer("mine")
    async with world.open() as d:
        with tracer.start_as_current_span("night") as mine:
            job = await d.dispatch_all(many(3), job="j", latency=HOURS_30)
        await job.wait()
        assert (await (await d.dispatch(params("secret"), key="k")).result()).ok
        world.sandbox.fault("messages.error_500", times=1)
        assert (await (await d.dispatch(params("again"))).result()).ok
        found, report = exported.metrics(), await d.report()
    bulk, single, _ = exported.named("batchwise.dispatch")
    assert bulk.attributes == {"batchwise.requests.batch": 3, "batchwise.requests.sync": 0, "batchwise.job": "j"}
    assert bulk.parent.span_id == mine.get_span_context().span_id
    (batch,) = exported.named("batch claude-sonnet-5")
    assert [link.context.span_id for link in batch.links] == [bulk.context.span_id]
    assert batch.attributes["gen_ai.operation.name"] == "batch"
    assert batch.attributes["batchwise.batch.id"] == world.books.batches[0].id
    assert batch.start_time < batch.end_time
    call, failed, again = exported.named("chat claude-sonnet-5")
    assert call.parent.span_id == single.context.span_id
    assert (call.attributes["gen_ai.provider.name"], call.attributes["gen_ai.request.model"]) == (
        "anthropic",
        "claude-sonnet-5",
    )
    assert call.attributes["gen_ai.usage.output_tokens"] > 0
    assert (failed.attributes["error.type"], failed.parent.span_id) == ("api_error", again.parent.span_id)
    assert "secret" not in str([span.to_json() for span in exported.spans.get_finished_spans()])

    assert found["batchwise.requests.settled", "batch/succeeded"] == 3
    assert found["batchwise.requests.settled", "sync/succeeded"] == 2
    assert sum(found["batchwise.cost", lane] for lane in ("sync", "batch")) == pytest.approx(float(report.cost))
    assert found["batchwise.saved", "batch"] == pytest.approx(float(report.saved))
    assert found["batchwise.batch.duration", "claude-sonnet-5"] == 1
    assert found["batchwise.slack", "batch"] >= 1
    assert (found["batchwise.at_risk", ""], found["batchwise.overdue", ""]) == (0, 0)
    assert found["batchwise.possible_doubles", ""] == report.possible_doubles


async def test_without_a_provider_nothing_is_heard(world: World):
    async with world.open() as d:
        assert (await (await d.dispatch(params("x"))).result()).ok
        assert not d._engine.telling.wanted
