"""A delivery while a cell holds it."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from understudy.actors.codec import MSGPACK
from understudy.actors.errors import DecodeError
from understudy.actors.handlers import HandlerSpec
from understudy.runtime.cell.outcomes import Again
from understudy.runtime.jetstream import asked, headers
from understudy.runtime.jetstream.event_id import event_id
from understudy.runtime.jetstream.settlement import parse_ack_subject
from understudy.runtime.stores.attempts import Attempts
from understudy.runtime.telemetry.trace import TraceContext, begin_trace, read_trace

if TYPE_CHECKING:
    from understudy.runtime.telemetry.spans import ProcessSpan

_MSGPACK_LINE = f"\r\nContent-Type: {MSGPACK}\r\n".encode()
_UNTRACED = nullcontext()


class DeliveryMark(msgspec.Struct, eq=False):
    """The mark of a delivery's event.

    Args:
        key: the event's.
        name: the mark's.
        answer: of the latest look-up, None if there was none.
        asked_at: when that was, by the event loop's clock.
        again: when the mark is to be tried again; None if it is made, or nobody has tried.
    """

    key: str
    name: str
    answer: asyncio.Future[bytes] | None = None
    asked_at: float = 0.0
    again: Again | None = None


class HeldDelivery(msgspec.Struct, eq=False):
    """What the server handed over, where it stands in the ledger, and what is known of it.

    It is also what a handler sees as `ctx.delivery`. What costs something is made when it is asked for.

    Args:
        stream, subject: where it is stored, and where it was published.
        reply: the subject on which it is settled.
        header_block, body: as on the wire.
        sequence: its stream sequence.
        delivery_count: how often the server has delivered it.
        slot: its place in the ledger.
        extended_at: when its `ack_wait` began, in seconds of CLOCK_BOOTTIME.
        stream_created: when its stream was made, as the server says it.
        stored_at: when the stream stored it, in nanoseconds since 1970; 0 if the reply subject says so.
        attempts: what is recorded of earlier runs, None if nobody has looked yet.
        handler, key, event, decode_error: what the pipeline has found out.
        state_name: of its key's state, empty if its handler has none.
        mark: of an idempotent actor's, what is known of its mark.
        is_handled: whether it needs no run any more, but the mark that says so.
        is_given_up: whether it is a dead letter now.
        is_lost: whether another cell owns it by now, so that it isn't tried again here.
        span: of the attempt that runs, if it is traced.
        about: what its handler has found out that entries are to say of it, too.
    """

    stream: str
    subject: str
    reply: bytes
    header_block: bytes
    body: bytes
    sequence: int
    delivery_count: int
    slot: int
    extended_at: float
    stream_created: str = ""
    stored_at: int = 0
    attempts: Attempts | None = None
    handler: HandlerSpec | None = None
    key: Hashable = None
    event: Any = None
    decode_error: DecodeError | None = None
    state_name: str = ""
    mark: DeliveryMark | None = None
    is_handled: bool = False
    is_given_up: bool = False
    is_lost: bool = False
    span: ProcessSpan | None = None
    about: Mapping[str, str] | None = None
    _headers: Mapping[str, str] | None = None
    _trace: TraceContext | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """Its headers as published."""
        if self._headers is None:
            self._headers = headers.parse(self.header_block)
        return self._headers

    @property
    def idempotency_key(self) -> str:
        """By what a repeat of its event is known: the actor's own key, or the event's id."""
        if self.mark is not None:
            return self.mark.key
        block = self.header_block
        return event_id(
            lambda name: headers.find(block, name.encode()), self.stream, self.stream_created, self.sequence
        )

    @property
    def deadline(self) -> datetime | None:
        """When whoever has asked waits no longer."""
        at = asked.deadline_of(self.header_block)
        return None if at is None else datetime.fromtimestamp(at, UTC)

    @property
    def content_type(self) -> str | None:
        """Its Content-Type, found without reading the other headers."""
        block = self.header_block
        if not block:
            return None
        # What our own publishers write is found in one search; `in` takes four times as long.
        return MSGPACK if block.find(_MSGPACK_LINE) >= 0 else headers.find(block, b"Content-Type")

    @property
    def timestamp(self) -> int:
        """When the stream stored it, in nanoseconds since 1970."""
        return self.stored_at or parse_ack_subject(self.reply)[2]

    @property
    def size(self) -> int:
        """Bytes of the body, which count against the mailbox's bound."""
        return len(self.body)

    @property
    def attempt(self) -> int:
        """Which run of the handler this is, from 1."""
        return 1 if self.attempts is None else self.attempts.failed + 1

    @property
    def is_taken_over(self) -> bool:
        """Whether a dead cell had it, so that its body was read from the stream."""
        return self.stored_at != 0

    @property
    def published_at(self) -> datetime:
        """When the stream stored the event."""
        return datetime.fromtimestamp(self.timestamp / 1_000_000_000, UTC)

    @property
    def trace(self) -> TraceContext:
        """The trace that the publisher began, or the event's own, with a span of this delivery's."""
        if self._trace is None:
            trace = read_trace(self.header_block)
            self._trace = trace or begin_trace(self.stream, self.sequence, self.timestamp)
        return self._trace

    def trace_with(self, span: ProcessSpan) -> None:
        """Have the ids of the span that is recorded of this attempt."""
        self.span, self._trace = span, span.trace

    def settling(self, word: str) -> AbstractContextManager[object]:
        """Return what a settlement of it is done within: its span, or nothing.

        Args:
            word: `nak` or `term`.
        """
        return _UNTRACED if self.span is None else self.span.settling(word)

    @property
    def trace_id(self) -> str:
        """The trace's id, 32 hexadecimal digits."""
        return self.trace.trace_id

    @property
    def log_fields(self) -> dict[str, object]:
        """What log entries say of it while it is handled."""
        return {
            "trace_id": self.trace_id,
            "span_id": self.span_id,
            "stream": self.stream,
            "sequence": self.sequence,
            "subject": self.subject,
            "attempt": self.attempt,
            **(self.about or {}),
        }

    @property
    def span_id(self) -> str:
        """This delivery's span id, 16 hexadecimal digits."""
        return self.trace.span_id
