"""A sole owner: of all cells of an actor that keeps an order, over all nodes, the one that is active.

Who owns the consumer the server says (`runtime.jetstream.pinning`). The new owner has everything that is
unsettled come again at once, before anything newer: what was on its way to a dead process or connection is in
no mailbox, and by itself the server would deliver it after `ack_wait`, behind newer events of its key.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Collection, Container, Iterable, Iterator
from typing import Any

import msgspec
import structlog

from understudy.actors.errors import BrokerError
from understudy.runtime.cell.cellfile import CellFile
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.mailbox import Mailbox
from understudy.runtime.cell.status import HEARTBEAT_SECONDS, IDLE_HEARTBEAT_SECONDS, boottime
from understudy.runtime.jetstream import api
from understudy.runtime.jetstream.connection import Connection
from understudy.runtime.jetstream.settlement import Settlement, ack_subject
from understudy.runtime.jetstream.subscription import IDLE_EXPIRES_SECONDS

# How many sequences are given back before the server is asked whether that was all, and how many times more
# the next time.
FIRST_PART = 2048
PART_GROWTH = 16
_log = structlog.get_logger("understudy.ownership")


class SoleOwner:
    """What a cell does when it becomes the owner, or is it no more.

    Args:
        client: a connection.
        file: the cell's, whose header says under which pin it works.
        mailbox: what is held.
        settlement: writes the acks and naks.
        forget: has the lanes forget what they haven't begun; returns what they have.
        changed: called when `other` has changed.
        candidate_died_at: when a cell before this one died as a candidate, in seconds of CLOCK_BOOTTIME; 0 if
            none did.

    Attributes:
        other: the pin id of the cell that is active; empty if that is this one, or none.
    """

    def __init__(
        self,
        *,
        client: Connection,
        file: CellFile,
        mailbox: Mailbox,
        settlement: Settlement,
        forget: Callable[[], set[HeldDelivery]],
        changed: Callable[[], None],
        candidate_died_at: float,
    ) -> None:
        self._client = client
        self._file = file
        self._stream = file.identity.stream
        self._durable = file.identity.durable
        self._mailbox = mailbox
        self._settlement = settlement
        self._forget = forget
        self._changed = changed
        self._candidate_died_at = candidate_died_at
        self.other = ""

    def owned(self, pin_id: str) -> None:
        """Hear that the consumer is ours from now on."""
        if self._file.identity.pin_id != pin_id:
            self._file.bind(msgspec.structs.replace(self._file.identity, pin_id=pin_id))
            _log.info("owner", durable=self._durable)
        self._set_other("")

    def standing_by(self, other: str) -> None:
        """Hear that another has it, by its pin id, or nobody."""
        self._set_other(other)

    def was_born(self, seconds_ago: float) -> bool:
        """Return whether a pin of that age went to a request of a cell before this one, which is dead.

        If it went to a living cell at the same moment, unpinning it costs one more handover and no order.
        """
        after_death = boottime() - seconds_ago - self._candidate_died_at
        # The heartbeat by which the death is dated may be a little older, and its last request lived on.
        latest = IDLE_HEARTBEAT_SECONDS + IDLE_EXPIRES_SECONDS + HEARTBEAT_SECONDS
        return -HEARTBEAT_SECONDS <= after_death <= latest

    async def lost(self, *, give_back: bool) -> None:
        """Drop what isn't being handled, since it isn't ours any more.

        Nor is what is being handled, if another has it: should it fail, it isn't tried again here. That one
        may have settled it long ago, and then no state remembers that it was applied.

        Args:
            give_back: whether nobody else has given it back.
        """
        if self._file.identity.pin_id:
            self._file.bind(msgspec.structs.replace(self._file.identity, pin_id=""))
            _log.warning("no longer the owner", durable=self._durable)
        running = self._forget()
        if not give_back:
            for delivery in running:
                self._mailbox.lose(delivery)
        dropped = sorted(set(self._mailbox) - running, key=lambda delivery: delivery.sequence)
        if give_back and not await self._settlement.nak_in_order([delivery.reply for delivery in dropped]):
            _log.warning("deliveries not given back", deliveries=len(dropped))
        for delivery in dropped:
            self._mailbox.release(delivery)
        self._file.status.counts.count("given_back", len(dropped))

    async def give_back(self) -> None:
        """Give back all that is pending and not held, so that it pins someone.

        Raises:
            BrokerError: the server didn't confirm it.
        """
        info = await self._info()
        for sequences in _from_both_ends(*_unsettled(info)):
            await self._nak(sequences, info["delivered"]["consumer_seq"], ())

    async def recover(self, in_hand: Collection[int], fetch: Callable[[int], Awaitable[None]]) -> int:
        """Give back all that is pending and neither held nor in hand, and fetch it; ack again what is done.

        Args:
            in_hand: the stream sequences of deliveries that are here and not in the mailbox yet.
            fetch: asks for so many deliveries, and returns when they are in hand, or don't come.

        Returns:
            How many didn't come.

        Raises:
            BrokerError: the server didn't confirm it.
        """
        missing = await self._recover_once(in_hand, fetch)
        if missing > 0:
            # What a connection that is gone had asked for was later in the server, and lives a little longer
            # there: some may have been sent to nobody.
            missing = await self._recover_once(in_hand, fetch)
        return missing

    async def _recover_once(self, in_hand: Collection[int], fetch: Callable[[int], Awaitable[None]]) -> int:
        info = await self._info()
        first, last = _unsettled(info)
        last_delivered = info["delivered"]["consumer_seq"]
        done = [sequence for sequence in self._file.ledger.done_sequences() if first <= sequence <= last]
        for sequence in done:
            self._settlement.ack(self._reply_to(sequence, last_delivered))
        if done:
            # Else they might still count as pending when there is nothing to be given back.
            await self._settlement.ack_confirmed(self._reply_to(done[-1], last_delivered))
        missing = 0
        for sequences in _from_both_ends(first, last):
            await self._nak(sequences, last_delivered, {*done, *in_hand})
            missing = await self._missing(in_hand)
            if missing > 0:
                await fetch(missing)
                missing = await self._missing(in_hand)
            if missing <= 0:
                return 0
        if info.get("paused"):
            raise BrokerError("the consumer is paused")
        return missing

    async def _missing(self, in_hand: Collection[int]) -> int:
        """Return how many deliveries are pending and not here, but for those that there is no slot for."""
        # What was handled meanwhile isn't missing.
        await self._settlement.flush()
        info = await self._info()
        last: int = info["delivered"]["stream_seq"]
        # Here is more than is pending: what waits for the confirmation of its ack, and what a broker that was
        # killed doesn't know to have delivered. Counted as pending it would hide what is missing.
        settled = set(self._file.ledger.done_sequences())
        held = {*in_hand, *(delivery.sequence for delivery in self._mailbox if not delivery.is_lost)}
        here = sum(sequence <= last and sequence not in settled for sequence in held)
        return min(int(info["num_ack_pending"]), 2 * self._mailbox.bound) - here

    async def _nak(self, sequences: Iterable[int], last_delivered: int, here: Container[int]) -> None:
        # Which of them are pending only the server knows; it ignores a nak of what is acked.
        lost = (
            self._reply_to(sequence, last_delivered)
            for sequence in sequences
            if sequence not in here and not self._has(sequence)
        )
        if not await self._settlement.nak_in_order(lost):
            raise BrokerError("lost deliveries could not be recovered")

    def _has(self, sequence: int) -> bool:
        """Return whether a delivery is held; of one that was another's meanwhile only the server knows."""
        held = self._mailbox.get(sequence)
        return held is not None and not held.is_lost

    def _reply_to(self, sequence: int, last_delivered: int) -> bytes:
        return ack_subject(
            self._stream,
            self._durable,
            delivery_count=1,
            sequence=sequence,
            consumer_sequence=last_delivered,
        )

    def _set_other(self, other: str) -> None:
        if other != self.other:
            self.other = other
            self._changed()

    async def _info(self) -> dict[str, Any]:
        info = await api.consumer_info(self._client, self._stream, self._durable)
        if info is None:
            raise BrokerError(f"consumer {self._durable} is gone")
        return info


def _unsettled(info: dict[str, Any]) -> tuple[int, int]:
    """Return the stream sequences between which a consumer's pending deliveries are."""
    return info["ack_floor"]["stream_seq"] + 1, info["delivered"]["stream_seq"]


def _from_both_ends(first: int, last: int) -> Iterator[Iterable[int]]:
    """Yield all sequences, a part at a time, those first that are most likely pending.

    What is lost are the newest. But one event that is tried again in place for an hour holds up the ack
    floor, with millions above it that are acked; the oldest is that one.
    """
    oldest = range(first, min(first + FIRST_PART, last + 1))
    size, end = FIRST_PART, last + 1
    begin = max(oldest.stop, end - size)
    yield itertools.chain(oldest, range(begin, end))
    while begin > oldest.stop:
        size *= PART_GROWTH
        begin, end = max(oldest.stop, begin - size), begin
        yield range(begin, end)
