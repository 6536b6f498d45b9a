"""Spans that are recorded, as an exporter sees them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry import context as context_api
from opentelemetry import trace as trace_api
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from understudy.runtime.telemetry.open_span import set_error
from understudy.runtime.telemetry.otel import CurrentSpan, follow_deliveries
from understudy.runtime.telemetry.recorded import MAX_ATTRIBUTES, MAX_EVENTS, RecordedSpan
from understudy.runtime.telemetry.trace import TraceContext, current_trace

CONTEXT = SpanContext(7, 8, is_remote=False, trace_flags=TraceFlags(1))


@pytest.fixture
def ended() -> list[ReadableSpan]:
    """What has come to its end."""
    return []


@pytest.fixture
def span(ended: list[ReadableSpan]) -> RecordedSpan:
    """A span of ours."""
    attributes: dict[str, str | int | float | bool] = {"ours": 1}
    resource, scope = Resource({"service.name": "shop"}), InstrumentationScope("understudy")
    return RecordedSpan(
        "process", CONTEXT, None, SpanKind.CONSUMER, attributes, (), resource, scope, ended.append
    )


def test_a_span_is_heard_of_once_and_changes_no_more(span: RecordedSpan, ended: list[ReadableSpan]) -> None:
    """Whoever still has it may say what he likes."""
    assert span.is_recording()
    span.end()
    span.end()
    span.set_attribute("late", 1)
    span.add_event("late")
    span.add_link(CONTEXT)
    assert not span.is_recording()
    (read,) = ended
    assert read.attributes == {"ours": 1}
    assert (read.events, read.links) == ((), ())
    assert read.end_time is not None
    assert read.start_time is not None
    assert read.end_time >= read.start_time


def test_what_a_user_adds_is_bounded_and_has_to_be_valid(
    span: RecordedSpan, ended: list[ReadableSpan]
) -> None:
    """Else one handler's mistake would keep the spans of others from being encoded."""
    span.set_attributes({f"many-{number}": number for number in range(200)})
    span.set_attribute("wrong", object())  # type: ignore[arg-type]
    span.put("last", "ours still")
    for number in range(200):
        span.add_event("again", {"number": number})
        span.add_link(CONTEXT, {"number": number})
    span.update_name("renamed")
    span.end()
    (read,) = ended
    assert read.name == "renamed"
    assert read.attributes is not None
    assert len(read.attributes) == MAX_ATTRIBUTES
    assert read.attributes["last"] == "ours still"
    assert len(read.events) == len(read.links) == MAX_EVENTS
    assert read.events[0].attributes == {"number": 0}
    (group,) = encode_spans(ended).resource_spans
    assert group.scope_spans[0].spans[0].span_id.hex() == "0000000000000008"


def test_a_status_that_says_well_stays(span: RecordedSpan, ended: list[ReadableSpan]) -> None:
    """As OpenTelemetry has it; to unset it says nothing."""
    span.set_status(StatusCode.ERROR, "first")
    span.set_status(StatusCode.UNSET)
    span.set_status(Status(StatusCode.OK))
    span.set_status(StatusCode.ERROR, "last")
    span.end()
    assert ended[0].status.status_code is StatusCode.OK


def test_an_exception_says_where_it_came_from(span: RecordedSpan, ended: list[ReadableSpan]) -> None:
    """By the names of the conventions, and without the secrets of its text."""
    try:
        raise LookupError("no such order, password=hunter2")
    except LookupError as error:
        span.record_exception(error, {"order": 7})
        set_error(span, error)
    span.end()
    (event,) = ended[0].events
    assert event.attributes is not None
    assert event.attributes["exception.type"] == "LookupError"
    message = str(event.attributes["exception.message"])
    assert message.startswith("no such order, password=")
    assert ended[0].status.description == message
    assert "hunter2" not in f"{event.attributes} {message}"
    assert "test_trace_spans.py" in str(event.attributes["exception.stacktrace"])
    assert event.attributes["order"] == 7


class Delivery:
    """As much of one as the current trace is asked for."""

    def __init__(self, trace: TraceContext) -> None:
        self.trace = trace
        self.trace_id, self.span_id = trace.trace_id, trace.span_id


@pytest.fixture
def _followed() -> Iterator[None]:
    token = context_api.attach(CurrentSpan())
    yield
    context_api.detach(token)


@pytest.mark.usefixtures("_followed")
def test_the_current_span_is_the_delivery_s_when_it_is_asked_for() -> None:
    """Of one that isn't sampled, the publisher's; and what is made current within a handler goes before."""
    follow_deliveries()
    assert not trace_api.get_current_span().get_span_context().is_valid
    trace = TraceContext("1" * 32, "2" * 16, 0, "a=b", parent_id="3" * 16)
    token = current_trace.set(Delivery(trace))
    current = trace_api.get_current_span().get_span_context()
    assert (f"{current.trace_id:032x}", f"{current.span_id:016x}") == ("1" * 32, "3" * 16)
    assert (current.trace_flags, current.trace_state.to_header()) == (0, "a=b")
    inner = trace_api.NonRecordingSpan(CONTEXT)
    with trace_api.use_span(inner):
        assert trace_api.get_current_span() is inner
    own = context_api.set_value("own", 1)
    assert own["own"] == 1
    assert trace_api.get_current_span(own).get_span_context() == current
    current_trace.reset(token)
