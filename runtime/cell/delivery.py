"""A delivery while a cell holds it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from datetime import UTC, datetime
from typing import Any

from understudy.actors.errors import DecodeError
from understudy.actors.handlers import HandlerSpec
from understudy.runtime.stores.attempts import Attempts
from understudy.runtime.telemetry.trace import TraceContext, parse_traceparent

_NO_HEADERS: Mapping[str, str] = {}


class HeldDelivery:
    """What the server handed over, where it stands in the ledger, and what is known of it.

    It is also what a handler sees as `ctx.delivery`. What costs something is made when it is asked for.
    """

    __slots__ = (
        "_trace",
        "attempts",
        "body",
        "decode_error",
        "delivery_count",
        "event",
        "extended_at",
        "handler",
        "headers",
        "key",
        "reply",
        "sequence",
        "slot",
        "stream",
        "subject",
        "timestamp",
    )

    def __init__(
        self,
        *,
        stream: str,
        subject: str,
        reply: str,
        body: bytes,
        headers: Mapping[str, str] | None,
        sequence: int,
        delivery_count: int,
        timestamp: int,
        slot: int,
        extended_at: float,
    ) -> None:
        self.stream = stream
        self.subject = subject
        self.reply = reply
        self.body = body
        self.headers = headers or _NO_HEADERS
        self.sequence = sequence
        self.delivery_count = delivery_count
        self.timestamp = timestamp
        self.slot = slot
        self.extended_at = extended_at
        self.attempts: Attempts | None = None
        self.handler: HandlerSpec | None = None
        self.key: Hashable = None
        self.event: Any = None
        self.decode_error: DecodeError | None = None
        self._trace: TraceContext | None = None

    @property
    def size(self) -> int:
        """Bytes of the body, which count against the mailbox's bound."""
        return len(self.body)

    @property
    def attempt(self) -> int:
        """Which run of the handler this is, from 1."""
        return 1 if self.attempts is None else self.attempts.failed + 1

    @property
    def published_at(self) -> datetime:
        """When the stream stored the event."""
        return datetime.fromtimestamp(self.timestamp / 1_000_000_000, UTC)

    @property
    def trace(self) -> TraceContext:
        """The trace that the publisher began, or the event's own, with a span of this delivery's."""
        if self._trace is None:
            cause = f"{self.stream} {self.sequence} {self.timestamp}"
            self._trace = parse_traceparent(self.headers.get("traceparent"), cause=cause)
        return self._trace

    @property
    def trace_id(self) -> str:
        """The trace's id, 32 hexadecimal digits."""
        return self.trace.trace_id

    @property
    def span_id(self) -> str:
        """This delivery's span id, 16 hexadecimal digits."""
        return self.trace.span_id
