"""Batches: which deliveries one run of a batch handler takes together, and when they are enough."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable, Hashable
from typing import final

from understudy.actors.handlers import HandlerSpec
from understudy.actors.policies import Batch
from understudy.runtime.cell.delivery import HeldDelivery

_sequence = operator.attrgetter("sequence")


@final
class HeldBatch:
    """Deliveries that are handled together.

    Attributes:
        handler: theirs.
        members: at first in the order in which they came, once the batch is closed in stream order.
        keys: theirs; what has none isn't counted.
        is_due: whether they are enough, or have waited long enough.
    """

    __slots__ = ("_timer", "handler", "is_due", "keys", "members")

    def __init__(self, handler: HandlerSpec) -> None:
        self.handler = handler
        self.members: list[HeldDelivery] = []
        self.keys: set[Hashable] = set()
        self.is_due = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def sequence(self) -> int:
        """The first one's place in the stream."""
        return self.members[0].sequence

    @property
    def log_fields(self) -> dict[str, object]:
        """What log entries say of it while it is handled."""
        return {
            "stream": self.members[0].stream,
            "deliveries": len(self.members),
            "first_sequence": self.members[0].sequence,
            "last_sequence": self.members[-1].sequence,
        }

    def add(self, delivery: HeldDelivery) -> None:
        """Take one more in."""
        self.members.append(delivery)
        if delivery.key is not None:
            self.keys.add(delivery.key)

    def due_in(self, seconds: float, due: Callable[[HeldBatch], None]) -> None:
        """Have `due` called after some seconds, unless the timer is cancelled."""
        self._timer = asyncio.get_running_loop().call_later(seconds, due, self)

    def cancel_timer(self) -> None:
        """Wait no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Batches:
    """Collects ready deliveries by handler, until they are enough or the first has waited long enough.

    A batch that is due for its age takes more until a lane is free for it.

    Args:
        due: called once with each batch that is to be handled.
        is_alone: whether a delivery of which something is recorded is to be handled by itself, although its
            handler takes several.
    """

    def __init__(self, due: Callable[[HeldBatch], None], is_alone: Callable[[HeldDelivery], bool]) -> None:
        self._due = due
        self._is_alone = is_alone
        # By the handler's name.
        self._open: dict[str, HeldBatch] = {}
        self._hurried = 0

    def collect(self, delivery: HeldDelivery) -> bool:
        """Have a delivery handled in a batch, if its handler takes any and it can be read.

        Args:
            delivery: the first one of its key, which nothing else is that waits in a batch or runs.

        Returns:
            Whether it is.
        """
        handler = delivery.handler
        if handler is None or handler.batch is None or delivery.decode_error is not None:
            return False
        # Nothing is recorded of most, and a call costs something.
        if delivery.attempts is not None and self._is_alone(delivery):
            alone = HeldBatch(handler)
            alone.add(delivery)
            self._make_due(alone)
            return True
        batch = self._open.get(handler.method)
        if batch is None:
            batch = self._begin(handler, handler.batch)
        batch.add(delivery)
        if len(batch.members) >= handler.batch.size:
            self._fill(batch)
        return True

    def join(self, delivery: HeldDelivery) -> bool:
        """Put a delivery behind the others of its key that wait in an open batch of its handler, if they do.

        Returns:
            Whether it has joined them.
        """
        handler = delivery.handler
        if handler is None or handler.batch is None or delivery.decode_error is not None:
            return False
        batch = self._open.get(handler.method)
        if batch is None or delivery.key not in batch.keys:
            return False
        if delivery.attempts is not None and self._is_alone(delivery):
            return False
        batch.add(delivery)
        if len(batch.members) >= handler.batch.size:
            self._fill(batch)
        return True

    def close(self, batch: HeldBatch) -> None:
        """Let nobody join a batch any more: its handler is to run."""
        self._shut(batch)
        batch.members.sort(key=_sequence)

    def hurry(self) -> None:
        """Have all be due now."""
        for batch in self._open.values():
            self._make_due(batch)

    def begin_hurry(self) -> None:
        """Have all be due at once, until as many `end_hurry` have followed."""
        self._hurried += 1
        self.hurry()

    def end_hurry(self) -> None:
        """Wait for more again."""
        self._hurried -= 1

    def clear(self) -> None:
        """Forget every batch that is not closed."""
        for batch in self._open.values():
            batch.cancel_timer()
        self._open.clear()

    def _begin(self, handler: HandlerSpec, policy: Batch) -> HeldBatch:
        batch = self._open[handler.method] = HeldBatch(handler)
        if policy.timeout_seconds > 0 and not self._hurried:
            batch.due_in(policy.timeout_seconds, self._make_due)
        else:
            self._make_due(batch)
        return batch

    def _fill(self, batch: HeldBatch) -> None:
        self._shut(batch)
        self._make_due(batch)

    def _shut(self, batch: HeldBatch) -> None:
        if self._open.get(batch.handler.method) is batch:
            del self._open[batch.handler.method]
            batch.cancel_timer()

    def _make_due(self, batch: HeldBatch) -> None:
        if not batch.is_due:
            batch.is_due = True
            self._due(batch)
