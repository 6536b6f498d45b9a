"""OpenTelemetry in this process: where spans go, whose they are, and which one is current in a handler."""

from __future__ import annotations

import importlib
import os
import platform
import random
import sys
import threading
import uuid
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from opentelemetry import context as context_api
from opentelemetry import trace as trace_api
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SynchronousMultiSpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SimpleSpanProcessor,
    SpanExporter,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags, TraceState

from understudy.actors.event import EventSpec
from understudy.runtime.telemetry.conventions import SERVICE_INSTANCE, SERVICE_NAME
from understudy.runtime.telemetry.open_span import SCOPE
from understudy.runtime.telemetry.recorded import RecordedSpan
from understudy.runtime.telemetry.trace import TraceContext, current_trace, header_values
from understudy.runtime.telemetry.tracing import MODULES, Export, Protocol

(_SPAN_KEY,) = trace_api.set_span_in_context(trace_api.INVALID_SPAN, Context())
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class OpenTelemetry:
    """Makes spans and sends them, from a thread of its own; made after the fork, once in a process.

    Args:
        export: where to.
        service: names the service where OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES don't.
        instance: what tells this process from all others.
        attributes: what else is said of it.
    """

    def __init__(
        self, export: Export, *, service: str, instance: str, attributes: Mapping[str, str | int]
    ) -> None:
        self._processors: SynchronousMultiSpanProcessor = SynchronousMultiSpanProcessor()  # type: ignore[no-untyped-call]
        if export.otlp:
            self._processors.add_span_processor(BatchSpanProcessor(_otlp_exporter(export.protocol)))
        if export.console:
            self._processors.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=sys.stderr)))
        self._resource = resource = _resource(service, instance, attributes)
        self._scope = InstrumentationScope(SCOPE, version=metadata.version("understudy"))
        # By the event's name on the wire.
        self._templates: dict[bytes, str] = {}
        if isinstance(trace_api.get_tracer_provider(), trace_api.ProxyTracerProvider):
            # For the user's own spans, and for libraries; whoever has set one before keeps it.
            trace_api.set_tracer_provider(
                TracerProvider(
                    resource=resource, active_span_processor=self._processors, shutdown_on_exit=False
                )
            )

    def begin(
        self,
        name: str,
        kind: SpanKind,
        attributes: dict[str, str | int | float | bool],
        *,
        parent: SpanContext | None,
        links: Sequence[Link] = (),
        trace_id: str = "",
    ) -> RecordedSpan:
        """Begin a span, which is recorded: that it is to be is decided before.

        Args:
            name: the span's.
            kind: as of OpenTelemetry.
            attributes: valid ones, from now on the span's own.
            parent: below which it is, None if it begins a trace.
            links: what it is linked to.
            trace_id: of a span without parent, if it isn't to be made up.
        """
        if parent is not None:
            context = SpanContext(
                parent.trace_id,
                _make_id(64),
                is_remote=False,
                trace_flags=TraceFlags(parent.trace_flags | TraceFlags.SAMPLED),
                trace_state=parent.trace_state,
            )
        else:
            begun = int(trace_id, 16) if trace_id else _make_id(128)
            context = SpanContext(begun, _make_id(64), is_remote=False, trace_flags=_SAMPLED)
        return RecordedSpan(
            name,
            context,
            parent,
            kind,
            attributes,
            links,
            self._resource,
            self._scope,
            self._processors.on_end,
        )

    def note_template(self, event_type: type) -> None:
        """Note the template of the subjects to which events of a type are published."""
        spec = getattr(event_type, "__understudy__", None)
        if isinstance(spec, EventSpec):
            self._templates[spec.name.encode()] = spec.subject

    def template(self, subject: str, block: bytes) -> str:
        """Return the template of an event's subject, empty if none is known that it fits.

        Args:
            subject: where it is published.
            block: its headers.
        """
        for name in header_values(block, b"ce-type")[:1]:
            template = self._templates.get(name, "")
            if template == subject or _fits(template.split("."), subject.split(".")):
                return template
        return ""

    def shut_down(self, timeout_seconds: float) -> None:
        """Send what is left, and return when that is done or the time is over.

        Args:
            timeout_seconds: how long a collector that doesn't answer is waited for.
        """
        # Its own timeout is half a minute, and isn't ours to set.
        thread = threading.Thread(target=self._processors.shutdown, name="otel-shutdown", daemon=True)
        thread.start()
        thread.join(timeout_seconds)


