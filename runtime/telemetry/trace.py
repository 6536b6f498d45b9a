"""W3C trace context: the trace of a delivery, for its log entries and for what it publishes.

Nothing here needs OpenTelemetry: a trace goes through an app that makes no spans too.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from understudy.runtime.telemetry.spans import ProcessSpan

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
# What a tracestate may be made of. Whoever passes on a header has to be able to write it, and beside its own.
_TRACESTATE = re.compile(rb"[\t\x20-\x7e]{0,4096}")
_NO_TRACE = b"0" * 32
_NO_SPAN = b"0" * 16
SAMPLED = 0x01
# Sampled, and that the trace id is random (Level 2); what we don't know we don't promise.
_KNOWN_FLAGS = 0x03
# 2**64 divided by the golden ratio: multiples of it are spread evenly, whatever part of a stream one takes.
GOLDEN = 0x9E3779B97F4A7C15
LOW_BITS = (1 << 64) - 1


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
        state: the `tracestate` header, as it came; empty if it is none that can be passed on.
        parent_id: the span that published the event; empty if it names none.
        is_recorded: whether somebody is told of this span.
    """

    trace_id: str
    span_id: str
    flags: int = 0
    state: str = ""
    parent_id: str = ""
    is_recorded: bool = False

    @property
    def is_sampled(self) -> bool:
        """Whether the trace's spans are recorded."""
        return bool(self.flags & SAMPLED)

    @property
    def traceparent(self) -> str:
        """The header to send with what this span publishes.

        It names the publisher's span if nobody is told of this one, so that no parent is missing further on.
        """
        span_id = self.span_id if self.is_recorded else self.parent_id or self.span_id
        return f"00-{self.trace_id}-{span_id}-{self.flags:02x}"


current_trace: ContextVar[TraceIds | None] = ContextVar("current_trace", default=None)
"""The trace of the delivery that the current task handles; None outside of one."""


def current_span() -> ProcessSpan | None:
    """Return the span of the delivery that the current task handles, None if it has none."""
    return getattr(current_trace.get(), "span", None)


def read_trace(block: bytes) -> TraceContext | None:
    """Return a new span below the one that a message's headers name.

    An invalid `traceparent` counts as none, as the specification asks: tracing never fails a delivery. The
    headers are found whatever the case of their names: Go's libraries write `Traceparent`.

    Args:
        block: the headers as on the wire.
    """
    if not block:
        return None
    values = header_values(block, b"traceparent")
    # Of two nobody knows which one is right.
    match = _TRACEPARENT.fullmatch(values[0]) if len(values) == 1 else None
    if match is None:
        return None
    version, trace_id, parent_id, flags, rest = match.groups()
    # Version 00 has exactly four fields; a later one may have more, which we don't know.
    if version == b"ff" or (rest is not None and version == b"00"):
        return None
    if trace_id == _NO_TRACE or parent_id == _NO_SPAN:
        return None
    return TraceContext(
        trace_id.decode(),
        _identifier(8),
        int(flags, 16) & _KNOWN_FLAGS,
        _read_state(block),
        parent_id.decode(),
    )


def _read_state(block: bytes) -> str:
    """Return the `tracestate`, which is dropped if it can't be passed on: tracing never fails a delivery."""
    state = b",".join(filter(None, header_values(block, b"tracestate")))
    return state.decode() if _TRACESTATE.fullmatch(state) else ""


def begin_trace(stream: str, sequence: int | str, timestamp: int = 0) -> TraceContext:
    """Return a new span of the trace that begins with an event, which is not sampled.

    It is the same trace for every attempt and every actor, so that what belongs together is found together.

    Args:
        stream: where the event is stored.
        sequence: names it there; of several, any name of theirs.
        timestamp: when that was, in nanoseconds since 1970, since a stream may be made anew.
    """
    digest = hashlib.blake2b(f"{stream} {sequence} {timestamp}".encode(), digest_size=16).hexdigest()
    if isinstance(sequence, int):
        # What a sampler looks at, and can know without all this.
        digest = f"{digest[:16]}{low_half(stream, sequence):016x}"
    return TraceContext(digest, _identifier(8))


def low_half(stream: str, sequence: int) -> int:
    """Return the lower 64 bits of the id of the trace that begins with an event, evenly spread."""
    return (sequence * GOLDEN + stream_salt(stream)) & LOW_BITS


@lru_cache(maxsize=64)
def stream_salt(stream: str) -> int:
    """Return by how much the ids of one stream are shifted against another's."""
    return int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest())


def replace_span(block: bytes, context: TraceContext) -> bytes:
    """Return a header block that an envelope made, with another span in its `traceparent`.

    Args:
        block: as it is; one without the header stays without.
        context: whose traceparent it is to have.
    """
    start = block.find(b"\r\ntraceparent: ")
    if start < 0:
        return block
    start += 15
    return block[:start] + context.traceparent.encode() + block[block.index(b"\r\n", start) :]


def header_values(block: bytes, name: bytes) -> list[bytes]:
    """Return what all headers of this name hold, in their order, whatever the case of the name.

    Args:
        block: the headers as on the wire.
        name: in lower case.
    """
    lower = block.lower()
    values = []
    start = lower.find(b"\r\n%b:" % name)
    while start >= 0:
        start += len(name) + 3
        end = block.find(b"\r\n", start)
        values.append(block[start:end].strip())
        start = lower.find(b"\r\n%b:" % name, end)
    return values


def _identifier(size: int) -> str:
    # All zeros means "none"; urandom rather than random, whose state a forked cell would share.
    while not any(value := os.urandom(size)):
        pass
    return value.hex()
