"""The set of applied stream sequences that goes with a state, kept small.

A delivery is skipped only if it is in this set. What the server can't deliver again may be taken out of it;
the rest is stored as runs, mostly two bytes each, in blocks that can be dropped as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

# A block's first sequence; of each run, the gap since the end of the last one, and how many follow its first.
Stored: TypeAlias = tuple[int, list[int]]

# The epoch of what another cell has stored: nobody here knows whether it was acked.
UNKNOWN = -1
_UNSETTLED = 1 << 62
# Of a block: its first sequence and lengths; of a sequence in it: the numbers of its run. Most take two.
_BLOCK_BYTES = 16
_MOST_BYTES = 18


class Block:
    """Some applied sequences, ascending.

    Attributes:
        sequences: all of them.
        since, until: the epochs in which they were settled, see `Epochs`.
    """

    __slots__ = ("_runs", "sequences", "since", "until")

    def __init__(self, sequence: int) -> None:
        self.sequences = [sequence]
        self._runs = [0, 0]
        self.since = self.until = _UNSETTLED

    @classmethod
    def of(cls, stored: Stored) -> Block:
        """Return what another cell has stored."""
        sequence, runs = stored
        block = cls(sequence)
        block._runs = runs
        block.since = block.until = UNKNOWN
        block.sequences.clear()
        for gap, length in zip(runs[::2], runs[1::2], strict=True):
            sequence += gap
            block.sequences += range(sequence, sequence + length + 1)
            sequence += length
        return block

    def add(self, sequence: int) -> None:
        """Take in one that is above all others."""
        gap = sequence - self.sequences[-1]
        if gap == 1:
            self._runs[-1] += 1
        else:
            self._runs += (gap, 0)
        self.sequences.append(sequence)

    def encode(self) -> Stored:
        """Return them as they are stored; it changes with them."""
        return self.sequences[0], self._runs


class Applied:
    """Which stream sequences a state holds.

    Args:
        stored: as `encode` returned it.
    """

    __slots__ = ("_blocks", "_members", "_open")

    def __init__(self, stored: Sequence[Stored] = ()) -> None:
        self._blocks = [Block.of(one) for one in stored]
        self._members = {sequence for block in self._blocks for sequence in block.sequences}
        # The newest block, if what comes may be added to it.
        self._open: Block | None = None

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
        if block is None or sequence <= block.sequences[-1]:
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
                self._members.difference_update(block.sequences)
            else:
                kept.append(block)
        self._blocks = kept

    @property
    def most_bytes(self) -> int:
        """More bytes than they take as they are stored."""
        return (_MOST_BYTES + _BLOCK_BYTES) * len(self._members)

    def encode(self) -> list[Stored]:
        """Return them as they are stored; it changes with them."""
        return [block.encode() for block in self._blocks]
