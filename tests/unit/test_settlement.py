"""The subjects on which deliveries are settled."""

from __future__ import annotations

import pytest

from understudy.runtime.jetstream.settlement import ack_subject, parse_ack_subject


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
