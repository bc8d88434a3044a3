"""Spans and metrics through OpenTelemetry, made of the events. Without `opentelemetry-api` there are none.

Spans follow the semantic conventions for generative AI: `gen_ai.operation.name`, `gen_ai.provider.name`,
`gen_ai.request.model`, `gen_ai.usage.*`. None of them holds a prompt or an answer.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from batchwise.events import Accepted, Called, Collected, Ended, Event, Missed, Rescued, Settled, Submitted
from batchwise.models import Lane, Status

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation
    from opentelemetry.trace import SpanContext, Tracer

    from .core import Engine

__all__ = ["observe"]

_PROVIDER = "anthropic"
_SECOND = timedelta(seconds=1)
_LINKS = 32
"""The most spans of dispatches of a job to which the span of a batch is linked."""
_REMEMBERED = 1_000
"""The most dispatches, and the most batches, whose spans are remembered."""


def observe(engine: Engine) -> None:
    """Make spans and metrics of this engine's events, if OpenTelemetry is set up in this process."""
    try:
        from opentelemetry import metrics, trace
        from opentelemetry.metrics import NoOpMeterProvider
        from opentelemetry.trace import NoOpTracerProvider, ProxyTracerProvider
    except ImportError:
        return
    tracers, meters = trace.get_tracer_provider(), metrics.get_meter_provider()
    traced = not isinstance(tracers, (NoOpTracerProvider, ProxyTracerProvider))
    metered = not isinstance(meters, NoOpMeterProvider) and not type(meters).__name__.startswith("_Proxy")
    if traced:
        engine.emitter.listen(_Spans(trace.get_tracer("batchwise")).hear)
    if metered:
        found = _metrics(meters)
        found.engines.add(engine)
        engine.emitter.listen(found.hear)


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000) * 1_000


