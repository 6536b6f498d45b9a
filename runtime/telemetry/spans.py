"""The spans of deliveries that are traced, after OpenTelemetry's messaging conventions."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from contextvars import Token
from typing import Self

from opentelemetry import context as context_api
from opentelemetry import trace as trace_api
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind

from understudy.runtime.telemetry import conventions as names
from understudy.runtime.telemetry.open_span import (
    OpenSpan,
    ask_attributes,
    publish_attributes,
    set_error,
    text_of,
    trace_context,
)
from understudy.runtime.telemetry.otel import OpenTelemetry, publisher_of
from understudy.runtime.telemetry.recorded import RecordedSpan
from understudy.runtime.telemetry.trace import TraceContext, header_values, replace_span

Attributes = Mapping[str, str | int | float | bool]
# What a settlement's span has in common with that of what is settled.
_SHARED = (
    names.SYSTEM,
    names.CONSUMER_GROUP,
    names.DESTINATION_NAME,
    names.DESTINATION_TEMPLATE,
    names.BATCH_COUNT,
)
# And that of what is published.
_OF_SERVER = (names.SERVER_ADDRESS, names.SERVER_PORT)


class CallSpan(OpenSpan):
    """The span of a guarded call, which is the current one until its end: a client's own are below it."""

    __slots__ = ("_token",)

    def __init__(self, recording: Span) -> None:
        super().__init__(recording)
        self._token: Token[Context] = context_api.attach(trace_api.set_span_in_context(recording))

    def end(self, error: BaseException | None = None) -> None:
        """End it, with what went wrong."""
        context_api.detach(self._token)
        super().end(error)


class AskSpan(OpenSpan):
    """The span of an ask within a handler, from the request to its answer."""

    __slots__ = ("_asker",)

    def __init__(self, recording: Span, asker: ProcessSpan) -> None:
        super().__init__(recording)
        self._asker = asker

    def publishing(self, subject: str, block: bytes) -> tuple[OpenSpan, bytes]:
        """Begin the span of the request, as `ProcessSpan.publishing` does of what is published."""
        return self._asker.publishing(subject, block, self.recording.get_span_context())


class ProcessSpan:
    """The span of one attempt at a delivery, or at a batch.

    Args:
        otel: makes the spans below it.
        recording: itself.
        attributes: what it has in common with those of settlements.
        server: what it has in common with those of what is published.
        trace: what is passed on of it.
        publishes_below: the parent of the spans of what is published; itself if None.
        links: what those are linked to.

    Attributes:
        recording: OpenTelemetry's span.
        trace: what is passed on of it.
        is_noted: whether something has happened that is to be known, even if the delivery isn't settled.
        has_failed: whether the handler has raised something.
        is_settling: whether the settlement has a span.
    """

    __slots__ = (
        *("_attributes", "_below", "_context", "_links", "_otel", "_server"),
        *("has_failed", "is_noted", "is_settling", "recording", "trace"),
    )

    def __init__(
        self,
        otel: OpenTelemetry,
        recording: RecordedSpan,
        attributes: Attributes,
        server: Attributes,
        trace: TraceContext,
        publishes_below: SpanContext | None = None,
        links: Sequence[Link] = (),
    ) -> None:
        self._otel = otel
        self._attributes = attributes
        self._server = server
        self.recording = recording
        self.trace = trace
        self._context = recording.get_span_context()
        self._below = self._context if publishes_below is None else publishes_below
        self._links = links
        self.is_noted = self.has_failed = False
        self.is_settling = False

    @property
    def trace_id(self) -> str:
        """The trace's id, 32 hexadecimal digits."""
        return self.trace.trace_id

    @property
    def span_id(self) -> str:
        """Its own id, 16 hexadecimal digits."""
        return self.trace.span_id

    @property
    def span(self) -> Self:
        """Itself: this can be the current trace."""
        return self

    def link(self) -> Link:
        """Return a link to it."""
        return Link(self._context)

    def note(self, event: str, **attributes: str | float) -> None:
        """Add an event; the span is ended whatever becomes of the delivery.

        Args:
            event: such as `retry`.
            attributes: by the last part of our names for them.
        """
        self.is_noted = True
        self.recording.note(
            f"understudy.{event}", {f"understudy.{name}": value for name, value in attributes.items()}
        )

    def failed(self, error: BaseException, *, traceback: bool) -> None:
        """Say what the handler has raised.

        Args:
            error: which.
            traceback: whether it is of interest where it came from.
        """
        self.is_noted = self.has_failed = True
        if traceback:
            # A user's __str__ may raise anything, and it is told all the same that the handler failed.
            with contextlib.suppress(Exception):
                self.recording.record_exception(error)
        set_error(self.recording, error)

    def set(self, name: str, value: str | int | bool) -> None:
        """Add an attribute, or change it."""
        self.recording.put(name, value)

    def asking(self, subject: str, template: str) -> AskSpan:
        """Begin the span of an ask below this one.

        Args:
            subject: where to.
            template: of the subject, empty if it has none.
        """
        attributes = ask_attributes(subject, template)
        attributes.update(self._server)
        name = f"ask {template}".rstrip()
        return AskSpan(self._otel.begin(name, SpanKind.CLIENT, attributes, parent=self._context), self)

    def publishing(
        self, subject: str, block: bytes, below: SpanContext | None = None
    ) -> tuple[OpenSpan, bytes]:
        """Begin the span of an event that is published below this one.

        Args:
            subject: where to.
            block: the event's headers.
            below: which span it is below, if not this one.

        Returns:
            The span, and the headers with it in their trace context.
        """
        template = self._otel.template(subject, block)
        message_id = b"".join(header_values(block, b"nats-msg-id")[:1]).decode(errors="replace")
        attributes = publish_attributes(subject, template, message_id)
        attributes.update(self._server)
        span = self._otel.begin(
            f"publish {template}".rstrip(),
            SpanKind.PRODUCER,
            attributes,
            parent=below or self._below,
            links=self._links,
        )
        return OpenSpan(span), replace_span(block, trace_context(span, ""))

    def publishes(self, event_type: type) -> None:
        """Note the template of an event's subjects, by which the span of its publishing is named."""
        self._otel.note_template(event_type)

    def settling(self, word: str) -> OpenSpan:
        """Begin the span of a settlement.

        Args:
            word: `ack`, `nak` or `term`.
        """
        self.is_settling = True
        attributes = {**self._attributes, names.OPERATION_NAME: word, names.OPERATION_TYPE: "settle"}
        template = self._attributes.get(names.DESTINATION_TEMPLATE, "")
        return OpenSpan(
            self._otel.begin(f"{word} {template}".rstrip(), SpanKind.CLIENT, attributes, parent=self._context)
        )

    def committing(self, others: Sequence[Link], count: int) -> OpenSpan:
        """Begin the span of a commit of the state.

        Args:
            others: to what else is committed by it.
            count: of how many deliveries.
        """
        return OpenSpan(
            self._otel.begin(
                "commit state",
                SpanKind.CLIENT,
                {"understudy.deliveries": count},
                parent=self._context,
                links=others,
            )
        )

    def calling(self, breaker: str) -> CallSpan:
        """Begin the span of a call that a circuit breaker guards, and make it the current one.

        Args:
            breaker: its name.
        """
        # Below the current one, which may be a user's own.
        current = trace_api.get_current_span().get_span_context()
        return CallSpan(
            self._otel.begin(
                f"breaker {breaker}",
                SpanKind.INTERNAL,
                {names.BREAKER: breaker},
                parent=current if current.is_valid else self._context,
            )
        )

    def end(self) -> None:
        """End it."""
        self.recording.end()


