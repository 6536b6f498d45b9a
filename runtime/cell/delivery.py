"""A delivery while a cell holds it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from understudy.actors.codec import MSGPACK
from understudy.actors.errors import DecodeError
from understudy.actors.handlers import HandlerSpec
from understudy.runtime.jetstream import headers
from understudy.runtime.jetstream.settlement import parse_ack_subject
from understudy.runtime.stores.attempts import Attempts
from understudy.runtime.telemetry.trace import TraceContext, parse_traceparent

_MSGPACK_LINE = f"\r\nContent-Type: {MSGPACK}\r\n".encode()


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
        stored_at: when the stream stored it, in nanoseconds since 1970; 0 if the reply subject says so.
        attempts: what is recorded of earlier runs, None if nobody has looked yet.
        handler, key, event, decode_error: what the pipeline has found out.
        state_name: of its key's state, empty if its handler has none.
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
    stored_at: int = 0
    attempts: Attempts | None = None
    handler: HandlerSpec | None = None
    key: Hashable = None
    event: Any = None
    decode_error: DecodeError | None = None
    state_name: str = ""
    _headers: Mapping[str, str] | None = None
    _trace: TraceContext | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """Its headers as published."""
        if self._headers is None:
            self._headers = headers.parse(self.header_block)
        return self._headers

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
    def published_at(self) -> datetime:
        """When the stream stored the event."""
        return datetime.fromtimestamp(self.timestamp / 1_000_000_000, UTC)

    @property
    def trace(self) -> TraceContext:
        """The trace that the publisher began, or the event's own, with a span of this delivery's."""
        if self._trace is None:
            cause = f"{self.stream} {self.sequence} {self.timestamp}"
            self._trace = parse_traceparent(headers.find(self.header_block, b"traceparent"), cause=cause)
        return self._trace

    @property
    def trace_id(self) -> str:
        """The trace's id, 32 hexadecimal digits."""
        return self.trace.trace_id

    @property
    def span_id(self) -> str:
        """This delivery's span id, 16 hexadecimal digits."""
        return self.trace.span_id
