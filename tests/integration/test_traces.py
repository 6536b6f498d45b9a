"""Traces through real processes, as a collector sees them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from support.lines import read_lines
from support.nats import NatsServer
from support.otlp import Collector, Link, Span
from support.running import Running, running, until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
OTHER = "5cf92f3577b34da6a3ce929d0e0e4737"
PARENT = "00f067aa0ba902b7"


@contextmanager
def traced(
    server: NatsServer, directory: Path, collector: Collector, target: str = "app", **environment: str
) -> Iterator[Running]:
    """Run the traced app, its spans going to the collector."""
    directory.mkdir(exist_ok=True)
    own = {"TRACED_SEEN": str(directory / "seen"), "TRACED_GATE": str(directory / "gate")}
    everything: dict[str, Any] = {**collector.environment, **own, **environment}
    with running(server.url, directory, f"support.traced_app:{target}", **everything) as run:
        yield run


def publish(url: str, number: int, headers: dict[str, str] | None = None, region: str = "north") -> None:
    """Publish an event with nats-py alone."""

    async def send() -> None:
        client = await nats.connect(url)
        body = json.dumps({"region": region, "number": number}).encode()
        await client.jetstream().publish(f"traced.{region}.entered", body, headers=headers)
        await client.close()

    asyncio.run(send())


def publish_traced(url: str, number: int, collector: Collector) -> str:
    """Publish an event with nats-py from within a span of a program of its own; return the trace's id."""
    exporter = OTLPSpanExporter(endpoint=f"{collector.environment['OTEL_EXPORTER_OTLP_ENDPOINT']}/v1/traces")
    provider = TracerProvider(resource=Resource({"service.name": "shop"}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("shop").start_as_current_span("sell", kind=SpanKind.PRODUCER) as span:
        headers: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(headers)
        publish(url, number, headers)
    provider.shutdown()
    return f"{span.get_span_context().trace_id:032x}"


def finish(run: Running, collector: Collector) -> list[Span]:
    """Stop the app, which sends the last spans, and return all of them."""
    assert run.terminate() == 0
    return collector.spans()


def seen(directory: Path) -> list[list[str]]:
    """Return what the handlers saw of the current span: number, trace id, span id, flags."""
    return [line.split() for line in read_lines(directory / "seen")]


def only(spans: list[Span], name: str) -> Span:
    """Return the only span of this name."""
    (span,) = [span for span in spans if span.name == name]
    return span


def of_trace(spans: list[Span], trace_id: str, name: str) -> list[Span]:
    """Return the spans of a trace with this name."""
    return [span for span in spans if span.trace_id == trace_id and span.name == name]


def archived(spans: list[Span]) -> list[Span]:
    """Return what the archive has settled by an ack."""
    return [span for span in spans if span.name == "ack traced.filed"]


def test_one_trace_goes_from_a_plain_publisher_through_three_actors(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Each handler run is below the publisher's span and linked to it, and all that it does is below it."""
    with Collector() as collector, traced(nats_server, tmp_path, collector) as run:
        trace_id = publish_traced(nats_server.url, 7, collector)
        collector.wait_for(archived, "the archive's ack")
        spans = finish(run, collector)
    assert {span.trace_id for span in spans} == {trace_id}
    by_id = {span.span_id: span for span in spans}
    tree = {span.name: by_id[span.parent_id].name if span.parent_id else "" for span in spans}
    assert tree == {
        "sell": "",
        "process traced.{region}.entered": "sell",
        "breaker bank": "process traced.{region}.entered",
        "GET /balance": "breaker bank",
        "publish traced.{region}.booked": "process traced.{region}.entered",
        "ack traced.{region}.entered": "process traced.{region}.entered",
        "process traced.{region}.booked": "publish traced.{region}.booked",
        "commit state": "process traced.{region}.booked",
        "publish traced.filed": "process traced.{region}.booked",
        "ack traced.{region}.booked": "process traced.{region}.booked",
        "process traced.filed": "publish traced.filed",
        "ack traced.filed": "process traced.filed",
    }
    assert len(spans) == len(tree)
    for span in spans:
        expected = [Link(trace_id, span.parent_id)] if span.name.startswith("process") else []
        assert span.links == expected
        assert span.status == "UNSET"
        assert span.ended_at >= span.started_at
    kinds = {span.name.split()[0]: span.kind for span in spans}
    assert kinds == {
        "sell": "PRODUCER",
        "process": "CONSUMER",
        "publish": "PRODUCER",
        "ack": "CLIENT",
        "commit": "CLIENT",
        "breaker": "INTERNAL",
        "GET": "INTERNAL",
    }
    # What the handlers saw, in the event loop and in a thread, and what was logged. Of the flags, one says
    # that the id is random.
    assert seen(tmp_path) == [
        ["7", trace_id, only(spans, "breaker bank").span_id, "3"],
        ["7", trace_id, only(spans, "process traced.filed").span_id, "3"],
    ]
    assert only(spans, "process traced.filed").attributes["app.number"] == 7
    (entry,) = run.events("asked")
    first = only(spans, "process traced.{region}.entered")
    assert (entry["trace_id"], entry["span_id"]) == (trace_id, first.span_id)


def test_spans_say_what_the_conventions_ask(nats_server: NatsServer, tmp_path: Path) -> None:
    """Messaging attributes, and a resource by the standard variables."""
    with (
        Collector() as collector,
        traced(
            nats_server,
            tmp_path,
            collector,
            OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test,service.version=3",
        ) as run,
    ):
        publish(nats_server.url, 1, {"Nats-Msg-Id": "one"})
        collector.wait_for(archived, "the archive's ack")
        port = int(nats_server.url.rsplit(":", 1)[1])
        spans = finish(run, collector)
    process = only(spans, "process traced.{region}.entered")
    assert process.attributes == {
        "messaging.system": "nats",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "traced.north.entered",
        "messaging.destination.template": "traced.{region}.entered",
        "messaging.consumer.group.name": "traced-desk",
        "messaging.message.id": "one",
        "server.address": "127.0.0.1",
        "server.port": port,
        "understudy.sequence": 1,
        "understudy.attempt": 1,
    }
    published = only(spans, "publish traced.{region}.booked").attributes
    message_id = published.pop("messaging.message.id")
    assert isinstance(message_id, str)
    assert message_id.endswith(".1.Booked.1")
    assert published == {
        "messaging.system": "nats",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "traced.north.booked",
        "messaging.destination.template": "traced.{region}.booked",
        "server.address": "127.0.0.1",
        "server.port": port,
    }
    assert only(spans, "ack traced.filed").attributes["messaging.operation.type"] == "settle"
    resource = process.resource
    assert resource["service.name"] == "traced"
    assert resource["service.version"] == "3"
    assert resource["deployment.environment.name"] == "test"
    assert (resource["understudy.cell"], resource["understudy.stream"]) == ("desk/0", "TRACED")
    instances = {str(span.resource["service.instance.id"]) for span in spans}
    assert len(instances) == 3


def test_a_retry_is_an_event_and_the_next_attempt_a_span_of_the_same_trace(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Both attempts are below the publisher's span."""
    with (
        Collector() as collector,
        traced(nats_server, tmp_path, collector, TRACED_FAILING="5", TRACED_REJECTED="6") as run,
    ):
        trace_id = publish_traced(nats_server.url, 5, collector)
        collector.wait_for(archived, "the archive's ack")
        rejected_id = publish_traced(nats_server.url, 6, collector)
        collector.wait_for(
            lambda spans: [span for span in spans if span.name == "term traced.filed"], "the dead letter"
        )
        spans = finish(run, collector)
    first, second = [
        span for span in spans if span.name == "process traced.filed" and span.trace_id == trace_id
    ]
    publisher = next(
        span for span in spans if span.name == "publish traced.filed" and span.trace_id == trace_id
    )
    assert first.parent_id == second.parent_id == publisher.span_id
    assert (first.attributes["understudy.attempt"], second.attributes["understudy.attempt"]) == (1, 2)
    assert (first.status, first.attributes["error.type"]) == ("ERROR", "ValueError")
    retry = first.event("understudy.retry")
    assert retry["understudy.error"] == "ValueError: the first attempt fails"
    assert (retry["understudy.attempt"], retry["understudy.max_attempts"]) == (1, 5)
    assert 0 <= float(retry["understudy.delay_seconds"]) <= 0.02
    assert "traceback" not in str(first.event("exception")["exception.type"])
    assert first.event("exception")["exception.message"] == "the first attempt fails"
    nak = next(span for span in spans if span.name == "nak traced.filed")
    assert (nak.parent_id, nak.trace_id) == (first.span_id, trace_id)
    assert second.status == "UNSET"
    (letter,) = of_trace(spans, rejected_id, "process traced.filed")
    assert letter.event("understudy.dead_letter")["understudy.reason"] == "rejected"
    assert letter.event("understudy.dead_letter")["understudy.error"] == "nobody wants it"
    assert letter.attributes["error.type"] == "understudy.actors.outcomes.Reject"
    term = next(span for span in spans if span.name == "term traced.filed")
    assert (term.parent_id, term.trace_id) == (letter.span_id, rejected_id)


def test_after_a_takeover_the_trace_goes_on(nats_server: NatsServer, tmp_path: Path) -> None:
    """The replacement's span is below the same publisher's; the dead cell's own was never sent."""
    with (
        Collector() as collector,
        traced(nats_server, tmp_path, collector, TRACED_WAITING="9") as run,
    ):
        trace_id = publish_traced(nats_server.url, 9, collector)
        until(lambda: len(seen(tmp_path)) == 2)
        collector.wait_for(
            lambda spans: [span for span in spans if span.name == "ack traced.{region}.booked"],
            "its publisher",
        )
        dead = run.cell("archive/0")["supervision"]["pid"]
        os.kill(dead, signal.SIGKILL)
        until(lambda: len(seen(tmp_path)) == 3)
        (tmp_path / "gate").touch()
        collector.wait_for(archived, "the archive's ack")
        spans = finish(run, collector)
    process = only(spans, "process traced.filed")
    assert process.trace_id == trace_id
    publisher = only(spans, "publish traced.filed")
    assert process.parent_id == publisher.span_id
    assert process.links == [Link(trace_id, publisher.span_id)]
    assert process.attributes["understudy.taken_over"] is True
    assert process.resource["understudy.cell.generation"] == 2
    before, after = seen(tmp_path)[1:]
    assert before[1] == after[1] == trace_id
    assert before[2] != after[2] == process.span_id


@pytest.mark.parametrize("spelled", ["traceparent", "Traceparent"])
def test_a_trace_begun_by_another_language_goes_through(
    nats_server: NatsServer, tmp_path: Path, spelled: str
) -> None:
    """With its state, a later version, flags that we don't know, and Go's spelling of the header."""
    headers = {spelled: f"cc-{TRACE}-{PARENT}-f1-later", "tracestate": "rojo=00f067,congo=t61rcWkgMzE"}
    with Collector() as collector, traced(nats_server, tmp_path, collector) as run:
        publish(nats_server.url, 3, headers)
        collector.wait_for(archived, "the archive's ack")
        spans = finish(run, collector)
    assert {span.trace_id for span in spans} == {TRACE}
    assert only(spans, "process traced.{region}.entered").parent_id == PARENT
    assert {span.state for span in spans} == {"rojo=00f067,congo=t61rcWkgMzE"}


def test_what_is_not_sampled_makes_no_span_and_goes_through(nats_server: NatsServer, tmp_path: Path) -> None:
    """Also to what a handler calls, which is told that the trace is not sampled."""
    with Collector() as collector, traced(nats_server, tmp_path, collector) as run:
        publish(nats_server.url, 1, {"traceparent": f"00-{OTHER}-{PARENT}-00", "tracestate": "a=b"})
        until(lambda: len(seen(tmp_path)) == 2)
        publish(nats_server.url, 2, {"traceparent": f"00-{TRACE}-{PARENT}-01"})
        collector.wait_for(archived, "the archive's ack")
        spans = finish(run, collector)
    assert {span.trace_id for span in spans} == {TRACE}
    assert seen(tmp_path)[:2] == [["1", OTHER, PARENT, "0"]] * 2
    assert [entry["trace_id"] for entry in run.events("asked")] == [OTHER, TRACE]


def test_with_links_each_handler_run_is_a_trace_of_its_own(nats_server: NatsServer, tmp_path: Path) -> None:
    """Only the link leads back to the publisher's; what it publishes is below it."""
    with (
        Collector() as collector,
        traced(nats_server, tmp_path, collector, UNDERSTUDY_TRACES__RELATION="link") as run,
    ):
        trace_id = publish_traced(nats_server.url, 7, collector)
        collector.wait_for(archived, "the archive's ack")
        spans = finish(run, collector)
    processes = [span for span in spans if span.name.startswith("process")]
    assert [span.parent_id for span in processes] == ["", "", ""]
    assert len({span.trace_id for span in processes} | {trace_id}) == 4
    publishers = ["sell", "publish traced.{region}.booked", "publish traced.filed"]
    for process, name in zip(processes, publishers, strict=True):
        publisher = only(spans, name)
        assert process.links == [Link(publisher.trace_id, publisher.span_id)]
    assert only(spans, "publish traced.filed").trace_id == processes[1].trace_id


def test_a_batch_is_linked_to_all_whose_trace_is_sampled(nats_server: NatsServer, tmp_path: Path) -> None:
    """What is published for one member stays in the member's trace."""
    with (
        Collector() as collector,
        traced(nats_server, tmp_path, collector, "batches", TRACED_FAILING="2") as run,
    ):
        for number, trace_id, flag in ((1, TRACE, 1), (2, OTHER, 1), (3, "7" * 32, 0)):
            publish(nats_server.url, number, {"traceparent": f"00-{trace_id}-{PARENT}-0{flag}"})
        collector.wait_for(
            lambda spans: [
                span for span in spans if span.attributes.get("messaging.batch.message_count") == 3
            ],
            "the batch",
        )
        spans = finish(run, collector)
    batch = next(span for span in spans if span.attributes.get("messaging.batch.message_count") == 3)
    assert (batch.name, batch.parent_id, batch.status) == ("process traced.{region}.entered", "", "UNSET")
    assert batch.links == [Link(TRACE, PARENT), Link(OTHER, PARENT)]
    retry = batch.event("understudy.retry")
    assert (retry["understudy.sequence"], retry["understudy.error"]) == (
        2,
        "ValueError: the first attempt fails",
    )
    published = [span for span in spans if span.name == "publish traced.filed"]
    first = next(span for span in published if span.trace_id == TRACE)
    assert (first.parent_id, first.links) == (PARENT, [Link(batch.trace_id, batch.span_id)])
    assert "7" * 32 not in {span.trace_id for span in spans}
    ack = next(span for span in spans if span.name.startswith("ack") and span.parent_id == batch.span_id)
    assert ack.attributes["messaging.batch.message_count"] == 2


def test_a_dead_collector_holds_nothing_up(nats_server: NatsServer, tmp_path: Path) -> None:
    """All is handled, and the drain waits for it only as long as it says."""
    with Collector() as collector:
        environment = collector.environment
    with traced(nats_server, tmp_path, Collector(), **environment) as run:
        for number in range(5):
            publish(nats_server.url, number)
        until(lambda: len(seen(tmp_path)) == 10)
        assert run.terminate(30) == 0
    assert run.events("drained")


def test_without_traces_nothing_of_opentelemetry_is_loaded(nats_server: NatsServer, tmp_path: Path) -> None:
    """A cell's process has none of what it needs to send spans."""
    encoder = "google/_upb"
    with running(nats_server.url, tmp_path) as run:
        pid = run.cell("recorder/0")["status"]["pid"]
        assert encoder not in Path(f"/proc/{pid}/maps").read_text()
    with Collector() as collector, traced(nats_server, tmp_path / "traced", collector) as run:
        pid = run.cell("desk/0")["status"]["pid"]
        assert encoder in Path(f"/proc/{pid}/maps").read_text()
