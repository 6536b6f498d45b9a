"""The cell file: what a cell leaves behind when its process dies.

One file on tmpfs per generation of a cell, mapped into memory by its owner::

    page 0      header: magic, version, where the other parts are, and the identity as MessagePack
    pages 1, 2  status area: heartbeat, state, gauges, counters, and a reason as text
    page 3 …    ledger: one slot of 24 bytes per held delivery

The owner holds a POSIX record lock on the file for life. The status area may be read by anyone at any
time; the ledger only by who got the lock, which proves that the owner is dead. (An flock would be
inherited by a process that a handler forks, and would outlive the cell.)
"""

from __future__ import annotations

import enum
import fcntl
import mmap
import os
import struct
import time
from collections import deque
from pathlib import Path
from typing import Self

import msgspec

from understudy.actors.errors import UnderstudyError

MAGIC = b"USTDYCEL"
VERSION = 1
PAGE = 4096
STATUS_OFFSET = PAGE
STATUS_LENGTH = 2 * PAGE
LEDGER_OFFSET = STATUS_OFFSET + STATUS_LENGTH
REASON_OFFSET = STATUS_OFFSET + PAGE
IDENTITY_OFFSET = 64

_HEADER = struct.Struct("<8sHHIIIIII")
_SLOT_FIELDS = struct.Struct("<QdI")
SLOT_SIZE = 24
_STATE_BYTE = SLOT_SIZE - 1
_FLOCK = struct.Struct("@hhqqi4x")


class CellFileError(UnderstudyError):
    """A cell file can't be read: it is torn, foreign, or of another version."""


class CellState(enum.IntEnum):
    """What a cell is doing, as its status area says."""

    STARTING = 1
    UP = 2
    PAUSED = 3
    DRAINING = 4
    STOPPED = 5
    FAILED = 6


class SlotState(enum.IntEnum):
    """What became of a delivery, as its ledger slot says."""

    FREE = 0
    HELD = 1
    HANDLING = 2
    DONE = 3


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Whose cell file this is; a ledger counts only for the very same consumer on the same boot.

    Args:
        app, actor, cell: names.
        durable, stream: the consumer and its stream.
        stream_created, consumer_created: when the server made them, as it says (RFC 3339); empty until known.
        pin_id: the priority group's pin, empty for a shared durable.
        boot_id: the kernel's id of this boot; times in the file mean nothing after another.
        run_id: which run wrote the file.
        generation: which start of the cell.
    """

    app: str
    actor: str
    cell: str
    durable: str
    stream: str
    stream_created: str = ""
    consumer_created: str = ""
    pin_id: str = ""
    boot_id: str
    run_id: str
    generation: int

    def same_consumer(self, other: Identity) -> bool:
        """Return whether both files speak of the same deliveries."""
        return (
            self.app == other.app
            and self.durable == other.durable
            and self.stream_created == other.stream_created
            and self.consumer_created == other.consumer_created
            and self.boot_id == other.boot_id
        )


class Entry(msgspec.Struct, frozen=True):
    """One delivery that a dead cell's ledger holds.

    Args:
        sequence: the stream sequence.
        delivery_count: how often the server had delivered it.
        extended_at: when it was received or last extended, in seconds of CLOCK_BOOTTIME.
        state: held, handling or done.
    """

    sequence: int
    delivery_count: int
    extended_at: float
    state: SlotState


class CellStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A cell's status area at one moment.

    Args:
        pid: the cell's process.
        state: `starting`, `up`, `paused`, `draining`, `stopped` or `failed`.
        reason: why it is in that state, where there is a reason to give.
        heartbeat: when the data thread last ran, in seconds of CLOCK_BOOTTIME.
        connected: whether the broker connection stands.
        held, capacity: deliveries in the mailbox and its bound.
        counters: totals of this generation.
    """

    pid: int
    state: str
    reason: str
    heartbeat: float
    connected: bool
    held: int
    capacity: int
    counters: dict[str, int]


_GAUGES = ("pid", "state", "connected", "held", "capacity")
COUNTERS = (
    "received",
    "redelivered",
    "handled",
    "acked",
    "failed",
    "retried",
    "dead_lettered",
    "taken_over",
    "published",
    "breaker_openings",
)
# The heartbeat is the first word; gauges and counters follow in order. New ones are only ever appended.
_INDEX = {name: index for index, name in enumerate((*_GAUGES, *COUNTERS), start=1)}
_STATE_NAMES = {int(state): state.name.lower() for state in CellState}


