"""Takeover: a replacement goes on with what a dead cell held, without giving it back to the server.

What is `done` is acked again, in case the ack died in a socket buffer. The rest is extended at once, entered
into the new ledger, read back from the stream by sequence, and handled in stream order. What a cell was
handling when it died of itself is suspect: counted, handled alone, and dead-lettered after `max_crashes`. It
is a suspect to every later replacement too: another of them may have killed the one before.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import aclosing
from pathlib import Path

import msgspec
import structlog

from understudy.actors.errors import BrokerError
from understudy.runtime.cell.cellfile import CellFileError, DeadCellFile, Identity
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.ledger import Entry, Ledger, SlotState
from understudy.runtime.cell.mailbox import Mailbox
from understudy.runtime.cell.status import Status, boottime
from understudy.runtime.jetstream.connection import Connection, confirm
from understudy.runtime.jetstream.direct import IN_FLIGHT_BYTES, read_message, read_messages
from understudy.runtime.jetstream.settlement import Settlement, ack_subject
from understudy.runtime.stores.attempts import Attempts, AttemptStore

_log = structlog.get_logger("understudy.takeover")
# Of what was being handled, so many sequences are told.
MAX_NAMED = 20


class TakenOver(msgspec.Struct, frozen=True):
    """What a takeover brought.

    Args:
        held: what is to be handled, in stream order.
        suspects: what of it was being handled when the cell died, or when an earlier one did; their crashes
            are counted.
        pin_id: under which a sole owner goes on, empty if it isn't the owner.
        candidate_died_at: when a cell died that might have become the owner, in seconds of CLOCK_BOOTTIME; 0
            if none did.
    """

    held: list[HeldDelivery]
    suspects: frozenset[HeldDelivery] = frozenset()
    pin_id: str = ""
    candidate_died_at: float = 0.0


class Takeover:
    """Takes over what earlier generations left.

    Args:
        client, settlement, attempts: the data path.
        identity: ours, with the creation times of stream and consumer.
        allow_direct: whether the stream answers direct gets.
        consumer_sequence: the last that the consumer has delivered.
        pinned: of a sole owner's consumer, the pin id of its owner, empty if it has none; None for a consumer
            that many may share.
        mailbox, ledger, status: what the cell holds and says.
        ack_wait_seconds: what is older than this is left to the server, which delivers it again.
    """

    def __init__(
        self,
        *,
        client: Connection,
        settlement: Settlement,
        attempts: AttemptStore,
        identity: Identity,
        allow_direct: bool,
        consumer_sequence: int,
        pinned: str | None,
        mailbox: Mailbox,
        ledger: Ledger,
        status: Status,
        ack_wait_seconds: float,
    ) -> None:
        self._client = client
        self._settlement = settlement
        self._attempts = attempts
        self._identity = identity
        self._allow_direct = allow_direct
        self._consumer_sequence = consumer_sequence
        self._pinned = pinned
        self._mailbox = mailbox
        self._ledger = ledger
        self._status = status
        self._ack_wait_seconds = ack_wait_seconds

    async def run(self, paths: Sequence[Path], *, crashed: bool, reason: str) -> TakenOver:
        """Take over every file whose owner is dead.

        Args:
            paths: cell files of other generations.
            crashed: whether the last owner died of itself, so that what it was handling is suspect.
            reason: how it ended, for the record of suspects.

        Raises:
            BrokerError: the server did not answer; the files are still there.
        """
        files = self._claim(paths)
        claimed: dict[int, HeldDelivery] = {}
        handling: set[int] = set()
        for file in files:
            # A death that no supervisor saw says nothing about what was being handled.
            if crashed and file.identity.run_id == self._identity.run_id:
                handling.update(one.sequence for one in file.entries if one.state is SlotState.HANDLING)
            await self._settle_or_claim(file, claimed, handling, reason)
        # The server must have the extensions before anything that takes time is done.
        await self._settlement.flush()
        await confirm(self._client)
        for file in files:
            file.discard()
        crashes = await self._count_crashes(handling.intersection(claimed), reason)
        held = await self._read_back([claimed[sequence] for sequence in sorted(claimed)]) if claimed else []
        others = [delivery.sequence for delivery in held if delivery.sequence not in crashes]
        recorded = crashes | dict(zip(others, await self._attempts.read_all(others), strict=True))
        for delivery in held:
            delivery.attempts = recorded[delivery.sequence]
        suspects = [delivery for delivery in held if recorded[delivery.sequence].crashes > 0]
        if held:
            # What may have killed its process can be looked up.
            named = [delivery.sequence for delivery in suspects[:MAX_NAMED]]
            _log.info("took over", suspects=named, held=len(held) - len(suspects), reason=reason)
        self._status.count("taken_over", len(held))
        is_owner = any(self._is_owner(file) for file in files)
        return TakenOver(
            held,
            frozenset(suspects),
            pin_id=self._pinned if is_owner and self._pinned else "",
            candidate_died_at=max((file.died_at for file in files if not file.identity.pin_id), default=0.0),
        )

    def _is_owner(self, file: DeadCellFile) -> bool:
        return self._pinned is None or (self._pinned != "" and self._pinned == file.identity.pin_id)

    async def _settle_or_claim(
        self, file: DeadCellFile, claimed: dict[int, HeldDelivery], handling: set[int], reason: str
    ) -> None:
        left: list[int] = []
        too_many: list[int] = []
        for entry in file.entries:
            # However old it is: it was handled.
            if entry.state is SlotState.DONE:
                self._settlement.ack(self._reply(entry))
            elif not self._is_owner(file) or self._is_left_to_server(entry):
                left.append(entry.sequence)
            elif entry.sequence in claimed:
                continue
            elif self._mailbox.free() > 0:
                claimed[entry.sequence] = await self._claim_entry(entry)
            else:
                too_many.append(entry.sequence)
        self._status.counts.count("given_back", len(too_many))
        # What a former owner held is left to the present one, who has it come again, or to the next one.
        await self._count_crashes(handling.intersection(left + too_many), reason)
        # More than one dead cell's worth goes back to the server at once.
        await self._settlement.nak_in_order(
            self._reply_to(sequence, 1) for sequence in (left if self._pinned == "" else too_many)
        )

    def _is_left_to_server(self, entry: Entry) -> bool:
        """Return whether another may have been given the delivery already, unless this is its only owner."""
        return self._pinned is None and boottime() - entry.extended_at >= self._ack_wait_seconds

    async def _count_crashes(self, sequences: Collection[int], reason: str) -> dict[int, Attempts]:
        known = await self._attempts.read_all(sorted(sequences))
        counted = {
            sequence: Attempts(failed=attempts.failed, crashes=attempts.crashes + 1, error=reason)
            for sequence, attempts in zip(sorted(sequences), known, strict=True)
        }
        await self._attempts.write_all(counted)
        return counted

    def _claim(self, paths: Sequence[Path]) -> list[DeadCellFile]:
        files = []
        for path in paths:
            try:
                file = DeadCellFile.claim(path)
            except CellFileError as error:
                # Torn at birth: its cell died before it held anything.
                _log.warning("cell file discarded", file=path.name, error=str(error))
                path.unlink(missing_ok=True)
                continue
            if file is None:
                continue
            if not file.identity.same_consumer(self._identity):
                if file.identity.stream_created:
                    _log.info("cell file discarded: it is of another consumer", file=path.name)
                file.discard()
                continue
            files.append(file)
        return files

    async def _claim_entry(self, entry: Entry) -> HeldDelivery:
        """Hold a delivery, and tell the server so."""
        reply = self._reply(entry)
        now = boottime()
        await self._settlement.in_progress(reply)
        delivery = HeldDelivery(
            stream=self._identity.stream,
            subject="",
            reply=reply,
            body=b"",
            header_block=b"",
            sequence=entry.sequence,
            delivery_count=entry.delivery_count,
            slot=self._ledger.hold(entry.sequence, entry.delivery_count, now),
            extended_at=now,
            stream_created=self._identity.stream_created,
            is_handled=entry.state is SlotState.HANDLED,
        )
        if delivery.is_handled:
            self._ledger.handled(delivery.slot)
        self._mailbox.take_over(delivery)
        return delivery

    async def _read_back(self, deliveries: Sequence[HeldDelivery]) -> list[HeldDelivery]:
        """Give deliveries what their stream has of them; return those that are to be handled, in order."""
        read: list[HeldDelivery] = []
        stored_messages = read_messages(
            self._client,
            self._identity.stream,
            [delivery.sequence for delivery in deliveries],
            allow_direct=self._allow_direct,
            max_bytes=min(IN_FLIGHT_BYTES, self._mailbox.free_bytes()),
        )
        async with aclosing(stored_messages):
            for index, delivery in enumerate(deliveries):
                stored = await anext(stored_messages)
                if stored is None and self._allow_direct:
                    # Any replica may have answered, also one that doesn't have it yet (ADR-31).
                    stored = await read_message(
                        self._client, self._identity.stream, delivery.sequence, allow_direct=False
                    )
                if stored is None:
                    # Deleted or expired meanwhile: there is nothing left to handle.
                    _log.warning("held message is no longer in the stream", sequence=delivery.sequence)
                    self._status.counts.count("expired")
                    self._mailbox.done(delivery)
                    self._settlement.ack(delivery.reply)
                elif read and len(stored.body) > self._mailbox.free_bytes():
                    await self._give_back(deliveries[index:])
                    break
                else:
                    self._mailbox.fill(delivery, stored)
                    read.append(delivery)
        return read

    async def _give_back(self, deliveries: Sequence[HeldDelivery]) -> None:
        """Give back what doesn't fit: the dead cell's mailbox was larger, or there was more than one."""
        _log.info("more than the mailbox may hold: given back", deliveries=len(deliveries))
        if not await self._settlement.nak_in_order([delivery.reply for delivery in deliveries]):
            raise BrokerError("what the mailbox can't hold could not be given back")
        for delivery in deliveries:
            self._mailbox.release(delivery)
        self._status.counts.count("given_back", len(deliveries))

    def _reply(self, entry: Entry) -> bytes:
        return self._reply_to(entry.sequence, entry.delivery_count)

    def _reply_to(self, sequence: int, delivery_count: int) -> bytes:
        return ack_subject(
            self._identity.stream,
            self._identity.durable,
            delivery_count=delivery_count,
            sequence=sequence,
            consumer_sequence=self._consumer_sequence,
        )