def begin_process(
    otel: OpenTelemetry,
    attributes: dict[str, str | int | float | bool],
    template: str,
    remotes: Sequence[TraceContext],
    *,
    is_child: bool,
    trace_id: str = "",
) -> ProcessSpan:
    """Begin the span of one attempt, which is linked to what published its messages.

    Args:
        otel: makes it.
        attributes: the span's, but for the operation and the template.
        template: of the subjects, empty if they have none.
        remotes: the publishers' spans.
        is_child: whether it is below the only one of them too.
        trace_id: of the trace that begins with it, if that isn't to be made up.
    """
    attributes |= {names.OPERATION_NAME: "process", names.OPERATION_TYPE: "process"}
    if template:
        attributes[names.DESTINATION_TEMPLATE] = template
    publishers = [publisher_of(remote) for remote in remotes]
    span = otel.begin(
        f"process {template}".rstrip(),
        SpanKind.CONSUMER,
        attributes,
        parent=publishers[0] if is_child else None,
        links=[Link(publisher) for publisher in publishers],
        trace_id=trace_id,
    )
    shared = {name: attributes[name] for name in _SHARED if name in attributes}
    server = {name: attributes[name] for name in _OF_SERVER if name in attributes}
    return ProcessSpan(
        otel, span, shared, server, trace_context(span, remotes[0].parent_id if is_child else "")
    )


class MemberSpan(ProcessSpan):
    """One member's part of a batch's span.

    Args:
        otel, batch: as of the batch's.
        attributes: name the member.
        publisher: under whose span those of what is published for it are; the batch's if None.
    """

    __slots__ = ("_member",)

    def __init__(
        self, otel: OpenTelemetry, batch: ProcessSpan, attributes: Attributes, publisher: TraceContext | None
    ) -> None:
        below = None if publisher is None else publisher_of(publisher)
        super().__init__(
            otel,
            batch.recording,
            batch._attributes,
            batch._server,
            batch.trace,
            below,
            (batch.link(),),
        )
        self._member = attributes

    def note(self, event: str, **attributes: str | float) -> None:
        """Add an event to the batch's span that names the member."""
        self.is_noted = True
        named = {f"understudy.{name}": value for name, value in attributes.items()}
        self.recording.note(f"understudy.{event}", {**self._member, **named})

    def failed(self, error: BaseException, *, traceback: bool) -> None:  # noqa: ARG002 - its base's
        """Say that the member has failed, which the batch has not."""
        self.has_failed = True
        self.note("failed", error=f"{type(error).__name__}: {text_of(error)}")

    def set(self, name: str, value: str | int | bool) -> None:
        """Leave it out: what is said of one member is in its events."""

    def settling(self, word: str) -> OpenSpan:
        """Begin the span of a settlement of the member alone."""
        settling = super().settling(word)
        settling.recording.set_attributes(self._member)
        settling.set_count(1)
        return settling