def boottime() -> float:
    """Return seconds since boot, suspended time included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Return the kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Status:
    """The writable status area: plain memory stores, no system call.

    Counters are written by the cell's data thread alone.
    """

    def __init__(self, buffer: mmap.mmap) -> None:
        words = memoryview(buffer)[STATUS_OFFSET:REASON_OFFSET]
        self._words = words.cast("Q")
        self._heartbeat = words[:8].cast("d")
        self._buffer = buffer

    def beat(self) -> None:
        """Say that the data thread runs."""
        self._heartbeat[0] = boottime()

    def count(self, counter: str, by: int = 1) -> None:
        """Add to a counter.

        Args:
            counter: one of `COUNTERS`.
            by: how many, at least 0.
        """
        self._words[_INDEX[counter]] += by

    def gauge(self, name: str, value: int) -> None:
        """Set a gauge.

        Args:
            name: `pid`, `connected`, `held` or `capacity`.
            value: at least 0.
        """
        self._words[_INDEX[name]] = value

    def state(self, state: CellState, reason: str = "") -> None:
        """Say what the cell is doing, and why."""
        # An exception's text may hold lone surrogates, from a file's name for example.
        text = reason.encode(errors="backslashreplace")[: PAGE - 2]
        self._buffer[REASON_OFFSET : REASON_OFFSET + 2 + len(text)] = struct.pack("<H", len(text)) + text
        self._words[_INDEX["state"]] = state


class Ledger:
    """The writable ledger: which deliveries this cell holds, and what became of each.

    A slot that is `done` stays so until it is needed again, so that a replacement can repeat an ack that
    was written but may have died in a socket buffer; the server ignores an ack that it has seen.
    """

    def __init__(self, buffer: mmap.mmap, slot_count: int) -> None:
        self._buffer = buffer
        self._free = deque(LEDGER_OFFSET + SLOT_SIZE * index for index in range(slot_count))

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
        # The state byte goes last: a death in between leaves the old entry or a complete new one.
        self._buffer[slot + _STATE_BYTE] = SlotState.FREE
        _SLOT_FIELDS.pack_into(self._buffer, slot, sequence, now, delivery_count)
        self._buffer[slot + _STATE_BYTE] = SlotState.HELD
        return slot

    def held(self, slot: int) -> None:
        """Note that the delivery waits (again)."""
        self._buffer[slot + _STATE_BYTE] = SlotState.HELD

    def handling(self, slot: int) -> None:
        """Note that the handler runs; who dies now makes this delivery a suspect."""
        self._buffer[slot + _STATE_BYTE] = SlotState.HANDLING

    def done(self, slot: int) -> None:
        """Note that the delivery needs nothing more than its ack, and let the slot be used again."""
        self._buffer[slot + _STATE_BYTE] = SlotState.DONE
        self._free.append(slot)

    def release(self, slot: int) -> None:
        """Forget a delivery that was given back to the server."""
        self._buffer[slot + _STATE_BYTE] = SlotState.FREE
        self._free.append(slot)

    def done_sequences(self) -> list[int]:
        """Return the stream sequences of the slots that are done and not used again yet."""
        return [
            _SLOT_FIELDS.unpack_from(self._buffer, slot)[0]
            for slot in self._free
            if self._buffer[slot + _STATE_BYTE] == SlotState.DONE
        ]

    def extend(self, slot: int, now: float) -> None:
        """Note that the delivery's `ack_wait` began anew.

        Args:
            slot: as `hold` returned it.
            now: seconds of CLOCK_BOOTTIME.
        """
        struct.pack_into("<d", self._buffer, slot + 8, now)


class CellFile:
    """A cell file in the hands of its owner, from creation to the end of the process."""

    def __init__(
        self, path: Path, descriptor: int, buffer: mmap.mmap, slot_count: int, identity: Identity
    ) -> None:
        self.path = path
        self.identity = identity
        self.status = Status(buffer)
        self.ledger = Ledger(buffer, slot_count)
        self._descriptor = descriptor
        self._buffer = buffer
        self._slot_count = slot_count

    @classmethod
    def create(cls, path: Path, identity: Identity, capacity: int) -> Self:
        """Make the file, lock it for life and map it.

        Args:
            path: where; the folder exists and is on tmpfs.
            identity: whose it is; creation times may come later by `bind`.
            capacity: the mailbox's, in messages.

        Raises:
            OSError: the file exists, or can't be written, or its file system is full; then there is no file.
            CellFileError: the identity is too large.
        """
        slot_count = 2 * capacity + 64
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            length = LEDGER_OFFSET + -(-slot_count * SLOT_SIZE // PAGE) * PAGE
            # Real blocks now: a full tmpfs is an error here, not a SIGBUS at some later store.
            os.posix_fallocate(descriptor, 0, length)
            cell_file = cls(path, descriptor, mmap.mmap(descriptor, length), slot_count, identity)
            cell_file.bind(identity)
        except BaseException as error:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            if isinstance(error, OSError):
                error.filename = error.filename or str(path)
            raise
        cell_file.status.gauge("pid", os.getpid())
        cell_file.status.gauge("capacity", capacity)
        cell_file.status.state(CellState.STARTING)
        cell_file.status.beat()
        return cell_file

    def bind(self, identity: Identity) -> None:
        """Write the identity, once more when the server has said when it made stream and consumer."""
        self.identity = identity
        encoded = msgspec.msgpack.encode(identity)
        if IDENTITY_OFFSET + len(encoded) > PAGE:
            raise CellFileError(f"the names of cell {identity.cell!r} do not fit into one page; shorten them")
        self._buffer[IDENTITY_OFFSET : IDENTITY_OFFSET + len(encoded)] = encoded
        _HEADER.pack_into(
            self._buffer,
            0,
            MAGIC,
            VERSION,
            len(encoded),
            STATUS_OFFSET,
            STATUS_LENGTH,
            LEDGER_OFFSET,
            self._slot_count,
            SLOT_SIZE,
            0,
        )

    def remove(self) -> None:
        """Delete the file: nothing is held any more."""
        self.path.unlink(missing_ok=True)


class DeadCellFile:
    """A dead cell's file in the hands of who takes over: locked, so that nobody else does."""

    def __init__(self, path: Path, descriptor: int, identity: Identity, entries: list[Entry]) -> None:
        self.path = path
        self.identity = identity
        self.entries = entries
        self._descriptor = descriptor

    @classmethod
    def claim(cls, path: Path) -> Self | None:
        """Lock the file and read its ledger.

        Returns:
            The file, or None if its owner lives, someone else claimed it, or it is gone.

        Raises:
            CellFileError: it is torn, foreign, or of another version.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        try:
            identity, entries = _parse(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
        except CellFileError:
            os.close(descriptor)
            raise
        return cls(path, descriptor, identity, entries)

    def release(self) -> None:
        """Let go of the file and leave it for who takes over."""
        os.close(self._descriptor)

    def discard(self) -> None:
        """Delete the file and let go of it."""
        self.path.unlink(missing_ok=True)
        self.release()


def _parse(data: bytes) -> tuple[Identity, list[Entry]]:
    if len(data) < LEDGER_OFFSET:
        raise CellFileError(f"a cell file has at least {LEDGER_OFFSET} bytes, this has {len(data)}")
    magic, version, identity_length, _, _, ledger_offset, slot_count, slot_size, _ = _HEADER.unpack_from(
        data, 0
    )
    if magic != MAGIC or version != VERSION or slot_size != SLOT_SIZE:
        raise CellFileError(f"not a cell file of version {VERSION}")
    if len(data) < ledger_offset + slot_count * slot_size:
        raise CellFileError("the ledger is cut short")
    try:
        identity = msgspec.msgpack.decode(
            data[IDENTITY_OFFSET : IDENTITY_OFFSET + identity_length], type=Identity
        )
    except msgspec.MsgspecError as error:
        raise CellFileError(f"the identity can't be read: {error}") from error
    entries = []
    for index in range(slot_count):
        offset = ledger_offset + index * slot_size
        state = data[offset + _STATE_BYTE]
        if state in (SlotState.HELD, SlotState.HANDLING, SlotState.DONE):
            sequence, extended_at, delivery_count = _SLOT_FIELDS.unpack_from(data, offset)
            entries.append(Entry(sequence, delivery_count, extended_at, SlotState(state)))
    entries.sort(key=lambda entry: entry.sequence)
    return identity, entries


def read_status(path: Path) -> CellStatus | None:
    """Return a cell's status area, whether its owner lives or not.

    Returns:
        The status, or None if there is no such file or it isn't complete yet.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LEDGER_OFFSET)
    except FileNotFoundError:
        return None
    if len(data) < LEDGER_OFFSET or not data.startswith(MAGIC):
        return None
    words = memoryview(data)[STATUS_OFFSET:REASON_OFFSET].cast("Q")
    (heartbeat,) = struct.unpack_from("<d", data, STATUS_OFFSET)
    (reason_length,) = struct.unpack_from("<H", data, REASON_OFFSET)
    reason = data[REASON_OFFSET + 2 : REASON_OFFSET + 2 + reason_length].decode(errors="replace")
    return CellStatus(
        pid=words[_INDEX["pid"]],
        state=_STATE_NAMES.get(words[_INDEX["state"]], "starting"),
        reason=reason,
        heartbeat=heartbeat,
        connected=bool(words[_INDEX["connected"]]),
        held=words[_INDEX["held"]],
        capacity=words[_INDEX["capacity"]],
        counters={name: words[_INDEX[name]] for name in COUNTERS},
    )


def is_owner_alive(path: Path) -> bool:
    """Return whether some process holds the file's lock; false if there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        probe = fcntl.fcntl(descriptor, fcntl.F_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        return bool(_FLOCK.unpack(probe)[0] != fcntl.F_UNLCK)
    finally:
        os.close(descriptor)
