"""A span that is recorded, made with as little as it takes.

The SDK's own costs several times as much, most of it for limits on what we never exceed; one delivery in a
hundred would pay for it with code that is in no cache. What a user adds goes by the SDK's rules.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from time import time_ns

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.util.types import Attributes, AttributeValue

from understudy.runtime.telemetry.logs import without_secrets

# As many as the SDK takes by default.
MAX_ATTRIBUTES = MAX_EVENTS = 128


class RecordedSpan(Span):
    """OpenTelemetry's span, of ours; it may be used in any thread.

    Args:
        name: the span's.
        context: its own.
        parent: its parent's, None if it has none.
        kind: as of OpenTelemetry.
        attributes: valid ones, from now on its own.
        links: what it is linked to.
        resource: whose it is.
        scope: who has made it.
        ended: hears of it at its end.
    """

    def __init__(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: dict[str, str | int | float | bool],
        links: Sequence[Link],
        resource: Resource,
        scope: InstrumentationScope,
        ended: Callable[[ReadableSpan], None],
    ) -> None:
        self._name = name
        self._context = context
        self._parent = parent
        self._kind = kind
        self._ours = attributes
        self._attributes: BoundedAttributes | None = None
        self._links = links
        self._resource = resource
        self._scope = scope
        self._ended: Callable[[ReadableSpan], None] | None = ended
        self._events: list[Event] = []
        self._status = _UNSET
        self._started_at = time_ns()

    def end(self, end_time: int | None = None) -> None:
        """End it; it changes no more."""
        ended, self._ended = self._ended, None
        if ended is None:
            return
        ended(
            ReadableSpan(
                name=self._name,
                context=self._context,
                parent=self._parent,
                resource=self._resource,
                attributes=self._ours if self._attributes is None else self._attributes,
                events=self._events,
                links=self._links,
                kind=self._kind,
                status=self._status,
                start_time=self._started_at,
                end_time=end_time or time_ns(),
                instrumentation_scope=self._scope,
            )
        )

    def get_span_context(self) -> SpanContext:
        """Return its ids and flags."""
        return self._context

    def note(self, name: str, attributes: dict[str, str | int | float | bool]) -> None:
        """Add an event of ours, whose attributes are valid."""
        self._events.append(Event(name, attributes))

    def put(self, name: str, value: str | float | bool) -> None:
        """Set an attribute of ours, whose value is valid."""
        if self._attributes is None:
            self._ours[name] = value
        else:
            self._attributes[name] = value

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Set a user's attributes."""
        for name, value in attributes.items():
            self.set_attribute(name, value)

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Set a user's attribute, if its value is a valid one."""
        if self._ended is None:
            return
        if self._attributes is None:
            self._attributes = BoundedAttributes(MAX_ATTRIBUTES, self._ours, immutable=False)
        self._attributes[key] = value

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """Add a user's event, unless there are many."""
        if self._ended is not None and len(self._events) < MAX_EVENTS:
            self._events.append(Event(name, BoundedAttributes(MAX_ATTRIBUTES, attributes), timestamp))

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        """Link it to another span."""
        if self._ended is not None and len(self._links) < MAX_EVENTS:
            self._links = [*self._links, Link(context, BoundedAttributes(MAX_ATTRIBUTES, attributes))]

    def update_name(self, name: str) -> None:
        """Change its name."""
        self._name = name

    def is_recording(self) -> bool:
        """Whether it isn't at its end."""
        return self._ended is not None

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Say whether it went well; what was said to be well stays so."""
        if not isinstance(status, Status):
            status = Status(status, description)
        if status.status_code is not StatusCode.UNSET and self._status.status_code is not StatusCode.OK:
            self._status = status

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Add an exception as an event, with where it came from, and without secrets."""
        kind = type(exception)
        described: dict[str, AttributeValue] = {
            "exception.type": kind.__qualname__
            if kind.__module__ == "builtins"
            else f"{kind.__module__}.{kind.__qualname__}",
            "exception.message": without_secrets(str(exception)),
            "exception.stacktrace": without_secrets("".join(traceback.format_exception(exception))),
            "exception.escaped": str(escaped),
        }
        self.add_event("exception", {**described, **(attributes or {})}, timestamp)


_UNSET = Status(StatusCode.UNSET)
