"""The ledger of a cell file: a slot per held delivery, from which a replacement goes on."""

from __future__ import annotations

import enum
import mmap
import struct
from collections import deque

import msgspec

from understudy.runtime.cell.status import STATUS_LENGTH, STATUS_OFFSET

LEDGER_OFFSET = STATUS_OFFSET + STATUS_LENGTH
SLOT_SIZE = 24
_SLOT_FIELDS = struct.Struct("<QdI")
# The state byte is written last: a death in between leaves a free slot or a complete entry.
_SLOT = struct.Struct("<QdI3xB")
_STATE_BYTE = SLOT_SIZE - 1


class SlotState(enum.IntEnum):
    """What became of a delivery, as its ledger slot says."""

    FREE = 0
    HELD = 1
    HANDLING = 2
    DONE = 3
    HANDLED = 4


# Plain integers: an enum's member costs a look-up, three times per delivery.
_FREE, _HELD, _HANDLING, _DONE, _HANDLED = map(int, SlotState)


class Entry(msgspec.Struct, frozen=True):
    """One delivery that a dead cell's ledger holds.

    Args:
        sequence: the stream sequence.
        delivery_count: how often the server had delivered it.
        extended_at: when it was received or last extended, in seconds of CLOCK_BOOTTIME.
        state: held, handling, handled or done.
    """

    sequence: int
    delivery_count: int
    extended_at: float
    state: SlotState


class Ledger:
    """The writable ledger: which deliveries this cell holds, and what became of each.

    A slot that is `done` stays so until it is needed again, so that a replacement can repeat an ack that
    was written but may have died in a socket buffer; the server ignores an ack that it has seen.
    """

    def __init__(self, buffer: mmap.mmap, slot_count: int) -> None:
        self._buffer = buffer
        self._slots = range(LEDGER_OFFSET, LEDGER_OFFSET + SLOT_SIZE * slot_count, SLOT_SIZE)
        self._free = deque(self._slots)

    def hold(self, sequence: int, delivery_count: int, now: float) -> int:
        """Enter a delivery and return its slot.

        Args:
            sequence: the stream sequence.
            delivery_count: the server's count.
            now: seconds of CLOCK_BOOTTIME.

        Raises:
            IndexError: every slot is taken; there are twice as many as the mailbox holds.
        """
        slot = self._free.popleft()
        self._buffer[slot + _STATE_BYTE] = _FREE
        _SLOT.pack_into(self._buffer, slot, sequence, now, delivery_count, _HELD)
        return slot

    def held(self, slot: int) -> None:
        """Note that the delivery waits (again)."""
        self._buffer[slot + _STATE_BYTE] = _HELD

    def handling(self, slot: int) -> None:
        """Note that the handler runs; who dies now makes this delivery a suspect."""
        self._buffer[slot + _STATE_BYTE] = _HANDLING

    def handled(self, slot: int) -> None:
        """Note that the delivery is handled, and needs its mark as such and its ack."""
        self._buffer[slot + _STATE_BYTE] = _HANDLED

    def done(self, slot: int) -> None:
        """Note that the delivery needs nothing more than its ack, and let the slot be used again."""
        self._buffer[slot + _STATE_BYTE] = _DONE
        self._free.append(slot)

    def acking(self, slot: int) -> None:
        """Note that the delivery needs nothing more than its ack, which is on its way and to be confirmed."""
        self._buffer[slot + _STATE_BYTE] = _DONE

    def release(self, slot: int) -> None:
        """Forget a delivery that was given back to the server."""
        self._buffer[slot + _STATE_BYTE] = _FREE
        self._free.append(slot)

    def done_sequences(self) -> list[int]:
        """Return the stream sequences of the slots that are done, or acking, and not used again yet."""
        return [
            _SLOT_FIELDS.unpack_from(self._buffer, slot)[0]
            for slot in self._slots
            if self._buffer[slot + _STATE_BYTE] == _DONE
        ]

    def extend(self, slot: int, now: float) -> None:
        """Note that the delivery's `ack_wait` began anew.

        Args:
            slot: as `hold` returned it.
            now: seconds of CLOCK_BOOTTIME.
        """
        struct.pack_into("<d", self._buffer, slot + 8, now)


def read_entries(data: bytes, offset: int, slot_count: int) -> list[Entry]:
    """Return what a ledger holds, by ascending stream sequence.

    Args:
        data: a whole cell file.
        offset: where its ledger begins.
        slot_count: how many slots it has.
    """
    entries = []
    for slot in range(offset, offset + slot_count * SLOT_SIZE, SLOT_SIZE):
        state = data[slot + _STATE_BYTE]
        if state in (SlotState.HELD, SlotState.HANDLING, SlotState.HANDLED, SlotState.DONE):
            sequence, extended_at, delivery_count = _SLOT_FIELDS.unpack_from(data, slot)
            entries.append(Entry(sequence, delivery_count, extended_at, SlotState(state)))
    entries.sort(key=lambda entry: entry.sequence)
    return entries
