"""W3C trace context."""

from __future__ import annotations

import pytest

from understudy.runtime.jetstream.headers import encode
from understudy.runtime.telemetry.trace import (
    TraceContext,
    begin_trace,
    current_span,
    current_trace,
    low_half,
    read_trace,
    replace_span,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


def read(value: str, name: str = "traceparent", **others: str) -> TraceContext | None:
    """Return what is read of a message with this header."""
    return read_trace(encode({"a": "b", name: value, **others}))


@pytest.mark.parametrize(
    "value", [f"00-{TRACE}-{SPAN}-01", f" 00-{TRACE}-{SPAN}-01 ", f"cc-{TRACE}-{SPAN}-01-what-comes-later"]
)
@pytest.mark.parametrize("name", ["traceparent", "Traceparent", "TRACEPARENT"])
def test_a_valid_header_gives_a_new_span_in_its_trace(value: str, name: str) -> None:
    """Unknown later versions are read as far as they are known, and the name in any case, as Go writes it."""
    trace = read(value, name)
    assert trace is not None
    assert (trace.trace_id, trace.parent_id, trace.is_sampled) == (TRACE, SPAN, True)
    assert trace.span_id not in {SPAN, "0" * 16}


def test_flags_that_are_known_are_kept_and_others_are_not() -> None:
    """What we don't understand we don't promise; sampled and random we do."""
    flags = {value: read(f"00-{TRACE}-{SPAN}-{value}") for value in ("00", "01", "02", "ff")}
    assert [trace and trace.flags for trace in flags.values()] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "value",
    [
        "",
        "nonsense",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-extra",
        f"00-{TRACE}-{SPAN}-0",
        "00-é",
    ],
)
def test_an_invalid_header_counts_as_none(value: str) -> None:
    """A bad header never fails a delivery, and its state goes with it."""
    assert read(value, tracestate="a=b") is None


def test_no_header_and_two_of_them_name_no_trace() -> None:
    """Nobody knows which of two is right."""
    assert read_trace(b"") is None
    assert read_trace(encode({"x-traceparent": f"00-{TRACE}-{SPAN}-01"})) is None
    header = f"00-{TRACE}-{SPAN}-01"
    assert read(header, Traceparent=header) is None


def test_the_state_goes_along_as_it_came() -> None:
    """Several headers are one list, as of HTTP."""
    trace = read(f"00-{TRACE}-{SPAN}-01", tracestate="rojo=00f067,Congo=t61", Tracestate="b=c")
    assert trace is not None
    assert trace.state == "rojo=00f067,Congo=t61,b=c"


@pytest.mark.parametrize("state", [b"a=b\nc", b"a=b\rc", b"a=\xff", b"a=\0", b"a=" + b"x" * 65_000])
def test_a_state_that_cannot_be_passed_on_is_dropped_alone(state: bytes) -> None:
    """A line break in it, or its length, would fail what the handler publishes."""
    block = b"NATS/1.0\r\ntraceparent: 00-%b-%b-01\r\ntracestate: %b\r\n\r\n"
    trace = read_trace(block % (TRACE.encode(), SPAN.encode(), state))
    assert trace is not None
    assert (trace.trace_id, trace.state) == (TRACE, "")


def test_what_nobody_records_is_not_named_as_a_parent() -> None:
    """The publisher's span is, or else this one, so that its log entries can be found."""
    parent = TraceContext(TRACE, "1" * 16, 1, parent_id=SPAN)
    assert parent.traceparent == f"00-{TRACE}-{SPAN}-01"
    assert TraceContext(TRACE, "1" * 16).traceparent == f"00-{TRACE}-{'1' * 16}-00"
    recorded = TraceContext(TRACE, "1" * 16, 1, parent_id=SPAN, is_recorded=True)
    assert recorded.traceparent == f"00-{TRACE}-{'1' * 16}-01"


def test_a_trace_that_begins_with_an_event_is_the_same_at_each_attempt() -> None:
    """And in each actor, but not for another event, nor for one of a stream that was made anew."""
    first, second = begin_trace("S", 7, 99), begin_trace("S", 7, 99)
    assert first.trace_id == second.trace_id
    assert first.span_id != second.span_id
    assert not first.is_sampled
    others = {begin_trace(*other).trace_id for other in [("S", 8, 99), ("S", 7, 98), ("T", 7, 99)]}
    assert len(others | {first.trace_id}) == 4
    assert int(first.trace_id[16:], 16) == low_half("S", 7)
    assert begin_trace("S", "7-9-ab").trace_id == begin_trace("S", "7-9-ab").trace_id


def test_another_span_is_put_into_a_header_block() -> None:
    """All else stays as it is; a block without a trace stays without."""
    block = encode({"a": "b", "traceparent": f"00-{TRACE}-{SPAN}-01", "c": "d"})
    other = TraceContext("1" * 32, "2" * 16, 1, is_recorded=True)
    expected = encode({"a": "b", "traceparent": other.traceparent, "c": "d"})
    assert replace_span(block, other) == expected
    assert replace_span(encode({"a": "b"}), other) == encode({"a": "b"})


def test_outside_of_a_traced_delivery_there_is_no_span() -> None:
    """Whatever is the current trace."""
    assert current_span() is None
    token = current_trace.set(TraceContext(TRACE, SPAN))
    assert current_span() is None
    current_trace.reset(token)
