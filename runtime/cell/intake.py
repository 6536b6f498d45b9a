"""The intake: from the subscription into the ledger and the mailbox, and on to the lanes."""

from __future__ import annotations

from collections.abc import Callable

from understudy.runtime.cell.cellfile import Identity
from understudy.runtime.cell.counts import RECEIVED
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.heartbeat import Heartbeat
from understudy.runtime.cell.ledger import Ledger
from understudy.runtime.cell.mailbox import Mailbox
from understudy.runtime.cell.status import Status
from understudy.runtime.jetstream.settlement import Settlement, ack_prefix, parse_ack_subject


class Intake:
    """Takes in each delivery once.

    Args:
        identity: the cell's, with its stream and consumer as the server knows them.
        mailbox, ledger: hold what is taken in.
        settlement: acks what was settled before it came.
        status: counts it.
        heartbeat: is woken by it.
        prepare: finds out how a delivery is to be handled; may not raise.
        begin: has it handled; may not raise.

    Attributes:
        received: how many deliveries have come to this cell, over its generations.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        mailbox: Mailbox,
        ledger: Ledger,
        settlement: Settlement,
        status: Status,
        heartbeat: Heartbeat,
        prepare: Callable[[HeldDelivery], None],
        begin: Callable[[HeldDelivery], None],
    ) -> None:
        self._stream = identity.stream
        self._stream_created = identity.stream_created
        self._ack_prefix = ack_prefix(identity.stream, identity.durable)
        self._ack_prefix_length = len(self._ack_prefix)
        self._mailbox = mailbox
        self._ledger = ledger
        self._settlement = settlement
        self._status = status
        self._words = status.counts.words
        self._heartbeat = heartbeat
        self._prepare = prepare
        self._begin = begin
        self.received = self._reported = self._words[RECEIVED]

    def deliver(self, subject: bytes, reply: bytes, block: bytes, body: bytes) -> None:
        """Take in what the server has delivered; called in the event loop.

        Args:
            subject: where it was published.
            reply: the subject on which it is settled.
            block: its header block, empty if it has none.
            body: its body.
        """
        # Faster by half than to split all of it, as a server in a domain, which names that first, needs it.
        if reply.startswith(self._ack_prefix):
            count, number, _ = reply[self._ack_prefix_length :].split(b".", 2)
            delivery_count, sequence = int(count), int(number)
        else:
            delivery_count, sequence, _ = parse_ack_subject(reply)
        self.received = received = self.received + 1
        self._words[RECEIVED] = received
        if delivery_count > 1:
            self._status.count("redelivered")
        heartbeat = self._heartbeat
        if heartbeat.is_idle:
            heartbeat.wake()
        held = self._mailbox.get(sequence)
        if held is not None:
            # The server gave up waiting for us, as after a long loss of the connection; we still have it.
            held.reply = reply
            held.delivery_count = delivery_count
            # If it was another's meanwhile, that one hasn't settled it.
            held.is_lost = False
            return
        if delivery_count > 1 and self._mailbox.has_settled(sequence):
            # The server had given up waiting for the dead cell when it was told that we have it.
            self._status.counts.count("duplicate")
            self._settlement.ack(reply)
            return
        now = heartbeat.now
        delivery = HeldDelivery(
            self._stream,
            subject.decode(errors="backslashreplace"),
            reply,
            block,
            body,
            sequence,
            delivery_count,
            self._ledger.hold(sequence, delivery_count, now),
            now,
            self._stream_created,
        )
        self._mailbox.add(delivery)
        self._prepare(delivery)
        self._begin(delivery)

    def take_over(self, delivery: HeldDelivery) -> None:
        """Have a delivery of a dead cell handled, which is in the mailbox, unless it was dropped since."""
        if self._mailbox.get(delivery.sequence) is delivery:
            self._prepare(delivery)
            self._begin(delivery)

    def report(self) -> None:
        """Bring the status up to date."""
        if self.received != self._reported:
            self._status.count("received", self.received - self._reported)
            self._reported = self.received
