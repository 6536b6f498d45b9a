"""A line: deliveries of one key that are handled one after the other and settled together."""

from __future__ import annotations

from collections.abc import Callable

from understudy.runtime.cell.delivery import HeldDelivery


class Line:
    """What one lane handles of a key before it waits for anything.

    Args:
        first: the delivery that it begins with.
        follow: takes the one that waits behind it, if it may go along.
        left: called once, when no handler of the line runs any more.

    Attributes:
        members: all that it has, in stream order.
    """

    __slots__ = ("_follow", "_is_left", "_left", "members")

    def __init__(
        self,
        first: HeldDelivery,
        follow: Callable[[HeldDelivery], HeldDelivery | None],
        left: Callable[[], None],
    ) -> None:
        self.members = [first]
        self._follow = follow
        self._left = left
        self._is_left = False

    def next(self) -> HeldDelivery | None:
        """Return the delivery of the key that comes next, from now on a member; None if none may go along."""
        delivery = self._follow(self.members[0])
        if delivery is not None:
            self.members.append(delivery)
        return delivery

    def leave(self) -> None:
        """Let another delivery's handler begin, while this line waits for its commit."""
        if not self._is_left:
            self._is_left = True
            self._left()
