"""The subjects on which deliveries are settled, and what is written to them."""

from __future__ import annotations

from typing import cast

import nats.errors
import pytest
from nats.aio.client import Client
from structlog.testing import capture_logs

from understudy.runtime.jetstream.settlement import Settlement, ack_subject, parse_ack_subject


def test_a_subject_made_from_a_ledger_is_read_as_what_it_was_made_from() -> None:
    """Timestamp and pending count aren't known any more, and the server doesn't ask for them."""
    subject = ack_subject("ORDERS", "shop-billing", delivery_count=3, sequence=42, consumer_sequence=57)
    assert subject == b"$JS.ACK.ORDERS.shop-billing.3.42.57.0.0"
    assert parse_ack_subject(subject) == (3, 42, 0)


@pytest.mark.parametrize(
    "subject",
    [
        "$JS.ACK.ORDERS.shop-billing.2.42.57.1700000000123456789.9",
        "$JS.ACK._.ACCOUNT.ORDERS.shop-billing.2.42.57.1700000000123456789.9",
        "$JS.ACK.hub.ACCOUNT.ORDERS.shop-billing.2.42.57.1700000000123456789.9.Ax3f",
    ],
    ids=["nine tokens", "domain", "domain and random token"],
)
def test_every_form_that_servers_send_is_read(subject: str) -> None:
    """With and without a domain and an account hash: ADR-15."""
    assert parse_ack_subject(subject.encode()) == (2, 42, 1700000000123456789)


class Connection:
    """What a settlement writes to.

    Attributes:
        broken: whether it takes nothing.
        written: what it took.
    """

    def __init__(self) -> None:
        self.broken = False
        self.written: list[tuple[str, bytes]] = []

    async def publish(self, subject: str, body: bytes = b"") -> None:
        """Take a settlement."""
        if self.broken:
            raise nats.errors.OutboundBufferLimitError
        self.written.append((subject, body))


async def test_each_row_of_failures_is_warned_of_once() -> None:
    """Two thousand held deliveries would else be two thousand warnings."""
    connection = Connection()
    settlement = Settlement(cast("Client", connection))
    with capture_logs() as logs:
        for broken in (True, False, True):
            connection.broken = broken
            for _ in range(3):
                await settlement.nak(b"a")
    assert [entry["log_level"] for entry in logs] == ["warning", "debug", "debug"] * 2
    assert connection.written == [("a", b"-NAK")] * 3


@pytest.mark.parametrize(
    ("delay_seconds", "body"),
    [
        (0, b"-NAK"),
        (-1, b"-NAK"),
        (0.0000001, b'-NAK {"delay": 100}'),
        (1.5, b'-NAK {"delay": 1500000000}'),
        (604800, b'-NAK {"delay": 604800000000000}'),
    ],
)
async def test_a_delay_is_written_in_nanoseconds(delay_seconds: float, body: bytes) -> None:
    """And none by the word alone."""
    connection = Connection()
    await Settlement(cast("Client", connection)).nak(b"a", delay_seconds)
    assert connection.written == [("a", body)]


async def test_a_reason_is_one_short_line() -> None:
    """It goes into the server's advisory, and comes from an exception's text."""
    connection = Connection()
    await Settlement(cast("Client", connection)).term(b"a", "ValueError: no\n\n\tnumber " + "x" * 1000)
    assert connection.written == [("a", b"+TERM ValueError: no number " + b"x" * 178)]
