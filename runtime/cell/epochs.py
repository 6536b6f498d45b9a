"""Which deliveries the server won't repeat, so that a state need no longer hold their sequences."""

from __future__ import annotations

import asyncio

import structlog

from understudy.actors.errors import BrokerError
from understudy.runtime.cell.applied import Block
from understudy.runtime.jetstream import api
from understudy.runtime.jetstream.connection import Connection
from understudy.runtime.jetstream.settlement import Settlement, ack_subject

EPOCH_SECONDS = 1.0
_log = structlog.get_logger("understudy.state")


class Epochs:
    """Tells which applied sequences the server won't deliver again.

    Time is divided into epochs of about a second. What was settled in one is safe when the server has
    confirmed an ack that was written after it, over the same connection, and another epoch has passed: a
    broker that is killed forgets the acks of its last moments (it writes them down ten times a second).

    Attributes:
        now: the present epoch.
        is_used: whether anything was settled in it.
        floor: below it and at it, all is settled.
        changes: how often more has become safe.

    Args:
        floor: the consumer's ack floor.
    """

    def __init__(self, floor: int) -> None:
        self.now = 0
        self.is_used = False
        self.floor = self.changes = 0
        self._next_floor = floor
        self._confirmed = -1
        self._lost = -1

    def end(self) -> int:
        """Begin another epoch, and return the one that has ended."""
        self.now += 1
        self.is_used = False
        return self.now - 1

    def confirmed(self, epoch: int, floor: int) -> None:
        """Hear that the server has the acks of an epoch.

        Args:
            epoch: which.
            floor: the consumer's ack floor.
        """
        self._confirmed = epoch
        self.changes += 1
        self.floor, self._next_floor = self._next_floor, floor

    def disconnected(self) -> None:
        """Hear that acks up to now may never have arrived."""
        self._lost = self.now

    def is_over(self, block: Block) -> bool:
        """Return whether all of a block's sequences were settled in epochs that are over."""
        return self._lost < block.since and block.until < self._confirmed


async def end_epochs(
    epochs: Epochs, client: Connection, settlement: Settlement, stream: str, durable: str
) -> None:
    """End an epoch now and then, and see what the server has of it; never returns.

    Args:
        epochs: of a cell.
        client: a connection.
        settlement: writes its acks.
        stream: of its consumer.
        durable: the consumer.
    """
    while True:
        await asyncio.sleep(EPOCH_SECONDS)
        if not (epochs.is_used and client.is_connected):
            continue
        ended = epochs.end()
        try:
            info = await api.consumer_info(client, stream, durable)
        except BrokerError as error:
            _log.debug("the ack floor isn't known", error=str(error))
            continue
        if info is None:
            continue
        floor = info["ack_floor"]["stream_seq"]
        again = ack_subject(
            stream,
            durable,
            delivery_count=1,
            sequence=floor,
            consumer_sequence=info["delivered"]["consumer_seq"],
        )
        # It changes nothing; when it is confirmed, so is what was written before it.
        if await settlement.ack_confirmed(again):
            epochs.confirmed(ended, floor)
