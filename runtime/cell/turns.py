"""Turns: which deliveries may begin, by their keys, and what waits behind them.

Deliveries of one key go one at a time and in stream order. A delivery that is to be tried again in place
keeps its key shut and nothing else. Deliveries whose handler takes batches are collected first; a batch then
goes as one delivery does, and may hold several of one key, which nothing else of that key may pass.
"""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Callable, Hashable

from understudy.runtime.cell.batches import Batches, HeldBatch
from understudy.runtime.cell.blocked import Blocked
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.gates import Gates

# The key of everything in an actor that keeps one order.
ONE_ORDER: Hashable = ()


class Turns(abc.ABC):
    """What is held, and whose turn it is; the part of `Lanes` that knows neither tasks nor time.

    Args:
        is_alone: as of `Batches`; None if no handler takes batches.
        blocked_changed: called when more or fewer deliveries wait for one that is tried again in place, that
            one included.
        gated_changed: called when more or fewer deliveries wait at a gate.
    """

    def __init__(
        self,
        is_alone: Callable[[HeldDelivery], bool] | None,
        blocked_changed: Callable[[int], None],
        gated_changed: Callable[[int], None],
    ) -> None:
        self._blocked = Blocked(blocked_changed)
        self._tried_again = self._blocked.deliveries
        self._batches = None if is_alone is None else Batches(self._due, is_alone)
        self._ready: deque[HeldDelivery | HeldBatch] = deque()
        # By key; None as long as nothing waits behind what is collected, ready or runs.
        self._behind: dict[Hashable, deque[HeldDelivery] | None] = {}
        self._gates = Gates(self._behind, gated_changed)
        self._shut_gates = self._gates.shut
        # Whether a worker that was woken hasn't run yet. It wakes the next one if there is more, so that
        # handlers that never wait don't have all workers come for nothing.
        self._waking = False

    @abc.abstractmethod
    def _wake(self) -> None:
        """Have a worker look at what is ready, unless one is about to."""

    def add(self, delivery: HeldDelivery) -> None:
        """Take a delivery in; deliveries come in stream order."""
        key = delivery.key
        if key is not None:
            if key in self._behind:
                behind = self._behind[key]
                if self._batches is not None and self._joins(self._batches, delivery, behind):
                    return
                if behind is None:
                    behind = self._behind[key] = deque()
                behind.append(delivery)
                if key in self._blocked.keys:
                    self._blocked.waits()
                if key in self._gates.keys:
                    self._gates.waits()
                return
            self._behind[key] = None
        if self._batches is not None and self._batches.collect(delivery):
            return
        self._ready.append(delivery)
        if not self._waking:
            self._wake()

    def hurry(self) -> None:
        """Hear that nothing more comes, so that no batch need wait for it."""
        if self._batches is not None:
            self._batches.begin_hurry()

    def _done(self, delivery: HeldDelivery) -> None:
        """Let the next one of its key go on."""
        if self._tried_again:
            self._unblock(delivery)
        key = delivery.key
        if key is None:
            return
        behind = self._behind[key]
        if behind:
            self._offer(behind.popleft())
        else:
            del self._behind[key]

    def _next(self, key: Hashable) -> None:
        behind = self._behind[key]
        if behind:
            self._offer(behind.popleft())
        else:
            del self._behind[key]

    def _offer(self, delivery: HeldDelivery, *, first: bool = False) -> None:
        """Have a delivery begun whose turn it is; in a batch, those of its key that follow it go with it.

        Args:
            delivery: the first one of its key, if it has one.
            first: whether it comes before all else that is ready.
        """
        if self._batches is None or not self._batches.collect(delivery):
            if first:
                self._ready.appendleft(delivery)
            else:
                self._ready.append(delivery)
            self._wake()
            return
        key = delivery.key
        if key is None:
            return
        behind = self._behind[key]
        while behind and self._joins(self._batches, behind[0], None):
            behind.popleft()
        if key == ONE_ORDER and key in self._blocked.keys:
            self._batches.hurry()

    def _joins(self, batches: Batches, delivery: HeldDelivery, behind: deque[HeldDelivery] | None) -> bool:
        """Put a delivery into the batch that those of its key wait in, if nothing stands between them.

        What is tried again in place has nothing of its key with it, so that the rest is handled once.
        """
        if not behind and delivery.key not in self._blocked.keys and batches.join(delivery):
            return True
        if delivery.key == ONE_ORDER:
            # Nor will anything that comes later.
            batches.hurry()
        return False

    def _put_behind(self, key: Hashable, deliveries: list[HeldDelivery]) -> None:
        """Put deliveries back behind the first one of their key, before those that came later.

        It isn't one that is tried again in place: nothing of its key would have been with it.
        """
        if not deliveries:
            return
        behind = self._behind[key]
        if behind is None:
            behind = self._behind[key] = deque()
        behind.extendleft(reversed(deliveries))

    def _due(self, batch: HeldBatch) -> None:
        self._ready.append(batch)
        self._wake()

    def _block(self, delivery: HeldDelivery) -> None:
        self._blocked.add(delivery, len(self._behind.get(delivery.key) or ()))

    def _unblock(self, delivery: HeldDelivery) -> None:
        self._blocked.discard(delivery, len(self._behind.get(delivery.key) or ()))

    def _keep(self, running: set[HeldDelivery]) -> None:
        """Forget all but what runs."""
        self._ready.clear()
        if self._batches is not None:
            self._batches.clear()
        # The gates know it by this very object.
        self._behind.clear()
        self._behind.update({one.key: None for one in running if one.key is not None})
        self._blocked.keep(running)
        self._gates.clear()
