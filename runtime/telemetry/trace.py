"""W3C trace context: which trace a delivery belongs to, and what its log entries say of it."""

from __future__ import annotations

import hashlib
import os
import re
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE = "0" * 32
_NO_SPAN = "0" * 16


class TraceIds(Protocol):
    """Whatever has the two ids; it may make them up only when it is asked."""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        ...

    @property
    def span_id(self) -> str:
        """16 hexadecimal digits."""
        ...


@dataclass(frozen=True, slots=True)
class TraceContext:
    """One span of a trace.

    Attributes:
        trace_id: 32 hexadecimal digits, the same through all that follows from one event.
        span_id: 16 hexadecimal digits, of this delivery alone.
        flags: the W3C trace flags; bit 0 says that the trace is sampled.
    """

    trace_id: str
    span_id: str
    flags: int = 1

    @property
    def traceparent(self) -> str:
        """The header to send with what this span publishes."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


current_trace: ContextVar[TraceIds | None] = ContextVar("current_trace", default=None)
"""The trace of the delivery that the current task handles; None outside of one."""


def parse_traceparent(value: str | None, *, cause: str) -> TraceContext:
    """Return a new span below the one that the header names, or in a trace of the cause if it names none.

    An invalid header counts as none, as the specification asks: tracing never fails a delivery. A trace that
    is made is the same for every attempt and every actor, so that what belongs together is found together.

    Args:
        value: the `traceparent` header, None if there is none.
        cause: what names the event for ever.
    """
    span_id = _identifier(8)
    match = _TRACEPARENT.fullmatch(value.strip()) if value else None
    if match is not None:
        version, trace_id, parent_id, flags, rest = match.groups()
        # Version 00 has exactly four fields; a later one may have more, which we don't know.
        usable = version != "ff" and (rest is None or version != "00")
        if usable and trace_id != _NO_TRACE and parent_id != _NO_SPAN:
            return TraceContext(trace_id, span_id, int(flags, 16) & 0x01)
    return TraceContext(hashlib.blake2b(cause.encode(), digest_size=16).hexdigest(), span_id)


def _identifier(size: int) -> str:
    # All zeros means "none"; urandom rather than random, whose state a forked cell would share.
    while not any(value := os.urandom(size)):
        pass
    return value.hex()
