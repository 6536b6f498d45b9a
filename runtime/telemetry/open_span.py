"""What needs only OpenTelemetry's API: a span that is open, and the span of an event that is published.

A program that publishes may have the API alone, or a provider of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from opentelemetry import trace as trace_api
from opentelemetry.trace import Span, SpanContext, SpanKind, StatusCode

from understudy.runtime.telemetry import conventions as names
from understudy.runtime.telemetry.logs import without_secrets
from understudy.runtime.telemetry.trace import TraceContext

SCOPE = "understudy"
MAX_TEXT = 500
# Finds the provider when there is one, be it set later.
_tracer = trace_api.get_tracer(SCOPE)


class OpenSpan:
    """A span that isn't at its end; as a context manager it ends with its block."""

    __slots__ = ("recording",)

    def __init__(self, recording: Span) -> None:
        self.recording = recording

    def end(self, error: BaseException | None = None) -> None:
        """End it, with what went wrong."""
        if error is not None:
            set_error(self.recording, error)
        self.recording.end()

    def answered(self, future: asyncio.Future[Any]) -> None:
        """End it with an operation that is done."""
        self.end(None if future.cancelled() else future.exception())

    def set_count(self, count: int) -> None:
        """Say of how many messages it is."""
        self.recording.set_attribute(names.BATCH_COUNT, count)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end(error)


def begin_publishing(
    subject: str, template: str, message_id: str
) -> tuple[OpenSpan | None, TraceContext | None]:
    """Begin the span of an event that a program publishes, below its current one.

    Args:
        subject: where to.
        template: of the subject, empty if it has none.
        message_id: the event's.

    Returns:
        The span, None if none is recorded; and what the event is to say of its trace, None if there is none.
    """
    current = trace_api.get_current_span().get_span_context()
    if current.is_valid and not current.trace_flags.sampled:
        return None, _passed_on(current)
    span = _tracer.start_span(
        f"publish {template}".rstrip(),
        kind=SpanKind.PRODUCER,
        attributes=publish_attributes(subject, template, message_id),
    )
    context = span.get_span_context()
    if not context.is_valid:
        return None, None
    return OpenSpan(span) if span.is_recording() else None, _passed_on(context)


@contextmanager
def asking(subject: str, template: str) -> Iterator[None]:
    """Make a span of an ask the current one of a program, below the one that is.

    Args:
        subject: where to.
        template: of the subject, empty if it has none.
    """
    current = trace_api.get_current_span().get_span_context()
    if current.is_valid and not current.trace_flags.sampled:
        yield
        return
    with _tracer.start_as_current_span(
        f"ask {template}".rstrip(),
        kind=SpanKind.CLIENT,
        attributes=ask_attributes(subject, template),
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield
        except BaseException as error:
            set_error(span, error)
            raise


def trace_context(span: Span, parent_id: str) -> TraceContext:
    """Return what is passed on of a span.

    Args:
        span: it is recorded.
        parent_id: of the span that published the event.
    """
    return _passed_on(span.get_span_context(), parent_id)


def publish_attributes(subject: str, template: str, message_id: str) -> dict[str, str | int | float | bool]:
    """Return the attributes of the span of an event that is published.

    Args:
        subject: where to.
        template: of the subject, empty if it has none.
        message_id: the event's, empty if it has none.
    """
    attributes: dict[str, str | int | float | bool] = {
        names.SYSTEM: names.NATS,
        names.OPERATION_NAME: "publish",
        names.OPERATION_TYPE: "send",
        names.DESTINATION_NAME: subject,
    }
    if template:
        attributes[names.DESTINATION_TEMPLATE] = template
    if message_id:
        attributes[names.MESSAGE_ID] = message_id
    return attributes


def ask_attributes(subject: str, template: str) -> dict[str, str | int | float | bool]:
    """Return the attributes of the span of an ask, from the request to its answer.

    Args:
        subject: where to.
        template: of the subject, empty if it has none.
    """
    attributes = publish_attributes(subject, template, "")
    attributes[names.OPERATION_NAME] = "ask"
    # Of an exchange the conventions have none.
    del attributes[names.OPERATION_TYPE]
    return attributes


def set_error(span: Span, error: BaseException) -> None:
    """Mark a span as failed."""
    kind = type(error)
    span.set_attribute(
        names.ERROR_TYPE,
        kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}",
    )
    span.set_status(StatusCode.ERROR, text_of(error))


def text_of(error: BaseException) -> str:
    """Return an error's text without secrets, shortened, whatever its `__str__` does."""
    try:
        return without_secrets(str(error))[:MAX_TEXT]
    except Exception:  # noqa: BLE001, a user's __str__ may raise anything
        return ""


def _passed_on(context: SpanContext, parent_id: str = "") -> TraceContext:
    return TraceContext(
        f"{context.trace_id:032x}",
        f"{context.span_id:016x}",
        int(context.trace_flags),
        context.trace_state.to_header(),
        parent_id,
        is_recorded=True,
    )
