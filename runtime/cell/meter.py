"""What becomes of a cell's deliveries and how long that takes, counted as cheaply as may be."""

from __future__ import annotations

import time
from collections.abc import Sequence

from understudy.runtime.cell.counts import BOUNDS, QUICK
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.status import Status
from understudy.runtime.jetstream.changes import NANOSECONDS

# What most handlers don't take, and the first bucket's bound.
QUICK_SECONDS = BOUNDS[0]


class Meter:
    """Counts for one generation.

    A run no longer than `QUICK_SECONDS` is counted where it happens, by a store to `words`; its seconds and
    its delivery wait for `report`. So does the lag of what is acked together: the last one stands for all.

    Args:
        status: where this generation's totals go, and all generations' counts are.

    Attributes:
        words: those of the counts.
        quick_seconds: how long the quick runs took that aren't reported yet.
        last: the last delivery that was handled.
    """

    def __init__(self, status: Status) -> None:
        self._status = status
        self._counts = counts = status.counts
        self.words = counts.words
        self.quick_seconds = 0.0
        self.last: HeldDelivery | None = None
        # How many were handled when that was last reported, and how many of them quickly.
        self._reported = counts.handled()
        self._quick = self.words[QUICK]
        # Of those that were handled since, how many are measured with the last one, but for the quick ones.
        self._together = 0

    @property
    def handled(self) -> int:
        """How many deliveries were handled, by all generations."""
        return self._counts.handled()

    def ran(self, seconds: float) -> None:
        """Count a run of a handler, of which nothing is known yet but how long it took."""
        self._counts.observe("handling", seconds)

    def ran_and_handled(self, delivery: HeldDelivery, seconds: float) -> None:
        """Count a run that has handled a delivery."""
        self._counts.observe("handling", seconds)
        self._counts.count("handled")
        self._observe_lag(delivery, 1)

    def handled_together(self, deliveries: Sequence[HeldDelivery]) -> None:
        """Count deliveries as handled, whose runs are counted."""
        if deliveries:
            self._counts.count("handled", len(deliveries))
            self._together += len(deliveries)
            self.last = deliveries[-1]

    def report(self) -> None:
        """Bring up to date what isn't at each delivery."""
        handled = self._counts.handled()
        if handled == self._reported:
            return
        new, self._reported = handled - self._reported, handled
        self._status.count("handled", new)
        self._status.count("acked", new)
        quick = self.words[QUICK]
        together = self._together + quick - self._quick
        self._together, self._quick = 0, quick
        if self.quick_seconds:
            self._counts.add_seconds("handling", self.quick_seconds)
            self.quick_seconds = 0.0
        if together and self.last is not None:
            self._observe_lag(self.last, together)

    def _observe_lag(self, delivery: HeldDelivery, deliveries: int) -> None:
        self._counts.observe("lag", (time.time_ns() - delivery.timestamp) / NANOSECONDS, deliveries)
