"""A cell's timers, counted: what its handlers set and cancel, and what comes when one has fired."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from understudy.runtime.cell.counts import Counts
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.jetstream.connection import Connection
from understudy.runtime.jetstream.schedules import Timers
from understudy.runtime.specs import StreamSpec

# How the server ends the headers of what it stores when a schedule is due that fires once (tried on 2.15.1);
# to look at the end alone costs a third of a search.
_BY_SCHEDULE = b"\r\nNats-Schedule-Next: purge\r\n\r\n"


class CountedTimers(Timers):
    """The timers of one actor, counted.

    Args:
        client, streams, durable: as of `Timers`.
        counts: the cell's.
    """

    def __init__(
        self, client: Connection, streams: Sequence[StreamSpec], durable: str, counts: Counts
    ) -> None:
        super().__init__(client, streams, durable)
        self._counts = counts

    def plan(
        self, target: str, delay_seconds: float, timer: str, now: float
    ) -> tuple[str, list[tuple[str, str]]]:
        """Plan a timer, and count it as set; its publishing is all that is left."""
        planned = super().plan(target, delay_seconds, timer, now)
        self._counts.count("timers_set")
        return planned

    async def cancel(self, timer: str) -> bool:
        """Drop a schedule, and count it if there was one."""
        was_set = await super().cancel(timer)
        if was_set:
            self._counts.count("timers_cancelled")
        return was_set

    def counting(
        self, prepare: Callable[[HeldDelivery], None], stream: str
    ) -> Callable[[HeldDelivery], None]:
        """Return what prepares deliveries and counts those that a timer has brought, each once.

        Args:
            prepare: prepares one; returned as it is where no timer can bring any, which then costs nothing.
            stream: the actor's.
        """
        if all(one.name != stream for one in self._streams):
            return prepare
        counts = self._counts

        def counted(delivery: HeldDelivery) -> None:
            if (
                delivery.header_block.endswith(_BY_SCHEDULE)
                # One that comes again has been counted, as has what a dead cell had.
                and delivery.delivery_count == 1
                and not delivery.is_taken_over
            ):
                counts.count("timers_fired")
            prepare(delivery)

        return counted
