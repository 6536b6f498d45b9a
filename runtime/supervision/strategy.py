"""Which children are started again when one has ended."""

from __future__ import annotations

from collections.abc import Sequence


def one_for_one(children: Sequence[str], ended: str) -> tuple[str, ...]:
    """Return the child that ended and no other.

    Args:
        children: the names of all children in start order.
        ended: the name of the child that ended.

    Raises:
        ValueError: `ended` is no child.
    """
    if ended not in children:
        raise ValueError(f"{ended!r} is not a child: {', '.join(children)}")
    return (ended,)
