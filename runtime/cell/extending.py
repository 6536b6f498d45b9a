"""Keeping what is held from being redelivered."""

from __future__ import annotations

from understudy.runtime.cell.heartbeat import Heartbeat
from understudy.runtime.cell.ledger import Ledger
from understudy.runtime.cell.mailbox import Mailbox
from understudy.runtime.cell.status import boottime
from understudy.runtime.jetstream.connection import Connection
from understudy.runtime.jetstream.settlement import Settlement


async def extend(
    client: Connection,
    settlement: Settlement,
    mailbox: Mailbox,
    ledger: Ledger,
    heartbeat: Heartbeat,
    ack_wait_seconds: float,
) -> None:
    """Begin the `ack_wait` of everything held anew, each third of it, until cancelled.

    Args:
        client: a connection; while it is lost nothing is extended.
        settlement: writes it.
        mailbox: what is held.
        ledger: where it is kept since when.
        heartbeat: when to look.
        ack_wait_seconds: the consumer's.
    """
    third = ack_wait_seconds / 3
    while True:
        await heartbeat.after(third / 4)
        if not client.is_connected:
            continue
        now = boottime()
        for delivery in mailbox:
            if now - delivery.extended_at >= third / 2 and mailbox.get(delivery.sequence) is delivery:
                await settlement.in_progress(delivery.reply)
                delivery.extended_at = now
                ledger.extend(delivery.slot, now)
