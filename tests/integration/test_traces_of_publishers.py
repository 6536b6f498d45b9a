"""Traces that begin in programs that are no actors."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import nats
import pytest
from nats.js.api import StreamConfig

from support.nats import NatsServer
from support.otlp import Collector
from support.traced_publisher import GIVEN

TESTS = Path(__file__).parents[1]


def make_stream(url: str) -> None:
    """Make the stream that all is published to."""

    async def make() -> None:
        client = await nats.connect(url)
        await client.jetstream().add_stream(StreamConfig("TRACED", subjects=["traced.>"]))
        await client.close()

    asyncio.run(make())


def stored(url: str) -> dict[str, dict[str, str]]:
    """Return the headers of each message by its id."""

    async def read() -> dict[str, dict[str, str]]:
        client = await nats.connect(url)
        context = client.jetstream()
        count = (await context.stream_info("TRACED")).state.messages
        messages = [await context.get_msg("TRACED", sequence) for sequence in range(1, count + 1)]
        await client.close()
        return {(message.headers or {})["Nats-Msg-Id"]: message.headers or {} for message in messages}

    return asyncio.run(read())


def run(*command: str, **environment: str) -> str:
    """Run a program, and return what it prints."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS), **environment},
    ).stdout.strip()


def test_a_publisher_s_events_carry_the_current_trace_on(nats_server: NatsServer) -> None:
    """Each with a span of its own below the current one, but for a context that was given."""
    make_stream(nats_server.url)
    with Collector() as collector:
        endpoint = collector.environment["OTEL_EXPORTER_OTLP_ENDPOINT"]
        trace_id = run("support.traced_publisher", nats_server.url, endpoint, "1")
        spans = {str(span.attributes.get("messaging.message.id")): span for span in collector.spans()}
    messages = stored(nats_server.url)
    assert set(spans) == {"None", "one", "two", "three"}
    names = {number: spans[number].name for number in ("one", "two", "three")}
    template = "publish traced.{region}.entered"
    assert names == {"one": template, "two": template, "three": "publish"}
    for number in names:
        span = spans[number]
        assert (span.trace_id, span.parent_id, span.kind) == (trace_id, spans["None"].span_id, "PRODUCER")
        assert messages[number]["traceparent"][:53] == f"00-{trace_id}-{span.span_id}-"
        assert int(messages[number]["traceparent"][-2:], 16) & 1
    assert messages["four"]["Traceparent"] == GIVEN
    assert "traceparent" not in messages["four"]


def test_a_trace_that_is_not_sampled_is_carried_on_without_a_span(nats_server: NatsServer) -> None:
    """Under the id of the span that is current, though nobody records it."""
    make_stream(nats_server.url)
    with Collector() as collector:
        endpoint = collector.environment["OTEL_EXPORTER_OTLP_ENDPOINT"]
        trace_id = run("support.traced_publisher", nats_server.url, endpoint, "0")
        assert collector.spans() == []
    messages = stored(nats_server.url)
    for number in ("one", "two", "three"):
        assert messages[number]["traceparent"].startswith(f"00-{trace_id}-")
        assert not int(messages[number]["traceparent"][-2:], 16) & 1


def test_without_opentelemetry_a_publisher_says_nothing_of_traces(nats_server: NatsServer) -> None:
    """What it publishes begins a trace where it is handled."""
    make_stream(nats_server.url)
    run("support.traced_publisher", nats_server.url, "", "-")
    headers = stored(nats_server.url)
    assert not any("traceparent" in headers[number] for number in ("one", "two", "three"))


@pytest.mark.parametrize("asked", [True, False])
def test_the_command_that_publishes_is_traced_if_that_is_asked_for(
    nats_server: NatsServer, tmp_path: Path, *, asked: bool
) -> None:
    """One span an event, under a service's name of its own."""
    make_stream(nats_server.url)
    bodies = tmp_path / "bodies"
    bodies.write_text('{"number": 1}\n{"number": 2}\n')
    command = ("publish", "traced.raw", "--file", str(bodies), "--servers", nats_server.url)
    with Collector() as collector:
        environment = collector.environment if asked else {}
        assert run("understudy.runtime", *command, **environment) == "2 published"
        spans = collector.spans()
    traces = {headers.get("traceparent", "")[:53] for headers in stored(nats_server.url).values()}
    if not asked:
        assert (spans, traces) == ([], {""})
        return
    assert traces == {f"00-{span.trace_id}-{span.span_id}-" for span in spans}
    assert [(span.name, span.parent_id) for span in spans] == [("publish", ""), ("publish", "")]
    assert {span.resource["service.name"] for span in spans} == {"understudy-publish"}
    assert {span.attributes["messaging.destination.name"] for span in spans} == {"traced.raw"}
