"""An OTLP collector in a thread: it decodes what is posted, and answers what the test wants to know of it."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import msgspec
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from support.tree import wait_until

TIMEOUT_SECONDS = 40.0
Value = str | int | float | bool


class Link(msgspec.Struct, frozen=True):
    """A span that another is linked to."""

    trace_id: str
    span_id: str


class Event(msgspec.Struct, frozen=True):
    """What happened within a span."""

    name: str
    attributes: dict[str, Value]


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A span as the collector has it; `kind` and `status` are the names that OTLP has for them."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    status: str
    message: str
    state: str
    started_at: int
    ended_at: int
    attributes: dict[str, Value]
    events: list[Event]
    links: list[Link]
    resource: dict[str, Value]
    scope: str

    def event(self, name: str) -> dict[str, Value]:
        """Return the attributes of its only event of this name."""
        (event,) = [event for event in self.events if event.name == name]
        return event.attributes


class Collector:
    """Receives spans on a port of its own until the end of the `with` block."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._lock = threading.Lock()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                """Take one export."""
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                collector._take(ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its base's name
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def environment(self) -> dict[str, str]:
        """The standard variables with which spans come here, and soon."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }

    def spans(self, name: str = "", trace_id: str = "") -> list[Span]:
        """Return what has come, in the order of the spans' beginnings.

        Args:
            name: of these only; of all if empty.
            trace_id: of this trace only; of all if empty.
        """
        with self._lock:
            found = [
                span
                for span in self._spans
                if (not name or span.name == name) and (not trace_id or span.trace_id == trace_id)
            ]
        return sorted(found, key=lambda span: span.started_at)

    def wait_for(self, condition: Callable[[list[Span]], object], what: str) -> list[Span]:
        """Return all spans as soon as the condition holds for them."""
        wait_until(lambda: condition(self.spans()), TIMEOUT_SECONDS, what)
        return self.spans()

    def _take(self, request: ExportTraceServiceRequest) -> None:
        with self._lock:
            for group in request.resource_spans:
                resource = _values(group.resource.attributes)
                for scoped in group.scope_spans:
                    self._spans += [_span(span, resource, scoped.scope.name) for span in scoped.spans]


def _span(span: trace_pb2.Span, resource: dict[str, Value], scope: str) -> Span:
    return Span(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        name=span.name,
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        status=trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        message=span.status.message,
        state=span.trace_state,
        started_at=span.start_time_unix_nano,
        ended_at=span.end_time_unix_nano,
        attributes=_values(span.attributes),
        events=[Event(event.name, _values(event.attributes)) for event in span.events],
        links=[Link(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        resource=resource,
        scope=scope,
    )


def _values(attributes: Any) -> dict[str, Value]:
    pairs: list[KeyValue] = list(attributes)
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Value:
    kind = value.WhichOneof("value")
    assert kind in {"string_value", "int_value", "double_value", "bool_value"}
    found: Value = getattr(value, kind)
    return found
