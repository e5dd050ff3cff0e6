"""Spans, as an SDK in the same program receives them: what was done, for whom, how it ended; no key and no value."""

import gc
import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import cenote
from cenote.agent import AgentState
from cenote.engine.spans import VERBS
from cenote.testing import TestServers
from witness import reached

SECRET = "tell-nobody-9917"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """A program with an SDK; its provider is its own and not that of the whole run, which can be set only once."""
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield kept
    provider.shutdown()


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    kept = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[kept])
    monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
    yield kept
    provider.shutdown()


def named(exporter: InMemorySpanExporter, operation: str) -> list[ReadableSpan]:
    """The spans of one operation."""
    return [span for span in exporter.get_finished_spans() if told(span)["db.operation.name"] == operation]


def told(span: ReadableSpan) -> dict[str, Any]:
    """The attributes of a span."""
    return dict(span.attributes or {})


async def test_verbs_and_flushes_have_spans(
    cenote_servers: TestServers, exporter: InMemorySpanExporter, reader: InMemoryMetricReader
) -> None:
    async with cenote.open(**cenote_servers.fresh(telemetry__traces=True)) as store:
        ant = store.agent("ant")
        assert isinstance(ant, AgentState)
        await ant.put(SECRET, SECRET)
        await ant.get(SECRET)
        await ant.update(SECRET, lambda value: value + "!")
        await ant.put_many({f"{SECRET}{number}": SECRET for number in range(60)})
        await ant.delete(SECRET)
        await ant.flush(30)
        mark = await ant.checkpoint()
        await ant.restore(mark)
        await ant.hydrate()
        await reached(lambda: sum(_size(span) for span in named(exporter, "flush_batch")) >= 61, "flushes")
        stream, schema = store._core.stream.name, store._core.names.schema_name("agents")
    for verb in ("put", "get", "update", "put_many", "delete", "flush", "checkpoint", "restore", "hydrate"):
        (span,) = named(exporter, verb)
        own = told(span)
        assert own["db.system.name"] == VERBS[verb]
        assert own["gen_ai.agent.id"] == "ant"
        assert own["server.address"] == "127.0.0.1"
        assert own["server.port"] > 0
        assert own["db.collection.name"] == (stream if VERBS[verb] == "nats" else f"{schema}.state")
        assert span.name == f"{verb} {own['db.collection.name']}"
        assert own["db.namespace"]
        assert span.kind is SpanKind.CLIENT
        assert span.status.status_code is StatusCode.UNSET
    assert told(named(exporter, "put_many")[0])["db.operation.batch.size"] == 60
    assert all("gen_ai.agent.id" not in told(span) for span in named(exporter, "flush_batch"))
    assert SECRET not in "".join(span.to_json() for span in exporter.get_finished_spans())
    points = [
        point
        for resource in reader.get_metrics_data().resource_metrics  # type: ignore[union-attr]  # there are some
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
        if metric.name == "db.client.operation.duration"
    ]
    assert {point.attributes["db.operation.name"] for point in points} >= {"put", "get", "flush_batch"}
    assert not [point for point in points if "gen_ai.agent.id" in point.attributes]


def _size(span: ReadableSpan) -> int:
    return int(told(span).get("db.operation.batch.size", 1))


async def test_an_error_is_a_status_and_a_class(cenote_servers: TestServers, exporter: InMemorySpanExporter) -> None:
    async with cenote.open(**cenote_servers.fresh(telemetry__traces=True)) as store:
        ant = store.agent("ant")
        with pytest.raises(cenote.NotFoundError):
            await ant.entry(SECRET)
        with pytest.raises(cenote.RejectedError):
            await ant.put(SECRET, object())
        await ant.put("k", 1)
        with pytest.raises(cenote.ConflictError):
            await ant.put("k", SECRET, if_version=0)
    for operation, kind in (("entry", "NotFoundError"), ("put", "RejectedError"), ("put", "ConflictError")):
        (span,) = [one for one in named(exporter, operation) if told(one).get("error.type") == kind]
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description is None
        assert not span.events
    assert SECRET not in "".join(span.to_json() for span in exporter.get_finished_spans())


async def test_verbs_belong_to_the_callers_span_and_flushes_to_none(
    cenote_servers: TestServers, exporter: InMemorySpanExporter
) -> None:
    """The flusher begins while the store is opened: its spans must not belong to whatever span that was in."""
    tracer = trace.get_tracer("a program")
    with tracer.start_as_current_span("opening", attributes={"db.operation.name": "-"}):
        store = await cenote.open(**cenote_servers.fresh(telemetry__traces=True))
    async with store:
        with tracer.start_as_current_span("outer", attributes={"db.operation.name": "-"}) as outer:
            await store.agent("ant").put("k", 1, durability="sql")
        await reached(lambda: named(exporter, "flush_batch"), "a flush")
    (put,) = named(exporter, "put")
    assert put.parent is not None
    assert put.parent.span_id == outer.get_span_context().span_id
    assert [span.parent for span in named(exporter, "flush_batch")] == [None] * len(named(exporter, "flush_batch"))


async def test_without_the_setting_nothing_is_wrapped(
    cenote_servers: TestServers, exporter: InMemorySpanExporter
) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        ant = store.agent("ant")
        assert type(ant) is AgentState
        await ant.put("k", 1, durability="sql")
    assert not exporter.get_finished_spans()


async def test_spans_that_nobody_receives_cost_a_small_share_of_a_put(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(telemetry__traces=True, flush__enabled=False)) as store:
        ant, spans = store.agent("ant"), store._core.spans
        assert spans is not None

        async def nothing() -> None: ...

        async def took(work: Any, times: int) -> float:
            gc.collect()
            began = time.perf_counter()
            for _ in range(times):
                await work()
            return (time.perf_counter() - began) / times

        put = min([await took(lambda: ant.put("k", 1), 50) for _ in range(3)])
        span = min([await took(lambda: spans.flushing(nothing(), 1), 500) for _ in range(3)])
        assert span < put / 5
