"""The set of applied stream sequences that goes with a state, kept small.

A delivery is skipped only if it is in this set. What the server can't deliver again may be taken out of it;
the rest is stored as runs, mostly two bytes each, in blocks that can be dropped as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

# The epoch of what another cell has stored: nobody here knows whether it was acked.
UNKNOWN = -1
_UNSETTLED = 1 << 62
# Of a block: its first sequence and lengths; of a sequence in it: the gap before it and a run's length. Most
# take two.
_OVERHEAD_BYTES = 16
_MOST_BYTES = 11


class Block:
    """Some applied sequences, ascending.

    Attributes:
        first, last: of them.
        since, until: the epochs in which they were settled, see `Epochs`.
    """

    __slots__ = ("_encoded", "_packed", "_run", "_runs_end", "first", "last", "since", "until")

    def __init__(self, sequence: int) -> None:
        self.first = self._run = self.last = sequence
        self.since = self.until = _UNSETTLED
        # Runs that are complete: the gap since the last one's end and the length, as variable-length numbers.
        self._packed = bytearray()
        self._runs_end = sequence
        self._encoded: tuple[int, bytes] | None = None

    def add(self, sequence: int) -> None:
        """Take in one that is above `last`."""
        if sequence != self.last + 1:
            self._close_run(self._packed)
            self._runs_end = self.last
            self._run = sequence
        self.last = sequence
        self._encoded = None

    def encode(self) -> tuple[int, bytes]:
        """Return the first one, and all as bytes."""
        if self._encoded is None:
            packed = bytearray(self._packed)
            self._close_run(packed)
            self._encoded = self.first, bytes(packed)
        return self._encoded

    def __iter__(self) -> Iterator[int]:
        """Go through all of them."""
        return _unpack(*self.encode())

    def _close_run(self, packed: bytearray) -> None:
        _append(packed, self._run - self._runs_end)
        _append(packed, self.last - self._run)


class Applied:
    """Which stream sequences a state holds.

    Args:
        stored: as `encode` returned it.
    """

    __slots__ = ("_blocks", "_members", "_open")

    def __init__(self, stored: Sequence[tuple[int, bytes]] = ()) -> None:
        self._members: set[int] = set()
        self._blocks: list[Block] = []
        # The newest block, if what comes may be added to it.
        self._open: Block | None = None
        for first, packed in stored:
            for sequence in _unpack(first, packed):
                self.add(sequence)
            self._open = None
        for block in self._blocks:
            block.since = block.until = UNKNOWN

    def __contains__(self, sequence: int) -> bool:
        """Return whether it was applied, as far as the server may still deliver it."""
        return sequence in self._members

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._members)

    def add(self, sequence: int) -> None:
        """Take one in."""
        self._members.add(sequence)
        block = self._open
        if block is None or sequence <= block.last:
            self._open = block = Block(sequence)
            self._blocks.append(block)
        else:
            block.add(sequence)

    def settled(self, epoch: int) -> None:
        """Hear that what was added since the last time is settled in this epoch."""
        for block in self._blocks:
            if block.since == _UNSETTLED:
                block.since = block.until = epoch
            elif block is self._open:
                block.until = epoch

    def begin(self, epoch: int) -> None:
        """Hear of the present epoch: what comes from now on isn't added to a block of earlier ones."""
        if self._open is not None and self._open.until < epoch:
            self._open = None

    def drop(self, droppable: Callable[[Block], bool]) -> None:
        """Take out the blocks of which the server can't deliver anything again."""
        kept = []
        for block in self._blocks:
            if block is not self._open and droppable(block):
                self._members.difference_update(block)
            else:
                kept.append(block)
        self._blocks = kept

    @property
    def most_bytes(self) -> int:
        """More bytes than they take as they are stored."""
        return (_MOST_BYTES + _OVERHEAD_BYTES) * len(self._members)

    def count_bytes(self) -> int:
        """Return how many bytes they take as they are stored, or a few more."""
        return sum(_OVERHEAD_BYTES + len(packed) for _, packed in self.encode())

    def encode(self) -> list[tuple[int, bytes]]:
        """Return them as they are stored."""
        return [block.encode() for block in self._blocks]


def _unpack(first: int, packed: bytes) -> Iterator[int]:
    position, last = 0, first
    while position < len(packed):
        gap, position = _read(packed, position)
        length, position = _read(packed, position)
        run = last + gap
        last = run + length
        yield from range(run, last + 1)


def _append(packed: bytearray, number: int) -> None:
    while number > 0x7F:
        packed.append(number & 0x7F | 0x80)
        number >>= 7
    packed.append(number)


def _read(packed: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = packed[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
