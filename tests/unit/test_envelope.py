"""The header block of what is published: complete, counted right, and nothing slips in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.actors.errors import EncodeError
from understudy.actors.event import Event
from understudy.runtime.jetstream.envelope import event_block, header_block, header_bytes
from understudy.runtime.jetstream.headers import parse

NAMES = st.text("abcXYZ019-_.!#$%&'*+^`|~", min_size=1, max_size=20)
# Blanks at the ends are no part of a value; the last two stand for bytes that aren't UTF-8.
VALUES = st.text('aZ09 :;,\t"é€\U0001f600\udc80\udcff', max_size=40).map(str.strip)


class Paid(Event, subject="bills.paid", name="bill.paid"):
    number: int


@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_a_block_reads_back_and_is_as_long_as_was_counted(headers: dict[str, str]) -> None:
    """Whatever a header may hold."""
    block = header_block(headers)
    assert parse(block) == headers
    assert len(block) == header_bytes(headers)


def test_a_block_is_that_of_adr_4() -> None:
    """The version line, a line for each header, an empty one; nothing at all without headers."""
    assert header_block({"a": "1", "b": "zwei"}) == b"NATS/1.0\r\na: 1\r\nb: zwei\r\n\r\n"
    assert header_block({}) == b""


@pytest.mark.parametrize("name", ["", " a", "a b", "a:b", "a\r\nb", "ä", "a\n"])
def test_a_name_that_is_no_token_is_refused(name: str) -> None:
    """It would be read as something else."""
    with pytest.raises(EncodeError) as raised:
        header_block({name: "1"})
    assert str(raised.value) == (
        f"the header name {name!r} can't be written; use letters, digits and the marks of RFC 9110"
    )


@pytest.mark.parametrize("value", ["1\r\nNats-Rollup: all", "1\n", "\r"])
def test_a_line_break_in_a_value_is_refused(value: str) -> None:
    """What follows it would be a header of its own."""
    expected = f"has a line break in its value: {value!r}; take it out"
    with pytest.raises(EncodeError) as raised:
        header_block({"a": value})
    assert str(raised.value) == f"the header 'a' {expected}"
    with pytest.raises(EncodeError) as raised:
        event_block(Paid, value, "till", traceparent=None)
    assert str(raised.value) == f"the header 'Nats-Msg-Id' {expected}"
    with pytest.raises(EncodeError) as raised:
        event_block(Paid, "1", value, traceparent=None)
    assert str(raised.value) == f"the header 'ce-source' {expected}"


def test_a_lone_surrogate_is_refused() -> None:
    """It stands for no byte."""
    with pytest.raises(EncodeError, match="the header 'a' can't be written: 'utf-8' codec can't encode"):
        header_block({"a": "\ud800"})


def test_an_event_s_headers() -> None:
    """CloudEvents' binary mode; the message id is the event's id, too."""
    expected = {
        "Content-Type": "application/msgpack",
        "Nats-Msg-Id": "7",
        "ce-specversion": "1.0",
        "ce-id": "7",
        "ce-type": "bill.paid",
        "ce-source": "till",
    }
    assert parse(event_block(Paid, "7", "till", traceparent=None)) == expected
    traced = parse(event_block(Paid, "7", "till", traceparent="00-1-2-01"))
    assert traced == {**expected, "traceparent": "00-1-2-01"}
    assert parse(event_block(dict, "7", "till", traceparent=None)) == {**expected, "ce-type": "dict"}
