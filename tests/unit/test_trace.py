"""W3C trace context."""

from __future__ import annotations

import pytest

from understudy.runtime.telemetry.trace import TraceContext, parse_traceparent

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


@pytest.mark.parametrize(
    "value", [f"00-{TRACE}-{SPAN}-01", f" 00-{TRACE}-{SPAN}-01 ", f"cc-{TRACE}-{SPAN}-01-what-comes-later"]
)
def test_a_valid_header_gives_a_new_span_in_its_trace(value: str) -> None:
    """Unknown later versions are read as far as they are known."""
    trace = parse_traceparent(value, cause="S 1 2")
    assert trace.trace_id == TRACE
    assert trace.span_id not in {SPAN, "0" * 16}
    assert trace.traceparent == f"00-{TRACE}-{trace.span_id}-01"


def test_the_sampled_flag_is_kept_and_unknown_flags_are_not() -> None:
    """What we don't understand we don't promise."""
    assert parse_traceparent(f"00-{TRACE}-{SPAN}-00", cause="").flags == 0
    assert parse_traceparent(f"00-{TRACE}-{SPAN}-ff", cause="").flags == 1


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "nonsense",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-extra",
    ],
)
def test_without_a_valid_header_a_trace_begins(value: str | None) -> None:
    """A bad header never fails a delivery, and each attempt at one event is in the same trace."""
    first, second = parse_traceparent(value, cause="S 1 2"), parse_traceparent(value, cause="S 1 2")
    assert TRACE not in {first.trace_id, first.trace_id.upper()}
    assert first.trace_id == second.trace_id
    assert first.span_id != second.span_id
    assert parse_traceparent(value, cause="S 2 2").trace_id != first.trace_id
    assert parse_traceparent(first.traceparent, cause="").trace_id == first.trace_id


def test_a_context_writes_the_header_it_would_read() -> None:
    """Version 00, four fields."""
    assert TraceContext(TRACE, SPAN, 0).traceparent == f"00-{TRACE}-{SPAN}-00"
