"""Header blocks: written, read whole, read for one name, read for a status."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.runtime.jetstream import headers

names = st.text("ABCabc-_0123456789", min_size=1, max_size=12)
# Any text but line breaks; what surrounds a value isn't part of it.
values = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=30).map(str.strip)


@given(st.dictionaries(names, values, max_size=6))
def test_what_was_written_is_read(written: dict[str, str]) -> None:
    """All of it, and each by its name."""
    block = headers.encode(written)
    assert headers.parse(block) == written
    for name, value in written.items():
        assert headers.find(block, name.encode()) == value


@given(st.lists(st.integers(128, 255), max_size=20).map(bytes))
def test_bytes_that_are_no_text_survive(value: bytes) -> None:
    """Another client may have sent them, and a dead letter has them on."""
    block = b"NATS/1.0\r\nA: <%b>\r\n\r\n" % value
    assert headers.encode(headers.parse(block)) == block


def test_no_headers_are_no_block() -> None:
    """A message without headers has none on the wire."""
    assert headers.encode({}) == b""
    assert headers.parse(b"") == {}
    assert headers.find(b"", b"A") is None


def test_of_a_repeated_name_the_first_counts() -> None:
    """Both ways to read it."""
    block = b"NATS/1.0\r\nA: 1\r\nA: 2\r\n\r\n"
    assert headers.parse(block) == {"A": "1"}
    assert headers.find(block, b"A") == "1"


@pytest.mark.parametrize("line", ["AB: 1", "BA: 1", "X: A: 1", "X: A", "a: 1"])
def test_a_name_is_found_only_where_a_line_begins_with_all_of_it(line: str) -> None:
    """Not in a longer one, nor in a value, nor in other letters."""
    assert headers.find(f"NATS/1.0\r\n{line}\r\n\r\n".encode(), b"A") is None


@pytest.mark.parametrize("line", ["A:1", "A: 1", "A:  1 ", "A:\t1"])
def test_space_around_a_value_is_not_part_of_it(line: str) -> None:
    """Publishers differ in it."""
    block = f"NATS/1.0\r\nX: y\r\n{line}\r\n\r\n".encode()
    assert headers.find(block, b"A") == headers.parse(block)["A"] == "1"


@pytest.mark.parametrize(
    ("block", "status"),
    [
        (b"NATS/1.0 404 No Messages\r\n\r\n", ("404", "No Messages")),
        (b"NATS/1.0 503\r\n\r\n", ("503", "")),
        (b"NATS/1.0 503\r\nNats-Subject: a b\r\n\r\n", ("503", "")),
        (
            b"NATS/1.0 409 Message Size Exceeds MaxBytes\r\nNats-Pending-Messages: 1\r\n\r\n",
            ("409", "Message Size Exceeds MaxBytes"),
        ),
        (b"NATS/1.0  408  Request Timeout \r\n\r\n", ("408", "Request Timeout")),
        (b"NATS/1.0\r\nA: 1\r\n\r\n", ("", "")),
        (b"", ("", "")),
    ],
)
def test_a_status_is_read_from_the_first_line(block: bytes, status: tuple[str, str]) -> None:
    """Its headers are read like any other's."""
    assert headers.status(block) == status


def test_a_status_is_written_as_it_is_read() -> None:
    """nats-py hands a status frame over in pieces."""
    block = headers.encode({"Nats-Pending-Messages": "3"}, "409 Leadership Change")
    assert block == b"NATS/1.0 409 Leadership Change\r\nNats-Pending-Messages: 3\r\n\r\n"
    assert headers.status(block) == ("409", "Leadership Change")
    assert headers.find(block, b"Nats-Pending-Messages") == "3"
