"""In which order a round measures its contenders, so that nobody has the best place or the best neighbour.

A run may leave something behind for the next one: a warm cache, or a machine that has slowed down. So each
contender has to follow each other one equally often. The rows of E. J. Williams' squares (1949) have that
property; each is gone through there and back.
"""

from __future__ import annotations


def rounds_to_even_out(contenders: int) -> int:
    """Return after how many rounds each has followed each other one equally often, and had each place.

    Args:
        contenders: how many there are; at least 1.
    """
    return contenders * 2 if contenders % 2 else contenders


def order_of(index: int, contenders: int) -> list[int]:
    """Return which contender comes when in one round.

    The first round is 0, 1, 2 and so on, and the second the way back; two contenders go 0 1, 1 0, 0 1.
    Between two rounds, which can't be evened out as well, one follows itself, or follows another once more.

    Args:
        index: which round, counted from 0.
        contenders: how many there are; at least 1.
    """
    # 0, 1, n-1, 2, n-2, …: the steps between neighbours, modulo n, are every number from 1 to n-1 (of an odd
    # n half of them twice, and on the way back the other half). So its shifts have every pair equally often.
    zigzag = [-(place // 2) % contenders if place % 2 == 0 else place // 2 + 1 for place in range(contenders)]
    shift = index // 2 % (rounds_to_even_out(contenders) // 2)
    # By the place in the zigzag itself, so that the first round has the order in which they are listed.
    order = [zigzag.index((number + shift) % contenders) for number in zigzag]
    return order[::-1] if index % 2 else order
