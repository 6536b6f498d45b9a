"""A sole owner's lost deliveries: what was on its way to a dead process or connection, and is in no mailbox.

By itself the server delivers it again after `ack_wait`, behind newer events of its key. An actor that keeps
an order has it come again at once, before anything newer.
"""

from __future__ import annotations

from understudy.actors.errors import BrokerError
from understudy.runtime.cell.ledger import Ledger
from understudy.runtime.cell.mailbox import Mailbox
from understudy.runtime.jetstream import api
from understudy.runtime.jetstream.connection import Connection
from understudy.runtime.jetstream.settlement import Settlement, ack_subject


async def recover_lost(
    client: Connection, stream: str, durable: str, *, mailbox: Mailbox, ledger: Ledger, settlement: Settlement
) -> int:
    """Give back what is pending and not held, ascending and confirmed; ack again what is done.

    Called when nothing is on its way to us: before the first pull of a cell, and of each reconnect.

    Args:
        client: a connection.
        stream: the consumer's stream.
        durable: the consumer, which is ours alone.
        mailbox: what is held.
        ledger: knows what is done; that it is still pending means that its ack was lost.
        settlement: writes the acks and naks.

    Returns:
        How many redeliveries there may be; they are to be fetched first, and put in order.

    Raises:
        BrokerError: the server didn't confirm it.
    """
    info = await api.consumer_info(client, stream, durable)
    if info is None or info["num_ack_pending"] == 0:
        return 0
    first, last = info["ack_floor"]["stream_seq"] + 1, info["delivered"]["stream_seq"]

    def reply_to(sequence: int) -> bytes:
        return ack_subject(
            stream,
            durable,
            delivery_count=1,
            sequence=sequence,
            consumer_sequence=info["delivered"]["consumer_seq"],
        )

    done = {sequence for sequence in ledger.done_sequences() if first <= sequence <= last}
    for sequence in done:
        settlement.ack(reply_to(sequence))
    # Which of them are pending only the server knows; it ignores a nak of what is acked. One old event that
    # is retried in place holds up the ack floor, so there may be many, and no list is made of them.
    lost = (
        reply_to(sequence)
        for sequence in range(first, last + 1)
        if sequence not in done and mailbox.get(sequence) is None
    )
    if not await settlement.nak_in_order(lost):
        raise BrokerError("lost deliveries could not be recovered")
    # Never more than the ledger has slots for; the rest comes by ordinary requests.
    return int(min(info["num_ack_pending"], 2 * mailbox.bound) - len(mailbox))
