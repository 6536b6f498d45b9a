"""Blocked keys: what is tried again in place, and how much waits behind it."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from understudy.runtime.cell.delivery import HeldDelivery


class Blocked:
    """Counts what can't go on before a delivery that has failed.

    Args:
        changed: called with the number of those that are tried again and those that wait behind them.

    Attributes:
        deliveries: what is tried again in place, from its first failure to its end; always the same set.
        keys: theirs.
    """

    def __init__(self, changed: Callable[[int], None]) -> None:
        self._changed = changed
        self.deliveries: set[HeldDelivery] = set()
        self.keys: set[Hashable] = set()
        self._behind = 0

    def add(self, delivery: HeldDelivery, behind: int) -> None:
        """Note that a delivery is tried again.

        Args:
            delivery: the first one of its key.
            behind: how many wait behind it.
        """
        if delivery in self.deliveries:
            return
        self.deliveries.add(delivery)
        if delivery.key is not None:
            self.keys.add(delivery.key)
            self._behind += behind
        self._say()

    def discard(self, delivery: HeldDelivery, behind: int) -> None:
        """Note that a delivery is settled, if it was tried again.

        Args:
            delivery: the first one of its key.
            behind: how many wait behind it.
        """
        if delivery not in self.deliveries:
            return
        self.deliveries.discard(delivery)
        if delivery.key is not None:
            self.keys.discard(delivery.key)
            self._behind -= behind
        self._say()

    def waits(self, count: int = 1) -> None:
        """Note that more wait behind a delivery that is tried again."""
        self._behind += count
        self._say()

    def keep(self, deliveries: set[HeldDelivery]) -> None:
        """Forget all but these, and everything that waits."""
        self.deliveries &= deliveries
        self.keys = {delivery.key for delivery in self.deliveries if delivery.key is not None}
        self._behind = 0
        self._say()

    def _say(self) -> None:
        self._changed(len(self.deliveries) + self._behind)
