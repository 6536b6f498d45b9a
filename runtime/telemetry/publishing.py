"""The trace context of what is published by a program that is no actor, or past its actor's own outputs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from understudy.runtime.telemetry.trace import TraceContext, current_trace
from understudy.runtime.telemetry.tracing import asked_for, load_export

if TYPE_CHECKING:
    from understudy.runtime.telemetry.open_span import OpenSpan

# How long a command waits at its end for its spans to be sent.
FLUSH_SECONDS = 2.0


@contextmanager
def tracing_command(name: str) -> Iterator[None]:
    """Trace what a command publishes, if the environment asks for traces.

    Args:
        name: of the service, if the environment has none.

    Raises:
        ConfigurationError: it asks for something that we don't know, or that isn't installed.
    """
    load_export(os.environ)
    export = asked_for(os.environ)
    if export is None:
        yield
        return
    from understudy.runtime.telemetry.otel import OpenTelemetry

    otel = OpenTelemetry(export, service=name, instance=f"{name}/{os.getpid()}", attributes={})
    try:
        yield
    finally:
        otel.shut_down(FLUSH_SECONDS)


def begin_ask(subject: str, template: str) -> AbstractContextManager[None]:
    """Return the span of an ask, as a block until its answer, if the program has OpenTelemetry and traces it.

    Args:
        subject: where to.
        template: of the subject, empty if it has none.
    """
    if "opentelemetry.trace" in sys.modules:
        from understudy.runtime.telemetry import open_span

        return open_span.asking(subject, template)
    return nullcontext()


def begin_publish(
    subject: str, template: str, message_id: str
) -> tuple[OpenSpan | None, TraceContext | None]:
    """Begin the span of an event that is published, if the program has OpenTelemetry loaded and traces it.

    Args:
        subject: where to.
        template: of the subject, empty if it has none.
        message_id: the event's.

    Returns:
        The span, None if none is recorded; and what the event is to say of its trace, None if there is none.
    """
    if "opentelemetry.trace" in sys.modules:
        from understudy.runtime.telemetry.open_span import begin_publishing

        return begin_publishing(subject, template, message_id)
    trace = getattr(current_trace.get(), "trace", None)
    return None, trace if isinstance(trace, TraceContext) else None