class _Spans:
    """Makes a span of each dispatch, of each batch from its creation until it is collected, and of each sync call."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._single: OrderedDict[int, SpanContext] = OrderedDict()
        """Spans of single dispatches, by the number of the request."""
        self._waiting: OrderedDict[str | None, deque[SpanContext]] = OrderedDict()
        """Spans of dispatches whose requests may go with the next batch, by job."""
        self._sent: OrderedDict[str, list[SpanContext]] = OrderedDict()
        """Spans to which a batch is linked, by the id of the batch."""

    def hear(self, event: Event) -> None:
        """Begin or end the spans of an event."""
        match event:
            case Accepted():
                self._accepted(event)
            case Submitted():
                self._sent[event.batch] = [context for job in event.jobs for context in self._waiting.pop(job, ())][
                    :_LINKS
                ]
                _trim(self._sent)
            case Collected(missing=0):
                self._collected(event)
            case Called():
                self._called(event)
            case _:
                pass

    def _accepted(self, event: Accepted) -> None:
        attributes = {"batchwise.requests.batch": event.batch, "batchwise.requests.sync": event.sync}
        if event.job is not None:
            attributes["batchwise.job"] = event.job  # type: ignore[assignment]  # a mapping of attributes
        at = _nanoseconds(event.at)
        span = self._tracer.start_span("batchwise.dispatch", start_time=at, attributes=attributes)
        span.end(at)
        context = span.get_span_context()
        if event.request is not None and event.sync:
            self._single[event.request] = context
            _trim(self._single)
        if event.batch:
            self._waiting.setdefault(event.job, deque(maxlen=_LINKS)).append(context)
            _trim(self._waiting)

    def _collected(self, event: Collected) -> None:
        from opentelemetry.trace import Link, SpanKind

        links = [Link(context) for context in self._sent.pop(event.batch, ())]
        span = self._tracer.start_span(
            f"batch {event.model}".rstrip(),
            kind=SpanKind.CLIENT,
            links=links,
            start_time=_nanoseconds(event.created_at),
            attributes={
                "gen_ai.operation.name": "batch",
                "gen_ai.provider.name": _PROVIDER,
                "gen_ai.request.model": event.model,
                "batchwise.batch.id": event.batch,
                "batchwise.batch.requests": event.requests,
                "batchwise.batch.settled": event.settled,
            },
        )
        span.end(_nanoseconds(event.at))

    def _called(self, event: Called) -> None:
        from opentelemetry import trace
        from opentelemetry.trace import NonRecordingSpan, SpanKind, Status, StatusCode

        parent = self._single.get(event.request)
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": _PROVIDER,
            "gen_ai.request.model": event.model,
            "gen_ai.usage.input_tokens": event.input_tokens,
            "gen_ai.usage.output_tokens": event.output_tokens,
            "error.type": event.error,
        }
        span = self._tracer.start_span(
            f"chat {event.model}",
            context=None if parent is None else trace.set_span_in_context(NonRecordingSpan(parent)),
            kind=SpanKind.CLIENT,
            start_time=_nanoseconds(event.at - event.latency),
            attributes={name: value for name, value in attributes.items() if value is not None},
        )
        if event.error is not None:
            span.set_status(Status(StatusCode.ERROR))
        span.end(_nanoseconds(event.at))
        if event.outcome is not None:
            self._single.pop(event.request, None)


def _trim(known: OrderedDict[Any, Any]) -> None:
    while len(known) > _REMEMBERED:
        known.popitem(last=False)


@cache
def _metrics(provider: Any) -> _Metrics:
    """Return the instruments of this process and provider: each is made once."""
    return _Metrics(provider.get_meter("batchwise"))


class _Metrics:
    """The instruments. Events are counted as they come; states are read from the ledgers at each export."""

    def __init__(self, meter: Any) -> None:
        self.engines: WeakSet[Engine] = WeakSet()
        self._settled = meter.create_counter("batchwise.requests.settled", "{request}", "Requests settled.")
        self._missed = meter.create_counter("batchwise.deadlines.missed", "{request}", "Deadlines missed.")
        self._cost = meter.create_counter("batchwise.cost", "USD", "What settled requests cost.")
        self._saved = meter.create_counter("batchwise.saved", "USD", "What the sync lane would have cost beyond that.")
        self._rescued = meter.create_counter(
            "batchwise.requests.rescued", "{request}", "Sent to the sync lane in time."
        )
        self._slack = meter.create_histogram("batchwise.slack", "s", "Time from settling to the deadline.")
        self._duration = meter.create_histogram("batchwise.batch.duration", "s", "From a batch's creation to its end.")
        self._called = meter.create_histogram("gen_ai.client.operation.duration", "s", "Of calls of the sync lane.")
        for name, unit, words, look in (
            ("batchwise.queue.depth", "{request}", "Unsettled requests by lane and status.", _depth),
            ("batchwise.at_risk", "{request}", "Requests whose deadline may not be kept.", _at_risk),
            ("batchwise.overdue", "{request}", "Unsettled requests whose deadline has passed.", _overdue),
            ("batchwise.possible_doubles", "{request}", "Purchases that may have happened twice.", _doubles),
            ("batchwise.suspended", "{lane}", "Suspended lanes: 1.", _suspended),
        ):
            meter.create_observable_gauge(name, [self._asking(look)], unit, words)

    def hear(self, event: Event) -> None:
        """Count an event."""
        match event:
            case Settled():
                lane = {"batchwise.lane": event.lane.value}
                self._settled.add(event.requests, {**lane, "batchwise.outcome": event.outcome.value})
                self._cost.add(float(event.cost), lane)
                self._saved.add(float(event.saved), lane)
                if event.slack is not None:
                    self._slack.record(event.slack / _SECOND, lane)
            case Missed():
                self._missed.add(event.requests)
            case Rescued(canceled=False):
                self._rescued.add(event.requests)
            case Ended():
                self._duration.record(event.duration / _SECOND, {"gen_ai.request.model": event.model})
            case Called():
                names = {
                    "gen_ai.operation.name": "chat",
                    "gen_ai.provider.name": _PROVIDER,
                    "gen_ai.request.model": event.model,
                }
                self._called.record(
                    event.latency / _SECOND, names if event.error is None else {**names, "error.type": event.error}
                )
            case _:
                pass

    def _asking(
        self, look: Callable[[Engine], Iterable[tuple[int, dict[str, str]]]]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def ask(_options: CallbackOptions) -> Iterator[Observation]:
            from opentelemetry.metrics import Observation

            for engine in list(self.engines):
                try:
                    found = list(look(engine))
                except Exception:  # noqa: BLE001, S112  # its ledger is closed, or busy
                    continue
                for value, attributes in found:
                    yield Observation(value, {"batchwise.ledger": engine.ledger.name, **attributes})

        return ask


def _depth(engine: Engine) -> Iterator[tuple[int, dict[str, str]]]:
    for (lane, status, _), number in engine.ledger.statistics.counts(job=None).items():
        if status is not Status.SETTLED:
            yield number, {"batchwise.lane": lane.value, "batchwise.status": status.value}


def _at_risk(engine: Engine) -> Iterator[tuple[int, dict[str, str]]]:
    yield engine.deadlines.risk().at_risk, {}


def _overdue(engine: Engine) -> Iterator[tuple[int, dict[str, str]]]:
    yield engine.deadlines.risk().overdue, {}


def _doubles(engine: Engine) -> Iterator[tuple[int, dict[str, str]]]:
    yield engine.ledger.statistics.report(job=None).possible_doubles, {}


def _suspended(engine: Engine) -> Iterator[tuple[int, dict[str, str]]]:
    suspended = engine.ledger.snapshot().suspended
    for lane in Lane:
        yield int(lane in suspended), {"batchwise.lane": lane.value}
