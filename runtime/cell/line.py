"""A line: deliveries of one key that are handled one after the other and settled together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.outcomes import BatchOutcome


class Line:
    """What one lane handles of a key before it turns to another; the key stays shut until it is settled.

    Args:
        first: the delivery that it begins with.
        follow: takes the one that waits behind it, if it may go along.
        settle: hears what becomes of it.
        fail: hears of an error that nobody expects.

    Attributes:
        members: all that it has, in stream order.
    """

    __slots__ = ("_fail", "_follow", "_settle", "members")

    def __init__(
        self,
        first: HeldDelivery,
        *,
        follow: Callable[[HeldDelivery], HeldDelivery | None],
        settle: Callable[[Line, BatchOutcome], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self.members = [first]
        self._follow = follow
        self._settle = settle
        self._fail = fail

    def next(self) -> HeldDelivery | None:
        """Return the delivery of the key that comes next, from now on a member; None if none may go along."""
        delivery = self._follow(self.members[0])
        if delivery is not None:
            self.members.append(delivery)
        return delivery

    def settle(self, outcome: BatchOutcome) -> None:
        """Say what becomes of each member, or of all alike; once, when the lane may have gone on long ago."""
        self._settle(self, outcome)

    def fail(self, error: BaseException) -> None:
        """Say, in place of `settle`, that this must not have happened: the cell fails with it."""
        self._fail(error)

    def ended(self, task: asyncio.Task[None]) -> None:
        """Hear that a task has ended which had to settle the line; it fails with what nobody expected."""
        if task.cancelled():
            self.fail(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self.fail(error)