class _KnownResource(Resource):
    """A resource that is hashed once: its own hash is of a JSON text, and the exporter asks for each span."""

    def __init__(self, resource: Resource) -> None:
        super().__init__(resource.attributes, resource.schema_url)
        self._hash = super().__hash__()

    def __hash__(self) -> int:
        return self._hash


class CurrentSpan(Context):
    """An OpenTelemetry context whose current span is that of the delivery which the current task handles.

    It is made current once, before the handlers' tasks are made, and looks for the span when it is asked: so
    it costs a delivery nothing, be it traced or not.
    """

    def get(self, key: str, default: Any = None) -> Any:
        """Return the span, or what else is asked for."""
        if key == _SPAN_KEY:
            return _current() or default
        return default

    def __getitem__(self, key: str) -> object:
        """Return what `get` does."""
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __contains__(self, key: object) -> bool:
        """Return whether `get` has it."""
        return isinstance(key, str) and self.get(key) is not None

    def copy(self) -> dict[str, object]:
        """Return what it holds now; contexts are made from each other by this."""
        span = _current()
        return {} if span is None else {_SPAN_KEY: span}


def follow_deliveries() -> None:
    """Make the current delivery's span OpenTelemetry's current one, in this task and those that it makes."""
    context_api.attach(CurrentSpan())


def publisher_of(trace: TraceContext) -> SpanContext:
    """Return the span that published an event.

    Args:
        trace: read from the event's headers.
    """
    return _remote(trace, trace.parent_id)


def _current() -> Span | None:
    current = current_trace.get()
    if current is None:
        return None
    span = getattr(current, "span", None)
    if span is not None:
        recording: Span = span.recording
        return recording
    trace = getattr(current, "trace", None)
    # A client's spans below it are neither roots nor recorded, and its requests carry the trace on.
    if not isinstance(trace, TraceContext):
        return None
    return NonRecordingSpan(_remote(trace, trace.traceparent[36:52]))


def _remote(trace: TraceContext, span_id: str) -> SpanContext:
    return SpanContext(
        int(trace.trace_id, 16),
        int(span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(trace.flags),
        trace_state=TraceState.from_header([trace.state]) if trace.state else None,
    )


def _make_id(bits: int) -> int:
    # Python seeds it anew in a forked process. Zero means "none".
    while not (made := random.getrandbits(bits)):
        pass
    return made


def _otlp_exporter(protocol: Protocol) -> SpanExporter:
    # By name, since one of the two may not be installed.
    exporter: SpanExporter = importlib.import_module(MODULES[protocol]).OTLPSpanExporter()
    return exporter


def _resource(service: str, instance: str, attributes: Mapping[str, str | int]) -> Resource:
    ours = Resource(
        {
            SERVICE_NAME: service,
            # A UUID, as the conventions ask; the same instance always has the same.
            SERVICE_INSTANCE: str(uuid.uuid5(uuid.NAMESPACE_URL, f"{platform.node()}/{instance}")),
            "host.name": platform.node(),
            "process.pid": os.getpid(),
            **attributes,
        }
    )
    # What the environment says goes before; a name that nobody has given doesn't.
    theirs = Resource.create({})
    said = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    if not said:
        theirs = Resource(
            {name: value for name, value in theirs.attributes.items() if name != SERVICE_NAME},
            theirs.schema_url,
        )
    return _KnownResource(ours.merge(theirs))


def _fits(template: list[str], subject: list[str]) -> bool:
    return len(template) == len(subject) and all(
        wanted == token or wanted.startswith("{") for wanted, token in zip(template, subject, strict=True)
    )
