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

import fcntl
import mmap
import os
import struct
from pathlib import Path
from typing import Self

import msgspec

from understudy.actors.errors import UnderstudyError
from understudy.runtime.cell.counts import Counts, counts_path
from understudy.runtime.cell.ledger import LEDGER_OFFSET, SLOT_SIZE, Entry, Ledger, SlotState, read_entries
from understudy.runtime.cell.status import (
    MAGIC,
    PAGE,
    STATUS_LENGTH,
    STATUS_OFFSET,
    CellState,
    Status,
    read_heartbeat,
)

VERSION = 1
IDENTITY_OFFSET = 64
_HEADER = struct.Struct("<8sHHIIIIII")


class CellFileError(UnderstudyError):
    """A cell file can't be read: it is torn, foreign, or of another version."""


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


def boot_id() -> str:
    """Return the kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class CellFile:
    """A cell file in the hands of its owner, from creation to the end of the process."""

    def __init__(
        self,
        path: Path,
        descriptor: int,
        buffer: mmap.mmap,
        slot_count: int,
        identity: Identity,
        counts: Counts,
    ) -> None:
        self.path = path
        self.identity = identity
        self.status = Status(buffer, counts)
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
            counts = Counts.open(counts_path(path.parent, identity.cell))
            buffer = mmap.mmap(descriptor, length)
            # What a handler has forked may come back into the cell's loop, if it isn't ended in time: in the
            # ledger that both have it would mark as done what nobody has handled. Without it, it crashes.
            buffer.madvise(mmap.MADV_DONTFORK)
            cell_file = cls(path, descriptor, buffer, slot_count, identity, counts)
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
        """Write the identity, once more when the server has said when it made stream and consumer.

        Raises:
            CellFileError: its names are too long for the file.
        """
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
    """A dead cell's file in the hands of who takes over: locked, so that nobody else does.

    Attributes:
        path, identity, entries: where it is, whose it was, and what its ledger says.
        died_at: its last heartbeat, in seconds of CLOCK_BOOTTIME.
    """

    def __init__(
        self, path: Path, descriptor: int, identity: Identity, entries: list[Entry], died_at: float
    ) -> None:
        self.path = path
        self.identity = identity
        self.entries = entries
        self.died_at = died_at
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
            data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
            identity, entries = _parse(data)
        except CellFileError:
            os.close(descriptor)
            raise
        return cls(path, descriptor, identity, entries, read_heartbeat(data))

    def holds(self, since: float) -> bool:
        """Return whether there are deliveries in it that are not settled.

        Args:
            since: of those that were received or extended before this, in seconds of CLOCK_BOOTTIME, the
                server has the say again.
        """
        return any(entry.state != SlotState.DONE and entry.extended_at >= since for entry in self.entries)

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
    return identity, read_entries(data, ledger_offset, slot_count)
