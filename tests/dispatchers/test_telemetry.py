"""Spans and metrics, as the SDK of OpenTelemetry exports them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from batchwise import events
from batchwise.engine.core import Engine
from batchwise.engine.progress import progress
from batchwise.ledger.sqlite import SqliteLedger
from tests.cli.conftest import process
from tests.reliability import simulation
from tests.reliability.simulation import HOUR, MINUTE
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
        assert not d._engine.emitter.wanted


@pytest.mark.parametrize(("ago", "danger"), [(30 * HOUR - 5 * MINUTE, "at risk"), (31 * HOUR, "overdue")])
def test_whoever_looks_at_what_nobody_advanced_is_told_once(
    exported: Exported, tmp_path: Path, caplog: pytest.LogCaptureFixture, ago: timedelta, danger: str
):
    path = str(tmp_path / "ledger.db")
    with closing(simulation.World(path=path)) as night:
        night.true = datetime.now(timezone.utc) - ago
        night.api.duration = 100 * HOUR
        night.dispatch_all([f"a{n}" for n in range(10)], 30 * HOUR, "nightly")
        night.run()
    counts = (10, 0) if danger == "at risk" else (0, 10)

    said = process("status", "--ledger", path)
    assert said.code == 4
    assert f"{danger}: 10 requests" in said.out
    assert said.err.count("\n") == 1, "one line of the log"
    assert f"{counts[0]} requests at risk of missing the deadline, {counts[1]} overdue" in said.err

    told: list[events.Event] = []
    with closing(SqliteLedger(path)) as ledger:
        looking = Engine(ledger, None, endpoint=None, on_event=told.append)
        for _ in range(3):
            seen = progress(looking, None)
            assert (seen.at_risk, seen.overdue) == counts
        found = exported.metrics()
    assert [(event.at_risk, event.overdue) for event in told if isinstance(event, events.AtRisk)] == [counts]
    assert [record.levelname for record in caplog.records if record.levelno >= logging.WARNING] == ["WARNING"]
    assert (found["batchwise.at_risk", ""], found["batchwise.overdue", ""]) == counts
